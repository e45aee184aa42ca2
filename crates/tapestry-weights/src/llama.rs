//! What `config.json` says about a model of the Llama family, and the tensors that follow from it.

use crate::WeightsError;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tapestry_core::{Dtype, TensorSpec};

/// The numbers that decide names and shapes of tensors and the arithmetic of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LlamaShape {
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_key_value_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Tokens in the vocabulary.
    pub vocab_size: usize,
    /// Added to the mean square in a norm.
    pub rms_norm_eps: f64,
    /// Base of the rotary frequencies.
    pub rope_theta: f64,
    /// The longest text that the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
}

/// `config.json`, as far as it matters here.
#[derive(Deserialize)]
struct RawConfig {
    model_type: Option<String>,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: f64,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    max_position_embeddings: Option<usize>,
    #[serde(default)]
    tie_word_embeddings: bool,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
}

impl LlamaShape {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`WeightsError::Config`] naming the entry that is missing, impossible or not supported.
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        let text = std::fs::read_to_string(path).map_err(WeightsError::io("read", path))?;
        Self::parse(&text).map_err(|what| WeightsError::Config { path: path.to_path_buf(), what })
    }

    /// Parses the content of `config.json`.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let raw: RawConfig =
            serde_json::from_str(text).map_err(|e| format!("the configuration cannot be read: {e}"))?;
        if let Some(other) = raw.model_type.as_deref().filter(|name| *name != "llama") {
            return Err(format!("model_type {other:?} is not supported; this version reads \"llama\""));
        }
        if raw.rope_scaling.is_some_and(|scaling| !scaling.is_null()) {
            return Err("rope_scaling is not supported by this version".into());
        }
        if raw.attention_bias || raw.mlp_bias {
            return Err("biases (attention_bias, mlp_bias) are not supported by this version".into());
        }
        let shape = Self {
            hidden_size: raw.hidden_size,
            intermediate_size: raw.intermediate_size,
            num_hidden_layers: raw.num_hidden_layers,
            num_attention_heads: raw.num_attention_heads,
            num_key_value_heads: raw.num_key_value_heads.unwrap_or(raw.num_attention_heads),
            head_dim: raw.head_dim.unwrap_or(raw.hidden_size / raw.num_attention_heads.max(1)),
            vocab_size: raw.vocab_size,
            rms_norm_eps: raw.rms_norm_eps,
            rope_theta: raw.rope_theta.unwrap_or(10_000.0),
            max_position_embeddings: raw.max_position_embeddings.unwrap_or(2048),
            tie_word_embeddings: raw.tie_word_embeddings,
        };
        shape.check()?;
        Ok(shape)
    }

    /// Checks that such a model is possible.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        let within = |name: &str, value: usize, limit: usize| {
            let is_within = (1..=limit).contains(&value);
            if is_within { Ok(()) } else { Err(format!("{name} is {value}; from 1 to {limit} is accepted")) }
        };
        within("hidden_size", self.hidden_size, 1 << 17)?;
        within("intermediate_size", self.intermediate_size, 1 << 20)?;
        within("num_hidden_layers", self.num_hidden_layers, 1 << 12)?;
        within("num_attention_heads", self.num_attention_heads, 1 << 12)?;
        within("num_key_value_heads", self.num_key_value_heads, self.num_attention_heads)?;
        within("head_dim", self.head_dim, 1 << 12)?;
        within("vocab_size", self.vocab_size, 1 << 24)?;
        within("max_position_embeddings", self.max_position_embeddings, 1 << 30)?;
        if !self.num_attention_heads.is_multiple_of(self.num_key_value_heads) {
            return Err(format!(
                "num_attention_heads {} is not a multiple of num_key_value_heads {}",
                self.num_attention_heads, self.num_key_value_heads
            ));
        }
        if !self.head_dim.is_multiple_of(2) {
            return Err(format!("head_dim is {}; rotary positions need an even one", self.head_dim));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps < 1.0) {
            return Err(format!("rms_norm_eps is {}; a small positive number is expected", self.rms_norm_eps));
        }
        if !(self.rope_theta >= 1.0 && self.rope_theta.is_finite()) {
            return Err(format!("rope_theta is {}; 1 or more is expected", self.rope_theta));
        }
        Ok(())
    }
}

/// The tensors of such a model as 32-bit floats, sorted by name; matrices are `[out, in]`.
#[must_use]
pub fn expected_tensors(shape: &LlamaShape) -> Vec<TensorSpec> {
    let (d, f, v) = (shape.hidden_size as u64, shape.intermediate_size as u64, shape.vocab_size as u64);
    let q = (shape.num_attention_heads * shape.head_dim) as u64;
    let kv = (shape.num_key_value_heads * shape.head_dim) as u64;
    let mut tensors = vec![];
    let mut add =
        |name: String, shape: &[u64]| tensors.push(TensorSpec { name, dtype: Dtype::F32, shape: shape.to_vec() });
    add("model.embed_tokens.weight".into(), &[v, d]);
    add("model.norm.weight".into(), &[d]);
    if !shape.tie_word_embeddings {
        add("lm_head.weight".into(), &[v, d]);
    }
    for layer in 0..shape.num_hidden_layers {
        let parts: [(&str, &[u64]); 9] = [
            ("input_layernorm", &[d]),
            ("post_attention_layernorm", &[d]),
            ("self_attn.q_proj", &[q, d]),
            ("self_attn.k_proj", &[kv, d]),
            ("self_attn.v_proj", &[kv, d]),
            ("self_attn.o_proj", &[d, q]),
            ("mlp.gate_proj", &[f, d]),
            ("mlp.up_proj", &[f, d]),
            ("mlp.down_proj", &[d, f]),
        ];
        for (part, shape) in parts {
            add(format!("model.layers.{layer}.{part}.weight"), shape);
        }
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}
