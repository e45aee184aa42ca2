//! What improves the common open text more counts more.
//!
//! # Formula
//! `raw_i = exp(gain_i / temperature)`, where `gain_i = (base_bpb - score_bpb) / base_bpb` is the share of the base's bits per byte that the contribution saves on the common open text.
//!
//! # Who gains
//! Members whose texts are like the open text: with an open text in one language, those who speak it. The influence cap bounds how much; `culturally-aware` looks at each community's own
//! text as well.

use super::{Candidate, WeightError, check_temperature, gain, softmax};
use serde::{Deserialize, Serialize};

/// Weights by improvement on the common open text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QualityWeighted {
    /// A contribution that saves this share of the bits more than another counts `e` (2.7) times as much. From 0.001 (nearly all to the best) to 1000 (nearly equal); 0.05 is a middle.
    pub temperature: f64,
}

impl QualityWeighted {
    pub(super) const NAME: &'static str = "quality-weighted";

    pub(super) fn check(self) -> Result<(), WeightError> {
        check_temperature(Self::NAME, self.temperature)
    }

    pub(super) fn raw(self, candidates: &[Candidate]) -> Vec<f64> {
        let gains: Vec<f64> = candidates.iter().map(|c| gain(c.score_bpb, c.base_bpb)).collect();
        softmax(&gains, self.temperature)
    }
}
