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
pub struct CptReport {
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
}

/// One update, a line of `metrics.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepMetrics {
    /// From 1.
    pub(crate) step: u64,
    pub(crate) loss: f64,
    pub(crate) learning_rate: f64,
    pub(crate) grad_norm: f64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// Writes `metrics.jsonl` anew with the steps that a checkpoint has, then appends.
pub(crate) fn reopen(path: &Path, steps: &[StepMetrics]) -> Result<File, TrainError> {
    let write = || -> std::io::Result<File> {
        let temporary = path.with_extension("jsonl.tmp");
        let mut file = File::create(&temporary)?;
        for step in steps {
            append(&mut file, step)?;
        }
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        File::options().append(true).open(path)
    };
    write().map_err(TrainError::io("write", path))
}

pub(crate) fn append(file: &mut File, step: &StepMetrics) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(step)?;
    line.push(b'\n');
    file.write_all(&line)
}
