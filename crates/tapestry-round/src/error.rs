//! Why a state machine does not take an input.

use tapestry_core::{CanonicalError, Digest, MemberName, PublicKey, SignedError};
use tapestry_governance::{CharterError, GovernanceError};

/// Who is to blame, which decides what happens next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// The member misbehaved: recorded in the log.
    Member,
    /// The coordinator misbehaved: recorded in the node's log.
    Coordinator,
    /// It came too early, too late or twice: nobody misbehaved. An honest node whose confirmation was lost sends again,
    /// into whatever round is open by then.
    Timing,
    /// This program is wrong.
    Internal,
}

/// Why an input is not taken. The state is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RoundError {
    /// The charter does not bind, or names other parties.
    #[error(transparent)]
    Charter(#[from] CharterError),
    /// A document is not signed by the one who should have signed it.
    #[error(transparent)]
    Signature(#[from] SignedError),
    /// A proposal, vote, key or departure does not count, or a step does not follow.
    #[error(transparent)]
    Governance(#[from] GovernanceError),
    /// A step that the coordinator passes on does not follow from those before it.
    #[error("the coordinator passes on a change of the charter that members have not decided: {0}")]
    FalseStep(GovernanceError),
    /// Whoever sent it is no member in force.
    #[error("{member} is no member any more; what it has, it keeps, and it takes no part here")]
    NotAMember {
        /// The member that was.
        member: MemberName,
    },
    /// A vote, or a proposal, that cannot be taken now.
    #[error("not taken: {reason}")]
    NotNow {
        /// Why.
        reason: String,
    },
    /// What is said of the coordinator's log is not a checkpoint of it, or too few have witnessed it.
    #[error("the coordinator's log: {reason}")]
    Log {
        /// What is wrong.
        reason: String,
    },
    /// A checkpoint that is older than one that was seen, or a proof that starts elsewhere: delayed on its way.
    #[error(
        "this shows the coordinator's log from entry {from} to {found}; {seen} entries have been seen here already"
    )]
    OldView {
        /// From where its proof starts.
        from: u64,
        /// The size that it shows.
        found: u64,
        /// The size that was seen.
        seen: u64,
    },
    /// The coordinator has shown two histories, and this node takes no part any more.
    #[error(
        "the coordinator has shown two histories of its log that are not one. Both are in this node's log (`tapestry log show`); show them to \
         the other members, who can choose another coordinator"
    )]
    TwoHistories,
    /// There is no charter yet.
    #[error("no charter has been adopted yet: `tapestry charter publish` (coordinator) or `tapestry node join` (node)")]
    NoCharter,
    /// Another charter is in force.
    #[error("this belongs to charter {found}; charter {expected} is in force")]
    OtherCharter {
        /// In force.
        expected: Digest,
        /// Found.
        found: Digest,
    },
    /// No round is open.
    #[error("no round is open")]
    NoRound,
    /// The document is for another round.
    #[error("this is for round {found}; round {expected} is open: a replayed or late message")]
    OtherRound {
        /// Open.
        expected: u32,
        /// Found.
        found: u32,
    },
    /// Training started from another base.
    #[error("round {round} starts from base {expected}; this contribution started from {found}")]
    OtherBase {
        /// The round.
        round: u32,
        /// The round's base.
        expected: Digest,
        /// The contribution's.
        found: Digest,
    },
    /// The sender speaks for another member.
    #[error("member {sender} may not speak for {found}")]
    OtherMember {
        /// Whose key it is.
        sender: MemberName,
        /// Whose name it is.
        found: MemberName,
    },
    /// A second, different answer in one round.
    #[error("{member} has already answered round {round} with something else")]
    AlreadyAnswered {
        /// The member.
        member: MemberName,
        /// The round.
        round: u32,
    },
    /// The member has contributed to the round and then declines it, or the other way round: its first answer stands. No fault, since its
    /// operator may change his mind while the first is on its way.
    #[error("{member} has answered round {round} already, and the first answer stands")]
    Answered {
        /// The member.
        member: MemberName,
        /// The round.
        round: u32,
    },
    /// The window has closed.
    #[error("round {round} no longer takes this: {reason}")]
    Late {
        /// The round that it is for.
        round: u32,
        /// By which term of the charter.
        reason: String,
    },
    /// An attendance that is older than one that was taken: replayed, or delayed on its way.
    #[error("attendance {found} is old; the newest that was taken of this member is {last}")]
    OldAttendance {
        /// The number of the last that was taken.
        last: u64,
        /// Found.
        found: u64,
    },
    /// A field is longer than allowed.
    #[error("`{field}` has {found} bytes; at most {limit} are accepted")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The coordinator announced a round that does not follow from what it published.
    #[error("the coordinator announces round {round} from base {found}; {expected} was published before it")]
    UnexpectedBase {
        /// The round.
        round: u32,
        /// What should be the base.
        expected: Digest,
        /// What is announced.
        found: Digest,
    },
    /// The coordinator announced a round on other terms than the charter's.
    #[error("the coordinator's announcement bends the charter: {term} must be {expected}; found {found}")]
    BentCharter {
        /// The term.
        term: &'static str,
        /// The charter's.
        expected: u64,
        /// The announcement's.
        found: u64,
    },
    /// The coordinator's role has been handed over; who had it decides nothing any more.
    #[error("the coordinator's role was handed over to {to}; nothing is decided here any more")]
    HandedOver {
        /// To whom.
        to: PublicKey,
    },
    /// Somebody takes the coordinator's role, or gives it away, who cannot now.
    #[error("the coordinator's role cannot change hands like this: {reason}")]
    Role {
        /// Why.
        reason: String,
    },
    /// The news of somebody who had the coordinator's role before another took it.
    #[error(
        "this is from tenure {found} of the coordinator's role; {coordinator} has it since tenure {known}, and who had it before is not followed any more"
    )]
    Deposed {
        /// The newest tenure that is known.
        known: u64,
        /// Who has the role in it.
        coordinator: PublicKey,
        /// The one found.
        found: u64,
    },
    /// An event or result that the state did not wait for.
    #[error("unexpected {what} in this state")]
    Unexpected {
        /// Which.
        what: &'static str,
    },
    /// A measured value is NaN or infinite. It is not taken: JSON has no such numbers, so the log could not be read again.
    #[error("{what} is NaN or infinite: the model or its training is broken")]
    NotFinite {
        /// Which value.
        what: &'static str,
    },
    /// No canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

impl RoundError {
    /// Who is to blame.
    #[must_use]
    pub const fn blame(&self) -> Blame {
        match self {
            Self::Signature(_)
            | Self::OtherBase { .. }
            | Self::OtherMember { .. }
            | Self::AlreadyAnswered { .. }
            | Self::OtherCharter { .. }
            | Self::TooLong { .. } => Blame::Member,
            Self::OtherRound { expected, found } if *found < *expected => Blame::Timing,
            Self::OtherRound { .. } => Blame::Member,
            Self::HandedOver { .. } | Self::Deposed { .. } => Blame::Timing,
            Self::Governance(error) => match error {
                GovernanceError::Signature(_) | GovernanceError::NotTheMember { .. } => Blame::Member,
                _ => Blame::Timing,
            },
            Self::OldView { .. } | Self::NotAMember { .. } | Self::NotNow { .. } => Blame::Timing,
            Self::FalseStep(_) | Self::Log { .. } | Self::TwoHistories => Blame::Coordinator,
            Self::Role { .. } | Self::Charter(_) | Self::UnexpectedBase { .. } | Self::BentCharter { .. } => {
                Blame::Coordinator
            }
            Self::NoRound
            | Self::OldAttendance { .. }
            | Self::Answered { .. }
            | Self::Late { .. }
            | Self::NoCharter => Blame::Timing,
            Self::Unexpected { .. } | Self::NotFinite { .. } | Self::Canonical(_) => Blame::Internal,
        }
    }
}
