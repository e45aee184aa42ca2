//! Where parameters come from, whatever holds them.

use crate::WeightsError;
use half::{bf16, f16};
use tapestry_core::{Dtype, TensorSpec};

/// Bytes read at once on the way to values: whole elements of every type.
const PIECE_BYTES: usize = 1 << 18;

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

    /// The first value that is NaN or infinite: its tensor and row-major index. Read in pieces: memory does not depend on the
    /// size of a tensor.
    ///
    /// # Errors
    /// As [`WeightSource::read_f32`].
    fn first_non_finite(&self) -> Result<Option<(&TensorSpec, u64)>, WeightsError> {
        const PIECE: u64 = 1 << 18;
        for (index, spec) in self.tensors().iter().enumerate() {
            let count = spec.num_elements().unwrap_or(0);
            let mut first = 0;
            while first < count {
                let values = self.read_f32(index, first, PIECE.min(count - first))?;
                if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                    return Ok(Some((spec, first + at as u64)));
                }
                first += values.len() as u64;
            }
        }
        Ok(None)
    }
}

/// Elements `first..first + count` of a tensor whose bytes `read` gives: `read(start, buffer)` fills the buffer from byte
/// `start` of the tensor on.
pub(crate) fn read_f32_in_pieces(
    spec: &TensorSpec,
    first: u64,
    count: u64,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), WeightsError>,
) -> Result<Vec<f32>, WeightsError> {
    let num_elements = spec.num_elements().unwrap_or(0);
    if first.checked_add(count).is_none_or(|end| end > num_elements) {
        return Err(WeightsError::Range { name: spec.name.clone(), first, count, num_elements });
    }
    let size = spec.dtype.size_bytes();
    let element_len = usize::try_from(size).expect("a few bytes");
    let count = usize::try_from(count).map_err(|e| WeightsError::Source(e.to_string()))?;
    let mut values = Vec::with_capacity(count);
    let mut buffer = vec![0; count.saturating_mul(element_len).min(PIECE_BYTES)];
    while values.len() < count {
        let start = (first + values.len() as u64) * size;
        let len = buffer.len().min((count - values.len()).saturating_mul(element_len));
        read(start, &mut buffer[..len])?;
        extend_f32(&mut values, spec.dtype, &buffer[..len]);
    }
    Ok(values)
}

/// Little-endian bytes as `f32` values; exact for every [`Dtype`].
#[must_use]
pub fn bytes_to_f32(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![];
    extend_f32(&mut values, dtype, bytes);
    values
}

fn extend_f32(values: &mut Vec<f32>, dtype: Dtype, bytes: &[u8]) {
    match dtype {
        Dtype::F32 => values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
        Dtype::BF16 => values.extend(bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32())),
        Dtype::F16 => values.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32())),
    }
}

/// `f32` values as little-endian bytes.
#[must_use]
pub fn f32_to_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}
