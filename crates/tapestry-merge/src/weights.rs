//! How much each accepted contribution counts, and why.
//!
//! A policy turns scores into weights that sum to one. Every weight comes with the record that explains it. An influence
//! cap that the accepted members cannot meet is an error: renormalising would break the cap without telling anybody.

use serde::{Deserialize, Serialize};
use tapestry_core::MemberName;

/// A contribution that was accepted, with what it scored.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// The member.
    pub member: MemberName,
    /// Bits per byte on the open held-out text; lower is better.
    pub score_bpb: f64,
}

/// The weight of one contribution and everything that decided it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightRecord {
    /// The member.
    pub member: MemberName,
    /// Bits per byte on the open held-out text.
    pub score_bpb: f64,
    /// The quality floor: larger scores were refused.
    pub floor_bpb: f64,
    /// The influence cap.
    pub cap: f64,
    /// The share in the merge, in (0, cap].
    pub weight: f64,
}

/// Why there are no weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum WeightError {
    /// Nothing to weigh.
    #[error("there is no contribution to weigh")]
    Empty,
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
}

/// Equal weights.
///
/// # Errors
/// [`WeightError`].
pub fn uniform(candidates: &[Candidate], floor_bpb: f64, cap: f64) -> Result<Vec<WeightRecord>, WeightError> {
    let num_members = candidates.len();
    if num_members == 0 {
        return Err(WeightError::Empty);
    }
    #[expect(clippy::cast_precision_loss, reason = "the number of members is far below 2^52")]
    let weight = 1.0 / num_members as f64;
    // One part in 10^12 of slack: a charter that writes 0.333333333333 for a third means a third.
    if weight > cap * (1.0 + 1e-12) {
        return Err(WeightError::InfeasibleCap { cap, num_members, smallest_feasible: weight });
    }
    let record =
        |c: &Candidate| WeightRecord { member: c.member.clone(), score_bpb: c.score_bpb, floor_bpb, cap, weight };
    Ok(candidates.iter().map(record).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidates(n: u32) -> Vec<Candidate> {
        let candidate = |i| Candidate { member: format!("m{i}").parse().expect("a name"), score_bpb: 1.0 };
        (0..n).map(candidate).collect()
    }

    #[test]
    fn weights_are_equal_and_sum_to_one() {
        let weights = uniform(&candidates(3), 1.1, 0.5).expect("feasible");
        assert!((weights.iter().map(|w| w.weight).sum::<f64>() - 1.0).abs() < 1e-15);
        assert!(weights.iter().all(|w| w.weight <= w.cap));
    }

    #[test]
    fn a_cap_that_cannot_hold_is_an_error_that_says_what_would() {
        let error = uniform(&candidates(2), 1.1, 0.4).expect_err("infeasible");
        assert_eq!(error, WeightError::InfeasibleCap { cap: 0.4, num_members: 2, smallest_feasible: 0.5 });
        assert!(uniform(&candidates(1), 1.1, 0.9).is_err());
        assert!(uniform(&candidates(1), 1.1, 1.0).is_ok());
    }

    #[test]
    fn nobody_is_an_error() {
        assert_eq!(uniform(&[], 1.0, 1.0), Err(WeightError::Empty));
    }
}
