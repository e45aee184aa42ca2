//! What can go wrong between a model on disk and a number.

use crate::TokenizerError;
use std::path::PathBuf;
use tapestry_eval::BpbError;
use tapestry_weights::WeightsError;

/// Any failure of building, loading, saving or running a model.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The configuration describes no model that can be run.
    #[error("the configuration cannot be run: {reason}; check config.json against the model's origin")]
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
    /// There is a parameter that such a model does not have.
    #[error(
        "the weights hold {name:?}, which a model with this config.json does not have; weights and configuration come from different models"
    )]
    UnexpectedTensor {
        /// Its name, as the weights have it.
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
        expected: Vec<u64>,
        /// What is there.
        found: Vec<u64>,
    },
    /// A weight is NaN or an infinity.
    #[error(
        "tensor {name:?} holds {value} at element {index}; the weights are damaged or training diverged, do not use them"
    )]
    NotFinite {
        /// The tensor's Hugging Face name.
        name: String,
        /// Position in row-major order.
        index: u64,
        /// The value.
        value: f32,
    },
    /// Reading or writing weights failed.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A token that the model does not know.
    #[error("token id {id} is outside the model's vocabulary of {vocabulary}; the tokenizer belongs to another model")]
    TokenOutsideVocabulary {
        /// The id.
        id: u32,
        /// Number of tokens that the model knows.
        vocabulary: usize,
    },
    /// More tokens at once than the model has positions for.
    #[error("windows of {tokens} tokens do not fit the model's context of {limit}; use shorter windows")]
    ContextOverflow {
        /// Tokens in the window.
        tokens: usize,
        /// Positions of the model.
        limit: usize,
    },
    /// Windows of one call differ in length, or are too short to score anything.
    #[error("all windows of one call must have the same length of at least {minimum} tokens; found lengths {found:?}")]
    Windows {
        /// The least length that makes sense.
        minimum: usize,
        /// The different lengths found.
        found: Vec<usize>,
    },
    /// The lists of a batch do not have the size that its dimensions ask for.
    #[error("a batch of {num_windows} windows of {window} tokens needs {expected} {what}, found {found}")]
    BatchShape {
        /// Which list.
        what: &'static str,
        /// Windows in the batch.
        num_windows: usize,
        /// Tokens in a window.
        window: usize,
        /// Entries that are due.
        expected: usize,
        /// Entries that are there.
        found: usize,
    },
    /// A prompt has no token to start from.
    #[error("prompt {number} has no token; give at least one word, or the token that begins a text", number = number + 1)]
    EmptyPrompt {
        /// Which prompt, from 0.
        number: usize,
    },
    /// A setting of sampling is impossible.
    #[error("{setting} is {found}; {expected} is accepted")]
    Sampling {
        /// Which setting.
        setting: &'static str,
        /// What is accepted.
        expected: &'static str,
        /// What was given.
        found: f32,
    },
    /// The model gives no usable logit.
    #[error(
        "the model gives token {token} the logit {value}; its weights are damaged or training diverged, do not use it"
    )]
    LogitsNotFinite {
        /// Which token.
        token: u32,
        /// Its logit.
        value: f32,
    },
    /// No position of a batch counts, so there is no mean loss.
    #[error("the batch has no position that counts towards the loss; leave such batches out")]
    NothingCounts,
    /// A file could not be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The tokenizer is not usable, or belongs to another model.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// Reading values back from the device failed.
    #[error("the values of {name:?} cannot be read back from the device: {reason}")]
    Device {
        /// Which parameter.
        name: String,
        /// What the device said.
        reason: String,
    },
    /// The text could not be measured.
    #[error(transparent)]
    Measure(Box<BpbError<ModelError>>),
}

impl ModelError {
    /// Whether a model was run, and its text just gives no finite value: no other failure says anything about the weights.
    #[must_use]
    pub fn is_no_value(&self) -> bool {
        match self {
            Self::NotFinite { .. } => true,
            Self::Measure(error) => match &**error {
                BpbError::NotFinite { .. } | BpbError::NothingToScore { .. } => true,
                BpbError::Scorer { source, .. } => source.is_no_value(),
                _ => false,
            },
            _ => false,
        }
    }

    pub(crate) fn io(action: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}

impl From<BpbError<Self>> for ModelError {
    fn from(error: BpbError<Self>) -> Self {
        // What the model itself reports says more than where in the text it was.
        match error {
            BpbError::Scorer { source, .. } => source,
            other => Self::Measure(Box::new(other)),
        }
    }
}
