//! Safetensors: eight bytes of header length, a JSON header, the data.
//!
//! Readers keep the header in memory and never the data: tensors are read in the parts that are asked for, from the file's
//! descriptor. A mapping would count as memory of this process, all of a model's, and would end the process where
//! somebody truncates the file.
//!
//! Source: the format description of the `safetensors` project. Stricter here: see [`SafetensorsFile::open`].

mod file;
mod header;
mod index;
mod model;
mod other;
mod write;

pub use file::{FileFacts, SafetensorsFile};
pub use model::SafetensorsModel;
pub use other::{OtherDtype, OtherTensor};
pub use write::{SafetensorsWriter, safetensors_header, safetensors_header_with_others, save_safetensors};

const FORMAT: &str = "safetensors";

#[cfg(test)]
mod tests;
