//! Krum: the one contribution that has the nearest neighbours.
//!
//! # Formula
//! `score_i` is the sum of the `n - f - 2` smallest squared distances `|x_i - x_j|^2`, `j != i`, added in ascending order;
//! merged is the contribution with the smallest score, of equal scores the first by name.
//!
//! # Source
//! Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent", 2017,
//! section 4; the number of members: Proposition 4.2.
//!
//! # Limits
//! What the others learned is lost: the result is one member's work, which is why the shares have no effect. It is within reach of
//! the honest ones and not their mean; where honest members differ much, a faulty one can hide between them. Distances are
//! over the whole weight vector: a change of a few coordinates that is small against honest differences is not seen.

use super::geometry::whole;
use super::linear::{Coefficients, Linear};
use super::{Demands, MethodError, Rule, Setting, Survey, SurveyKind};
use crate::gram::Gram;
use serde::{Deserialize, Serialize};

/// The contribution nearest to its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Krum {
    /// How many faulty contributions are to be borne; at least 1. The merge needs `2 faulty + 3` contributions.
    pub faulty: usize,
}

impl Krum {
    pub(super) const NAME: &'static str = "krum";

    pub(super) const fn demands(self) -> Demands {
        Demands {
            min_contributions: min_contributions(self.faulty),
            uses_shares: false,
            survey: SurveyKind::Grams,
            ..Demands::PLAIN
        }
    }

    pub(super) fn check(self) -> Result<(), MethodError> {
        MethodError::unless_at_least_one(Self::NAME, "faulty", self.faulty)
    }

    pub(super) fn rule(self, setting: &Setting<'_>, survey: &Survey) -> Box<dyn Rule> {
        mean_of_nearest(self.faulty, 1, setting, survey)
    }
}

/// How many contributions Krum needs to bear `faulty` ones.
pub(super) const fn min_contributions(faulty: usize) -> usize {
    faulty.saturating_mul(2).saturating_add(3)
}

/// The mean of the `selected` contributions with the smallest scores, added in the order of their names.
pub(super) fn mean_of_nearest(faulty: usize, selected: usize, setting: &Setting<'_>, survey: &Survey) -> Box<dyn Rule> {
    let (gram, num_contributions) = (whole(setting, survey), setting.contributors.len());
    let scores: Vec<f64> = (0..num_contributions).map(|i| score(&gram, i, num_contributions - faulty - 2)).collect();
    let mut by_score: Vec<usize> = (0..num_contributions).collect();
    // The sort is stable: of equal scores the first by name comes first.
    by_score.sort_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    let mut inputs = vec![0.0; num_contributions];
    #[expect(clippy::cast_precision_loss, reason = "the number of contributions is far below 2^52")]
    by_score[..selected].iter().for_each(|i| inputs[*i] = 1.0 / selected as f64);
    Box::new(Linear::uniform(Coefficients { base: 0.0, inputs }))
}

fn score(gram: &Gram, i: usize, num_neighbours: usize) -> f64 {
    let others = (0..gram.num_vectors()).filter(|j| *j != i);
    let mut distances: Vec<f64> = others.map(|j| gram.squared_distance(i, j)).collect();
    distances.sort_by(f64::total_cmp);
    distances[..num_neighbours].iter().sum()
}
