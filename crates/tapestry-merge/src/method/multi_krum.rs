//! Multi-Krum: the mean of the contributions that have the nearest neighbours.
//!
//! # Formula
//! `merged = (1/m) sum x_i` over the `m` contributions with the smallest scores of [Krum](super::Krum), of equal scores the
//! first by name, added in the order of their names in `f64`.
//!
//! # Source
//! Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017,
//! section 5. `m` is at most `n - f - 2`, as many as each score looks at; the paper leaves it open.
//!
//! # Limits
//! As Krum, with more of the honest work kept. A faulty contribution that lies among the honest ones can be selected.

use super::krum::{mean_of_nearest, min_contributions};
use super::{Demands, MethodError, Rule, Setting, Survey, SurveyKind};
use serde::{Deserialize, Serialize};

/// The mean of the contributions nearest to their neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MultiKrum {
    /// How many faulty contributions are to be borne; at least 1. The merge needs `2 faulty + 3` contributions.
    pub faulty: usize,
    /// How many are averaged; at least 1. The merge needs `selected + faulty + 2` contributions. Without it, as many as that
    /// allows: all but `faulty + 2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected: Option<usize>,
}

impl MultiKrum {
    pub(super) const NAME: &'static str = "multi-krum";

    pub(super) fn demands(self) -> Demands {
        let for_selected = self.selected.unwrap_or(1).saturating_add(self.faulty).saturating_add(2);
        Demands {
            min_contributions: min_contributions(self.faulty).max(for_selected),
            uses_shares: false,
            survey: SurveyKind::Grams,
            ..Demands::PLAIN
        }
    }

    pub(super) fn check(self) -> Result<(), MethodError> {
        MethodError::unless_at_least_one(Self::NAME, "faulty", self.faulty)?;
        MethodError::unless_at_least_one(Self::NAME, "selected", self.selected.unwrap_or(1))
    }

    pub(super) fn rule(self, setting: &Setting<'_>, survey: &Survey) -> Box<dyn Rule> {
        let selected = self.selected.unwrap_or(setting.contributors.len() - self.faulty - 2);
        mean_of_nearest(self.faulty, selected, setting, survey)
    }
}
