//! Weights that were checked against a configuration, and read piece by piece.

use crate::{DecoderConfig, ModelError};
use tapestry_core::TensorSpec;
use tapestry_weights::{WeightSource, expected_tensors};

pub(crate) const EMBEDDING: &str = "model.embed_tokens.weight";
pub(crate) const FINAL_NORM: &str = "model.norm.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

/// The name of the matrix that turns the last hidden state into logits: the embedding where the output is tied.
pub(crate) fn head_name(config: &DecoderConfig) -> &'static str {
    if config.tie_word_embeddings { EMBEDDING } else { HEAD }
}

/// The name of one part of a layer, such as `self_attn.q_proj.weight`.
pub(crate) fn layer_name(layer: usize, part: &str) -> String {
    format!("model.layers.{layer}.{part}")
}

/// Weights whose names and shapes are exactly those of a configuration. Values are checked as they are read.
pub(crate) struct Parameters<'a> {
    source: &'a dyn WeightSource,
}

impl<'a> Parameters<'a> {
    /// Checks names and shapes; the element type is free, since everything is widened to `f32`.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::UnexpectedTensor`] or [`ModelError::Shape`] for the first difference.
    pub(crate) fn check(config: &DecoderConfig, source: &'a dyn WeightSource) -> Result<Self, ModelError> {
        let expected = expected_tensors(config);
        for TensorSpec { name, shape, .. } in &expected {
            let index = source.index_of(name).ok_or_else(|| ModelError::MissingTensor { name: name.clone() })?;
            let found = &source.tensors()[index].shape;
            if found != shape {
                return Err(ModelError::Shape { name: name.clone(), expected: shape.clone(), found: found.clone() });
            }
        }
        let is_known = |spec: &&TensorSpec| expected.binary_search_by(|known| known.name.cmp(&spec.name)).is_err();
        if let Some(extra) = source.tensors().iter().find(is_known) {
            return Err(ModelError::UnexpectedTensor { name: extra.name.clone() });
        }
        Ok(Self { source })
    }

    /// All values of a parameter.
    ///
    /// # Errors
    /// Where it cannot be read, or holds a value that is not finite.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<f32>, ModelError> {
        self.read_rows(name, 0, u64::MAX)
    }

    /// Rows `first_row..first_row + num_rows` of a matrix, or as many of them as there are.
    ///
    /// # Errors
    /// As [`Parameters::read`].
    pub(crate) fn read_rows(&self, name: &str, first_row: u64, num_rows: u64) -> Result<Vec<f32>, ModelError> {
        let missing = || ModelError::MissingTensor { name: name.to_owned() };
        let index = self.source.index_of(name).ok_or_else(missing)?;
        let shape = &self.source.tensors()[index].shape;
        let width: u64 = shape[1..].iter().product();
        let num_rows = num_rows.min(shape[0].saturating_sub(first_row));
        let first = first_row * width;
        let values = self.source.read_f32(index, first, num_rows * width)?;
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(at) => {
                Err(ModelError::NotFinite { name: name.to_owned(), index: first + at as u64, value: values[at] })
            }
        }
    }
}
