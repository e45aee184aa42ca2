//! The weighted mean of weight vectors, piece by piece.

use crate::element::{Bf16, Element, F16, F32};
use rayon::prelude::*;
use tapestry_core::Dtype;

/// Elements that one thread works on at a time: their sums stay in the fastest cache.
const BLOCK_ELEMENTS: usize = 1024;
/// Blocks that a thread takes at once, so that handing out work costs nothing.
const BLOCKS_PER_TASK: usize = 32;
/// How far the shares may sum from one. What 1/n in `f64` leaves is a millionth of it; it is a fiftieth of what the last
/// bit of an `f32` is worth, so vectors that are equal merge into the same vector.
const SHARES_TOLERANCE: f64 = 1e-9;

/// Why inputs cannot be merged. Each is a mistake of the caller, who has checked the contributions before.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MergeError {
    /// Nothing to merge.
    #[error("there is nothing to merge; at least one accepted contribution is needed")]
    Empty,
    /// Inputs of different lengths.
    #[error(
        "input {input} has {found} bytes where input 0 has {expected}; all must be the same part of the same tensor"
    )]
    Length {
        /// Which input, from 0.
        input: usize,
        /// Bytes of input 0.
        expected: usize,
        /// Bytes of this input.
        found: usize,
    },
    /// An element is cut in two.
    #[error("{found} bytes are not a whole number of {dtype:?} elements; cut tensors between elements")]
    PartialElement {
        /// The type of the elements.
        dtype: Dtype,
        /// Bytes given.
        found: usize,
    },
    /// Shares that make no mean.
    #[error("the shares must be positive and sum to 1, found a sum of {sum} and a smallest share of {smallest}")]
    Shares {
        /// What they sum to.
        sum: f64,
        /// The smallest.
        smallest: f64,
    },
}

/// The weighted mean of `inputs`, each the same part of the same tensor from one member, with the member's share.
///
/// # Order
/// The result is defined to the last bit: for each element, `share * value` is computed in `f64` and summed in `f64` in
/// the order of `inputs`, and the sum is rounded once to `dtype`, to nearest, ties to even. Callers give the inputs in the
/// order of the members' names; then neither the order of arrival, nor threads, nor how tensors are cut can be seen in
/// the result.
///
/// Every result lies between the smallest and the largest of its inputs, and equal inputs give themselves.
///
/// What `out` held before is discarded.
///
/// # Errors
/// [`MergeError`]; `out` is then empty. Values that are not finite are not looked for: see
/// [`first_non_finite`](crate::first_non_finite).
pub fn merge_chunk(dtype: Dtype, inputs: &[(&[u8], f64)], out: &mut Vec<u8>) -> Result<(), MergeError> {
    out.clear();
    let len = check(dtype, inputs)?;
    out.resize(len, 0);
    match dtype {
        Dtype::F32 => merge::<F32>(inputs, out),
        Dtype::BF16 => merge::<Bf16>(inputs, out),
        Dtype::F16 => merge::<F16>(inputs, out),
    }
    Ok(())
}

/// The length that all inputs have.
fn check(dtype: Dtype, inputs: &[(&[u8], f64)]) -> Result<usize, MergeError> {
    let expected = inputs.first().ok_or(MergeError::Empty)?.0.len();
    for (input, (bytes, _)) in inputs.iter().enumerate() {
        if bytes.len() != expected {
            return Err(MergeError::Length { input, expected, found: bytes.len() });
        }
    }
    if !(expected as u64).is_multiple_of(dtype.size_bytes()) {
        return Err(MergeError::PartialElement { dtype, found: expected });
    }
    let sum: f64 = inputs.iter().map(|(_, share)| share).sum();
    let smallest = inputs.iter().map(|(_, share)| *share).fold(f64::INFINITY, f64::min);
    // Written so that a share that is not a number is refused too: its sum is none either.
    if (sum - 1.0).abs() <= SHARES_TOLERANCE && smallest > 0.0 {
        return Ok(expected);
    }
    Err(MergeError::Shares { sum, smallest })
}

fn merge<E: Element>(inputs: &[(&[u8], f64)], out: &mut [u8]) {
    let task_len = BLOCK_ELEMENTS * BLOCKS_PER_TASK * E::LEN;
    out.par_chunks_mut(task_len).enumerate().for_each(|(task, out)| {
        let mut sums = [0.0; BLOCK_ELEMENTS];
        for (block, out) in out.chunks_mut(BLOCK_ELEMENTS * E::LEN).enumerate() {
            let start = task * task_len + block * BLOCK_ELEMENTS * E::LEN;
            let sums = &mut sums[..out.len() / E::LEN];
            for (input, (bytes, share)) in inputs.iter().enumerate() {
                let values = bytes[start..start + out.len()].chunks_exact(E::LEN).map(E::load);
                if input == 0 {
                    // Not added to zero, which would turn a negative zero into a positive one.
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum = share * value);
                } else {
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += share * value);
                }
            }
            out.chunks_exact_mut(E::LEN).zip(sums).for_each(|(out, sum)| E::store(*sum, out));
        }
    });
}
