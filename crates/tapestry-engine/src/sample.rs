//! A small part of a model that stands for the whole.

use crate::{EngineError, TensorSource};
use tapestry_core::TensorSpec;

/// The first elements of every tensor of a model.
pub(crate) struct Sample<'a> {
    source: &'a dyn TensorSource,
    tensors: Vec<TensorSpec>,
}

impl<'a> Sample<'a> {
    /// At most `max_elements` of each tensor.
    pub(crate) fn new(source: &'a dyn TensorSource, max_elements: u64) -> Self {
        let cut = |spec: &TensorSpec| {
            let num_elements = spec.num_elements().unwrap_or(0).min(max_elements);
            TensorSpec { shape: vec![num_elements], ..spec.clone() }
        };
        Self { source, tensors: source.tensors().iter().map(cut).collect() }
    }

    /// The most elements of a tensor, so that all tensors together have about `budget` bytes.
    pub(crate) fn max_elements(tensors: &[TensorSpec], budget: u64) -> u64 {
        let size = |most: u64| -> u64 {
            tensors.iter().map(|t| t.num_elements().unwrap_or(0).min(most) * t.dtype.size_bytes()).sum()
        };
        let mut most = 1 << 40;
        while most > 1024 && size(most) > budget {
            most /= 2;
        }
        most
    }
}

impl TensorSource for Sample<'_> {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn read_into(&self, tensor: usize, start: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        self.source.read_into(tensor, start, buffer)
    }

    fn place_of(&self, tensor: usize) -> String {
        self.source.place_of(tensor)
    }
}
