//! Where values come from.

use crate::EngineError;
use tapestry_core::TensorSpec;
use tapestry_weights::{OtherTensor, SafetensorsModel, WeightSource};

/// The weights of one model, read in any order from any thread.
pub trait TensorSource: Send + Sync {
    /// The tensors, in the order of their names.
    fn tensors(&self) -> &[TensorSpec];

    /// Fills `buffer` with the bytes of a tensor from `start` on.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn read_into(&self, tensor: usize, start: u64, buffer: &mut [u8]) -> Result<(), EngineError>;

    /// Tensors of types that no method computes with, such as integers, in the order of their names.
    fn others(&self) -> &[OtherTensor] {
        &[]
    }

    /// Fills `buffer` with the bytes of such a tensor from `start` on.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn read_other_into(&self, other: usize, start: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        let _ = (start, buffer);
        unreachable!("tensor {other} of a source that has none")
    }

    /// The file, or whatever else a person would look for, that holds a tensor.
    fn place_of(&self, tensor: usize) -> String;
}

impl TensorSource for SafetensorsModel {
    fn tensors(&self) -> &[TensorSpec] {
        WeightSource::tensors(self)
    }

    fn others(&self) -> &[OtherTensor] {
        self.others()
    }

    fn read_other_into(&self, other: usize, start: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        Ok(self.read_other_into(other, start, buffer)?)
    }

    fn read_into(&self, tensor: usize, start: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        Ok(self.read_into(tensor, start, buffer)?)
    }

    fn place_of(&self, tensor: usize) -> String {
        self.path_of(tensor).display().to_string()
    }
}
