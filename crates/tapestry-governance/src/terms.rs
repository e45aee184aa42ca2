//! The terms by which members govern themselves: what they agreed in words, how they decide, who witnesses, how one leaves.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;

/// The longest agreement in words, in bytes.
pub const MAX_TEXT_BYTES: usize = 12_000;

/// How the consortium governs itself. A charter without these terms is of the form `charter/4`: its rounds run to their end, and
/// nothing is decided by vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GovernanceTerms {
    /// The agreement in plain words (Markdown), at most [`MAX_TEXT_BYTES`] long; may be empty.
    pub text: String,
    /// How members decide.
    pub decisions: DecisionTerms,
    /// How many members must have cosigned a checkpoint of the coordinator's log before a round opens. With more than half of
    /// them, two histories cannot both be witnessed unless a member signs both.
    pub witnesses: u32,
    /// What becomes of what a member has contributed to the open round when it leaves.
    pub leaving: Leaving,
}

/// How members decide.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionTerms {
    /// A proposal is open for votes for at least so many milliseconds, unless all have voted before.
    pub min_open_ms: u64,
    /// For each kind of decision: it needs the votes of more than so many percent of the members in force, from 50 to 99.
    pub percent: BTreeMap<DecisionKind, u8>,
}

/// What is decided. A proposal that changes several things needs the votes that each of them needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecisionKind {
    /// A member joins.
    Admit,
    /// A member is excluded.
    Eject,
    /// A member that lost its key, or whose key is known to others, gets another.
    RecoverKey,
    /// The method of merging, the weighting, and their parameters.
    MergePolicy,
    /// What a contribution must satisfy, and how much one member may weigh.
    FloorOrCap,
    /// How rounds run: their number, window, minimum, lateness.
    Window,
    /// The privacy tier.
    PrivacyTier,
    /// What a merged base must satisfy.
    Gate,
    /// Who coordinates, and who stands by.
    Coordinator,
    /// The base to start from, and the open text that models are measured on.
    Base,
    /// The name of the consortium and the agreement in words.
    Text,
    /// How is decided, witnessed, left, and for how long the charter holds.
    Decisions,
    /// What is entered in the contribution accounts.
    Credits,
}

impl DecisionKind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Admit,
        Self::Eject,
        Self::RecoverKey,
        Self::MergePolicy,
        Self::FloorOrCap,
        Self::Window,
        Self::PrivacyTier,
        Self::Gate,
        Self::Coordinator,
        Self::Base,
        Self::Text,
        Self::Decisions,
        Self::Credits,
    ];

    /// In words.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Admit => "admission of a member",
            Self::Eject => "exclusion of a member",
            Self::RecoverKey => "another key for a member",
            Self::MergePolicy => "merge policy",
            Self::FloorOrCap => "quality floor or influence cap",
            Self::Window => "rounds and their window",
            Self::PrivacyTier => "privacy tier",
            Self::Gate => "release gate",
            Self::Coordinator => "coordinator and standbys",
            Self::Base => "base and open text",
            Self::Text => "name and text of the charter",
            Self::Decisions => "rules of deciding, witnessing and leaving, and the charter's time",
            Self::Credits => "contribution credits",
        }
    }
}

impl fmt::Display for DecisionKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.words())
    }
}

/// What becomes of what a member has contributed to the open round when it leaves. What it contributed to earlier rounds is part
/// of the base that came of them, and stays in the accounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Leaving {
    /// It counts as if the member were there.
    Counts,
    /// It is withdrawn, unless the merge has begun.
    Withdrawn,
}

impl DecisionTerms {
    /// How many of `num_members` must vote for a decision of this kind: more than the stated share of them, and never all of
    /// three or more, so that nobody has a veto.
    #[must_use]
    pub fn required(&self, kind: DecisionKind, num_members: usize) -> usize {
        let percent = usize::from(self.percent.get(&kind).copied().unwrap_or(99));
        let more_than_share = num_members * percent / 100 + 1;
        let majority = num_members / 2 + 1;
        more_than_share.min(num_members.saturating_sub(1).max(majority)).max(majority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn terms(percent: u8) -> DecisionTerms {
        DecisionTerms { min_open_ms: 1000, percent: DecisionKind::ALL.map(|kind| (kind, percent)).into() }
    }

    #[test]
    fn nobody_has_a_veto_and_no_minority_decides() {
        for num_members in 1..=64 {
            for percent in 50..=99 {
                let required = terms(percent).required(DecisionKind::Admit, num_members);
                assert!(2 * required > num_members, "{required} of {num_members} is no majority");
                assert!(required <= num_members);
                assert!(num_members < 3 || required < num_members, "{percent} % of {num_members} gives each a veto");
            }
        }
        assert_eq!(terms(66).required(DecisionKind::Eject, 9), 6);
        assert_eq!(terms(50).required(DecisionKind::Eject, 4), 3);
    }
}
