//! What `config.json` says about a decoder-only model, and the tensors that follow from it.
//!
//! The families differ in a few traits, which are data here ([`FamilyTraits`]); nothing else in Tapestry asks for a family by its name.

mod raw;
mod rope;
#[cfg(test)]
mod tests;
mod write;

use crate::WeightsError;
use serde::{Deserialize, Serialize};
use std::path::Path;
use tapestry_core::{Dtype, TensorSpec};

pub use rope::RopeScaling;

/// A family of dense decoder-only models.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Llama 2 and 3, SmolLM2, and the many models made in their likeness.
    Llama,
    /// Mistral: Llama with a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: biases of queries, keys and values.
    Qwen2,
    /// Qwen3: norms of each query and key.
    Qwen3,
    /// OLMo 2: norms after the blocks, and norms over all queries and all keys.
    Olmo2,
    /// OLMo 3: OLMo 2 with a sliding window in three of four layers.
    Olmo3,
}

/// What a norm of queries and of keys runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// There is none.
    None,
    /// Each head by itself; one weight for each dimension of a head.
    Head,
    /// All heads of a token together; one weight for each dimension of each head.
    Whole,
}

/// How the families differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FamilyTraits {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// `architectures` in `config.json`.
    pub architecture: &'static str,
    /// Queries, keys and values have biases.
    pub has_qkv_biases: bool,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Norms stand after attention and feed-forward, inside the residual, instead of before.
    pub has_norms_after: bool,
}

impl Family {
    /// All that are read.
    pub const ALL: [Self; 6] = [Self::Llama, Self::Mistral, Self::Qwen2, Self::Qwen3, Self::Olmo2, Self::Olmo3];

    /// How it differs from the others.
    #[must_use]
    pub const fn traits(self) -> FamilyTraits {
        let (model_type, architecture) = match self {
            Self::Llama => ("llama", "LlamaForCausalLM"),
            Self::Mistral => ("mistral", "MistralForCausalLM"),
            Self::Qwen2 => ("qwen2", "Qwen2ForCausalLM"),
            Self::Qwen3 => ("qwen3", "Qwen3ForCausalLM"),
            Self::Olmo2 => ("olmo2", "Olmo2ForCausalLM"),
            Self::Olmo3 => ("olmo3", "Olmo3ForCausalLM"),
        };
        let is_olmo = matches!(self, Self::Olmo2 | Self::Olmo3);
        FamilyTraits {
            model_type,
            architecture,
            has_qkv_biases: matches!(self, Self::Qwen2),
            qk_norm: match self {
                Self::Qwen3 => QkNorm::Head,
                Self::Olmo2 | Self::Olmo3 => QkNorm::Whole,
                Self::Llama | Self::Mistral | Self::Qwen2 => QkNorm::None,
            },
            has_norms_after: is_olmo,
        }
    }

    /// The family that `model_type` names.
    #[must_use]
    pub fn of_model_type(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.traits().model_type == name)
    }
}

/// The numbers that decide names and shapes of tensors and the arithmetic of the model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DecoderShape {
    /// Its family.
    pub family: Family,
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
    /// How the rotary frequencies of layers without a sliding window are changed to reach further.
    pub rope_scaling: RopeScaling,
    /// The longest text that the model was made for, in tokens.
    pub max_position_embeddings: usize,
    /// Whether the output matrix is the embedding.
    pub tie_word_embeddings: bool,
    /// For each layer, how many tokens a token sees, itself included; none: all before it.
    pub layer_windows: Vec<Option<usize>>,
}

impl DecoderShape {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// [`WeightsError::Config`] naming the entry that is missing, impossible or not supported.
    pub fn read(path: &Path) -> Result<Self, WeightsError> {
        let text = std::fs::read_to_string(path).map_err(WeightsError::io("read", path))?;
        Self::parse(&text).map_err(|what| WeightsError::Config { path: path.to_path_buf(), what })
    }

    /// Parses the content of `config.json`, as `transformers` 4 and 5 write it.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let shape = raw::parse(text)?;
        shape.check()?;
        Ok(shape)
    }

    /// The content of a `config.json` that `transformers` reads.
    #[must_use]
    pub fn to_config(&self) -> serde_json::Value {
        write::config(self)
    }

    /// The rotary scaling of a layer: layers with a sliding window are not stretched in OLMo 3, because what they see never
    /// goes beyond the window.
    #[must_use]
    pub fn rope_scaling_of(&self, layer: usize) -> &RopeScaling {
        if self.family == Family::Olmo3 && self.layer_windows[layer].is_some() {
            return &RopeScaling::None;
        }
        &self.rope_scaling
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
        within("num_hidden_layers", self.num_hidden_layers, MAX_LAYERS)?;
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
        if self.layer_windows.len() != self.num_hidden_layers {
            let found = self.layer_windows.len();
            return Err(format!("layer_types names {found} layers of {}", self.num_hidden_layers));
        }
        if self.layer_windows.contains(&Some(0)) {
            return Err("sliding_window is 0; 1 or more tokens are expected".into());
        }
        self.rope_scaling.check(self.rope_theta)
    }
}

/// More layers than any model has.
const MAX_LAYERS: usize = 1 << 12;

/// The names of a layer's norms, in the order attention, feed-forward.
#[must_use]
pub const fn norm_names(family: Family) -> [&'static str; 2] {
    if family.traits().has_norms_after {
        ["post_attention_layernorm", "post_feedforward_layernorm"]
    } else {
        ["input_layernorm", "post_attention_layernorm"]
    }
}

/// The tensors of such a model as 32-bit floats, sorted by name; matrices are `[out, in]`.
#[must_use]
pub fn expected_tensors(shape: &DecoderShape) -> Vec<TensorSpec> {
    let (d, f, v) = (shape.hidden_size as u64, shape.intermediate_size as u64, shape.vocab_size as u64);
    let e = shape.head_dim as u64;
    let q = shape.num_attention_heads as u64 * e;
    let kv = shape.num_key_value_heads as u64 * e;
    let traits = shape.family.traits();
    let mut tensors = vec![];
    let mut add =
        |name: String, shape: &[u64]| tensors.push(TensorSpec { name, dtype: Dtype::F32, shape: shape.to_vec() });
    add("model.embed_tokens.weight".into(), &[v, d]);
    add("model.norm.weight".into(), &[d]);
    if !shape.tie_word_embeddings {
        add("lm_head.weight".into(), &[v, d]);
    }
    let [attention_norm, mlp_norm] = norm_names(shape.family);
    let mut parts: Vec<(String, Vec<u64>)> = vec![
        (format!("{attention_norm}.weight"), vec![d]),
        (format!("{mlp_norm}.weight"), vec![d]),
        ("self_attn.q_proj.weight".into(), vec![q, d]),
        ("self_attn.k_proj.weight".into(), vec![kv, d]),
        ("self_attn.v_proj.weight".into(), vec![kv, d]),
        ("self_attn.o_proj.weight".into(), vec![d, q]),
        ("mlp.gate_proj.weight".into(), vec![f, d]),
        ("mlp.up_proj.weight".into(), vec![f, d]),
        ("mlp.down_proj.weight".into(), vec![d, f]),
    ];
    if traits.has_qkv_biases {
        parts
            .extend([("q", q), ("k", kv), ("v", kv)].map(|(part, n)| (format!("self_attn.{part}_proj.bias"), vec![n])));
    }
    let norm_widths = match traits.qk_norm {
        QkNorm::None => None,
        QkNorm::Head => Some([("q", e), ("k", e)]),
        QkNorm::Whole => Some([("q", q), ("k", kv)]),
    };
    parts.extend(norm_widths.into_iter().flatten().map(|(part, n)| (format!("self_attn.{part}_norm.weight"), vec![n])));
    for layer in 0..shape.num_hidden_layers {
        for (part, shape) in &parts {
            add(format!("model.layers.{layer}.{part}"), shape);
        }
    }
    tensors.sort_by(|a, b| a.name.cmp(&b.name));
    tensors
}
