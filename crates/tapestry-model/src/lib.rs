//! The Llama family on Burn: configuration, tokenizer, the model itself, and measuring it.
//!
//! * [`Llama`] holds all parameters in memory and is what training changes.
//! * [`StreamingScorer`] holds one layer at a time and is what measures; [`measure_bpb`] is its front.
//!
//! Both read a Hugging Face folder or any other [`tapestry_weights::WeightSource`] through one check, so that neither
//! runs weights that do not belong to their `config.json` or that are not finite.
//!
//! This crate does not choose data, does not optimise and does not decide what is good enough.

mod batch;
mod block;
#[cfg(test)]
mod composed;
mod config;
mod error;
mod init;
mod llama;
mod measure;
mod parameters;
mod streaming;
mod tokenizer;

pub use batch::Batch;
pub use block::Block;
pub use config::LlamaConfig;
pub use error::ModelError;
pub use init::init_model;
pub use llama::Llama;
pub use measure::{measure_bpb, measure_bpb_of_dir};
pub use streaming::{ScoreProgress, StreamingScorer};
pub use tokenizer::{Encoded, Tokenizer, TokenizerError};

#[cfg(test)]
mod tests;
