//! From a GGUF file to a model in Hugging Face layout, in 32-bit floats.

mod tokenizer;

use crate::gguf::names::{gguf_name, is_interleaved, separate_halves};
use crate::gguf::{GgufFile, GgufTensor, Value};
use crate::{DecoderShape, Family, RopeScaling, SafetensorsWriter, WeightsError, expected_tensors, f32_to_bytes};
use serde_json::{Value as Json, json};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use tapestry_core::TensorSpec;
use tokenizer::{tokenizer, tokenizer_config};

/// What was adopted.
#[derive(Debug, Clone, PartialEq)]
pub struct AdoptReport {
    /// Number of parameters.
    pub num_parameters: u64,
    /// The model's shape.
    pub shape: DecoderShape,
    /// How many tensors had which element type.
    pub stored_as: std::collections::BTreeMap<String, usize>,
}

/// Writes the model of a GGUF file into the new folder `out_dir`. The folder appears whole or not at all.
///
/// # Errors
/// [`WeightsError`]: the folder exists; the file is damaged; it is not of the Llama family; its tokenizer is of a kind that
/// is not read.
pub fn adopt_gguf(
    gguf: &Path,
    out_dir: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<AdoptReport, WeightsError> {
    if out_dir.exists() {
        return Err(WeightsError::Exists { path: out_dir.to_path_buf() });
    }
    let file = GgufFile::open(gguf)?;
    let shape = shape_of(&file)?;
    let mut name = out_dir.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = TemporaryDir::make(out_dir.with_file_name(name))?;
    let write = |name: &str, content: &Json| write_synced(&temporary.0.join(name), &pretty(content));
    let tokens = file.get_texts("tokenizer.ggml.tokens")?;
    write("config.json", &config(&file, &shape))?;
    write("tokenizer.json", &tokenizer(&file, &tokens)?)?;
    write("tokenizer_config.json", &tokenizer_config(&file, &tokens, shape.max_position_embeddings)?)?;
    write("generation_config.json", &generation_config(&file))?;
    write_synced(&temporary.0.join("README.md"), model_card(&file).as_bytes())?;
    let stored_as = write_weights(&file, &shape, &temporary.0.join("model.safetensors"), progress)?;
    temporary.keep_as(out_dir)?;
    let num_parameters = expected_tensors(&shape).iter().filter_map(TensorSpec::num_elements).sum();
    Ok(AdoptReport { num_parameters, shape, stored_as })
}

/// A folder that is removed unless it is kept.
struct TemporaryDir(PathBuf);

impl TemporaryDir {
    fn make(path: PathBuf) -> Result<Self, WeightsError> {
        // What an earlier process with the same number left behind.
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).map_err(WeightsError::io("make", &path))?;
        Ok(Self(path))
    }

    fn keep_as(self, path: &Path) -> Result<(), WeightsError> {
        fs::rename(&self.0, path).map_err(WeightsError::io("rename to", path))?;
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(parent).and_then(|parent| parent.sync_all()).map_err(WeightsError::io("sync", parent))
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn write_synced(path: &Path, content: &[u8]) -> Result<(), WeightsError> {
    let write = || {
        let mut file = File::create(path)?;
        file.write_all(content)?;
        file.sync_all()
    };
    write().map_err(WeightsError::io("write", path))
}

fn pretty(content: &Json) -> Vec<u8> {
    let mut text = serde_json::to_vec_pretty(content).expect("JSON values always serialise");
    text.push(b'\n');
    text
}

/// The largest difference between factors of frequencies that are taken to be the same.
const SAME_FACTOR: f64 = 1e-4;

fn shape_of(file: &GgufFile) -> Result<DecoderShape, WeightsError> {
    let architecture = file.get_text("general.architecture")?;
    let key = |name: &str| format!("{architecture}.{name}");
    let number = |name: &str| file.get_usize(&key(name));
    let window = number("attention.sliding_window").ok().filter(|window| *window > 0);
    let family = match (architecture, window) {
        ("llama", None) => Family::Llama,
        ("llama", Some(_)) => Family::Mistral,
        ("qwen2", None) => Family::Qwen2,
        ("qwen3", None) => Family::Qwen3,
        ("olmo2", None) => Family::Olmo2,
        (_, Some(_)) => {
            let what = format!(
                "architecture {architecture:?} with a sliding window is not read from GGUF; take the Hugging Face layout"
            );
            return Err(file.malformed(what));
        }
        (other, None) => {
            let known = "\"llama\", \"qwen2\", \"qwen3\" and \"olmo2\"";
            return Err(file.malformed(format!("architecture {other:?} is not supported; {known} are")));
        }
    };
    let heads = number("attention.head_count")?;
    let hidden_size = number("embedding_length")?;
    let has_key_length = file.metadata().contains_key(&key("attention.key_length"));
    let head_dim = if has_key_length { number("attention.key_length")? } else { hidden_size / heads.max(1) };
    let num_hidden_layers = number("block_count")?;
    let rope_theta = file.get_f64(&key("rope.freq_base")).unwrap_or(10_000.0);
    let shape = DecoderShape {
        family,
        hidden_size,
        intermediate_size: number("feed_forward_length")?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: number("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        vocab_size: file.get_texts("tokenizer.ggml.tokens")?.len(),
        rms_norm_eps: round_trip(file.get_f64(&key("attention.layer_norm_rms_epsilon"))?),
        rope_theta,
        rope_scaling: rope_scaling(file, architecture, rope_theta, head_dim)?,
        max_position_embeddings: number("context_length")?,
        tie_word_embeddings: !file.tensors().contains_key("output.weight"),
        layer_windows: vec![window; num_hidden_layers.min(1 << 12)],
    };
    shape.check().map_err(|what| file.malformed(what))?;
    Ok(shape)
}

fn rope_scaling(file: &GgufFile, architecture: &str, theta: f64, head_dim: usize) -> Result<RopeScaling, WeightsError> {
    let key = |name: &str| format!("{architecture}.rope.scaling.{name}");
    let factor = || file.get_f64(&key("factor")).map(round_trip);
    match file.get_text(&key("type")) {
        Ok("linear") => return Ok(RopeScaling::Linear { factor: factor()? }),
        Ok("yarn") => {
            return Ok(RopeScaling::Yarn {
                factor: factor()?,
                attention_factor: file.get_f64(&key("attn_factor")).ok().map(round_trip),
                beta_fast: file.get_f64(&key("yarn_beta_fast")).unwrap_or(32.0),
                beta_slow: file.get_f64(&key("yarn_beta_slow")).unwrap_or(1.0),
                truncate: true,
                original_max_position_embeddings: file.get_usize(&key("original_context_length"))?,
            });
        }
        Ok("none") | Err(_) => {}
        Ok(other) => {
            let what = format!("rope scaling {other:?} is not supported; \"linear\" and \"yarn\" are");
            return Err(file.malformed(what));
        }
    }
    // Llama 3 keeps what its frequencies are divided by as a tensor, and not what they follow from.
    let Some(tensor) = file.tensors().get("rope_freqs.weight") else { return Ok(RopeScaling::None) };
    let found = file.dequantize(tensor)?;
    let (plain, _) = RopeScaling::None.frequencies(theta, head_dim);
    let candidates = [8.0, 32.0, 16.0, 4.0].map(|factor| RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 8192,
    });
    let is_it = |scaling: &RopeScaling| {
        let (stretched, _) = scaling.frequencies(theta, head_dim);
        let expected = plain.iter().zip(stretched).map(|(plain, stretched)| plain / stretched);
        found.len() == plain.len() && expected.zip(&found).all(|(a, b)| (a / f64::from(*b) - 1.0).abs() < SAME_FACTOR)
    };
    let unknown = || {
        file.malformed(
            "its rope_freqs.weight follow no rule that is known (Llama 3.1's, with a factor of 4, 8, 16 or 32)",
        )
    };
    candidates.into_iter().find(is_it).ok_or_else(unknown)
}

/// The shortest decimal that is the same 32-bit float: `1e-5`, not `9.999999747378752e-6`.
fn round_trip(value: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "the value was stored as a 32-bit float")]
    let narrow = value as f32;
    narrow.to_string().parse().unwrap_or(value)
}

pub(crate) fn token_id(file: &GgufFile, name: &str) -> Option<u64> {
    match file.metadata().get(&format!("tokenizer.ggml.{name}_token_id")) {
        Some(Value::Integer(id)) => u64::try_from(*id).ok(),
        _ => None,
    }
}

fn config(file: &GgufFile, shape: &DecoderShape) -> Json {
    let mut config = shape.to_config();
    for (name, token) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        config[name] = json!(token_id(file, token));
    }
    config
}

fn generation_config(file: &GgufFile) -> Json {
    json!({
        "bos_token_id": token_id(file, "bos"),
        "eos_token_id": token_id(file, "eos"),
        "pad_token_id": token_id(file, "padding"),
    })
}

fn model_card(file: &GgufFile) -> String {
    let text = |name: &str| file.get_text(name).unwrap_or("unknown").to_owned();
    let source = file.path().file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let types: std::collections::BTreeSet<_> =
        file.tensors().values().map(|tensor| format!("{:?}", tensor.ggml_type)).collect();
    let types: Vec<_> = types.into_iter().collect();
    format!(
        "---\nlicense: {}\n---\n\n# {}\n\nAdopted by Tapestry from `{source}`, whose tensors are stored as {}. They were \
         widened to 32-bit floats; what quantisation lost stays lost. Fine-tuning named by the file: {}.\n",
        text("general.license"),
        text("general.name"),
        types.join(", "),
        text("general.finetune"),
    )
}

/// Heads of a query or key matrix.
pub(crate) fn num_heads(name: &str, shape: &DecoderShape) -> usize {
    if name.ends_with("q_proj.weight") { shape.num_attention_heads } else { shape.num_key_value_heads }
}

fn write_weights(
    file: &GgufFile,
    shape: &DecoderShape,
    path: &Path,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<std::collections::BTreeMap<String, usize>, WeightsError> {
    let expected = expected_tensors(shape);
    let total = expected.iter().filter_map(TensorSpec::size_bytes).sum();
    let mut stored_as = std::collections::BTreeMap::new();
    let mut done = 0;
    let mut writer = SafetensorsWriter::create(path, expected.clone())?;
    for spec in &expected {
        let tensor = tensor_for(file, spec, shape.family)?;
        *stored_as.entry(format!("{:?}", tensor.ggml_type)).or_default() += 1;
        let mut values = file.dequantize(tensor)?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(WeightsError::NotFinite { name: tensor.name.clone(), index: index as u64 });
        }
        if is_interleaved(&spec.name, shape.family) {
            values = separate_halves(&values, num_heads(&spec.name, shape), shape.hidden_size);
        }
        let bytes = f32_to_bytes(&values);
        writer.write(&bytes)?;
        done += bytes.len() as u64;
        progress(done, total);
    }
    writer.finish()?;
    Ok(stored_as)
}

fn tensor_for<'a>(file: &'a GgufFile, spec: &TensorSpec, family: Family) -> Result<&'a GgufTensor, WeightsError> {
    let name = gguf_name(&spec.name, family).ok_or_else(|| WeightsError::Missing { name: spec.name.clone() })?;
    let tensor = file.tensors().get(&name).ok_or_else(|| file.malformed(format!("tensor {name:?} is missing")))?;
    if tensor.shape != spec.shape {
        return Err(file.malformed(format!("tensor {name:?} has shape {:?}; {:?} is due", tensor.shape, spec.shape)));
    }
    Ok(tensor)
}
