//! The coordinate-wise median.
//!
//! # Formula
//! `merged_j = median_i(x_ij)`: of an odd number of values the middle one, of an even number the mean of the two middle ones,
//! in `f64`. Of zeros the negative counts as the smaller.
//!
//! # Source
//! Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", 2018,
//! Definition 1.
//!
//! # Limits
//! While fewer than half of the contributions are faulty, every merged value lies between the smallest and the largest honest
//! value of its coordinate; within this range they can still push it. What only a minority learned is lost: where most members
//! left a weight alone, so does the median. Shares have no effect.

use super::order::MiddleMean;
use super::{Demands, Rule, Setting};
use serde::{Deserialize, Serialize};

/// The median of each coordinate. It has no parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Median {}

impl Median {
    pub(super) const NAME: &'static str = "median";

    pub(super) const fn demands(self) -> Demands {
        Demands { min_contributions: 3, uses_shares: false, ..Demands::PLAIN }
    }

    pub(super) fn rule(self, setting: &Setting<'_>) -> Box<dyn Rule> {
        let num_contributions = setting.contributors.len();
        Box::new(MiddleMean::new(num_contributions, (num_contributions - 1) / 2))
    }
}
