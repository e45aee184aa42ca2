//! Why a job cannot be done.

use crate::{EXIT_INTERRUPTED, EXIT_UNUSABLE, MemoryEstimate};
use std::path::{Path, PathBuf};
use tapestry_model::{ChatError, ModelError, TokenizerError};
use tapestry_weights::WeightsError;

/// Why a job cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum TrainError {
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file that is no job.
    #[error("{path} is not a job: {reason}. docs/trainer-contract.md says what one is")]
    Job {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A setting that no training can have.
    #[error("job setting `{setting}` must be {expected}; found {found}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// What is possible.
        expected: &'static str,
        /// What was found.
        found: String,
    },
    /// A text that is not UTF-8.
    #[error("{path} is not UTF-8: the first wrong byte is at offset {offset}; convert the file to UTF-8")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where it goes wrong.
        offset: usize,
    },
    /// Texts without content.
    #[error("there is no text to train on in {paths}: the files are empty")]
    EmptyCorpus {
        /// The files.
        paths: String,
    },
    /// Less text than one window.
    #[error("the texts have {found} tokens, and one window takes {needed}; give more text or a smaller window")]
    CorpusTooShort {
        /// Tokens found.
        found: usize,
        /// Tokens of a window and the one after it.
        needed: usize,
    },
    /// Nothing to measure on.
    #[error("nothing was set aside to measure on; give a larger validation.share, or validation.files with content")]
    NothingSetAside,
    /// No sample fits into a window.
    #[error(
        "none of the samples can be trained on: {num_left_out} are longer than a window of {window} tokens; give a larger window"
    )]
    AllTooLong {
        /// How many there are.
        num_left_out: u64,
        /// Tokens of a window.
        window: usize,
    },
    /// A line of a file of conversations or preferences.
    #[error("{path}, line {line}: {reason}. docs/training.md says what a line is")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// Messages for a model that was not made for conversations.
    #[error("the prompt is a list of messages, and the model has no chat template to write them with; give a text")]
    MessagesWithoutTemplate,
    /// An answer, or what it answers, without a token.
    #[error("the prompt or the answer is empty")]
    EmptyAnswer,
    /// The starting model gives no usable number.
    #[error(
        "the model gives preference {number} a probability that is not finite; its weights are damaged, do not use it"
    )]
    ReferenceNotFinite {
        /// Which, from 1.
        number: usize,
    },
    /// The model's chat template.
    #[error(transparent)]
    Chat(#[from] ChatError),
    /// The job does not fit.
    #[error(
        "the job takes about {:.1} GiB ({:.1} for weights, gradients and moments, {:.1} for activations, {:.1} for what is under way), and {:.1} GiB are \
         available. Give fewer batch_windows with more accumulation (the same result), a shorter window, or checkpoint_activations: true; where \
         weights alone are too many, a smaller base or a larger machine",
        gib(.estimate.total()), gib(.estimate.parameters), gib(.estimate.activations), gib(.estimate.working), gib(*.available_bytes)
    )]
    Memory {
        /// What it takes.
        estimate: MemoryEstimate,
        /// What there is.
        available_bytes: u64,
    },
    /// The model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The weights.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The training broke down.
    #[error(
        "{what} is not finite at step {step}; the state before it is kept in {checkpoint}. A smaller learning rate or a \
         longer warm-up usually helps"
    )]
    Diverged {
        /// Loss or gradient.
        what: &'static str,
        /// The step, from 1.
        step: u64,
        /// Where the last good state is.
        checkpoint: PathBuf,
    },
    /// The job was asked to stop.
    #[error("stopped after step {step}; the same job goes on from there")]
    Stopped {
        /// Steps done.
        step: u64,
    },
    /// The folder belongs to another job.
    #[error("{out_dir} holds the work of another job; give another out_dir, or remove it")]
    OtherJob {
        /// The folder.
        out_dir: PathBuf,
    },
    /// A checkpoint that cannot be used.
    #[error("the checkpoint in {path} cannot be used: {reason}. Remove it, and the job starts over")]
    Checkpoint {
        /// Where.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A trainer's `metrics.jsonl` that breaks the contract.
    #[error("{path}, line {line}: {reason}. docs/trainer-contract.md says what a step is")]
    Metrics {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong.
        reason: String,
    },
    /// The threads cannot be started.
    #[error("cannot start {num_threads} threads: {reason}")]
    Threads {
        /// How many.
        num_threads: usize,
        /// Why.
        reason: String,
    },
}

#[expect(clippy::cast_precision_loss, reason = "a size for people")]
fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

impl TrainError {
    /// The code that a trainer ends with for this error, by the trainer contract.
    #[must_use]
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Stopped { .. } => EXIT_INTERRUPTED,
            Self::Job { .. }
            | Self::Setting { .. }
            | Self::NotUtf8 { .. }
            | Self::EmptyCorpus { .. }
            | Self::CorpusTooShort { .. }
            | Self::NothingSetAside
            | Self::AllTooLong { .. }
            | Self::Line { .. }
            | Self::MessagesWithoutTemplate
            | Self::EmptyAnswer
            | Self::ReferenceNotFinite { .. }
            | Self::Chat(_)
            | Self::Memory { .. }
            | Self::OtherJob { .. }
            | Self::Diverged { .. } => EXIT_UNUSABLE,
            Self::Io { .. }
            | Self::Model(_)
            | Self::Tokenizer(_)
            | Self::Weights(_)
            | Self::Checkpoint { .. }
            | Self::Metrics { .. }
            | Self::Threads { .. } => 1,
        }
    }

    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }
}
