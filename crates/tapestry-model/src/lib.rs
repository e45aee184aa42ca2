//! Dense decoder-only models on Burn: configuration, tokenizer, the model itself, and measuring it.
//!
//! * [`Decoder`] holds all parameters in memory and is what training changes.
//! * [`Generator`] holds plain slices and a cache of keys and values, and is what answers.
//! * [`StreamingScorer`] holds one layer at a time and is what measures; [`measure_bpb`] is its front.
//!
//! All read a Hugging Face folder or any other [`tapestry_weights::WeightSource`] through one check, so that none
//! runs weights that do not belong to their `config.json` or that are not finite.
//!
//! This crate does not choose data, does not optimise and does not decide what is good enough.

mod batch;
mod block;
mod chat;
#[cfg(test)]
mod composed;
mod config;
mod decoder;
mod error;
mod generate;
mod init;
mod layer;
mod measure;
mod parameters;
mod sampler;
mod streaming;
mod text_stream;
mod tokenizer;

pub use batch::Batch;
pub use block::Block;
pub use chat::{ChatError, ChatTemplate, Message};
pub use config::DecoderConfig;
pub use decoder::Decoder;
pub use error::ModelError;
pub use generate::{Answer, AnswerEnd, GenerateOptions, Generator, Sequence, Session, end_ids};
pub use init::init_model;
pub use measure::{measure_bpb, measure_bpb_of_dir};
pub use sampler::{Drawn, Sampling};
pub use streaming::{ScoreProgress, StreamingScorer};
pub use text_stream::{StopStrings, TextStream};
pub use tokenizer::{Encoded, Tokenizer, TokenizerError};

#[cfg(test)]
mod tests;
