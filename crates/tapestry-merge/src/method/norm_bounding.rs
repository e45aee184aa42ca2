//! Norm bounding: no contribution moves the base further than a given length.
//!
//! # Formula
//! With changes `d_i = x_i - base` and a bound `M`: `merged = base + sum_i share_i d_i min(1, M / |d_i|)`, computed as
//! `(sum_i share_i (1 - k_i)) base + sum_i share_i k_i x_i` with `k_i = min(1, M / |d_i|)`.
//!
//! # Source
//! Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019, section 4. The median of the norms as the
//! bound where none is given is ours: it needs no knowledge of what size of change is usual, and while fewer than half of the
//! contributions are faulty it is at most the largest honest norm. Of an even number of norms it is the lower middle one.
//!
//! # Limits
//! It bounds lengths and not directions: a faulty member still moves the result by its share of the bound, wherever it likes.

use super::geometry::{lower_median, whole};
use super::linear::{Coefficients, Linear};
use super::{Demands, MethodError, Rule, Setting, Survey, SurveyKind};
use crate::gram::Gram;
use serde::{Deserialize, Serialize};

/// The weighted mean of changes that are scaled down to at most one length.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NormBounding {
    /// The largest Euclidean length of a change over the whole weight vector; above 0. Without it, the median of the lengths of
    /// all changes: at least 3 contributions are then needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_norm: Option<f64>,
}

impl NormBounding {
    pub(super) const NAME: &'static str = "norm-bounding";

    pub(super) const fn demands(self) -> Demands {
        bounding_demands(self.max_norm)
    }

    pub(super) fn check(self) -> Result<(), MethodError> {
        self.max_norm.map_or(Ok(()), |norm| MethodError::unless_positive(Self::NAME, "max_norm", norm))
    }

    pub(super) fn rule(self, setting: &Setting<'_>, survey: &Survey) -> Box<dyn Rule> {
        let gram = whole(setting, survey);
        let bound = self.max_norm.unwrap_or_else(|| median_norm(&gram));
        let mut base = 0.0;
        let mut inputs = vec![];
        for (i, contributor) in setting.contributors.iter().enumerate() {
            let kept = kept_within(gram.norm(i), bound);
            // Summed like this, nothing is left of the base where nothing is cut.
            base += contributor.share * (1.0 - kept);
            inputs.push(contributor.share * kept);
        }
        Box::new(Linear::uniform(Coefficients { base, inputs }))
    }
}

/// What a method demands that bounds changes by a given length, or else by the median of their lengths.
pub(super) const fn bounding_demands(bound: Option<f64>) -> Demands {
    // The median of two lengths is one of the two: nothing protects against its owner.
    let min_contributions = if bound.is_some() { 1 } else { 3 };
    Demands { base: true, min_contributions, survey: SurveyKind::Grams, ..Demands::PLAIN }
}

/// The median of the lengths of the changes.
pub(super) fn median_norm(gram: &Gram) -> f64 {
    lower_median((0..gram.num_vectors()).map(|i| gram.norm(i)).collect())
}

/// The factor that brings a length down to a bound.
pub(super) fn kept_within(length: f64, bound: f64) -> f64 {
    if length <= bound { 1.0 } else { bound / length }
}
