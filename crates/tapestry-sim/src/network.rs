//! Messages between parties, and the future as a queue of happenings.

use std::cmp::Ordering;

use tapestry_core::{Digest, Signed};
use tapestry_round::coordinator::CoordinatorEffect;
use tapestry_round::node::NodeEffect;
use tapestry_round::{Attendance, Contribution, Decline, News};

use crate::model::Vector;

/// Who can send and receive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Party {
    Coordinator,
    /// By the index of its member.
    Node(usize),
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
    /// Send me a model. Answered with it.
    Pull(Digest),
    /// Weights, and what is said about them.
    Contribute(Signed<Contribution>, Vector),
    Decline(Signed<Decline>),
    Attend(Signed<Attendance>),
    News(Box<News>),
    Model(Vector),
    /// The coordinator has a member's contribution to a round, durably.
    Confirmed {
        round: u32,
    },
    /// The coordinator does not take a member's contribution to a round.
    NotTaken {
        round: u32,
    },
    /// The coordinator knows, durably, that a member left or is back.
    AttendanceConfirmed {
        number: u64,
    },
    /// The coordinator has a member's decline, durably.
    DeclineConfirmed {
        round: u32,
    },
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
    /// Some role dies.
    Crash,
    Starts {
        party: Party,
    },
    /// Whoever means harm does some.
    Mischief,
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
