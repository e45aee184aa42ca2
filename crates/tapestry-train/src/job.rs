//! What is to be done.

use crate::{Schedule, TRAINER_CONTRACT, TrainError};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A training job. Which data it names decides what it is: `texts` or `mixture` for continued pre-training (CPT), `conversations` for
/// instruction tuning (SFT), `preferences` for alignment.
///
/// The fields up to `seed` are those of the trainer contract; the others may be absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainJob {
    /// The version of the trainer contract that it follows: [`TRAINER_CONTRACT`].
    pub contract: u32,
    /// The model to start from, in Hugging Face layout.
    pub base_dir: PathBuf,
    /// Where the trained model lands, in the same layout; holds the checkpoints until then.
    pub out_dir: PathBuf,
    /// UTF-8 texts; documents are separated by U+001E (record separator).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub texts: Vec<PathBuf>,
    /// Updates.
    pub num_steps: u64,
    /// Windows in an update; with `accumulation`, in each of its parts.
    pub batch_windows: usize,
    /// Tokens in a window.
    pub window: usize,
    /// The largest learning rate, reached at the end of the warm-up.
    pub learning_rate: f64,
    /// Updates until then.
    pub warmup_steps: u64,
    /// Share of each matrix taken away per update, times the learning rate; norms and biases are spared.
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
    /// Texts of different kinds, each with its share of the tokens, instead of `texts`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub mixture: Vec<Part>,
    /// General text among the rest, so that the model does not forget it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rehearsal: Option<Rehearsal>,
    /// Files of conversations, a JSON object with `messages` on each line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conversations: Vec<PathBuf>,
    /// Files of preferences, a JSON object with `prompt`, `chosen` and `rejected` on each line; for KTO with `prompt`, `completion` and `label`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub preferences: Vec<PathBuf>,
    /// How preferences are learnt; due where `preferences` is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<Preference>,
    /// What is set aside to measure on, and never trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub validation: Option<Validation>,
    /// How the learning rate goes after the warm-up; without it, half a cosine down to a tenth.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<Schedule>,
    /// Parts that an update is computed in: the same result as with so many times the windows, in less memory. Without it, 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accumulation: Option<usize>,
    /// Compute each block again for its gradient instead of keeping what it made: less memory, a third more time, the same bits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub checkpoint_activations: Option<bool>,
    /// AdamW's decay of the mean of gradients and of their squares, and what keeps its division finite; without it 0.9, 0.95 and 1e-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adamw: Option<AdamWSettings>,
}

/// Texts with a share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    /// As [`TrainJob::texts`].
    pub texts: Vec<PathBuf>,
    /// Its share of the tokens, relative to the weights of the other parts.
    pub weight: f64,
}

/// General text that is rehearsed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rehearsal {
    /// As [`TrainJob::texts`].
    pub texts: Vec<PathBuf>,
    /// Its share of all tokens, from 0 to 1.
    pub share: f64,
}

/// What is measured on during training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Validation {
    /// Share of the documents that is set aside. A document's own bytes decide, so that two equal ones are on the same side, and the same
    /// documents are set aside whatever the seed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<f64>,
    /// Files to measure on, of the same kind as those that are trained on, instead of a share.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub files: Vec<PathBuf>,
    /// Updates between measurements; there is one before the first and one after the last.
    pub every: u64,
    /// The most batches that a measurement takes; without it, 16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_batches: Option<usize>,
}

/// How preferences are learnt.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Preference {
    /// The loss.
    pub method: PreferenceMethod,
    /// How closely the model keeps to the one that it started from; for SimPO what the log-probabilities are multiplied by.
    pub beta: f64,
    /// SimPO: by how much the chosen answer is to lead. Without it, 0.5.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gamma: Option<f64>,
    /// DPO and SimPO: the share of pairs that are taken to be the wrong way round. Without it, 0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label_smoothing: Option<f64>,
}

/// The loss on preferences. [`crate::preference_loss`] has the formulas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PreferenceMethod {
    /// Rafailov et al., "Direct Preference Optimization".
    Dpo,
    /// Azar et al., "A General Theoretical Paradigm to Understand Learning from Human Preferences".
    Ipo,
    /// Meng et al., "SimPO".
    SimPo,
    /// Ethayarajh et al., "KTO".
    Kto,
}

/// AdamW's constants.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdamWSettings {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients: 0.95 is the usual choice for language models.
    pub beta2: f64,
    /// Keeps the division finite.
    pub eps: f64,
}

impl Default for AdamWSettings {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8 }
    }
}

/// What a job learns from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Continued pre-training, from texts.
    Cpt,
    /// Instruction tuning, from conversations.
    Sft,
    /// Alignment, from preferences.
    Preference,
}

impl TrainJob {
    /// Checks the settings.
    ///
    /// # Errors
    /// [`TrainError::Setting`] naming the first that is impossible.
    pub fn check(&self) -> Result<(), TrainError> {
        require(self.contract == TRAINER_CONTRACT, "contract", "1", self.contract.to_string())?;
        self.stage()?;
        whole(self.num_steps, 1 << 31, "num_steps", "from 1 to 2^31")?;
        whole(self.batch_windows as u64, 1 << 16, "batch_windows", "from 1 to 65536")?;
        require((2..=1 << 20).contains(&self.window), "window", "from 2 to 2^20 tokens", self.window.to_string())?;
        real(self.learning_rate, 1.0, "learning_rate", "from 0 to 1")?;
        real(self.weight_decay, 10.0, "weight_decay", "from 0 to 10")?;
        require(self.clip_norm > 0.0, "clip_norm", "above 0", self.clip_norm.to_string())?;
        whole(self.num_threads.unwrap_or(1) as u64, 1 << 12, "num_threads", "from 1 to 4096")?;
        whole(self.checkpoint_every.unwrap_or(1), u64::MAX, "checkpoint_every", "1 or more")?;
        whole(self.accumulation.unwrap_or(1) as u64, 1 << 16, "accumulation", "from 1 to 65536")?;
        self.schedule.unwrap_or_default().check(self.num_steps, self.warmup_steps)?;
        let AdamWSettings { beta1, beta2, eps } = self.adamw.unwrap_or_default();
        for (value, setting) in [(beta1, "adamw.beta1"), (beta2, "adamw.beta2")] {
            require((0.0..1.0).contains(&value), setting, "from 0 to below 1", value.to_string())?;
        }
        require(eps > 0.0 && eps < 1.0, "adamw.eps", "a small positive number", eps.to_string())?;
        self.check_shares()?;
        self.check_preference()
    }

    fn check_shares(&self) -> Result<(), TrainError> {
        for part in &self.mixture {
            let is_weight = part.weight > 0.0 && part.weight.is_finite();
            require(is_weight, "mixture.weight", "above 0", part.weight.to_string())?;
            require(!part.texts.is_empty(), "mixture.texts", "at least one file", "none".into())?;
        }
        if let Some(rehearsal) = &self.rehearsal {
            let is_share = rehearsal.share > 0.0 && rehearsal.share < 1.0;
            require(is_share, "rehearsal.share", "above 0 and below 1", rehearsal.share.to_string())?;
            require(!rehearsal.texts.is_empty(), "rehearsal.texts", "at least one file", "none".into())?;
        }
        let Some(validation) = &self.validation else { return Ok(()) };
        whole(validation.every, u64::MAX, "validation.every", "1 or more")?;
        whole(validation.max_batches.unwrap_or(1) as u64, 1 << 20, "validation.max_batches", "from 1 to 2^20")?;
        let found = |what: &str| what.to_owned();
        match (validation.share, validation.files.is_empty()) {
            (Some(share), true) => {
                require(share > 0.0 && share < 1.0, "validation.share", "above 0 and below 1", share.to_string())
            }
            (None, false) => Ok(()),
            (Some(_), false) => require(false, "validation", "a share or files, not both", found("both")),
            (None, true) => require(false, "validation", "a share, or files", found("neither")),
        }
    }

    fn check_preference(&self) -> Result<(), TrainError> {
        let Some(preference) = self.preference else { return Ok(()) };
        require(
            preference.beta > 0.0 && preference.beta.is_finite(),
            "preference.beta",
            "above 0",
            preference.beta.to_string(),
        )?;
        real(preference.gamma.unwrap_or(0.5), 1e6, "preference.gamma", "0 or more")?;
        real(preference.label_smoothing.unwrap_or(0.0), 0.5, "preference.label_smoothing", "from 0 to 0.5")
    }

    /// What the job learns from.
    pub(crate) fn stage(&self) -> Result<Stage, TrainError> {
        let is_text = !self.texts.is_empty() || !self.mixture.is_empty();
        let setting = "texts, mixture, conversations, preferences";
        let kinds = [is_text, !self.conversations.is_empty(), !self.preferences.is_empty()];
        require(kinds.iter().filter(|is| **is).count() == 1, setting, "one of them", format!("{kinds:?}"))?;
        let both = !self.texts.is_empty() && !self.mixture.is_empty();
        require(!both, "mixture", "absent where `texts` is given", "both".into())?;
        require(self.rehearsal.is_none() || is_text, "rehearsal", "given with texts only", "it is given".into())?;
        let has_method = self.preference.is_some();
        require(
            has_method != self.preferences.is_empty(),
            "preference",
            "given with `preferences`",
            has_method.to_string(),
        )?;
        Ok(match kinds {
            [true, ..] => Stage::Cpt,
            [_, true, _] => Stage::Sft,
            _ => Stage::Preference,
        })
    }

    /// Checks that the job is one of a stage.
    ///
    /// # Errors
    /// [`TrainError::Setting`].
    pub fn check_stage(&self, expected: Stage) -> Result<(), TrainError> {
        let (setting, due) = match expected {
            Stage::Cpt => ("texts", "given, or a mixture (`tapestry train cpt`)"),
            Stage::Sft => ("conversations", "given (`tapestry train sft`)"),
            Stage::Preference => ("preferences", "given (`tapestry train preference`)"),
        };
        let found = self.stage()?;
        require(found == expected, setting, due, format!("a job of another stage, {found:?}"))
    }

    /// The texts with their weights.
    pub(crate) fn parts(&self) -> Vec<Part> {
        let mut parts = self.mixture.clone();
        if !self.texts.is_empty() {
            parts.push(Part { texts: self.texts.clone(), weight: 1.0 });
        }
        if let Some(Rehearsal { texts, share }) = &self.rehearsal {
            let others: f64 = parts.iter().map(|part| part.weight).sum();
            parts.push(Part { texts: texts.clone(), weight: others * share / (1.0 - share) });
        }
        parts
    }

    /// The job without what does not change its result or its meaning: equal for two that may continue each other.
    pub(crate) fn identity(&self) -> Self {
        Self { checkpoint_every: None, checkpoint_activations: None, ..self.clone() }
    }
}

pub(crate) fn require(
    is_possible: bool,
    setting: &'static str,
    expected: &'static str,
    found: String,
) -> Result<(), TrainError> {
    if is_possible { Ok(()) } else { Err(TrainError::Setting { setting, expected, found }) }
}

fn whole(value: u64, limit: u64, setting: &'static str, expected: &'static str) -> Result<(), TrainError> {
    require((1..=limit).contains(&value), setting, expected, value.to_string())
}

fn real(value: f64, limit: f64, setting: &'static str, expected: &'static str) -> Result<(), TrainError> {
    require(value >= 0.0 && value <= limit, setting, expected, value.to_string())
}
