//! Messages between parties, and the future as a queue of happenings.

use std::cmp::Ordering;

use tapestry_core::{Digest, Signed};
use tapestry_round::coordinator::CoordinatorEffect;
use tapestry_round::node::NodeEffect;
use tapestry_round::{Attendance, Contribution, Decline, News};

use crate::model::{Chunk, Manifest};

/// Who can send and receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Coordinator,
    /// By the index of its member.
    Node(usize),
    /// Somebody who holds what the coordinator has published, and serves it.
    Mirror,
    /// A coordinator that was replaced, and goes on.
    Deposed,
    /// Somebody whose key is in no charter.
    Stranger,
}

/// What travels. The transport authenticates the sender, so a sender can be believed and a document cannot.
#[derive(Debug, Clone)]
pub(crate) enum Message {
    /// Where is the loop? Answered with news, where there is any since the version that the node knows.
    Ask {
        version: Option<u64>,
    },
    /// Which chunks is this model made of? Answered with its manifest.
    PullManifest {
        connection: u64,
        model: Digest,
    },
    Manifest {
        connection: u64,
        model: Digest,
        manifest: Manifest,
    },
    /// Send me a chunk. Answered with it.
    Pull {
        connection: u64,
        chunk: Digest,
    },
    /// A chunk that was asked for.
    Pulled {
        connection: u64,
        digest: Digest,
        chunk: Chunk,
    },
    /// Which of these chunks do you lack? Answered with `Lacking`.
    Offer {
        connection: u64,
        manifest: Manifest,
    },
    Lacking {
        connection: u64,
        chunks: Vec<Digest>,
    },
    Push {
        connection: u64,
        digest: Digest,
        chunk: Chunk,
    },
    /// A chunk is held, durably.
    Held {
        connection: u64,
        digest: Digest,
    },
    /// What is said about weights whose chunks have arrived.
    Contribute(Signed<Contribution>, Manifest),
    Decline(Signed<Decline>),
    Attend(Signed<Attendance>),
    News(Box<News>),
    /// The coordinator has a member's contribution to a round, durably.
    Confirmed {
        round: u32,
    },
    /// The coordinator does not take a member's contribution to a round.
    NotTaken {
        round: u32,
    },
    /// The coordinator has a member's decline, durably.
    DeclineConfirmed {
        round: u32,
    },
    /// The coordinator knows that a member has left or come back, durably.
    AttendanceConfirmed {
        number: u64,
    },
}

impl Message {
    /// Its name in the story.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Ask { .. } => "ask",
            Self::PullManifest { .. } => "pull manifest",
            Self::Manifest { .. } => "manifest",
            Self::Pull { .. } => "pull",
            Self::Pulled { .. } => "pulled",
            Self::Offer { .. } => "offer",
            Self::Lacking { .. } => "lacking",
            Self::Push { .. } => "push",
            Self::Held { .. } => "held",
            Self::Contribute(..) => "contribute",
            Self::Decline(_) => "decline",
            Self::Attend(_) => "attend",
            Self::News(_) => "news",
            Self::Confirmed { .. } => "confirmed",
            Self::NotTaken { .. } => "not taken",
            Self::DeclineConfirmed { .. } => "decline confirmed",
            Self::AttendanceConfirmed { .. } => "attendance confirmed",
        }
    }
}

/// Something that will happen.
#[derive(Debug, Clone)]
pub(crate) enum Happening {
    Arrives {
        from: Party,
        to: Party,
        message: Message,
    },
    /// A role looks around: clock, news, work to do.
    Wakes {
        party: Party,
        life: u32,
    },
    /// Work of the coordinator ends, well or not.
    CoordinatorWorked {
        life: u32,
        effect: CoordinatorEffect,
        is_done: bool,
    },
    /// Work of a node ends, well or not.
    NodeWorked {
        node: usize,
        life: u32,
        effect: NodeEffect,
        is_done: bool,
    },
    /// The coordinator's group of chunks is synced, and those who sent them are told.
    ChunksSynced {
        life: u32,
    },
    /// The operator of a node says otherwise how its member takes part.
    ChangesMind {
        node: usize,
    },
    /// A standby goes on in the coordinator's place.
    TakesOver,
    /// Some clock jumps, forwards or back.
    ClockJumps,
    /// Some role dies.
    Crash,
    Starts {
        party: Party,
    },
    /// Whoever means harm does some.
    Mischief,
}

impl Happening {
    /// The role that something happens to.
    pub(crate) const fn touches(&self) -> Option<Party> {
        match self {
            Self::Arrives { to: party, .. } | Self::Wakes { party, .. } | Self::Starts { party } => Some(*party),
            Self::CoordinatorWorked { .. } | Self::ChunksSynced { .. } => Some(Party::Coordinator),
            Self::NodeWorked { node, .. } | Self::ChangesMind { node } => Some(Party::Node(*node)),
            Self::TakesOver => Some(Party::Coordinator),
            Self::ClockJumps | Self::Crash | Self::Mischief => None,
        }
    }
}

/// A happening with its time; of two at one time the one that was planned first comes first.
#[derive(Debug)]
pub(crate) struct Planned {
    pub(crate) at_ms: u64,
    pub(crate) number: u64,
    pub(crate) happening: Happening,
}

impl PartialEq for Planned {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Planned {}

impl PartialOrd for Planned {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The reverse of time, so that the earliest is the greatest, which a heap gives first.
impl Ord for Planned {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_ms, other.number).cmp(&(self.at_ms, self.number))
    }
}
