//! Instruments that measure a model. Pure: no files, no clock, no tensors; a model is a trait here.
//!
//! So far there is one instrument, bits per byte ([`bits_per_byte`]): the coordinator's quality floor, the gate over the
//! merged base and the demo's table all come from it, so it has one definition in one place.
//!
//! It is not a training loss: windows carry no context from before them, so that the figure depends on the text and the
//! model alone and can be recomputed by anybody who has both.

mod bpb;

pub use bpb::{BitsPerByte, BpbError, BpbOptions, BpbProgress, TokenScorer, bits_per_byte};
