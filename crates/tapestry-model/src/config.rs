//! A configuration that can be run.

use crate::ModelError;
use std::ops::Deref;
use std::sync::Arc;
use tapestry_kernels::{AttentionPlan, RopeTables};
use tapestry_weights::LlamaShape;

/// What `config.json` says about a model, checked: every value is within bounds and they go together.
///
/// Dereferences to [`LlamaShape`] for the values.
#[derive(Debug, Clone, PartialEq)]
pub struct LlamaConfig(LlamaShape);

impl LlamaConfig {
    /// Parses the content of `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming what is missing, out of bounds or not supported.
    pub fn from_json(text: &str) -> Result<Self, ModelError> {
        LlamaShape::parse(text).map(Self).map_err(|reason| ModelError::Config { reason })
    }

    /// A model small enough to train in seconds, for the quick demo and for tests: four layers of width 128, grouped
    /// query attention, the output tied to the embedding.
    ///
    /// # Panics
    /// When `vocab_size` is zero or above 2^24.
    #[must_use]
    pub fn tiny(vocab_size: usize) -> Self {
        let shape = LlamaShape {
            hidden_size: 128,
            intermediate_size: 352,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            vocab_size,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            max_position_embeddings: 1024,
            tie_word_embeddings: true,
        };
        Self::try_from(shape).expect("only the vocabulary can be out of bounds")
    }

    /// How attention runs over `num_windows` windows of `window` tokens. `starts` as in [`AttentionPlan::starts`].
    #[expect(clippy::cast_possible_truncation, reason = "arithmetic is in f32")]
    pub(crate) fn attention_plan(&self, num_windows: usize, window: usize, starts: Arc<[u32]>) -> AttentionPlan {
        AttentionPlan {
            batch: num_windows,
            time: window,
            num_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            norm_eps: self.rms_norm_eps as f32,
            rope: Arc::new(RopeTables::new(self.rope_theta, self.head_dim, window)),
            starts,
        }
    }

    /// The content of a `config.json` that Hugging Face tools read.
    #[must_use]
    pub fn to_json(&self) -> String {
        let value = serde_json::json!({
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "torch_dtype": "float32",
            "attention_bias": false,
            "mlp_bias": false,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocab_size,
            "rms_norm_eps": self.rms_norm_eps,
            "rope_theta": self.rope_theta,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_word_embeddings,
        });
        format!("{value:#}\n")
    }
}

impl TryFrom<LlamaShape> for LlamaConfig {
    type Error = ModelError;

    fn try_from(shape: LlamaShape) -> Result<Self, ModelError> {
        shape.check().map_err(|reason| ModelError::Config { reason })?;
        Ok(Self(shape))
    }
}

impl Deref for LlamaConfig {
    type Target = LlamaShape;

    fn deref(&self) -> &LlamaShape {
        &self.0
    }
}
