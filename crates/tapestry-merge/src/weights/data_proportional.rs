//! Who trained on more tokens counts more.
//!
//! # Formula
//! `raw_i = num_tokens_i`, at least 1.
//!
//! # Source
//! McMahan et al., 2017, Algorithm 1, where it is the only way.
//!
//! # A capture risk
//! The number is the member's own statement, and nobody else can check it: the texts never leave the node. And a member with much data sets the direction for all. A charter must allow it
//! in so many words (`allow_data_proportional`), and whoever signs is told.

use super::Candidate;
use serde::{Deserialize, Serialize};

/// Weights by stated tokens. No parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataProportional {}

impl DataProportional {
    /// A statement of no tokens counts as one: a member must not be able to stop a round by what it states.
    #[expect(clippy::cast_precision_loss, reason = "a proportion")]
    pub(super) fn raw(self, candidates: &[Candidate]) -> Vec<f64> {
        candidates.iter().map(|candidate| candidate.num_tokens.max(1) as f64).collect()
    }
}
