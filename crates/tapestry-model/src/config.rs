//! A configuration that can be run.

use crate::ModelError;
use crate::block::norm_order;
use std::ops::Deref;
use std::sync::Arc;
use tapestry_kernels::{AttentionPlan, RopeTables};
use tapestry_weights::{DecoderShape, Family, RopeScaling};

/// What `config.json` says about a model, checked: every value is within bounds and they go together.
///
/// Dereferences to [`DecoderShape`] for the values.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderConfig(DecoderShape);

impl DecoderConfig {
    /// Parses the content of `config.json`.
    ///
    /// # Errors
    /// [`ModelError::Config`] naming what is missing, out of bounds or not supported.
    pub fn from_json(text: &str) -> Result<Self, ModelError> {
        DecoderShape::parse(text).map(Self).map_err(|reason| ModelError::Config { reason })
    }

    /// A model small enough to train in seconds, for the quick demo and for tests: four layers of width 128, grouped
    /// query attention, the output tied to the embedding.
    ///
    /// # Panics
    /// When `vocab_size` is zero or above 2^24.
    #[must_use]
    pub fn tiny(vocab_size: usize) -> Self {
        Self::tiny_of(Family::Llama, vocab_size)
    }

    /// [`DecoderConfig::tiny`] of any family; those with sliding windows see 64 tokens through them.
    ///
    /// # Panics
    /// As [`DecoderConfig::tiny`].
    #[must_use]
    pub fn tiny_of(family: Family, vocab_size: usize) -> Self {
        let slides = |layer: usize| match family {
            Family::Mistral => true,
            Family::Olmo3 => !(layer + 1).is_multiple_of(4),
            Family::Llama | Family::Qwen2 | Family::Qwen3 | Family::Olmo2 => false,
        };
        let shape = DecoderShape {
            family,
            hidden_size: 128,
            intermediate_size: 352,
            num_hidden_layers: 4,
            num_attention_heads: 4,
            num_key_value_heads: 2,
            head_dim: 32,
            vocab_size,
            rms_norm_eps: 1e-5,
            rope_theta: 10_000.0,
            rope_scaling: RopeScaling::None,
            max_position_embeddings: 1024,
            tie_word_embeddings: true,
            layer_windows: (0..4).map(|layer| slides(layer).then_some(64)).collect(),
        };
        Self::try_from(shape).expect("only the vocabulary can be out of bounds")
    }

    /// What is added to the mean square in a norm, as the arithmetic has it.
    #[expect(clippy::cast_possible_truncation, reason = "arithmetic is in f32")]
    pub(crate) fn norm_eps(&self) -> f32 {
        self.rms_norm_eps as f32
    }

    /// The rotary tables of a layer, for positions below `num_positions`.
    pub(crate) fn rope_tables(&self, layer: usize, num_positions: usize) -> RopeTables {
        let (frequencies, magnitude) = self.rope_scaling_of(layer).frequencies(self.rope_theta, self.head_dim);
        RopeTables::from_frequencies(&frequencies, magnitude, num_positions)
    }

    /// The plan of each layer, made once for layers that are alike.
    pub(crate) fn per_layer<T>(&self, mut make: impl FnMut(usize) -> T) -> Vec<Arc<T>> {
        let mut made: Vec<(Option<usize>, &RopeScaling, Arc<T>)> = vec![];
        let plan = |layer: usize| {
            let (window, scaling) = (self.layer_windows[layer], self.rope_scaling_of(layer));
            let known = made.iter().find(|(w, s, _)| *w == window && *s == scaling);
            if let Some((_, _, plan)) = known {
                return Arc::clone(plan);
            }
            let plan = Arc::new(make(layer));
            made.push((window, scaling, Arc::clone(&plan)));
            plan
        };
        (0..self.num_hidden_layers).map(plan).collect()
    }

    /// How attention runs in each layer over `num_windows` windows of `window` tokens. `starts` as in
    /// [`AttentionPlan::starts`].
    pub(crate) fn attention_plans(
        &self,
        num_windows: usize,
        window: usize,
        starts: &Arc<[u32]>,
        recompute: bool,
    ) -> Vec<Arc<AttentionPlan>> {
        self.per_layer(|layer| AttentionPlan {
            batch: num_windows,
            time: window,
            num_heads: self.num_attention_heads,
            num_kv_heads: self.num_key_value_heads,
            head_dim: self.head_dim,
            norm_eps: self.norm_eps(),
            norm_order: norm_order(self),
            recompute,
            window: self.layer_windows[layer],
            rope: Arc::new(self.rope_tables(layer, window)),
            starts: Arc::clone(starts),
        })
    }

    /// The content of a `config.json` that Hugging Face tools read.
    #[must_use]
    pub fn to_json(&self) -> String {
        format!("{:#}\n", self.to_config())
    }
}

impl TryFrom<DecoderShape> for DecoderConfig {
    type Error = ModelError;

    fn try_from(shape: DecoderShape) -> Result<Self, ModelError> {
        shape.check().map_err(|reason| ModelError::Config { reason })?;
        Ok(Self(shape))
    }
}

impl Deref for DecoderConfig {
    type Target = DecoderShape;

    fn deref(&self) -> &DecoderShape {
        &self.0
    }
}
