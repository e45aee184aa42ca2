//! What coordinator and members say to each other. Everything that matters is a signed document.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use tapestry_core::{Digest, Document, MemberName, PublicKey, Signed, Timestamp};
use tapestry_governance::Step;
use tapestry_ledger::TreeHash;
use tapestry_merge::weights::WeightRecord;

/// The coordinator opens a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Announcement {
    /// The charter under which the round runs.
    pub charter: Digest,
    /// The number of the round, from 1.
    pub round: u32,
    /// The model to start from.
    pub base: Digest,
    /// When the round was opened.
    pub opened_at: Timestamp,
    /// When the window closes.
    pub closes_at: Timestamp,
}

impl Document for Announcement {
    const DOMAIN: &'static str = "announcement/1";
}

/// A key has the coordinator's role from now on: the charter's coordinator again, or one of its standbys.
///
/// Signed by that key. The first holder needs none: it is the charter's coordinator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tenure {
    /// The charter.
    pub charter: Digest,
    /// Grows with each change of the role's holder: the first tenure has no document and counts as 1, so from 2.
    pub number: u64,
    /// The key that has the role.
    pub coordinator: PublicKey,
    /// Where it listens (`HOST:PORT`), where members should know another address than they have. At most
    /// [`MAX_ADDRESS_BYTES`] long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl Document for Tenure {
    const DOMAIN: &'static str = "tenure/1";
}

/// The holder of the coordinator's role gives it to another, and decides nothing any more.
///
/// Signed by the holder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HandOver {
    /// The charter.
    pub charter: Digest,
    /// The number of the tenure that ends.
    pub number: u64,
    /// The key that may take the role, and no other.
    pub to: PublicKey,
    /// Where members will find it (`HOST:PORT`), where they should know. At most [`MAX_ADDRESS_BYTES`] long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

impl Document for HandOver {
    const DOMAIN: &'static str = "hand-over/1";
}

/// The longest address that is taken.
pub const MAX_ADDRESS_BYTES: usize = 300;

/// Whether an address is short, printable, and of the form `HOST:PORT`.
pub(crate) fn is_address(address: &str) -> bool {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
    address.len() <= MAX_ADDRESS_BYTES
        && address.bytes().all(|b| b.is_ascii_graphic())
        && port.is_some_and(|port: u16| port > 0)
}

/// What somebody said, short enough that what is said of all members fits one entry of the log.
pub(crate) fn short(text: &str) -> String {
    const MAX_BYTES: usize = 200;
    let mut end = text.len().min(MAX_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

/// What a training run was, as its member states it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainingMetrics {
    /// Tokens trained on, counted once for each time they were seen.
    pub num_tokens: u64,
    /// Optimiser updates.
    pub num_steps: u64,
    /// Loss of the first step, in nats per token.
    pub first_loss: f64,
    /// Mean loss over the last quarter of the steps, in nats per token.
    pub last_loss: f64,
    /// Wall time in seconds.
    pub wall_seconds: f64,
    /// Processor time in seconds.
    pub cpu_seconds: f64,
}

/// A member's result of Contributed CPT for one round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contribution {
    /// The charter under which it is made.
    pub charter: Digest,
    /// The round.
    pub round: u32,
    /// The model that training started from.
    pub base: Digest,
    /// The member.
    pub member: MemberName,
    /// The weight vector: the digest of its manifest of weights.
    pub weights: Digest,
    /// How it came about.
    pub metrics: TrainingMetrics,
}

impl TrainingMetrics {
    /// Whether every number is finite. Where a loss is not, training has diverged.
    pub(crate) fn is_finite(&self) -> bool {
        [self.first_loss, self.last_loss, self.wall_seconds, self.cpu_seconds].iter().all(|x| x.is_finite())
    }
}

impl Document for Contribution {
    const DOMAIN: &'static str = "contribution/1";
}

/// A member does not take part in a round.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Decline {
    /// The charter.
    pub charter: Digest,
    /// The round.
    pub round: u32,
    /// The member.
    pub member: MemberName,
    /// Why, in the member's words; may be empty. At most [`Decline::MAX_REASON_BYTES`] long.
    pub reason: String,
}

impl Decline {
    /// The longest reason that is recorded.
    pub const MAX_REASON_BYTES: usize = 1000;
}

/// A member leaves for a while, or comes back. Needs nobody's permission; rounds do not wait for a member that is away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Attendance {
    /// The charter.
    pub charter: Digest,
    /// The member.
    pub member: MemberName,
    /// Grows with each of the member's attendances, so that an old one cannot be replayed; from 1. Some may never be sent.
    pub number: u64,
    /// Whether the member takes part from now on.
    pub is_present: bool,
    /// Why, in the member's words; may be empty. At most [`Decline::MAX_REASON_BYTES`] long.
    pub reason: String,
}

impl Document for Attendance {
    const DOMAIN: &'static str = "attendance/1";
}

impl Document for Decline {
    const DOMAIN: &'static str = "decline/1";
}

/// What the coordinator measured of a contribution. Facts only: the verdict follows from them and the charter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Screening {
    /// The weights are not those of the base's architecture: a name, shape or type differs, or a chunk cannot be read.
    Malformed {
        /// What differs.
        what: String,
    },
    /// A weight is NaN or infinite.
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Index of the first such element, row-major.
        index: u64,
    },
    /// The weights are well-formed.
    Measured {
        /// L2 norm of (weights - base) over the L2 norm of the base.
        relative_change: f64,
        /// Bits per byte on the open held-out text; none where the change was already too large, or the model gives no
        /// finite value.
        bpb: Option<f64>,
        /// Bits per byte on the open text of the member's own community, where the charter asks for it and the model gives a finite value.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        community_bpb: Option<f64>,
    },
}

impl Screening {
    /// The same facts in numbers that JSON has, so that the log can be read again: a change that is no finite number is
    /// the largest there is, and a score that is none is absent. Neither passes any bound that a charter can set.
    pub(crate) fn finite(self) -> Self {
        match self {
            Self::Measured { relative_change, bpb, community_bpb } => Self::Measured {
                relative_change: if relative_change.is_finite() { relative_change } else { f64::MAX },
                bpb: bpb.filter(|bpb| bpb.is_finite()),
                community_bpb: community_bpb.filter(|bpb| bpb.is_finite()),
            },
            other => other,
        }
    }
}

/// Why a contribution was refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RefusalReason {
    /// Names, shapes, types or chunks.
    Malformed {
        /// What differs.
        what: String,
    },
    /// NaN or infinity.
    NotFinite {
        /// The tensor.
        tensor: String,
        /// The element.
        index: u64,
    },
    /// Too far from the base.
    ChangeTooLarge {
        /// Found.
        relative_change: f64,
        /// The charter's bound.
        limit: f64,
    },
    /// Worse than the quality floor.
    BelowFloor {
        /// Found, in bits per byte; none where the model gave no finite value.
        bpb: Option<f64>,
        /// The floor: the largest bits per byte that is accepted.
        floor: f64,
    },
    /// The model gave no finite value on the open text of the member's own community, by which the charter weighs it.
    NoCommunityScore {},
}

impl fmt::Display for RefusalReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed { what } => write!(f, "{what}"),
            Self::NotFinite { tensor, index } => write!(f, "tensor {tensor} holds NaN or infinity at element {index}"),
            Self::ChangeTooLarge { relative_change, limit } if *relative_change >= 1e6 => {
                write!(f, "the weights moved by {relative_change:.1e} of the base's norm; the charter allows {limit} (screening.max_relative_change)")
            }
            Self::ChangeTooLarge { relative_change, limit } => {
                write!(f, "the weights moved by {relative_change:.4} of the base's norm; the charter allows {limit} (screening.max_relative_change)")
            }
            Self::BelowFloor { bpb: Some(bpb), floor } => {
                write!(f, "{bpb:.4} bits per byte on the open held-out text; the quality floor is {floor:.4} (charter: screening.max_bpb_rise)")
            }
            Self::BelowFloor { bpb: None, floor } => {
                write!(f, "no finite value on the open held-out text; the quality floor is {floor:.4} bits per byte (charter: screening.max_bpb_rise)")
            }
            Self::NoCommunityScore {} => {
                f.write_str("no finite value on the open text of the member's own community, by which the charter weighs contributions")
            }
        }
    }
}

/// What became of a member's part in a round.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Verdict {
    /// It goes into the merge.
    Accepted {
        /// Bits per byte on the open held-out text.
        bpb: f64,
        /// L2 norm of the change over that of the base.
        relative_change: f64,
        /// Bits per byte on the open text of the member's own community, where the charter asks for it.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        community_bpb: Option<f64>,
        /// By how many rounds it is late: it was trained for a round that ended that many rounds before.
        #[serde(default, skip_serializing_if = "is_zero")]
        staleness: u32,
    },
    /// It does not touch the base.
    Refused {
        /// Every reason that was found.
        reasons: Vec<RefusalReason>,
    },
    /// The member declined.
    Declined {
        /// In its words.
        reason: String,
    },
    /// The window closed without an answer.
    Missing,
    /// The member was away.
    Away {
        /// In its words.
        reason: String,
    },
    /// The member has left the consortium.
    Left {
        /// In its words.
        reason: String,
    },
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde asks for")]
const fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// How a round ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum RoundResult {
    /// A new Shared Base.
    Published {
        /// Its bits per byte on the open held-out text.
        bpb: f64,
    },
    /// The base stays.
    Abandoned {
        /// Why.
        reason: String,
    },
}

/// The end of a round, as the coordinator publishes it to all members equally.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Outcome {
    /// The charter.
    pub charter: Digest,
    /// The round.
    pub round: u32,
    /// The Shared Base from now on.
    pub base: Digest,
    /// Whether it is a new one.
    pub result: RoundResult,
    /// What became of each member's part, and why.
    pub verdicts: BTreeMap<MemberName, Verdict>,
    /// How each accepted contribution was weighted, and why. Empty where nothing was merged.
    pub weights: Vec<WeightRecord>,
    /// Whether this was the charter's last round.
    pub is_last: bool,
}

impl Document for Outcome {
    const DOMAIN: &'static str = "outcome/3";
}

/// What the coordinator shows of its log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogView {
    /// A checkpoint of the log, signed, with the cosignatures that it has: the one on which the open round rests, or else the one
    /// that members are asked to witness.
    pub checkpoint: String,
    /// The size that the asker said it has seen.
    pub from: u64,
    /// The proof that the checkpoint's tree begins with the first `from` entries (RFC 6962, 2.1.2).
    pub consistency: Vec<TreeHash>,
}

/// Steps of governance that the asker has not followed yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewSteps {
    /// How many steps come before the first of these.
    pub after: u64,
    /// The next ones, not all at once.
    pub steps: Vec<Step>,
}

/// What a node learns when it asks where the loop is. Each part is signed by the holder of the coordinator's role, or carries its
/// own proof.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct News {
    /// Grows with each change, so that a node can wait for the next.
    pub version: u64,
    /// Who has the coordinator's role since it changed hands last; none where it never did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenure: Option<Signed<Tenure>>,
    /// Who will have it, where it was handed over and not taken yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hand_over: Option<Signed<HandOver>>,
    /// What members have decided since, where the asker does not know it yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governance: Option<NewSteps>,
    /// How far the coordinator's log is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log: Option<LogView>,
    /// The open round, if there is one.
    pub announcement: Option<Signed<Announcement>>,
    /// The last round that ended, if there is one.
    pub outcome: Option<Signed<Outcome>>,
}
