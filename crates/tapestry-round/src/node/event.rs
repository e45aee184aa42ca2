//! What goes into a node, what it writes, and what it asks to have done.

use crate::{
    Announcement, Attendance, Contribution, Decline, HandOver, LogView, News, Outcome, Tenure, TrainingMetrics,
};
use serde::{Deserialize, Serialize};
use tapestry_core::{Digest, Signed};
use tapestry_governance::{Charter, CharterHistory, Departure, KeyRotation, Proposal, Vote};

/// The result of Contributed CPT: the only thing that a contribution can be made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContributedCpt {
    weights: Digest,
    metrics: TrainingMetrics,
}

impl ContributedCpt {
    /// States that `weights` (a manifest of weights) came out of Contributed CPT for an open round.
    ///
    /// The one place to call this is the driver's answer to [`NodeEffect::Train`].
    #[must_use]
    pub const fn from_training(weights: Digest, metrics: TrainingMetrics) -> Self {
        Self { weights, metrics }
    }

    /// The manifest of the weights.
    #[must_use]
    pub const fn weights(&self) -> Digest {
        self.weights
    }

    /// How it came about.
    #[must_use]
    pub const fn metrics(&self) -> &TrainingMetrics {
        &self.metrics
    }
}

/// The result of Private CPT. It stays on the node: nothing converts it into a contribution.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SovereignModel {
    base: Digest,
    digest: Digest,
}

impl SovereignModel {
    /// States that the model `digest` was built from the Shared Base `base`.
    #[must_use]
    pub const fn new(base: Digest, digest: Digest) -> Self {
        Self { base, digest }
    }

    /// The Shared Base that it was built from.
    #[must_use]
    pub const fn base(&self) -> Digest {
        self.base
    }

    /// Its name.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }
}

/// Which model a measurement is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Subject {
    /// The Shared Base after a round; after round 0: the adopted base.
    SharedBase {
        /// Rounds that have ended.
        round: u32,
    },
    /// This node's own result of Contributed CPT.
    OwnCpt {
        /// The round.
        round: u32,
    },
    /// This node's Sovereign Model.
    Sovereign,
}

/// Bits per byte on the node's own held-out text, which never leaves it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// Which model.
    pub subject: Subject,
    /// The model.
    pub model: Digest,
    /// Bits per byte on the node's own held-out text; none where the model gives no finite value.
    pub held_out_bpb: Option<f64>,
    /// Bits per byte on the charter's open held-out text, where it was measured here.
    pub open_bpb: Option<f64>,
    /// Wall time in seconds.
    pub wall_seconds: f64,
}

/// What a transfer was.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferMetrics {
    /// Bytes that went over the wire, without what the receiver had already.
    pub size_bytes: u64,
    /// Wall time in seconds.
    pub wall_seconds: f64,
}

/// How a member takes part, from now on. Its operator decides, at any time, and needs nobody's permission.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case", deny_unknown_fields)]
pub enum Participation {
    /// Trains in each round and contributes the weights.
    #[default]
    Contribute,
    /// Trains in each round and keeps the weights; the round is declined.
    KeepPrivate {
        /// What the other members are told; may be empty.
        reason: String,
    },
    /// Declines each round without training.
    Decline {
        /// What the other members are told; may be empty.
        reason: String,
    },
    /// Takes no part until it comes back; rounds do not wait for it.
    Away {
        /// What the other members are told; may be empty.
        reason: String,
    },
}

impl Participation {
    /// What the other members are told.
    #[must_use]
    pub fn reason(&self) -> &str {
        match self {
            Self::Contribute => "",
            Self::KeepPrivate { reason } | Self::Decline { reason } | Self::Away { reason } => reason,
        }
    }
}

/// What happened outside.
#[expect(clippy::large_enum_variant, reason = "news are the largest, and the most frequent")]
#[derive(Debug, Clone, PartialEq)]
pub enum NodeInput {
    /// The operator joins under a charter.
    Join {
        /// The founding charter, and every step since.
        history: Box<CharterHistory>,
    },
    /// This member leaves for good.
    Leave {
        /// With its signature.
        departure: Signed<Departure>,
    },
    /// The coordinator knows that.
    DepartureSent,
    /// Another member was shown this of the coordinator's log. The proof leads from the smaller of it and of what was seen here to the
    /// larger, as the coordinator gave it; empty where it gave none.
    Compare {
        /// What the other was shown.
        view: LogView,
    },
    /// The coordinator has this node's cosignature.
    CosignatureSent {
        /// How many entries were cosigned.
        size: u64,
    },
    /// The operator says how this member takes part.
    Participate(Participation),
    /// The coordinator has confirmed that this member left or came back.
    AttendanceSent {
        /// What was sent.
        number: u64,
    },
    /// The coordinator does not take the contribution that this node trained for a round that has ended.
    LateRefused {
        /// The round.
        round: u32,
    },
    /// The coordinator says where the loop is.
    News(News),
    /// A base is on this machine.
    BasePulled {
        /// The model.
        base: Digest,
        /// What it took.
        transfer: TransferMetrics,
    },
    /// Contributed CPT is done and its weights are durable.
    Trained {
        /// The round.
        round: u32,
        /// The result.
        contributed: ContributedCpt,
    },
    /// Contributed CPT cannot be done.
    CannotTrain {
        /// The round.
        round: u32,
        /// Why, as the coordinator and all members will read it.
        reason: String,
    },
    /// The coordinator has confirmed the contribution.
    ContributionSent {
        /// The round.
        round: u32,
        /// What it took.
        transfer: TransferMetrics,
    },
    /// The coordinator has confirmed that this node declines.
    DeclineSent {
        /// The round.
        round: u32,
    },
    /// A model was measured.
    Measured(Measurement),
    /// The Sovereign Model is built and durable.
    SovereignBuilt {
        /// The model.
        model: SovereignModel,
        /// How it came about.
        metrics: TrainingMetrics,
    },
}

impl NodeInput {
    /// Joins a consortium in which nothing was decided since its founding.
    #[must_use]
    pub fn join(founding: Signed<Charter>) -> Self {
        Self::Join { history: Box::new(CharterHistory { founding, steps: vec![] }) }
    }
}

/// What a node's log says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum NodeEvent {
    /// This node follows a charter.
    Joined {
        /// With its signatures.
        charter: Signed<Charter>,
    },
    /// The coordinator's role has a new holder.
    CoordinatorChanged {
        /// With its signature.
        tenure: Signed<Tenure>,
    },
    /// The holder of the coordinator's role has given it to another, who may have taken it by now.
    CoordinatorMoves {
        /// With the holder's signature.
        hand_over: Signed<HandOver>,
    },
    /// The operator says how this member takes part.
    Participates {
        /// From now on.
        participation: Participation,
    },
    /// The coordinator knows that this member left or came back.
    AttendanceSent {
        /// What was sent.
        number: u64,
    },
    /// The coordinator does not take the contribution that this node trained for a round that has ended.
    LateRefused {
        /// The round.
        round: u32,
    },
    /// A member's proposal that was decided.
    Proposed {
        /// With its signature.
        proposal: Box<Signed<Proposal>>,
    },
    /// A vote on it.
    Voted {
        /// With its signature.
        vote: Signed<Vote>,
    },
    /// The votes before this carry the proposal, and what it changes is in force here.
    Decided {
        /// The proposal.
        proposal: Digest,
    },
    /// A member has another key.
    KeyRotated {
        /// With both signatures.
        rotation: Signed<KeyRotation>,
    },
    /// A member has left.
    Left {
        /// With its signature.
        departure: Signed<Departure>,
    },
    /// A charter with rules for deciding is in force, by the signatures of the quorum.
    CharterReplaced {
        /// With its signatures.
        charter: Signed<Charter>,
    },
    /// This member leaves: nothing is sent for it any more.
    Leaving {
        /// With its signature.
        departure: Signed<Departure>,
    },
    /// The coordinator knows that this member has left.
    DepartureSent {},
    /// The coordinator's log was seen so far, and continues all that was seen of it before.
    CheckpointSeen {
        /// The checkpoint as it was shown.
        checkpoint: String,
    },
    /// The coordinator has this node's cosignature of it.
    CosignatureSent {
        /// How many entries.
        size: u64,
    },
    /// The coordinator has shown two histories that are not one. This node takes no part any more.
    HistoriesDiffer {
        /// What was seen before.
        seen: String,
        /// What was shown now, with the proof that does not hold.
        shown: LogView,
    },
    /// A round was announced and holds up to the charter.
    RoundAccepted {
        /// With the coordinator's signature.
        announcement: Signed<Announcement>,
        /// How many entries of the coordinator's log had been seen.
        #[serde(default)]
        rests_on: u64,
        /// The checkpoint that it rests on, with the cosignatures of the members, where the charter asks for them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        witnessed: Option<String>,
    },
    /// A base is on this machine.
    BaseHeld {
        /// The model.
        base: Digest,
        /// What it took.
        transfer: TransferMetrics,
    },
    /// Contributed CPT is done.
    Trained {
        /// The round.
        round: u32,
        /// The result.
        contributed: ContributedCpt,
    },
    /// The coordinator has the contribution.
    ContributionSent {
        /// The round.
        round: u32,
        /// What it took.
        transfer: TransferMetrics,
    },
    /// This node will not take part in a round.
    Declining {
        /// The round.
        round: u32,
        /// Why.
        reason: String,
    },
    /// The coordinator knows that.
    DeclineSent {
        /// The round.
        round: u32,
    },
    /// A round has ended.
    OutcomeAccepted {
        /// With the coordinator's signature.
        outcome: Signed<Outcome>,
    },
    /// A model was measured.
    Measured(Measurement),
    /// The Sovereign Model is built.
    SovereignBuilt {
        /// The model.
        model: SovereignModel,
        /// How it came about.
        metrics: TrainingMetrics,
    },
}

impl NodeEvent {
    /// The event's name, as in its JSON form.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Joined { .. } => "joined",
            Self::CoordinatorChanged { .. } => "coordinator_changed",
            Self::CoordinatorMoves { .. } => "coordinator_moves",
            Self::Participates { .. } => "participates",
            Self::AttendanceSent { .. } => "attendance_sent",
            Self::LateRefused { .. } => "late_refused",
            Self::Proposed { .. } => "proposed",
            Self::Voted { .. } => "voted",
            Self::Decided { .. } => "decided",
            Self::KeyRotated { .. } => "key_rotated",
            Self::Left { .. } => "left",
            Self::CharterReplaced { .. } => "charter_replaced",
            Self::Leaving { .. } => "leaving",
            Self::DepartureSent {} => "departure_sent",
            Self::CheckpointSeen { .. } => "checkpoint_seen",
            Self::CosignatureSent { .. } => "cosignature_sent",
            Self::HistoriesDiffer { .. } => "histories_differ",
            Self::RoundAccepted { .. } => "round_accepted",
            Self::BaseHeld { .. } => "base_held",
            Self::Trained { .. } => "trained",
            Self::ContributionSent { .. } => "contribution_sent",
            Self::Declining { .. } => "declining",
            Self::DeclineSent { .. } => "decline_sent",
            Self::OutcomeAccepted { .. } => "outcome_accepted",
            Self::Measured(_) => "measured",
            Self::SovereignBuilt { .. } => "sovereign_built",
        }
    }
}

/// What a node asks its driver to do. Doing it twice does no harm.
#[derive(Debug, Clone, PartialEq)]
pub enum NodeEffect {
    /// Fetch a model; answer with `BasePulled`.
    PullBase {
        /// The model.
        base: Digest,
    },
    /// Run Contributed CPT; answer with `Trained` or `CannotTrain`.
    Train {
        /// The round.
        round: u32,
        /// The model to start from.
        base: Digest,
    },
    /// Push the weights, then sign and send the contribution; answer with `ContributionSent`, or with `LateRefused` where it is for a round
    /// that has ended and the coordinator does not take it.
    SendContribution {
        /// What to sign.
        contribution: Contribution,
    },
    /// Sign and send; answer with `DeclineSent`.
    SendDecline {
        /// What to sign.
        decline: Decline,
    },
    /// Send that this member has left; answer with `DepartureSent`.
    SendDeparture {
        /// With its signature.
        departure: Signed<Departure>,
    },
    /// Cosign a checkpoint of the coordinator's log and send that; answer with `CosignatureSent`.
    Cosign {
        /// The checkpoint.
        checkpoint: String,
    },
    /// Sign and send; answer with `AttendanceSent`.
    SendAttendance {
        /// What to sign.
        attendance: Attendance,
    },
    /// Measure a model on this node's held-out text; answer with `Measured`.
    Measure {
        /// Which it is.
        subject: Subject,
        /// The model, or for this node's own CPT the manifest of its weights.
        model: Digest,
    },
    /// Run Private CPT on the final Shared Base; answer with `SovereignBuilt`.
    BuildSovereign {
        /// The model to start from.
        base: Digest,
    },
}
