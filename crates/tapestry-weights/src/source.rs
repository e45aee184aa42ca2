//! Where parameters come from, whatever holds them.

use crate::WeightsError;
use half::{bf16, f16};
use tapestry_core::{Dtype, TensorSpec};

/// Tensors that can be read in parts.
pub trait WeightSource: Send + Sync {
    /// The tensors, sorted by name.
    fn tensors(&self) -> &[TensorSpec];

    /// Elements `first..first + count` of tensor number `tensor`, row-major, widened to `f32`.
    ///
    /// # Errors
    /// Where the range is not inside the tensor, or the bytes cannot be read.
    fn read_f32(&self, tensor: usize, first: u64, count: u64) -> Result<Vec<f32>, WeightsError>;

    /// The number of the tensor with this name.
    fn index_of(&self, name: &str) -> Option<usize> {
        self.tensors().binary_search_by(|tensor| tensor.name.as_str().cmp(name)).ok()
    }

    /// A whole tensor by name.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], or as [`WeightSource::read_f32`].
    fn read_named(&self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let index = self.index_of(name).ok_or_else(|| WeightsError::Missing { name: name.to_owned() })?;
        let count = self.tensors()[index].num_elements().unwrap_or(u64::MAX);
        self.read_f32(index, 0, count)
    }
}

/// Little-endian bytes as `f32` values; exact for every [`Dtype`].
#[must_use]
pub fn bytes_to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    match dtype {
        Dtype::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        Dtype::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
        Dtype::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
    }
}

/// `f32` values as little-endian bytes.
#[must_use]
pub fn f32_to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
