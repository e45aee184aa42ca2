//! What can go wrong between a model on disk and a number.

use std::path::PathBuf;

/// Any failure of building, loading, saving or running a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration and the model's arithmetic do not go together.
    #[error(
        "the configuration cannot be run: {reason}; check config.json against the model's origin"
    )]
    Config {
        /// What does not fit.
        reason: String,
    },
    /// A parameter is not there.
    #[error(
        "the weights lack {name:?}, which a model with this config.json has; weights and configuration come from different models, or the file is incomplete"
    )]
    MissingTensor {
        /// Its Hugging Face name.
        name: String,
    },
    /// A parameter has another shape than the configuration asks for.
    #[error(
        "tensor {name:?} has shape {found:?}, but config.json asks for {expected:?}; weights and configuration come from different models"
    )]
    Shape {
        /// Its Hugging Face name.
        name: String,
        /// What the configuration asks for.
        expected: Vec<usize>,
        /// What is there.
        found: Vec<usize>,
    },
    /// A weight is NaN or an infinity.
    #[error(
        "tensor {name:?} holds {value} at position {index}; the weights are damaged or training diverged, do not use them"
    )]
    NotFinite {
        /// The tensor's Hugging Face name.
        name: String,
        /// Position in row-major order.
        index: usize,
        /// The value.
        value: f32,
    },
    /// Reading a parameter failed.
    #[error("tensor {name:?} could not be read")]
    Read {
        /// Its Hugging Face name.
        name: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A token that the model does not know.
    #[error(
        "token id {id} is outside the model's vocabulary of {vocabulary}; the tokenizer belongs to another model"
    )]
    TokenOutsideVocabulary {
        /// The id.
        id: u32,
        /// Number of tokens that the model knows.
        vocabulary: usize,
    },
    /// More tokens at once than the model has positions for.
    #[error(
        "{tokens} tokens do not fit the model's context of {limit}; use shorter windows"
    )]
    ContextOverflow {
        /// Tokens in the window.
        tokens: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// Windows of one call differ in length, or are too short.
    #[error(
        "windows of one call must have the same length of at least {minimum} tokens, found {found:?}"
    )]
    Windows {
        /// The least length that makes sense.
        minimum: usize,
        /// Lengths found.
        found: Vec<usize>,
    },
    /// The model directory or its weights are not usable.
    #[error("the model in {path} cannot be loaded")]
    Directory {
        /// The directory.
        path: PathBuf,
        /// The reason.
        source: tapestry_weights::WeightsError,
    },
    /// A file could not be read or written.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tokenizer is not usable.
    #[error(transparent)]
    Tokenizer(#[from] crate::TokenizerError),
}
