//! TIES: trim, elect a sign, merge those that agree.
//!
//! # Formula
//! For each tensor and contribution, of the changes `d_i = x_i - base` the share `density` that is largest in magnitude is kept, the others
//! become zero. For each element, the sign of `sum_i share_i d_i` is elected (positive where it is zero), and
//! `merged = base + scale * sum share_i d_i / sum share_i` over the kept changes that have this sign; `base` where there is none.
//!
//! # Source
//! Yadav, Tam, Choshen, Raffel, Bansal, "TIES-Merging: Resolving Interference When Merging Models", 2023, section 3. There all contributions count
//! alike; here by their shares, as `mergekit` does with weights. Of changes that are equal in magnitude at the threshold all are kept
//! ([`Selection`](crate::Selection)).
//!
//! # Limits
//! No robustness: a contribution with changes large enough elects the signs alone.

use super::changes::{Putting, merge_changes};
use super::{Demands, MethodError, Rule, Setting, Survey, SurveyKind, unless_density, unless_scale};
use crate::block::Block;
use serde::{Deserialize, Serialize};

/// Trim, elect sign, merge.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ties {
    /// The share of each tensor's changes that is kept, in (0, 1]. The paper takes 0.2.
    pub density: f64,
    /// What the merged change is multiplied with.
    #[serde(default = "super::one")]
    pub scale: f64,
}

struct TiesRule {
    shares: Vec<f64>,
    /// For each tensor, one for each contribution.
    thresholds: Vec<Vec<f32>>,
    scale: f64,
}

impl Ties {
    pub(super) const NAME: &'static str = "ties";

    pub(super) const fn demands(self) -> Demands {
        Demands { base: true, survey: SurveyKind::Thresholds { density: self.density }, ..Demands::PLAIN }
    }

    pub(super) fn check(self) -> Result<(), MethodError> {
        unless_density(Self::NAME, self.density)?;
        unless_scale(Self::NAME, self.scale)
    }

    pub(super) fn rule(self, setting: &Setting<'_>, survey: &Survey) -> Box<dyn Rule> {
        assert_eq!(survey.thresholds.len(), setting.tensors.len(), "the method demands a survey of every tensor");
        let shares = setting.contributors.iter().map(|contributor| contributor.share).collect();
        Box::new(TiesRule { shares, thresholds: survey.thresholds.clone(), scale: self.scale })
    }
}

impl Rule for TiesRule {
    fn merge(&self, block: &Block<'_>, out: &mut [f64], _: &mut [&mut [f64]]) {
        let thresholds = &self.thresholds[block.tensor];
        let prune = |contribution: usize, _: usize, changes: &mut [f64]| {
            let threshold = f64::from(thresholds[contribution]);
            crate::simd::dispatch(
                #[inline(always)]
                || {
                    changes
                        .iter_mut()
                        .for_each(|change| *change = if change.abs() >= threshold { *change } else { 0.0 })
                },
            );
        };
        merge_changes(block, &self.shares, self.scale, Putting::ElectingMean, prune, out);
    }
}
