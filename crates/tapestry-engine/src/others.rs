//! Tensors that no method computes with: integers, truth values, rare floats. They go to the result as they are, and only where all
//! models agree on them.

use crate::{EngineError, TensorSource};
use tapestry_weights::OtherTensor;

/// Bytes that are compared at a time.
const WINDOW: u64 = 1 << 20;

/// Such tensors of the result, and the model that they are copied from.
pub(crate) struct Others<'a> {
    source: &'a dyn TensorSource,
}

impl<'a> Others<'a> {
    /// Checks that all models have the same such tensors with the same content.
    pub(crate) fn new(first: &'a dyn TensorSource, all: &[&dyn TensorSource]) -> Result<Self, EngineError> {
        for model in all {
            check(first, *model)?;
        }
        Ok(Self { source: first })
    }

    pub(crate) fn tensors(&self) -> &[OtherTensor] {
        self.source.others()
    }

    pub(crate) fn size_bytes(&self) -> u64 {
        self.tensors().iter().map(size_bytes).sum()
    }

    /// Writes their bytes, one tensor after the other, from `start` on.
    pub(crate) fn fill(&self, start: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        let (mut bytes, mut at, mut tensor_start) = (bytes, start, 0);
        for (index, tensor) in self.tensors().iter().enumerate() {
            let tensor_end = tensor_start + size_bytes(tensor);
            if at < tensor_end && !bytes.is_empty() {
                let len = usize::try_from(tensor_end - at).unwrap_or(usize::MAX).min(bytes.len());
                let (now, later) = bytes.split_at_mut(len);
                self.source.read_other_into(index, at - tensor_start, now)?;
                (bytes, at) = (later, at + len as u64);
            }
            tensor_start = tensor_end;
        }
        Ok(())
    }
}

fn size_bytes(tensor: &OtherTensor) -> u64 {
    tensor.size_bytes().expect("readers refuse shapes that overflow")
}

fn check(first: &dyn TensorSource, second: &dyn TensorSource) -> Result<(), EngineError> {
    let place =
        |model: &dyn TensorSource| if model.tensors().is_empty() { "a model".into() } else { model.place_of(0) };
    let lacks = |tensor: &OtherTensor, has: &dyn TensorSource, lacks: &dyn TensorSource| EngineError::MissingTensor {
        tensor: tensor.name.clone(),
        has: place(has),
        lacks: place(lacks),
    };
    let has = |model: &dyn TensorSource, name: &str| model.others().iter().any(|other| other.name == name);
    if let Some(tensor) = first.others().iter().find(|tensor| !has(second, &tensor.name)) {
        return Err(lacks(tensor, first, second));
    }
    if let Some(tensor) = second.others().iter().find(|tensor| !has(first, &tensor.name)) {
        return Err(lacks(tensor, second, first));
    }
    for (index, (a, b)) in first.others().iter().zip(second.others()).enumerate() {
        let differs = |detail: String| EngineError::OtherTensor {
            tensor: a.name.clone(),
            first: place(first),
            second: place(second),
            detail,
        };
        if (a.dtype, &a.shape) != (b.dtype, &b.shape) {
            return Err(differs(format!("{} {:?} there and {} {:?} here", a.dtype, a.shape, b.dtype, b.shape)));
        }
        let (mut left, mut right) = (vec![], vec![]);
        for start in (0..size_bytes(a)).step_by(usize::try_from(WINDOW).unwrap_or(1 << 20)) {
            let len = usize::try_from((size_bytes(a) - start).min(WINDOW)).unwrap_or(0);
            left.resize(len, 0);
            right.resize(len, 0);
            first.read_other_into(index, start, &mut left)?;
            second.read_other_into(index, start, &mut right)?;
            if let Some(at) = left.iter().zip(&right).position(|(a, b)| a != b) {
                return Err(differs(format!(
                    "{} values differ from byte {} of the tensor on",
                    a.dtype,
                    start + at as u64
                )));
            }
        }
    }
    Ok(())
}
