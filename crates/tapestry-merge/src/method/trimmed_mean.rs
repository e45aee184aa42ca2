//! The coordinate-wise trimmed mean.
//!
//! # Formula
//! Of the `n` values of a coordinate in ascending order, without the `trim` smallest and the `trim` largest:
//! `merged_j = (x_(trim+1) + ... + x_(n-trim)) / (n - 2 trim)`, summed in this order in `f64` and then divided. Of zeros the
//! negative counts as the smaller.
//!
//! # Source
//! Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", 2018,
//! Definition 2. There `beta` is the share that is dropped at each end: `trim = beta n`.
//!
//! # Limits
//! While at most `trim` contributions are faulty, every merged value lies between the smallest and the largest honest value of
//! its coordinate. What at most `trim` members learned is lost. Shares have no effect.

use super::order::MiddleMean;
use super::{Demands, MethodError, Rule, Setting};
use serde::{Deserialize, Serialize};

/// The mean of each coordinate without its extreme values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrimmedMean {
    /// How many values are dropped at each end, and so how many faulty contributions can be borne; at least 1. The merge needs
    /// `2 trim + 1` contributions.
    pub trim: usize,
}

impl TrimmedMean {
    pub(super) const NAME: &'static str = "trimmed-mean";

    pub(super) const fn demands(self) -> Demands {
        let min_contributions = self.trim.saturating_mul(2).saturating_add(1);
        Demands { min_contributions, uses_shares: false, ..Demands::PLAIN }
    }

    pub(super) fn check(self) -> Result<(), MethodError> {
        MethodError::unless_at_least_one(Self::NAME, "trim", self.trim)
    }

    pub(super) fn rule(self, setting: &Setting<'_>) -> Box<dyn Rule> {
        Box::new(MiddleMean::new(setting.contributors.len(), self.trim))
    }
}
