//! Where values come from.

use crate::EngineError;
use crate::temp_model::SafetensorsModel;
use tapestry_core::TensorSpec;

/// The weights of one model, read in any order from any thread.
pub trait TensorSource: Send + Sync {
    /// The tensors, in the order of their names.
    fn tensors(&self) -> &[TensorSpec];

    /// Fills `buffer` with the bytes of a tensor from `start` on.
    ///
    /// # Errors
    /// Where they cannot be read.
    fn read_into(&self, tensor: usize, start: u64, buffer: &mut [u8]) -> Result<(), EngineError>;

    /// The file, or whatever else a person would look for, that holds a tensor.
    fn place_of(&self, tensor: usize) -> String;
}

impl TensorSource for SafetensorsModel {
    fn tensors(&self) -> &[TensorSpec] {
        self.tensors()
    }

    fn read_into(&self, tensor: usize, start: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        Ok(self.read_into(tensor, start, buffer)?)
    }

    fn place_of(&self, tensor: usize) -> String {
        self.path_of(tensor).display().to_string()
    }
}
