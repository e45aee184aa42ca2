//! The learning rate over the updates.

use crate::TrainError;
use crate::job::require;
use serde::{Deserialize, Serialize};

/// How the learning rate goes after the warm-up, which is a line from zero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "kind", deny_unknown_fields)]
pub enum Schedule {
    /// It stays.
    Constant,
    /// A line down to `final_share` of the largest rate at the last update.
    Linear {
        /// From 0 to 1.
        final_share: f64,
    },
    /// Half a cosine down to `final_share` of the largest rate at the last update.
    ///
    /// # Source
    /// Loshchilov and Hutter, "SGDR", equation 5, without restarts.
    Cosine {
        /// From 0 to 1.
        final_share: f64,
    },
    /// Warm-up, stable, decay: it stays until `decay_steps` before the end, then a line down to `final_share`. A run can be gone on with from
    /// before the decay.
    ///
    /// # Source
    /// Hu et al., "MiniCPM", section 4.
    Wsd {
        /// Updates of the decay.
        decay_steps: u64,
        /// From 0 to 1.
        final_share: f64,
    },
}

impl Default for Schedule {
    fn default() -> Self {
        Self::Cosine { final_share: 0.1 }
    }
}

impl Schedule {
    pub(crate) fn check(self, num_steps: u64, warmup: u64) -> Result<(), TrainError> {
        let share = match self {
            Self::Constant => return Ok(()),
            Self::Linear { final_share } | Self::Cosine { final_share } => final_share,
            Self::Wsd { decay_steps, final_share } => {
                let is_possible = decay_steps >= 1 && decay_steps.saturating_add(warmup) <= num_steps;
                let expected = "from 1 to what num_steps leaves after the warm-up";
                require(is_possible, "schedule.decay_steps", expected, decay_steps.to_string())?;
                final_share
            }
        };
        require((0.0..=1.0).contains(&share), "schedule.final_share", "from 0 to 1", share.to_string())
    }

    /// The rate of update `step` (from 0): a line up to `largest` over `warmup` updates, then as the schedule has it.
    #[expect(clippy::cast_precision_loss, reason = "steps are far below 2^52")]
    pub(crate) fn learning_rate(self, step: u64, num_steps: u64, warmup: u64, largest: f64) -> f64 {
        if step < warmup {
            return largest * (step + 1) as f64 / (warmup + 1) as f64;
        }
        let after = (num_steps.saturating_sub(warmup + 1)).max(1) as f64;
        let share = ((step - warmup) as f64 / after).min(1.0);
        let line = |share: f64, end: f64| largest * (1.0 - share * (1.0 - end));
        match self {
            Self::Constant => largest,
            Self::Linear { final_share } => line(share, final_share),
            Self::Cosine { final_share } => {
                let cosine = 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
                largest * (final_share + (1.0 - final_share) * cosine)
            }
            Self::Wsd { decay_steps, final_share } => {
                let begins = num_steps - decay_steps.min(num_steps);
                let done = (step + 1).saturating_sub(begins) as f64 / decay_steps.max(1) as f64;
                line(done.min(1.0), final_share)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Schedule;

    fn rates(schedule: Schedule) -> Vec<f64> {
        (0..100).map(|step| schedule.learning_rate(step, 100, 10, 1.0)).collect()
    }

    #[test]
    fn the_default_rises_then_falls_to_a_tenth() {
        let rates = rates(Schedule::default());
        assert!(rates[..=10].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rates[10..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!((rates[10] - 1.0).abs() < 1e-12 && (rates[99] - 0.1).abs() < 1e-12 && rates[0] > 0.0);
        assert!((Schedule::default().learning_rate(0, 1, 0, 1.0) - 1.0).abs() < 1e-12);
    }

    #[test]
    fn each_schedule_is_what_its_name_says() {
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-12, "{a} {b}");
        let linear = rates(Schedule::Linear { final_share: 0.2 });
        close(linear[10], 1.0);
        close(linear[99], 0.2);
        close(linear[20] - linear[19], linear[99] - linear[98]);
        close(rates(Schedule::Constant)[99], 1.0);
        let wsd = rates(Schedule::Wsd { decay_steps: 20, final_share: 0.0 });
        close(wsd[10], 1.0);
        close(wsd[79], 1.0);
        close(wsd[80], 0.95);
        close(wsd[89], 0.5);
        close(wsd[99], 0.0);
        assert!(Schedule::Wsd { decay_steps: 95, final_share: 0.0 }.check(100, 10).is_err());
        assert!(Schedule::Linear { final_share: 1.5 }.check(100, 10).is_err());
    }
}
