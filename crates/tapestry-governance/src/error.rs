//! Why what members send does not change anything.

use crate::{CharterError, TermsError};
use tapestry_core::{CanonicalError, Digest, MemberName, PublicKey, SignedError};

/// Why a step, a proposal or a vote does not count.
#[derive(Debug, thiserror::Error)]
pub enum GovernanceError {
    /// The charter has no rules for deciding.
    #[error(
        "the charter in force (form charter/4) has no rules for deciding by vote. Members can sign one that has: `tapestry charter draft \
         --after`, then `sign` by the quorum"
    )]
    NoRules,
    /// It is of another consortium, or of a charter that is not in force.
    #[error("this was made under charter {found}; charter {expected} is in force")]
    OtherCharter {
        /// In force.
        expected: Digest,
        /// Found.
        found: Digest,
    },
    /// The key belongs to no member in force, or to another than the document names.
    #[error("this is not signed with the key of {member}, as a member in force")]
    NotTheMember {
        /// The name that the document carries.
        member: MemberName,
    },
    /// The proposed charter could not be followed.
    #[error("the proposed charter makes no sense: {0}")]
    Terms(#[from] TermsError),
    /// The proposed charter does not follow the one in force.
    #[error("the proposed charter must be version {version} and link to the charter in force, {previous}")]
    NotTheNext {
        /// The version that is due.
        version: u32,
        /// The digest of the charter in force.
        previous: Digest,
    },
    /// A proposal that changes nothing.
    #[error("the proposal changes nothing")]
    NoChange,
    /// A key that was given up, or a name of somebody who left, cannot come back like this.
    #[error("{what} was given up and cannot be used again")]
    GivenUp {
        /// The key.
        what: PublicKey,
    },
    /// A field is too long, missing, or out of its range.
    #[error("`{field}` must be {expected}")]
    Field {
        /// Which.
        field: &'static str,
        /// What is possible.
        expected: String,
    },
    /// Too few members voted for it.
    #[error("{found} members in force voted for it; {required} are needed ({kinds})")]
    Votes {
        /// Votes for it.
        found: usize,
        /// Needed.
        required: usize,
        /// What it decides.
        kinds: String,
    },
    /// A vote of the proof is not one for this proposal, or one member's second.
    #[error("a vote by {member} does not belong to this decision: {reason}")]
    Vote {
        /// Whose.
        member: MemberName,
        /// Why.
        reason: String,
    },
    /// The document's signatures do not hold.
    #[error(transparent)]
    Signature(#[from] SignedError),
    /// The founding charter does not bind.
    #[error(transparent)]
    Charter(#[from] CharterError),
    /// No canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}
