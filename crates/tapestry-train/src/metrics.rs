//! What a job tells while it runs, and at the end.

use crate::TrainError;
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TrainProgress {
    /// Updates done.
    pub step: u64,
    /// Updates in all.
    pub num_steps: u64,
    /// Tokens seen so far.
    pub tokens_done: u64,
    /// Tokens in all.
    pub tokens_total: u64,
    /// The last update's loss, in nats per token.
    pub loss: f64,
    /// Tokens per second since this process began.
    pub tokens_per_second: f64,
    /// Seconds that are left at this speed.
    pub seconds_left: f64,
}

/// What a job was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainReport {
    /// Tokens trained on, counted once for each time they were seen.
    pub num_tokens: u64,
    /// Updates.
    pub num_steps: u64,
    /// Loss of the first update, in nats per token.
    pub first_loss: f64,
    /// Mean loss over the last quarter of the updates, in nats per token.
    pub last_loss: f64,
    /// Wall time over all processes that worked on the job, in seconds.
    pub wall_seconds: f64,
    /// Processor time over all of them, in seconds.
    pub cpu_seconds: f64,
    /// The largest resident memory of any of them, in bytes.
    pub peak_memory_bytes: u64,
    /// Conversations or preferences that were left out because they are longer than a window.
    #[serde(default)]
    pub num_left_out: u64,
    /// Measurements on what was set aside, the first before any update.
    #[serde(default)]
    pub validation: Vec<ValidationMetrics>,
}

/// A measurement on what was set aside, a line of `validation.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidationMetrics {
    /// Updates done before it.
    pub step: u64,
    /// Mean loss; of texts and conversations in nats per token.
    pub loss: f64,
    /// Mean reward of chosen answers minus that of rejected ones, of preferences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub margin: Option<f64>,
    /// Share of preferences that the model has the right way round.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
}

/// One update, a line of `metrics.jsonl`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepMetrics {
    /// From 1.
    pub(crate) step: u64,
    pub(crate) loss: f64,
    pub(crate) learning_rate: f64,
    pub(crate) grad_norm: f64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// As [`ValidationMetrics::margin`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) margin: Option<f64>,
    /// As [`ValidationMetrics::accuracy`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) accuracy: Option<f64>,
}

/// Writes a file of lines anew with those that a checkpoint has; more can be appended.
pub(crate) fn reopen<T: Serialize>(path: &Path, lines: &[T]) -> Result<File, TrainError> {
    let write = || -> std::io::Result<File> {
        let temporary = path.with_extension("jsonl.tmp");
        let mut file = File::create(&temporary)?;
        for line in lines {
            append(&mut file, line)?;
        }
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::options().append(true).open(path)
    };
    write().map_err(TrainError::io("write", path))
}

pub(crate) fn append(file: &mut File, line: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(line)?;
    line.push(b'\n');
    file.write_all(&line)
}
