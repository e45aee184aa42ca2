//! What improves the common open text, or the open text of the member's own community, counts more.
//!
//! # Formula
//! `raw_i = exp(gain_i / temperature)` with `gain_i = (1 - s) common_i + s community_i`: `common_i` is the share of the base's bits per byte that the contribution saves on the common
//! open text, `community_i` the share that it saves on the open text of its own member's community, and `s` the `community_share`. Both are shares of bits, so that languages compare.
//!
//! # Who gains
//! A member that serves its own community well, whatever the common text's language. The community texts are open and named in the charter: all members can read them, none may
//! train on them, and a member cannot choose its own after the charter is signed.

use super::{Candidate, WeightError, check_temperature, gain, softmax};
use serde::{Deserialize, Serialize};

/// Weights by improvement on the common text and on each member's own.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CulturallyAware {
    /// As in `quality-weighted`.
    pub temperature: f64,
    /// How much the own community's text counts against the common one, from 0 (not at all) to 1 (alone).
    pub community_share: f64,
}

impl CulturallyAware {
    pub(super) const NAME: &'static str = "culturally-aware";

    pub(super) fn check(self) -> Result<(), WeightError> {
        check_temperature(Self::NAME, self.temperature)?;
        if (0.0..=1.0).contains(&self.community_share) {
            return Ok(());
        }
        let (parameter, expected, found) = ("community_share", "from 0 to 1", self.community_share);
        Err(WeightError::Parameter { weighting: Self::NAME, parameter, expected, found })
    }

    pub(super) fn raw(self, candidates: &[Candidate]) -> Result<Vec<f64>, WeightError> {
        let gain = |candidate: &Candidate| {
            let missing = || WeightError::NoCommunityScore { member: candidate.member.clone() };
            let community = candidate.community.ok_or_else(missing)?;
            let common = gain(candidate.score_bpb, candidate.base_bpb);
            let own = gain(community.score_bpb, community.base_bpb);
            Ok((1.0 - self.community_share) * common + self.community_share * own)
        };
        let gains = candidates.iter().map(gain).collect::<Result<Vec<f64>, WeightError>>()?;
        Ok(softmax(&gains, self.temperature))
    }
}
