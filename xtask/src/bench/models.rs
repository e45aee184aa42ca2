//! Models to merge, made of nothing but a shape and a number: the same bytes on every machine.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Map, Value, json};

/// The weights of a model in its folder.
pub(super) const WEIGHTS: &str = "model.safetensors";
/// Its configuration.
pub(super) const CONFIG: &str = "config.json";

/// The type of the elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dtype {
    F32,
    Bf16,
}

impl Dtype {
    const fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// As safetensors calls it.
    const fn tag(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::Bf16 => "BF16",
        }
    }

    /// As recipes call it.
    pub(super) const fn recipe_name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// As `config.json` calls it.
    pub(super) const fn config_name(self) -> &'static str {
        match self {
            Self::F32 => "float32",
            Self::Bf16 => "bfloat16",
        }
    }
}

/// The shape of a model of the Llama family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Shape {
    pub(super) name: &'static str,
    width: u64,
    num_layers: u64,
    num_heads: u64,
    num_kv_heads: u64,
    ffn: u64,
    vocab: u64,
    /// Whether the output layer is the embedding, which is then stored once.
    tied: bool,
    pub(super) dtype: Dtype,
}

/// For `--quick`.
pub(super) const TINY: Shape = Shape {
    name: "tiny",
    width: 64,
    num_layers: 2,
    num_heads: 4,
    num_kv_heads: 2,
    ffn: 160,
    vocab: 1000,
    tied: true,
    dtype: Dtype::F32,
};

/// For `--quick`, where a larger model is asked for: 16 times [`TINY`].
pub(super) const SMALL: Shape =
    Shape { name: "small", width: 256, num_layers: 4, ffn: 640, vocab: 2000, dtype: Dtype::Bf16, ..TINY };

/// SmolLM2-135M in f32.
pub(super) const M135: Shape = Shape {
    name: "135m",
    width: 576,
    num_layers: 30,
    num_heads: 9,
    num_kv_heads: 3,
    ffn: 1536,
    vocab: 49_152,
    tied: true,
    dtype: Dtype::F32,
};

/// Llama-3.2-1B in bf16.
pub(super) const B1: Shape = Shape {
    name: "1b",
    width: 2048,
    num_layers: 16,
    num_heads: 32,
    num_kv_heads: 8,
    ffn: 8192,
    vocab: 128_256,
    tied: true,
    dtype: Dtype::Bf16,
};

/// Llama-2-7B in bf16.
pub(super) const B7: Shape = Shape {
    name: "7b",
    width: 4096,
    num_layers: 32,
    num_heads: 32,
    num_kv_heads: 32,
    ffn: 11_008,
    vocab: 32_000,
    tied: false,
    dtype: Dtype::Bf16,
};

impl Shape {
    /// Names and shapes as Hugging Face has them.
    fn tensors(&self) -> Vec<(String, Vec<u64>)> {
        let kv = self.width / self.num_heads * self.num_kv_heads;
        let mut tensors = vec![("model.embed_tokens.weight".to_string(), vec![self.vocab, self.width])];
        for layer in 0..self.num_layers {
            let mut add = |name: &str, shape: Vec<u64>| {
                tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
            };
            add("self_attn.q_proj", vec![self.width, self.width]);
            add("self_attn.k_proj", vec![kv, self.width]);
            add("self_attn.v_proj", vec![kv, self.width]);
            add("self_attn.o_proj", vec![self.width, self.width]);
            add("mlp.gate_proj", vec![self.ffn, self.width]);
            add("mlp.up_proj", vec![self.ffn, self.width]);
            add("mlp.down_proj", vec![self.width, self.ffn]);
            add("input_layernorm", vec![self.width]);
            add("post_attention_layernorm", vec![self.width]);
        }
        tensors.push(("model.norm.weight".into(), vec![self.width]));
        if !self.tied {
            tensors.push(("lm_head.weight".into(), vec![self.vocab, self.width]));
        }
        tensors
    }

    /// Elements of all tensors.
    pub(super) fn num_elements(&self) -> u64 {
        self.tensors().iter().map(|(_, shape)| shape.iter().product::<u64>()).sum()
    }

    /// Bytes of all tensors.
    pub(super) fn size_bytes(&self) -> u64 {
        self.num_elements() * self.dtype.size()
    }

    fn config(&self) -> Value {
        json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": self.width, "intermediate_size": self.ffn, "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads, "num_key_value_heads": self.num_kv_heads, "vocab_size": self.vocab,
            "tie_word_embeddings": self.tied, "torch_dtype": self.dtype.config_name(),
            "rms_norm_eps": 1e-5, "rope_theta": 100_000.0, "max_position_embeddings": 2048,
        })
    }

    /// What stands before the data: length and JSON, filled up with spaces so that the data begins at a multiple of 8.
    /// Which model it is stands in it, so that the header tells whether a file is the right one.
    fn header(&self, model: u64) -> Vec<u8> {
        let mut header = Map::new();
        let made = format!("tapestry bench 1, {}, model {model}", self.name);
        header.insert("__metadata__".into(), json!({ "format": "pt", "made": made }));
        let mut start = 0;
        for (name, shape) in self.tensors() {
            let end = start + shape.iter().product::<u64>() * self.dtype.size();
            let entry = json!({ "dtype": self.dtype.tag(), "shape": shape, "data_offsets": [start, end] });
            header.insert(name, entry);
            start = end;
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.append(&mut text);
        bytes
    }
}

/// Makes models 0 to `num` - 1 of a shape under `folder` where they are not there yet, and says where they are.
/// Model 0 is the base; each other one is the base and a change of a tenth of its size.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn make(folder: &Path, shape: &Shape, num: usize) -> Result<Vec<PathBuf>> {
    let paths: Vec<_> = (0..num).map(|model| path(folder, shape, model)).collect();
    for (model, path) in (0..).zip(&paths) {
        make_one(path, shape, model).with_context(|| format!("cannot make {}", path.display()))?;
    }
    Ok(paths)
}

/// Where a model of a shape lies.
pub(super) fn path(folder: &Path, shape: &Shape, model: usize) -> PathBuf {
    folder.join(format!("{}-{model}", shape.name))
}

fn make_one(folder: &Path, shape: &Shape, model: u64) -> Result<()> {
    let (file, header) = (folder.join(WEIGHTS), shape.header(model));
    if is_right(&file, &header, shape.size_bytes()) {
        return Ok(());
    }
    eprintln!("making {} ({:.0} MB)", folder.display(), 1e3 * super::machine::gigabytes(shape.size_bytes()));
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(CONFIG), shape.config().to_string())?;
    let temporary = folder.join("model.safetensors.part");
    let mut out = BufWriter::with_capacity(1 << 20, File::create(&temporary)?);
    out.write_all(&header)?;
    const STEP: u64 = 1 << 18;
    let mut bytes = Vec::new();
    for start in (0..shape.num_elements()).step_by(usize::try_from(STEP)?) {
        bytes.clear();
        let values = (start..(start + STEP).min(shape.num_elements())).map(|index| element(model, index));
        match shape.dtype {
            Dtype::F32 => values.for_each(|value| bytes.extend_from_slice(&value.to_le_bytes())),
            Dtype::Bf16 => values.for_each(|value| bytes.extend_from_slice(&bf16(value).to_le_bytes())),
        }
        out.write_all(&bytes)?;
    }
    out.into_inner()?.sync_all()?;
    Ok(std::fs::rename(temporary, file)?)
}

/// Whether the file is complete (it is renamed into place when it is) and the one that is asked for.
fn is_right(path: &Path, header: &[u8], data_bytes: u64) -> bool {
    let Ok(file) = File::open(path) else { return false };
    let mut found = vec![0; header.len()];
    let size = file.metadata().map_or(0, |metadata| metadata.len());
    size == header.len() as u64 + data_bytes && file.read_exact_at(&mut found, 0).is_ok() && found == header
}

fn element(model: u64, index: u64) -> f32 {
    let base = 0.02 * noise(0, index);
    if model == 0 { base } else { base + 0.002 * noise(model, index) }
}

/// A number of mean 0 and variance 1, close to normal: four pieces of a mixed counter (SplitMix64), summed.
#[expect(clippy::cast_precision_loss, reason = "a sum of four 16-bit numbers is exact in f32")]
fn noise(seed: u64, index: u64) -> f32 {
    let mut z = (seed << 48).wrapping_add(index).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^= z >> 31;
    let sum = (z & 0xffff) + (z >> 16 & 0xffff) + (z >> 32 & 0xffff) + (z >> 48);
    (sum as f32 - 131_070.0) / 37_837.0
}

/// The nearest bf16, ties to even. The value is finite.
const fn bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_have_the_size_of_the_models_they_are_named_for() {
        let check = |shape: Shape, expected| assert_eq!(shape.num_elements(), expected, "{}", shape.name);
        check(M135, 134_515_008);
        check(B1, 1_235_814_400);
        check(B7, 6_738_415_616);
    }

    #[test]
    fn values_are_spread_as_weights_are_and_members_stay_near_the_base() {
        let count = 100_000;
        let moments = |value: &dyn Fn(u64) -> f32| {
            let sums = (0..count).map(value).fold((0.0, 0.0), |(s, q), v| (s + f64::from(v), q + f64::from(v * v)));
            (sums.0 / 1e5, sums.1 / 1e5)
        };
        let (mean, variance) = moments(&|index| noise(3, index));
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
        let (_, change) = moments(&|index| (element(2, index) - element(0, index)) / 0.002);
        assert!((change - 1.0).abs() < 0.02, "{change}");
        assert_ne!(element(1, 7).to_bits(), element(2, 7).to_bits());
    }

    #[test]
    fn bf16_is_the_nearest() {
        let check = |value: f32, expected: u16| assert_eq!(bf16(value), expected, "{value}");
        check(1.0, 0x3f80);
        check(-2.0, 0xc000);
        check(f32::from_bits(0x3f80_8000), 0x3f80);
        check(f32::from_bits(0x3f81_8000), 0x3f82);
        check(f32::from_bits(0x3f80_8001), 0x3f81);
    }

    #[test]
    fn a_model_is_made_once_and_made_again_when_it_is_not_the_right_one() {
        let folder = std::env::temp_dir().join(format!("tapestry-bench-models-{}", std::process::id()));
        let file = folder.join("tiny-1").join(WEIGHTS);
        let make = || std::fs::metadata(make(&folder, &TINY, 2).expect("made")[1].join(WEIGHTS));
        let first = make().expect("there");
        assert_eq!(first.len(), TINY.header(1).len() as u64 + TINY.size_bytes());
        let content = std::fs::read(&file).expect("readable");
        assert_eq!(make().expect("there").modified().expect("known"), first.modified().expect("known"));
        std::fs::write(&file, &content[..content.len() - 1]).expect("writable");
        make().expect("there");
        assert!(std::fs::read(&file).expect("readable") == content, "the same bytes again");
        std::fs::remove_dir_all(folder).expect("removable");
    }
}
