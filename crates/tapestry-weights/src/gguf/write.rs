//! A model in Hugging Face layout as one GGUF file.
//!
//! Source: the format description of the `ggml` project; names and layouts as its converter has them. The same folder gives the same bytes.

use super::names::{gguf_name, interleave_halves, is_interleaved};
use super::pre_tokenizer::PreTokenizer;
use crate::adopt::num_heads;
use crate::{
    DecoderShape, Family, HfDir, RopeScaling, SafetensorsModel, WeightSource as _, WeightsError, expected_tensors,
};
use half::{bf16, f16};
use serde_json::Value as Json;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use tapestry_core::TensorSpec;

/// How matrices are stored; norms and biases are always 32-bit floats.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgufStorage {
    /// 32-bit floats: nothing is lost.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    BF16,
    /// Blocks of 32 signed bytes with a scale. Matrices whose rows cannot be cut into blocks are stored as 16-bit floats.
    Q8_0,
}

const ALIGNMENT: u64 = 32;
const BLOCK: usize = 32;
/// The largest real tokenizers have about 30 MB.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
const F32_CODE: u32 = 0;

impl GgufStorage {
    /// The code of a tensor's type and its bytes.
    fn of(self, shape: &[u64]) -> (u32, u64) {
        let count: u64 = shape.iter().product();
        let is_vector = shape.len() < 2;
        match self {
            _ if is_vector => (F32_CODE, count * 4),
            Self::F32 => (F32_CODE, count * 4),
            Self::BF16 => (30, count * 2),
            Self::Q8_0 if shape[shape.len() - 1].is_multiple_of(BLOCK as u64) => (8, count / BLOCK as u64 * 34),
            Self::F16 | Self::Q8_0 => (1, count * 2),
        }
    }

    /// `general.file_type`.
    const fn file_type(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q8_0 => 7,
            Self::BF16 => 32,
        }
    }
}

/// Values as a type of this code stores them.
fn encode(code: u32, values: &[f32]) -> Vec<u8> {
    match code {
        1 => values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect(),
        8 => values.chunks(BLOCK).flat_map(q8_0).collect(),
        30 => values.iter().flat_map(|x| bf16::from_f32(*x).to_le_bytes()).collect(),
        _ => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// A block of `Q8_0`: the largest value becomes 127.
fn q8_0(block: &[f32]) -> Vec<u8> {
    let largest = block.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let scale = largest / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let mut out = f16::from_f32(scale).to_le_bytes().to_vec();
    #[expect(clippy::cast_possible_truncation, reason = "from -127 to 127")]
    out.extend(block.iter().map(|x| ((x * inverse).round() as i8).cast_unsigned()));
    out
}

/// Writes the model of folder `dir` into the new file `out`, which appears whole or not at all. One tensor is in memory at a time.
///
/// # Errors
/// [`WeightsError`]: the file exists or cannot be written; the folder is not a model's; a family or tokenizer that GGUF has no form for; weights that
/// are not finite.
pub fn export_gguf(
    dir: &Path,
    out: &Path,
    storage: GgufStorage,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(), WeightsError> {
    if out.exists() {
        return Err(WeightsError::Exists { path: out.to_path_buf() });
    }
    let files = HfDir::open(dir)?;
    let weights = SafetensorsModel::open(&files.weights_path)?;
    let metadata = Metadata::of(dir, &files, storage)?;
    let tensors: Vec<(TensorSpec, String)> = expected_tensors(&files.shape)
        .into_iter()
        .map(|spec| {
            let name = gguf_name(&spec.name, files.shape.family);
            name.map(|name| (spec.clone(), name)).ok_or(WeightsError::Missing { name: spec.name })
        })
        .collect::<Result<_, _>>()?;
    let extra = rope_factors(&files.shape);
    let header = header(&metadata, &tensors, extra.as_deref(), storage);
    let mut file = NewFile::create(out)?;
    file.write(&header)?;
    let total = tensors.iter().map(|(spec, _)| storage.of(&spec.shape).1).sum();
    let mut done = 0;
    for (spec, _) in &tensors {
        let index = weights.index_of(&spec.name).ok_or_else(|| WeightsError::Missing { name: spec.name.clone() })?;
        let count = spec.num_elements().unwrap_or(0);
        let mut values = weights.read_f32(index, 0, count)?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(WeightsError::NotFinite { name: spec.name.clone(), index: index as u64 });
        }
        if is_interleaved(&spec.name, files.shape.family) {
            values = interleave_halves(&values, num_heads(&spec.name, &files.shape), files.shape.hidden_size);
        }
        let (code, size) = storage.of(&spec.shape);
        file.write_aligned(&encode(code, &values))?;
        done += size;
        progress(done, total);
    }
    if let Some(factors) = extra {
        file.write_aligned(&encode(F32_CODE, &factors))?;
    }
    file.finish()
}

/// What Llama 3's frequencies are divided by, as GGUF keeps them.
#[expect(clippy::cast_possible_truncation, reason = "stored as 32-bit floats")]
fn rope_factors(shape: &DecoderShape) -> Option<Vec<f32>> {
    if !matches!(shape.rope_scaling, RopeScaling::Llama3 { .. }) {
        return None;
    }
    let (plain, _) = RopeScaling::None.frequencies(shape.rope_theta, shape.head_dim);
    let (stretched, _) = shape.rope_scaling.frequencies(shape.rope_theta, shape.head_dim);
    Some(plain.iter().zip(stretched).map(|(plain, stretched)| (plain / stretched) as f32).collect())
}

/// Everything before the tensors' bytes.
fn header(
    metadata: &Metadata,
    tensors: &[(TensorSpec, String)],
    extra: Option<&[f32]>,
    storage: GgufStorage,
) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64 + u64::from(extra.is_some())).to_le_bytes());
    out.extend(metadata.num_entries.to_le_bytes());
    out.extend(&metadata.bytes);
    let mut offset = 0_u64;
    let mut describe = |name: &str, shape: &[u64], code: u32, size: u64| {
        out.extend(text(name));
        out.extend(u32::try_from(shape.len()).unwrap_or(u32::MAX).to_le_bytes());
        // GGUF lists the innermost dimension first.
        out.extend(shape.iter().rev().flat_map(|n| n.to_le_bytes()));
        out.extend(code.to_le_bytes());
        out.extend(offset.to_le_bytes());
        offset = (offset + size).next_multiple_of(ALIGNMENT);
    };
    for (spec, name) in tensors {
        let (code, size) = storage.of(&spec.shape);
        describe(name, &spec.shape, code, size);
    }
    if let Some(factors) = extra {
        let count = factors.len() as u64;
        describe("rope_freqs.weight", &[count], F32_CODE, count * 4);
    }
    while !(out.len() as u64).is_multiple_of(ALIGNMENT) {
        out.push(0);
    }
    out
}

fn text(text: &str) -> Vec<u8> {
    (text.len() as u64).to_le_bytes().into_iter().chain(text.bytes()).collect()
}

/// Entries of the description, written one after another.
#[derive(Default)]
struct Metadata {
    bytes: Vec<u8>,
    num_entries: u64,
}

impl Metadata {
    fn entry(&mut self, name: &str, kind: u32, value: impl IntoIterator<Item = u8>) {
        self.bytes.extend(text(name));
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.num_entries += 1;
    }

    fn number(&mut self, name: &str, value: usize) {
        self.entry(name, 4, u32::try_from(value).unwrap_or(u32::MAX).to_le_bytes());
    }

    #[expect(clippy::cast_possible_truncation, reason = "stored as 32-bit floats")]
    fn float(&mut self, name: &str, value: f64) {
        self.entry(name, 6, (value as f32).to_le_bytes());
    }

    fn flag(&mut self, name: &str, value: bool) {
        self.entry(name, 7, [u8::from(value)]);
    }

    fn text(&mut self, name: &str, value: &str) {
        self.entry(name, 8, text(value));
    }

    fn list(&mut self, name: &str, kind: u32, count: usize, values: Vec<u8>) {
        let head = kind.to_le_bytes().into_iter().chain((count as u64).to_le_bytes());
        self.entry(name, 9, head.chain(values));
    }

    fn of(dir: &Path, files: &HfDir, storage: GgufStorage) -> Result<Self, WeightsError> {
        let shape = &files.shape;
        let architecture = match shape.family {
            Family::Llama | Family::Mistral => "llama",
            Family::Qwen2 => "qwen2",
            Family::Qwen3 => "qwen3",
            Family::Olmo2 => "olmo2",
            Family::Olmo3 => {
                let what = "GGUF has no settled form for OLMo 3; export the Hugging Face layout".to_owned();
                return Err(WeightsError::Config { path: files.config_path.clone(), what });
            }
        };
        let config = read_json(&files.config_path)?;
        let mut metadata = Self::default();
        metadata.text("general.architecture", architecture);
        let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        metadata.text("general.name", &name);
        metadata.number("general.file_type", usize::try_from(storage.file_type()).unwrap_or(0));
        metadata.number("general.quantization_version", 2);
        metadata.shape(architecture, shape, files)?;
        metadata.tokenizer(dir, files, &config)?;
        Ok(metadata)
    }

    fn shape(&mut self, architecture: &str, shape: &DecoderShape, files: &HfDir) -> Result<(), WeightsError> {
        let key = |name: &str| format!("{architecture}.{name}");
        for (name, value) in [
            ("block_count", shape.num_hidden_layers),
            ("context_length", shape.max_position_embeddings),
            ("embedding_length", shape.hidden_size),
            ("feed_forward_length", shape.intermediate_size),
            ("attention.head_count", shape.num_attention_heads),
            ("attention.head_count_kv", shape.num_key_value_heads),
            ("attention.key_length", shape.head_dim),
            ("attention.value_length", shape.head_dim),
            ("rope.dimension_count", shape.head_dim),
            ("vocab_size", shape.vocab_size),
        ] {
            self.number(&key(name), value);
        }
        self.float(&key("attention.layer_norm_rms_epsilon"), shape.rms_norm_eps);
        self.float(&key("rope.freq_base"), shape.rope_theta);
        let windows = &shape.layer_windows;
        match (shape.family, windows.first().copied().flatten()) {
            (Family::Mistral, Some(window)) => self.number(&key("attention.sliding_window"), window),
            _ if windows.iter().any(Option::is_some) => {
                let what = "GGUF has no form for sliding windows in some layers of this family; export the Hugging Face layout";
                return Err(WeightsError::Config { path: files.config_path.clone(), what: what.to_owned() });
            }
            _ => {}
        }
        match &shape.rope_scaling {
            // Llama 3's are a tensor.
            RopeScaling::None | RopeScaling::Llama3 { .. } => {}
            RopeScaling::Linear { factor } => {
                self.text(&key("rope.scaling.type"), "linear");
                self.float(&key("rope.scaling.factor"), *factor);
            }
            RopeScaling::Yarn {
                factor,
                attention_factor,
                beta_fast,
                beta_slow,
                original_max_position_embeddings,
                ..
            } => {
                self.text(&key("rope.scaling.type"), "yarn");
                self.float(&key("rope.scaling.factor"), *factor);
                self.number(&key("rope.scaling.original_context_length"), *original_max_position_embeddings);
                self.float(&key("rope.scaling.yarn_beta_fast"), *beta_fast);
                self.float(&key("rope.scaling.yarn_beta_slow"), *beta_slow);
                if let Some(attention_factor) = attention_factor {
                    self.float(&key("rope.scaling.attn_factor"), *attention_factor);
                }
            }
        }
        Ok(())
    }

    fn tokenizer(&mut self, dir: &Path, files: &HfDir, config: &Json) -> Result<(), WeightsError> {
        let tokenizer = read_json(&files.tokenizer_path)?;
        let unusable = |what: String| WeightsError::Config { path: files.tokenizer_path.clone(), what };
        let pre = PreTokenizer::of_tokenizer(&tokenizer).ok_or_else(|| {
            let known: Vec<_> = PreTokenizer::ALL.iter().map(|pre| pre.name()).collect();
            unusable(format!(
                "GGUF has a name for the pre-tokenizers {}; this tokenizer cuts texts otherwise",
                known.join(", ")
            ))
        })?;
        let model = &tokenizer["model"];
        let (Some(vocabulary), Some(merges)) = (model["vocab"].as_object(), model["merges"].as_array()) else {
            return Err(unusable("it is not a byte-level BPE tokenizer with a vocabulary and merges".into()));
        };
        // Ids that no token has are padded, as the converter of the `ggml` project does; 5 is its type of unused tokens.
        let mut tokens: Vec<(String, u32)> = (0..files.shape.vocab_size).map(|id| (format!("[PAD{id}]"), 5)).collect();
        let mut place = |token: &str, id: Option<u64>, kind: u32| -> Result<(), WeightsError> {
            let at = id.and_then(|id| usize::try_from(id).ok()).filter(|id| *id < files.shape.vocab_size);
            let at = at.ok_or_else(|| unusable(format!("token {token:?} has an id that the model does not know")))?;
            tokens[at] = (token.to_owned(), kind);
            Ok(())
        };
        for (token, id) in vocabulary {
            place(token, id.as_u64(), 1)?;
        }
        for added in tokenizer["added_tokens"].as_array().into_iter().flatten() {
            let kind = if added["special"] == true { 3 } else { 4 };
            place(added["content"].as_str().unwrap_or_default(), added["id"].as_u64(), kind)?;
        }
        let merges: Vec<String> = merges
            .iter()
            .map(|merge| match (merge.as_str(), merge[0].as_str(), merge[1].as_str()) {
                (Some(merge), ..) => Ok(merge.to_owned()),
                (None, Some(a), Some(b)) => Ok(format!("{a} {b}")),
                _ => Err(unusable(format!("merge {merge} has no two parts"))),
            })
            .collect::<Result<_, _>>()?;
        self.text("tokenizer.ggml.model", "gpt2");
        self.text("tokenizer.ggml.pre", pre.name());
        self.list("tokenizer.ggml.tokens", 8, tokens.len(), tokens.iter().flat_map(|(token, _)| text(token)).collect());
        let kinds = tokens.iter().flat_map(|(_, kind)| kind.to_le_bytes()).collect();
        self.list("tokenizer.ggml.token_type", 5, tokens.len(), kinds);
        self.list("tokenizer.ggml.merges", 8, merges.len(), merges.iter().flat_map(|merge| text(merge)).collect());
        let generation = read_json(&dir.join("generation_config.json")).unwrap_or(Json::Null);
        for (name, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
            let of = |json: &Json| json[name].as_u64().or_else(|| json[name][0].as_u64());
            if let Some(id) = of(config).or_else(|| of(&generation)).and_then(|id| usize::try_from(id).ok()) {
                self.number(&format!("tokenizer.ggml.{key}_token_id"), id);
            }
        }
        let adds_bos = tokenizer["post_processor"]["type"] == "TemplateProcessing";
        self.flag("tokenizer.ggml.add_bos_token", adds_bos);
        let settings = read_json(&dir.join("tokenizer_config.json")).unwrap_or(Json::Null);
        let own_file = fs::read_to_string(dir.join("chat_template.jinja")).ok();
        if let Some(template) = own_file.as_deref().or_else(|| settings["chat_template"].as_str()) {
            self.text("tokenizer.chat_template", template);
        }
        Ok(())
    }
}

fn read_json(path: &Path) -> Result<Json, WeightsError> {
    let size = fs::metadata(path).map_err(WeightsError::io("open", path))?.len();
    let unusable = |what: String| WeightsError::Config { path: path.to_path_buf(), what };
    if size > MAX_TOKENIZER_BYTES {
        return Err(unusable(format!("it has {size} bytes; at most {MAX_TOKENIZER_BYTES} are read")));
    }
    let content = fs::read(path).map_err(WeightsError::io("read", path))?;
    serde_json::from_slice(&content).map_err(|error| unusable(error.to_string()))
}

/// A file that appears when it is whole.
struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    written: u64,
}

impl NewFile {
    fn create(path: &Path) -> Result<Self, WeightsError> {
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(WeightsError::io("make", path))?;
        Ok(Self { path: path.to_path_buf(), temporary, file: Some(BufWriter::new(file)), written: 0 })
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        let file = self.file.as_mut().expect("only finish takes it");
        file.write_all(bytes).map_err(WeightsError::io("write", &self.path))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn write_aligned(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        self.write(bytes)?;
        let gap = self.written.next_multiple_of(ALIGNMENT) - self.written;
        self.write(&vec![0; usize::try_from(gap).unwrap_or(0)])
    }

    fn finish(mut self) -> Result<(), WeightsError> {
        let mut file = self.file.take().expect("only finish takes it");
        let mut end = || -> std::io::Result<()> {
            file.flush()?;
            file.get_ref().sync_all()?;
            fs::rename(&self.temporary, &self.path)
        };
        end().map_err(WeightsError::io("write", &self.path))?;
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(WeightsError::io("sync", parent))
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = fs::remove_file(&self.temporary);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks that the `gguf` package made (`golden/blocks.py`, `quantized`).
    #[test]
    fn q8_0_rounds_as_the_reference() {
        #[derive(serde::Deserialize)]
        struct Golden {
            quantized: Vec<Block>,
        }
        #[derive(serde::Deserialize)]
        struct Block {
            bits: Vec<u32>,
            block: String,
        }
        let golden: Golden = serde_json::from_str(include_str!("golden/blocks.json")).expect("golden values");
        assert!(golden.quantized.len() >= 4);
        for Block { bits, block } in golden.quantized {
            let values: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
            let found: String = encode(8, &values).iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(found, block);
        }
    }
}
