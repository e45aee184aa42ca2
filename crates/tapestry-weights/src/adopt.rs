//! From a GGUF file to a model in Hugging Face layout, in 32-bit floats.

use crate::gguf::{GgufFile, GgufTensor, Value};
use crate::{DecoderShape, Family, RopeScaling, SafetensorsWriter, WeightsError, expected_tensors, f32_to_bytes};
use serde_json::{Value as Json, json};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use tapestry_core::TensorSpec;

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
    write("tokenizer_config.json", &tokenizer_config(&file, &tokens)?)?;
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

fn shape_of(file: &GgufFile) -> Result<DecoderShape, WeightsError> {
    let architecture = file.get_text("general.architecture")?;
    if architecture != "llama" {
        return Err(file.malformed(format!("architecture {architecture:?} is not supported; \"llama\" is")));
    }
    let number = |name: &str| file.get_usize(&format!("llama.{name}"));
    let heads = number("attention.head_count")?;
    let hidden_size = number("embedding_length")?;
    let head_dim = if file.metadata().contains_key("llama.attention.key_length") {
        number("attention.key_length")?
    } else {
        hidden_size / heads.max(1)
    };
    if let Some(Value::Text(scaling)) =
        file.metadata().get("llama.rope.scaling.type").filter(|v| **v != Value::Text("none".into()))
    {
        return Err(file.malformed(format!("rope scaling {scaling:?} is not supported by this version")));
    }
    let num_hidden_layers = number("block_count")?;
    let shape = DecoderShape {
        family: Family::Llama,
        rope_scaling: RopeScaling::None,
        layer_windows: vec![None; num_hidden_layers.min(1 << 12)],
        hidden_size,
        intermediate_size: number("feed_forward_length")?,
        num_hidden_layers,
        num_attention_heads: heads,
        num_key_value_heads: number("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        vocab_size: file.get_texts("tokenizer.ggml.tokens")?.len(),
        rms_norm_eps: round_trip(file.get_f64("llama.attention.layer_norm_rms_epsilon")?),
        rope_theta: file.get_f64("llama.rope.freq_base").unwrap_or(10_000.0),
        max_position_embeddings: number("context_length")?,
        tie_word_embeddings: !file.tensors().contains_key("output.weight"),
    };
    shape.check().map_err(|what| file.malformed(what))?;
    Ok(shape)
}

/// The shortest decimal that is the same 32-bit float: `1e-5`, not `9.999999747378752e-6`.
fn round_trip(value: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "the value was stored as a 32-bit float")]
    let narrow = value as f32;
    narrow.to_string().parse().unwrap_or(value)
}

fn token_id(file: &GgufFile, name: &str) -> Option<u64> {
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

/// Tokens of type 3 (control) are special; the types are those of the `ggml` project.
const CONTROL: i128 = 3;

fn special_tokens(file: &GgufFile, tokens: &[&str]) -> Result<Vec<(usize, String)>, WeightsError> {
    let name = "tokenizer.ggml.token_type";
    let Value::List(types) = file.get(name)? else { return Err(file.malformed(format!("{name} is not a list"))) };
    if types.len() != tokens.len() {
        return Err(file.malformed(format!("{} token types belong to {} tokens", types.len(), tokens.len())));
    }
    let special = types.iter().enumerate().filter(|(_, kind)| **kind == Value::Integer(CONTROL));
    Ok(special.map(|(id, _)| (id, tokens[id].to_owned())).collect())
}

/// `tokenizer.json` for byte-level BPE.
fn tokenizer(file: &GgufFile, tokens: &[&str]) -> Result<Json, WeightsError> {
    let model = file.get_text("tokenizer.ggml.model")?;
    if model != "gpt2" {
        return Err(file.malformed(format!("tokenizer {model:?} is not supported; byte-level BPE (\"gpt2\") is")));
    }
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let pre_tokenizer = match file.get_text("tokenizer.ggml.pre") {
        Ok("smollm") => json!({
            "type": "Sequence",
            "pretokenizers": [{"type": "Digits", "individual_digits": true}, byte_level],
        }),
        Ok("gpt-2" | "gpt2") | Err(_) => byte_level.clone(),
        Ok(other) => {
            return Err(
                file.malformed(format!("pre-tokenizer {other:?} is not supported; \"smollm\" and \"gpt-2\" are"))
            );
        }
    };
    let vocabulary: serde_json::Map<_, _> =
        tokens.iter().enumerate().map(|(id, token)| ((*token).to_owned(), json!(id))).collect();
    if vocabulary.len() != tokens.len() {
        return Err(file.malformed("two tokens are the same"));
    }
    let merges: Vec<Json> = file
        .get_texts("tokenizer.ggml.merges")?
        .iter()
        .map(|merge| match merge.split_once(' ') {
            Some((a, b)) => Ok(json!([a, b])),
            None => Err(file.malformed(format!("merge {merge:?} has no two parts"))),
        })
        .collect::<Result<_, _>>()?;
    let added: Vec<Json> = special_tokens(file, tokens)?
        .into_iter()
        .map(|(id, content)| {
            json!({
                "id": id, "content": content, "special": true,
                "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            })
        })
        .collect();
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added,
        "normalizer": null,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": null,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": null,
            "unk_token": null,
            "continuing_subword_prefix": null,
            "end_of_word_suffix": null,
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": false,
            "vocab": vocabulary,
            "merges": merges,
        },
    }))
}

fn tokenizer_config(file: &GgufFile, tokens: &[&str]) -> Result<Json, WeightsError> {
    let token = |name: &str| {
        let id = token_id(file, name).and_then(|id| usize::try_from(id).ok());
        id.and_then(|id| tokens.get(id)).map(|token| (*token).to_owned())
    };
    let special: Vec<_> = special_tokens(file, tokens)?.into_iter().map(|(_, token)| token).collect();
    Ok(json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": file.get_usize("llama.context_length")?,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "bos_token": token("bos"),
        "eos_token": token("eos"),
        "pad_token": token("padding"),
        "unk_token": token("unknown"),
        "additional_special_tokens": special,
        "chat_template": file.get_text("tokenizer.chat_template").ok(),
    }))
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

/// The GGUF name of a Hugging Face tensor.
fn gguf_name(name: &str) -> Option<String> {
    Some(match name {
        "model.embed_tokens.weight" => "token_embd.weight".into(),
        "model.norm.weight" => "output_norm.weight".into(),
        "lm_head.weight" => "output.weight".into(),
        _ => {
            let (layer, part) = name.strip_prefix("model.layers.")?.split_once('.')?;
            let part = match part.strip_suffix(".weight")? {
                "input_layernorm" => "attn_norm",
                "post_attention_layernorm" => "ffn_norm",
                "self_attn.q_proj" => "attn_q",
                "self_attn.k_proj" => "attn_k",
                "self_attn.v_proj" => "attn_v",
                "self_attn.o_proj" => "attn_output",
                "mlp.gate_proj" => "ffn_gate",
                "mlp.up_proj" => "ffn_up",
                "mlp.down_proj" => "ffn_down",
                _ => return None,
            };
            format!("blk.{layer}.{part}.weight")
        }
    })
}

/// GGUF keeps the rows of Q and K of each head in pairs (first, second half interleaved), because its rotary positions turn
/// neighbours; the Hugging Face layout keeps the halves apart.
fn separate_halves(values: &[f32], num_heads: usize, width: usize) -> Vec<f32> {
    let rows = values.len() / width;
    let half = rows / num_heads / 2;
    let mut out = Vec::with_capacity(values.len());
    for head in 0..num_heads {
        for side in 0..2 {
            for i in 0..half {
                let row = (head * half + i) * 2 + side;
                out.extend_from_slice(&values[row * width..(row + 1) * width]);
            }
        }
    }
    out
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
        let tensor = tensor_for(file, spec)?;
        *stored_as.entry(format!("{:?}", tensor.ggml_type)).or_default() += 1;
        let mut values = file.dequantize(tensor)?;
        if let Some(index) = values.iter().position(|value| !value.is_finite()) {
            return Err(WeightsError::NotFinite { name: tensor.name.clone(), index: index as u64 });
        }
        if spec.name.ends_with("q_proj.weight") {
            values = separate_halves(&values, shape.num_attention_heads, shape.hidden_size);
        } else if spec.name.ends_with("k_proj.weight") {
            values = separate_halves(&values, shape.num_key_value_heads, shape.hidden_size);
        }
        let bytes = f32_to_bytes(&values);
        writer.write(&bytes)?;
        done += bytes.len() as u64;
        progress(done, total);
    }
    writer.finish()?;
    Ok(stored_as)
}

fn tensor_for<'a>(file: &'a GgufFile, spec: &TensorSpec) -> Result<&'a GgufTensor, WeightsError> {
    let name = gguf_name(&spec.name).ok_or_else(|| WeightsError::Missing { name: spec.name.clone() })?;
    let tensor = file.tensors().get(&name).ok_or_else(|| file.malformed(format!("tensor {name:?} is missing")))?;
    if tensor.shape != spec.shape {
        return Err(file.malformed(format!("tensor {name:?} has shape {:?}; {:?} is due", tensor.shape, spec.shape)));
    }
    Ok(tensor)
}
