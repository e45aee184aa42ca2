//! What is to be done.

use crate::{TRAINER_CONTRACT, TrainError};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A job of continued pre-training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CptJob {
    /// The version of the trainer contract that it follows: [`TRAINER_CONTRACT`].
    pub contract: u32,
    /// The model to start from, in Hugging Face layout.
    pub base_dir: PathBuf,
    /// Where the trained model lands, in the same layout; holds the checkpoints until then.
    pub out_dir: PathBuf,
    /// UTF-8 texts; documents are separated by U+001E (record separator).
    pub texts: Vec<PathBuf>,
    /// Updates.
    pub num_steps: u64,
    /// Windows in an update.
    pub batch_windows: usize,
    /// Tokens in a window.
    pub window: usize,
    /// The largest learning rate, reached at the end of the warm-up.
    pub learning_rate: f64,
    /// Updates until then.
    pub warmup_steps: u64,
    /// Share of each matrix taken away per update, times the learning rate; norms are spared.
    pub weight_decay: f64,
    /// Gradients with a larger L2 norm are scaled down to it.
    pub clip_norm: f64,
    /// Decides which text is seen, and in which order.
    pub seed: u64,
    /// Threads; without it, as many as there are cores.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_threads: Option<usize>,
    /// Updates between checkpoints; without it, ten minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_every: Option<u64>,
}

impl CptJob {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] naming the first that is impossible.
    pub fn check(&self) -> Result<(), TrainError> {
        let check = |is_possible: bool, setting, expected, found: String| {
            if is_possible { Ok(()) } else { Err(TrainError::Setting { setting, expected, found }) }
        };
        let whole = |value: u64, limit: u64, setting, expected| {
            check((1..=limit).contains(&value), setting, expected, value.to_string())
        };
        let real = |value: f64, limit: f64, setting, expected| {
            check(value >= 0.0 && value <= limit, setting, expected, value.to_string())
        };
        check(self.contract == TRAINER_CONTRACT, "contract", "1", self.contract.to_string())?;
        check(!self.texts.is_empty(), "texts", "at least one file", "none".into())?;
        whole(self.num_steps, 1 << 31, "num_steps", "from 1 to 2^31")?;
        whole(self.batch_windows as u64, 1 << 16, "batch_windows", "from 1 to 65536")?;
        check((2..=1 << 20).contains(&self.window), "window", "from 2 to 2^20 tokens", self.window.to_string())?;
        real(self.learning_rate, 1.0, "learning_rate", "from 0 to 1")?;
        real(self.weight_decay, 10.0, "weight_decay", "from 0 to 10")?;
        check(self.clip_norm > 0.0, "clip_norm", "above 0", self.clip_norm.to_string())?;
        whole(self.num_threads.unwrap_or(1) as u64, 1 << 12, "num_threads", "from 1 to 4096")?;
        whole(self.checkpoint_every.unwrap_or(1), u64::MAX, "checkpoint_every", "1 or more")
    }

    /// The job without what does not change its result or its meaning: equal for two that may continue each other.
    pub(crate) fn identity(&self) -> Self {
        Self { checkpoint_every: None, ..self.clone() }
    }
}
