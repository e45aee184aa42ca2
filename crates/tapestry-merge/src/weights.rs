//! How much each accepted contribution counts, and why.
//!
//! A [`Weighting`] is the charter's choice. It gives every contribution a raw weight; lateness discounts it; the influence cap bounds the result. Every
//! weight comes with the [`WeightRecord`] that explains it, in numbers from which anybody can compute it again.
//!
//! A cap that the accepted members cannot meet is an error: renormalising would break the cap without telling anybody.

mod cap;
mod culturally_aware;
mod data_proportional;
mod explain;
mod quality_weighted;

pub use cap::capped;
pub use culturally_aware::CulturallyAware;
pub use data_proportional::DataProportional;
pub use explain::explain;
pub use quality_weighted::QualityWeighted;

use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tapestry_core::MemberName;

/// How contributions are weighed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name")]
pub enum Weighting {
    /// Every accepted contribution counts the same. The quality floor decides who is accepted, and nothing else is asked.
    #[serde(rename = "uniform")]
    Uniform(Uniform),
    /// What improves the common open text more counts more.
    #[serde(rename = "quality-weighted")]
    QualityWeighted(QualityWeighted),
    /// Who trained on more tokens counts more. A capture risk.
    #[serde(rename = "data-proportional")]
    DataProportional(DataProportional),
    /// What improves the common open text, or the open text of the member's own community, counts more.
    #[serde(rename = "culturally-aware")]
    CulturallyAware(CulturallyAware),
}

/// Equal weights. No parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Uniform {}

/// A contribution that was accepted, with what is known of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The member.
    pub member: MemberName,
    /// Bits per byte on the common open held-out text; lower is better.
    pub score_bpb: f64,
    /// The same of the model that the contribution started from.
    pub base_bpb: f64,
    /// Bits per byte on the open text of the member's own community, where the charter names one: of the contribution, and of the model that it started from.
    pub community: Option<CommunityScore>,
    /// Tokens trained on, as the member states it.
    pub num_tokens: u64,
    /// By how many rounds the contribution is late.
    pub staleness: u32,
}

/// Bits per byte on a community's own open text.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommunityScore {
    /// Of the contribution.
    pub score_bpb: f64,
    /// Of the model that it started from.
    pub base_bpb: f64,
}

/// What the charter says about weights besides the way of weighing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bounds {
    /// The quality floor: larger scores were refused.
    pub floor_bpb: f64,
    /// The largest weight of one member.
    pub cap: f64,
    /// A contribution that is late by `s` rounds has its raw weight divided by `(1 + s)` to this power.
    pub staleness_exponent: f64,
}

/// The weight of one contribution and everything that decided it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightRecord {
    /// The member.
    pub member: MemberName,
    /// Bits per byte on the common open held-out text.
    pub score_bpb: f64,
    /// The same of the model that it started from.
    pub base_bpb: f64,
    /// The quality floor: larger scores were refused.
    pub floor_bpb: f64,
    /// The scores on the text of the member's own community, where they counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub community: Option<CommunityScore>,
    /// Tokens that the member states, where they counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_tokens: Option<u64>,
    /// What the weighing gave, in relation to the others: before discount and cap, summing to one.
    pub raw_weight: f64,
    /// By how many rounds the contribution is late.
    pub staleness: u32,
    /// What the raw weight was multiplied with because of that.
    pub discount: f64,
    /// The influence cap.
    pub cap: f64,
    /// Whether the cap holds the weight. What it takes goes to those whom it does not hold, in proportion.
    pub is_capped: bool,
    /// The share in the merge, in (0, cap].
    pub weight: f64,
}

/// Why there are no weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// Nothing to weigh.
    #[error("there is no contribution to weigh")]
    Empty,
    /// A member twice.
    #[error("member {member} is there twice; a member counts once")]
    Duplicate {
        /// The member.
        member: MemberName,
    },
    /// The cap cannot hold with so few members.
    #[error(
        "the charter's influence cap of {cap} cannot hold with {num_members} accepted members: their weights sum to one, so \
         one of them needs at least {smallest_feasible:.4}. More members must contribute, or the members vote a higher cap."
    )]
    InfeasibleCap {
        /// The cap.
        cap: f64,
        /// How many members were accepted.
        num_members: usize,
        /// One over the number of members.
        smallest_feasible: f64,
    },
    /// A number that no weight can follow from.
    #[error("{what} of member {member} must be {expected}; found {found}")]
    Number {
        /// What it is.
        what: &'static str,
        /// The member.
        member: MemberName,
        /// What is possible.
        expected: &'static str,
        /// What was found.
        found: f64,
    },
    /// The weighing asks for a score that is not there.
    #[error("member {member} has no score on a text of its own community, which culturally-aware weighting asks for")]
    NoCommunityScore {
        /// The member.
        member: MemberName,
    },
    /// A parameter is outside its range.
    #[error("weighting {weighting}: `{parameter}` must be {expected}; found {found}")]
    Parameter {
        /// The weighting.
        weighting: &'static str,
        /// The parameter.
        parameter: &'static str,
        /// What is possible.
        expected: &'static str,
        /// What was found.
        found: f64,
    },
}

impl Weighting {
    /// Its name in charters.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Uniform(_) => "uniform",
            Self::QualityWeighted(_) => QualityWeighted::NAME,
            Self::DataProportional(_) => "data-proportional",
            Self::CulturallyAware(_) => CulturallyAware::NAME,
        }
    }

    /// Whether all contributions count the same, whatever they are.
    #[must_use]
    pub const fn is_uniform(&self) -> bool {
        matches!(self, Self::Uniform(_))
    }

    /// Whether each member needs an open text of its own community.
    #[must_use]
    pub const fn needs_community_texts(&self) -> bool {
        matches!(self, Self::CulturallyAware(_))
    }

    /// In a sentence, for those who sign: who gains influence by it.
    #[must_use]
    pub const fn in_words(&self) -> &'static str {
        match self {
            Self::Uniform(_) => "every accepted contribution counts the same",
            Self::QualityWeighted(_) => "who improves the common open text more counts more, up to the influence cap",
            Self::DataProportional(_) => {
                "CAPTURE RISK: who states more training tokens counts more, up to the influence cap; nobody can check the statement"
            }
            Self::CulturallyAware(_) => {
                "who improves the common open text, or the open text of its own community, more counts more, up to the influence cap"
            }
        }
    }

    /// Checks the parameters.
    ///
    /// # Errors
    /// [`WeightError::Parameter`].
    pub fn check(&self) -> Result<(), WeightError> {
        match self {
            Self::Uniform(_) | Self::DataProportional(_) => Ok(()),
            Self::QualityWeighted(weighting) => weighting.check(),
            Self::CulturallyAware(weighting) => weighting.check(),
        }
    }

    /// The weights of these contributions, in the order given.
    ///
    /// # Errors
    /// [`WeightError`], naming the member at fault.
    pub fn weigh(&self, candidates: &[Candidate], bounds: &Bounds) -> Result<Vec<WeightRecord>, WeightError> {
        self.check()?;
        check(candidates)?;
        let raw = match self {
            Self::Uniform(_) => vec![1.0; candidates.len()],
            Self::QualityWeighted(weighting) => weighting.raw(candidates),
            Self::DataProportional(weighting) => weighting.raw(candidates),
            Self::CulturallyAware(weighting) => weighting.raw(candidates)?,
        };
        let sum: f64 = raw.iter().sum();
        let discount = |candidate: &Candidate| {
            libm::pow(1.0 + f64::from(candidate.staleness), -bounds.staleness_exponent).max(LEAST)
        };
        let discounted: Vec<f64> =
            raw.iter().zip(candidates).map(|(raw, candidate)| raw * discount(candidate)).collect();
        let weights = capped(&discounted, bounds.cap)?;
        let record = |((candidate, raw), (weight, is_capped)): ((&Candidate, &f64), (f64, bool))| WeightRecord {
            member: candidate.member.clone(),
            score_bpb: candidate.score_bpb,
            base_bpb: candidate.base_bpb,
            floor_bpb: bounds.floor_bpb,
            community: candidate.community.filter(|_| self.needs_community_texts()),
            num_tokens: matches!(self, Self::DataProportional(_)).then_some(candidate.num_tokens),
            raw_weight: raw / sum,
            staleness: candidate.staleness,
            discount: discount(candidate),
            cap: bounds.cap,
            is_capped,
            weight,
        };
        Ok(candidates.iter().zip(&raw).zip(weights).map(record).collect())
    }
}

/// What a base with `base_bpb` has gained where the contribution has `score_bpb`: the share of its bits that is gone, negative where there are more. A share, so that
/// languages with more or fewer bytes for a word compare.
fn gain(score_bpb: f64, base_bpb: f64) -> f64 {
    (base_bpb - score_bpb) / base_bpb
}

/// What a raw weight and a discount are at least, so that whoever was accepted has a weight above zero, however bad or late.
const LEAST: f64 = 1e-100;

/// `exp(gain / temperature)`, divided by the largest of them so that nothing overflows.
fn softmax(gains: &[f64], temperature: f64) -> Vec<f64> {
    let largest = gains.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    gains.iter().map(|gain| libm::exp((gain - largest) / temperature).max(LEAST)).collect()
}

/// A temperature that orders without ruling: 0 would give all to the best.
fn check_temperature(weighting: &'static str, temperature: f64) -> Result<(), WeightError> {
    if (0.001..=1000.0).contains(&temperature) {
        return Ok(());
    }
    Err(WeightError::Parameter {
        weighting,
        parameter: "temperature",
        expected: "from 0.001 to 1000",
        found: temperature,
    })
}

fn check(candidates: &[Candidate]) -> Result<(), WeightError> {
    if candidates.is_empty() {
        return Err(WeightError::Empty);
    }
    let mut seen = BTreeSet::new();
    for candidate in candidates {
        if !seen.insert(&candidate.member) {
            return Err(WeightError::Duplicate { member: candidate.member.clone() });
        }
        let mut scores =
            vec![("the score on the common open text", candidate.score_bpb), ("the base's score", candidate.base_bpb)];
        if let Some(community) = candidate.community {
            scores.push(("the score on its community's text", community.score_bpb));
            scores.push(("the base's score on its community's text", community.base_bpb));
        }
        if let Some((what, found)) = scores.into_iter().find(|(_, score)| !(*score > 0.0 && score.is_finite())) {
            let expected = "a finite number of bits per byte above 0";
            return Err(WeightError::Number { what, member: candidate.member.clone(), expected, found });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
