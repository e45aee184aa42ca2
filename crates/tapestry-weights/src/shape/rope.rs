//! Rotary frequencies, and the ways in which models stretch them to reach further.

use serde::{Deserialize, Serialize};
use std::f64::consts::TAU;

/// How rotary frequencies are changed so that a model reaches further than it was first trained.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "rope_type")]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions are divided by a factor.
    ///
    /// # Source
    /// Chen et al., "Extending Context Window of Large Language Models via Positional Interpolation", equation 4.
    Linear {
        /// What positions are divided by.
        factor: f64,
    },
    /// Slow frequencies are divided, fast ones kept, those between blended.
    ///
    /// # Source
    /// Grattafiori et al., "The Llama 3 Herd of Models", section 3.4.2; constants from the released configurations.
    Llama3 {
        /// What slow frequencies are divided by.
        factor: f64,
        /// Frequencies that turn fewer times than this over the original context are slow.
        low_freq_factor: f64,
        /// Frequencies that turn more often than this over it are fast.
        high_freq_factor: f64,
        /// Tokens of the original context.
        original_max_position_embeddings: usize,
    },
    /// The same by dimension instead of by frequency, with all entries multiplied to keep attention sharp.
    ///
    /// # Source
    /// Peng et al., "YaRN", section 3.2 (NTK-by-parts) and 3.4 (attention scaling).
    Yarn {
        /// What slow frequencies are divided by.
        factor: f64,
        /// Multiplies sines and cosines; none: `0.1 ln(factor) + 1`.
        attention_factor: Option<f64>,
        /// Dimensions that turn more often than this over the original context are kept.
        beta_fast: f64,
        /// Dimensions that turn fewer times than this over it are divided.
        beta_slow: f64,
        /// Whether the bounds between them are rounded outwards to whole dimensions.
        truncate: bool,
        /// Tokens of the original context.
        original_max_position_embeddings: usize,
    },
}

impl RopeScaling {
    /// The angle that each pair of dimensions turns by from one position to the next, `[head_dim/2]` in radians, and what
    /// sines and cosines are multiplied by.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "widths and contexts are far below 2^52")]
    pub fn frequencies(&self, theta: f64, head_dim: usize) -> (Vec<f64>, f64) {
        let half = head_dim / 2;
        let plain = (0..half).map(|i| theta.powf(-(i as f64) / half as f64));
        match self {
            Self::None => (plain.collect(), 1.0),
            Self::Linear { factor } => (plain.map(|f| f / factor).collect(), 1.0),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                let stretch = |frequency: f64| {
                    let turns = *original_max_position_embeddings as f64 * frequency / TAU;
                    if turns < *low_freq_factor {
                        return frequency / factor;
                    }
                    if turns > *high_freq_factor {
                        return frequency;
                    }
                    let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - kept) * frequency / factor + kept * frequency
                };
                (plain.map(stretch).collect(), 1.0)
            }
            Self::Yarn { factor, attention_factor, original_max_position_embeddings, .. } => {
                let context = *original_max_position_embeddings as f64;
                let (low, high) = self.yarn_range(theta, head_dim, context);
                let stretch = |(i, frequency): (usize, f64)| {
                    let divided = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * divided + frequency * (1.0 - divided)
                };
                let sharpness = if *factor > 1.0 { 0.1 * factor.ln() + 1.0 } else { 1.0 };
                (plain.enumerate().map(stretch).collect(), attention_factor.unwrap_or(sharpness))
            }
        }
    }

    /// From which dimension on frequencies are blended, and from which on divided.
    #[expect(clippy::cast_precision_loss, reason = "a head's width is small")]
    fn yarn_range(&self, theta: f64, head_dim: usize, context: f64) -> (f64, f64) {
        let Self::Yarn { beta_fast, beta_slow, truncate, .. } = self else { return (0.0, 1.0) };
        let width = head_dim as f64;
        let dimension_of = |turns: f64| width * (context / (turns * TAU)).ln() / (2.0 * theta.ln());
        let (low, high) = (dimension_of(*beta_fast), dimension_of(*beta_slow));
        let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
        let (low, high) = (low.max(0.0), high.min(width - 1.0));
        // Two equal bounds would divide by zero.
        if (high - low).abs() < f64::EPSILON { (low, low + 0.001) } else { (low, high) }
    }

    /// Checks that the numbers go together.
    pub(super) fn check(&self, theta: f64) -> Result<(), String> {
        let positive = |name: &str, value: f64| {
            if value > 0.0 && value.is_finite() {
                Ok(())
            } else {
                Err(format!("rope scaling: {name} is {value}; a positive number is expected"))
            }
        };
        let context = |value: usize| {
            if (1..=1 << 30).contains(&value) {
                Ok(())
            } else {
                Err(format!("rope scaling: original_max_position_embeddings is {value}; from 1 to 2^30 is accepted"))
            }
        };
        match self {
            Self::None => Ok(()),
            Self::Linear { factor } => positive("factor", *factor),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor", *high_freq_factor)?;
                if high_freq_factor <= low_freq_factor {
                    return Err(format!(
                        "rope scaling: high_freq_factor {high_freq_factor} is not above low_freq_factor {low_freq_factor}"
                    ));
                }
                context(*original_max_position_embeddings)
            }
            Self::Yarn { factor, attention_factor, beta_fast, beta_slow, original_max_position_embeddings, .. } => {
                positive("factor", *factor)?;
                positive("attention_factor", attention_factor.unwrap_or(1.0))?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                if theta <= 1.0 {
                    return Err(format!("rope scaling \"yarn\" needs a rope_theta above 1; found {theta}"));
                }
                context(*original_max_position_embeddings)
            }
        }
    }
}
