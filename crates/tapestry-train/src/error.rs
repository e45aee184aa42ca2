//! Why a job cannot be done.

use crate::{EXIT_INTERRUPTED, EXIT_UNUSABLE};
use std::path::{Path, PathBuf};
use tapestry_model::{ModelError, TokenizerError};
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
