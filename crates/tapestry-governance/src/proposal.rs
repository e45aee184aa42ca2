//! What members sign to change the charter: proposals, votes, rotations of keys, departures.

use crate::CharterTerms;
use crate::terms::DecisionKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use tapestry_core::{Digest, Document, MemberName, PublicKey, Timestamp};

/// The longest rationale, in bytes.
pub const MAX_RATIONALE_BYTES: usize = 4_000;
/// The longest reason of a vote or a departure, in bytes.
pub const MAX_REASON_BYTES: usize = 1_000;
/// The most parties that can be named as consulted, and the longest name of one, in bytes.
pub const MAX_CONSULTED: (usize, usize) = (16, 200);
/// The most credits of one proposal.
pub const MAX_CREDITS: usize = 64;

/// A member proposes a decision.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proposal {
    /// The charter in force under which it is voted on.
    pub charter: Digest,
    /// Who proposes.
    pub member: MemberName,
    /// What is to be decided.
    pub change: Change,
    /// Why. Not empty.
    pub rationale: String,
    /// Which parties were consulted, inside the consortium and outside.
    pub consulted: Vec<String>,
    /// When it was made, by the proposer's clock.
    pub made_at: Timestamp,
    /// No vote is taken from this time on.
    pub closes_at: Timestamp,
}

impl Document for Proposal {
    const DOMAIN: &'static str = "proposal/1";
}

/// What a proposal changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// The whole charter that is to be in force, which links to the one it replaces. What differs is what is decided.
    Charter(Box<CharterTerms>),
    /// Entries in the contribution accounts.
    Credits(Vec<Credit>),
}

/// An entry in a member's contribution account that members agree on. It never changes what the member weighs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credit {
    /// Whose account.
    pub member: MemberName,
    /// What kind of work.
    pub kind: CreditKind,
    /// How much.
    pub amount: u64,
    /// Of what, such as `hours`.
    pub unit: String,
    /// What it was for.
    pub what: String,
}

/// What a credit is for (REQUIREMENTS G3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CreditKind {
    /// Engineering.
    Engineering,
    /// Data.
    Data,
    /// Compute beyond what is measured.
    Compute,
    /// Evaluation.
    Evaluation,
}

impl fmt::Display for CreditKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Engineering => "engineering",
            Self::Data => "data",
            Self::Compute => "compute",
            Self::Evaluation => "evaluation",
        })
    }
}

/// A member's vote. The first that arrives stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Vote {
    /// The charter under which it is given.
    pub charter: Digest,
    /// The proposal.
    pub proposal: Digest,
    /// Whose vote.
    pub member: MemberName,
    /// For, against, or neither.
    pub choice: Choice,
    /// Why; may be empty. A vote against is on record as dissent with it.
    pub reason: String,
}

impl Document for Vote {
    const DOMAIN: &'static str = "vote/1";
}

/// For, against, or neither.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    /// For.
    Yes,
    /// Against.
    No,
    /// Neither; counts as not for.
    Abstain,
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Abstain => "abstain",
        })
    }
}

/// A member takes another key. Signed by the old key and by the new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyRotation {
    /// The charter in force.
    pub charter: Digest,
    /// The member.
    pub member: MemberName,
    /// Its key so far, which is never valid again.
    pub from: PublicKey,
    /// Its key from now on.
    pub to: PublicKey,
}

impl Document for KeyRotation {
    const DOMAIN: &'static str = "key-rotation/1";
}

/// A member leaves, for good, at once, and needs nobody's permission.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Departure {
    /// A charter of the consortium.
    pub charter: Digest,
    /// The member.
    pub member: MemberName,
    /// Why, in its words; may be empty.
    pub reason: String,
}

impl Document for Departure {
    const DOMAIN: &'static str = "departure/1";
}

/// The quorum that is nearest to `quorum` and a majority of so many members.
#[must_use]
pub fn legal_quorum(quorum: u32, num_members: usize) -> u32 {
    let num_members = u32::try_from(num_members).unwrap_or(u32::MAX);
    quorum.min(num_members).max(num_members / 2 + 1)
}

/// What a change from one charter to another decides: every term that differs belongs to a kind.
///
/// `was_member` are the members in force under `from`: one that has left and is listed again is admitted.
#[must_use]
pub fn kinds(
    from: &CharterTerms,
    to: &CharterTerms,
    was_member: impl Fn(&MemberName) -> bool,
) -> BTreeSet<DecisionKind> {
    // Exhaustive, so that a new term has to be given a kind.
    let CharterTerms {
        consortium,
        version: _,
        previous: _,
        members,
        coordinator,
        standbys,
        quorum,
        base,
        open_held_out,
        rounds,
        screening,
        merge,
        gate,
        privacy_tier,
        valid_from,
        valid_until,
        governance,
    } = to;
    let mut found = BTreeSet::new();
    let mut note = |differs: bool, kind| {
        if differs {
            found.insert(kind);
        }
    };
    for (name, key) in members {
        note(!from.members.contains_key(name) || !was_member(name), DecisionKind::Admit);
        note(from.members.get(name).is_some_and(|was| was != key), DecisionKind::RecoverKey);
    }
    // Who has left by itself is not excluded.
    let is_excluded = |name: &&MemberName| was_member(name) && !members.contains_key(*name);
    note(from.members.keys().any(|name| is_excluded(&name)), DecisionKind::Eject);
    note(*coordinator != from.coordinator || *standbys != from.standbys, DecisionKind::Coordinator);
    note(*base != from.base || *open_held_out != from.open_held_out, DecisionKind::Base);
    note(*rounds != from.rounds, DecisionKind::Window);
    note(*screening != from.screening, DecisionKind::FloorOrCap);
    note(merge.influence_cap.to_bits() != from.merge.influence_cap.to_bits(), DecisionKind::FloorOrCap);
    let otherwise = crate::MergeTerms { influence_cap: from.merge.influence_cap, ..merge.clone() };
    note(otherwise != from.merge, DecisionKind::MergePolicy);
    note(*gate != from.gate, DecisionKind::Gate);
    note(*privacy_tier != from.privacy_tier, DecisionKind::PrivacyTier);
    note(*consortium != from.consortium, DecisionKind::Text);
    // That it has to stay a majority of more members is no decision of its own.
    note(*quorum != legal_quorum(from.quorum, members.len()), DecisionKind::Decisions);
    note((*valid_from, *valid_until) != (from.valid_from, from.valid_until), DecisionKind::Decisions);
    match (governance, &from.governance) {
        (Some(to), Some(from)) => {
            let crate::GovernanceTerms { text, decisions, witnesses, leaving } = to;
            note(*text != from.text, DecisionKind::Text);
            let is_same = (decisions, witnesses, leaving) == (&from.decisions, &from.witnesses, &from.leaving);
            note(!is_same, DecisionKind::Decisions);
        }
        (to, from) => note(to.is_some() != from.is_some(), DecisionKind::Decisions),
    }
    found
}
