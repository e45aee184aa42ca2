//! Weights on disk: safetensors and GGUF in, the Hugging Face layout out.
//!
//! Every reader here treats its file as hostile: sizes, counts and offsets are checked against the file before anything is
//! allocated or read. The canonical form that Tapestry exchanges is one safetensors file with the tensors in the order of
//! their names and without gaps; its data section is exactly what a `WeightsManifest` describes.

mod adopt;
mod error;
pub mod gguf;
mod hf;
mod safetensors;
mod shape;
mod source;

pub use adopt::{AdoptReport, adopt_gguf};
pub use error::WeightsError;
pub use hf::HfDir;
pub use safetensors::{
    FileFacts, OtherDtype, OtherTensor, SafetensorsFile, SafetensorsModel, SafetensorsWriter, safetensors_header,
    safetensors_header_with_others, save_safetensors,
};
pub use shape::{DecoderShape, Family, FamilyTraits, QkNorm, RopeScaling, expected_tensors, norm_names};
pub use source::{WeightSource, bytes_to_f32, f32_to_bytes};
