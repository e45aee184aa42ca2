//! What goes into the coordinator, what it writes, and what it asks to have done.

use crate::{Announcement, Attendance, Contribution, Decline, HandOver, Outcome, Screening, Tenure, Verdict};
use serde::{Deserialize, Serialize};
use tapestry_core::{Digest, MemberName, PublicKey, Signed};
use tapestry_governance::{Charter, Departure, KeyRotation, Proposal, Vote};
use tapestry_merge::Method;
use tapestry_merge::weights::WeightRecord;

/// What happened outside.
#[expect(clippy::large_enum_variant, reason = "one input holds the charter; few are in memory at a time")]
#[derive(Debug, Clone, PartialEq)]
pub enum CoordinatorInput {
    /// Time has passed.
    Tick,
    /// The operator publishes a charter that members have signed.
    AdoptCharter(Signed<Charter>),
    /// This coordinator takes the role: the one before it has vanished, or handed it over.
    TakeRole {
        /// With its signature.
        tenure: Signed<Tenure>,
    },
    /// The operator gives the role to another.
    HandOver {
        /// The key that is to take it.
        to: PublicKey,
        /// Where members will find it (`HOST:PORT`), where they should know.
        address: Option<String>,
    },
    /// The charter's base was measured on the open held-out text.
    BaseMeasured {
        /// The model.
        base: Digest,
        /// Bits per byte.
        bpb: f64,
    },
    /// The round's base was measured on the open text of a member's community.
    CommunityMeasured {
        /// The model.
        base: Digest,
        /// The member.
        member: MemberName,
        /// Bits per byte; none where the model gives no finite value.
        bpb: Option<f64>,
    },
    /// A member contributes. All chunks of its weights are in the store.
    Contribute {
        /// The key that the connection was authenticated with.
        sender: PublicKey,
        /// What it says.
        contribution: Signed<Contribution>,
    },
    /// A member declines a round.
    Decline {
        /// The key that the connection was authenticated with.
        sender: PublicKey,
        /// What it says.
        decline: Signed<Decline>,
    },
    /// A member leaves for a while, or comes back.
    Attend {
        /// The key that the connection was authenticated with.
        sender: PublicKey,
        /// What it says.
        attendance: Signed<Attendance>,
    },
    /// A member proposes a decision.
    Propose {
        /// The key that the connection was authenticated with.
        sender: PublicKey,
        /// What it says.
        proposal: Box<Signed<Proposal>>,
    },
    /// A member votes.
    Vote {
        /// The key that the connection was authenticated with.
        sender: PublicKey,
        /// What it says.
        vote: Signed<Vote>,
    },
    /// A member takes another key.
    Rotate {
        /// The key that the connection was authenticated with: the old one.
        sender: PublicKey,
        /// What it says.
        rotation: Signed<KeyRotation>,
    },
    /// A member leaves for good.
    Leave {
        /// The key that the connection was authenticated with.
        sender: PublicKey,
        /// What it says.
        departure: Signed<Departure>,
    },
    /// Members have cosigned a checkpoint of this log.
    Witnessed {
        /// The checkpoint with all cosignatures of it that have come.
        checkpoint: String,
    },
    /// A contribution was measured.
    Screened {
        /// The round.
        round: u32,
        /// Whose contribution.
        member: MemberName,
        /// Which: a late one may have been replaced meanwhile.
        weights: Digest,
        /// What was measured.
        screening: Screening,
    },
    /// The merge is done and durable.
    Merged {
        /// The round.
        round: u32,
        /// The merged model.
        model: Digest,
        /// The method's state for the next merge: manifests of weights.
        states: Vec<Digest>,
    },
    /// The merged model was measured on the open held-out text.
    MergedMeasured {
        /// The round.
        round: u32,
        /// The merged model.
        model: Digest,
        /// Bits per byte.
        bpb: f64,
    },
}

/// What the coordinator's log says.
#[expect(clippy::large_enum_variant, reason = "one event of a log holds the charter; few are in memory at a time")]
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum CoordinatorEvent {
    /// A charter with its quorum is in force.
    CharterAdopted {
        /// The charter with its signatures.
        charter: Signed<Charter>,
    },
    /// The coordinator's role has a new holder, which writes this log from here on.
    RoleTaken {
        /// With its signature.
        tenure: Signed<Tenure>,
    },
    /// The holder gives the role away; the log waits for the one who takes it.
    RoleHandedOver {
        /// To whom.
        hand_over: HandOver,
    },
    /// A member proposes a decision.
    Proposed {
        /// With its signature.
        proposal: Box<Signed<Proposal>>,
    },
    /// A member has voted.
    Voted {
        /// With its signature.
        vote: Signed<Vote>,
    },
    /// A proposal is decided, and what it changes is in force from here on.
    Decided {
        /// The proposal.
        proposal: Digest,
        /// Whether it was adopted.
        adopted: bool,
        /// How many votes for it were needed.
        required: u32,
        /// How the votes fell, or why there was nothing to decide any more.
        reason: String,
    },
    /// A member takes another key, from the end of the open round on.
    KeyRotated {
        /// With both signatures.
        rotation: Signed<KeyRotation>,
    },
    /// A member has left for good.
    Left {
        /// With its signature.
        departure: Signed<Departure>,
    },
    /// Members have cosigned a checkpoint of this log, and more are needed. It is on record before they are told that it arrived, so
    /// that nobody has to be asked again.
    Cosigned {
        /// The checkpoint with their cosignatures.
        checkpoint: String,
    },
    /// Enough members have cosigned a checkpoint of this log.
    Witnessed {
        /// The checkpoint with their cosignatures.
        checkpoint: String,
    },
    /// The charter's base was measured.
    BaseMeasured {
        /// The model.
        base: Digest,
        /// Bits per byte on the open held-out text.
        bpb: f64,
    },
    /// The round's base was measured on the open text of a member's community.
    CommunityMeasured {
        /// The model.
        base: Digest,
        /// The member.
        member: MemberName,
        /// Bits per byte; none where the model gives no finite value. Contributions of the member can then not be weighed.
        bpb: Option<f64>,
    },
    /// A round is open.
    RoundAnnounced {
        /// Its terms.
        announcement: Announcement,
    },
    /// A contribution has arrived whole.
    ContributionReceived {
        /// With its signature.
        contribution: Signed<Contribution>,
    },
    /// A contribution came too late for the round that it was trained for.
    Late {
        /// The round that it was trained for.
        round: u32,
        /// The member.
        member: MemberName,
        /// The round in which it counts instead, with the contribution; none where the charter takes it in none.
        taken: Option<LateContribution>,
        /// What follows, and by which term of the charter.
        reason: String,
    },
    /// A member leaves for a while, or comes back.
    Attended {
        /// With its signature.
        attendance: Signed<Attendance>,
    },
    /// A contribution was judged.
    ContributionScreened {
        /// The round in which it counts.
        round: u32,
        /// The member.
        member: MemberName,
        /// The manifest of its weights.
        weights: Digest,
        /// What was measured.
        screening: Screening,
        /// What follows under the charter.
        verdict: Verdict,
    },
    /// A member's message was not taken.
    MessageRefused {
        /// The open round, 0 where none was.
        round: u32,
        /// Who sent it.
        member: MemberName,
        /// Why.
        reason: String,
    },
    /// A member declined.
    Declined {
        /// With its signature.
        decline: Signed<Decline>,
    },
    /// The window closed without an answer from a member.
    Missing {
        /// The round.
        round: u32,
        /// The member.
        member: MemberName,
        /// By which term of the charter the round goes on without it.
        reason: String,
    },
    /// Who is merged, and with which weight.
    MergeStarted {
        /// The round.
        round: u32,
        /// With the explanation of each.
        weights: Vec<WeightRecord>,
    },
    /// The merged model is durable.
    Merged {
        /// The round.
        round: u32,
        /// The model.
        model: Digest,
        /// The method's state for the next merge, where it keeps one: manifests of weights, durable too.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        states: Vec<Digest>,
    },
    /// The round is over: a new base is published, or the old one stays.
    Ended {
        /// What members are told.
        outcome: Outcome,
        /// Bits per byte of the merged model where there is one, else of the base that stays.
        bpb: f64,
    },
}

/// A contribution that counts in a later round than the one that it was trained for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LateContribution {
    /// The round in which it counts.
    pub into: u32,
    /// With its signature.
    pub contribution: Signed<Contribution>,
}

impl CoordinatorEvent {
    /// Whether members have to witness the log up to here before the next round opens.
    pub(super) const fn asks_for_witnesses(&self) -> bool {
        matches!(
            self,
            Self::CharterAdopted { .. }
                | Self::RoleTaken { .. }
                | Self::BaseMeasured { .. }
                | Self::Decided { .. }
                | Self::KeyRotated { .. }
                | Self::Left { .. }
                | Self::Ended { .. }
        )
    }

    /// The event's name, as in its JSON form.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::CharterAdopted { .. } => "charter_adopted",
            Self::RoleTaken { .. } => "role_taken",
            Self::RoleHandedOver { .. } => "role_handed_over",
            Self::Proposed { .. } => "proposed",
            Self::Voted { .. } => "voted",
            Self::Decided { .. } => "decided",
            Self::KeyRotated { .. } => "key_rotated",
            Self::Left { .. } => "left",
            Self::Cosigned { .. } => "cosigned",
            Self::Witnessed { .. } => "witnessed",
            Self::BaseMeasured { .. } => "base_measured",
            Self::CommunityMeasured { .. } => "community_measured",
            Self::RoundAnnounced { .. } => "round_announced",
            Self::ContributionReceived { .. } => "contribution_received",
            Self::ContributionScreened { .. } => "contribution_screened",
            Self::MessageRefused { .. } => "message_refused",
            Self::Late { .. } => "late",
            Self::Attended { .. } => "attended",
            Self::Declined { .. } => "declined",
            Self::Missing { .. } => "missing",
            Self::MergeStarted { .. } => "merge_started",
            Self::Merged { .. } => "merged",
            Self::Ended { .. } => "ended",
        }
    }
}

/// What the coordinator asks its driver to do. Doing it twice does no harm.
#[derive(Debug, Clone, PartialEq)]
pub enum CoordinatorEffect {
    /// Measure the charter's base on the open held-out text; answer with `BaseMeasured`.
    MeasureBase {
        /// The model.
        base: Digest,
    },
    /// Measure the round's base on the open text of a member's community; answer with `CommunityMeasured`.
    MeasureCommunity {
        /// The model.
        base: Digest,
        /// The member.
        member: MemberName,
    },
    /// Measure a contribution against the base that it was trained from, and on the open text of its member's community where the charter names one;
    /// answer with `Screened`.
    Screen {
        /// The round.
        round: u32,
        /// Whose.
        member: MemberName,
        /// The base that it was trained from: the round's, or for a late one that of the round it was trained for.
        base: Digest,
        /// The manifest of the contribution's weights.
        weights: Digest,
    },
    /// Merge; answer with `Merged`.
    Merge(MergeWork),
    /// Measure the merged model on the open held-out text; answer with `MergedMeasured`.
    MeasureMerged {
        /// The round.
        round: u32,
        /// The merged model.
        model: Digest,
    },
}

/// Everything that a round's merge follows from. Whoever does it gets the same bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeWork {
    /// The round.
    pub round: u32,
    /// The round's base.
    pub base: Digest,
    /// How to merge.
    pub method: Method,
    /// The contributions, in the order of members' names.
    pub inputs: Vec<MergeInput>,
    /// The method's state after the merge before: manifests of weights; none at first.
    pub states: Vec<Digest>,
}

/// One contribution to a merge.
#[derive(Debug, Clone, PartialEq)]
pub struct MergeInput {
    /// The member.
    pub member: MemberName,
    /// Its manifest of weights.
    pub weights: Digest,
    /// Its share; all shares sum to one.
    pub share: f64,
}
