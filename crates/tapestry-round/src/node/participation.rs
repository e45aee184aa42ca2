//! How a member takes part: in time, late, in private, or not at all. Its operator decides.

use super::{ContributedCpt, Membership, Node, NodeEffect, NodeEvent, NodeRound, Participation, Progress, cut};
use crate::{Announcement, Contribution, Decline, Outcome, RoundError, Verdict};
use tapestry_core::MemberName;

/// What the operator has said last of being away or back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Attendance {
    /// A new one for each time that it was said: an earlier one may have reached the coordinator, whether or not that was confirmed.
    pub(super) number: u64,
    is_present: bool,
    reason: String,
}

impl Attendance {
    pub(super) const UNSAID: Self = Self { number: 0, is_present: true, reason: String::new() };

    pub(super) fn after(&self, before: &Participation, now: &Participation) -> Self {
        match (before, now) {
            (_, Participation::Away { reason }) => {
                Self { number: self.number + 1, is_present: false, reason: cut(reason.clone()) }
            }
            (Participation::Away { .. }, _) => {
                Self { number: self.number + 1, is_present: true, reason: String::new() }
            }
            _ => self.clone(),
        }
    }
}

impl Participation {
    /// What the other members are told when a round is declined.
    pub(super) fn words(&self) -> String {
        let what = match self {
            Self::KeepPrivate { .. } => "the weights of this round stay private",
            Self::Away { .. } => "away",
            Self::Contribute | Self::Decline { .. } => "",
        };
        let words = [what, self.reason()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>();
        cut(words.join(": "))
    }
}

impl Node {
    /// What follows when the operator says how to take part. A contribution that the coordinator has cannot be taken back; of a round
    /// that is under way otherwise, nothing is sent any more.
    pub(super) fn participate(&self, participation: Participation) -> Result<Vec<NodeEvent>, RoundError> {
        if self.participation == participation {
            return Ok(vec![]);
        }
        let mut events = vec![NodeEvent::Participates { participation: participation.clone() }];
        let stops = |progress: &Progress| match participation {
            Participation::Contribute => false,
            Participation::KeepPrivate { .. } => matches!(progress, Progress::Trained(_)),
            _ => matches!(progress, Progress::Accepted | Progress::Trained(_)),
        };
        if let Some(round) = self.round.as_ref().filter(|round| stops(&round.progress)) {
            events.push(NodeEvent::Declining { round: round.announcement.round, reason: participation.words() });
        }
        Ok(events)
    }

    /// Whether the coordinator has yet to hear that this member left or came back.
    pub(super) const fn is_attendance_due(&self) -> bool {
        self.attendance.number > self.confirmed_attendance
    }

    pub(super) fn pending_attendance(&self, membership: &Membership, member: &MemberName) -> Option<NodeEffect> {
        let (charter, member) = (membership.governance.digest(), member.clone());
        let Attendance { number, is_present, reason } = self.attendance.clone();
        let attendance = crate::Attendance { charter, member, number, is_present, reason };
        self.is_attendance_due().then_some(NodeEffect::SendAttendance { attendance })
    }

    /// Whether the newest base is needed here: a member that is away fetches the last one only.
    pub(super) fn is_base_wanted(&self) -> bool {
        let is_away = matches!(self.participation, Participation::Away { .. });
        self.round.is_some() || self.last_outcome.is_some() && (self.is_over() || !is_away)
    }

    /// The round in which this node is late once `outcome` is taken, if the charter still lets it be.
    pub(super) fn still_late(&mut self, outcome: &Outcome) -> Option<NodeRound> {
        let terms = &self.membership.as_ref()?.charter().rounds;
        let (limit, num_rounds) = (terms.late_rounds, terms.num_rounds);
        let is_held = self.is_base_held;
        let is_waited_for = |round: &NodeRound| match round.progress {
            Progress::Accepted => is_held,
            Progress::Trained(_) => true,
            _ => false,
        };
        let member = self.membership.as_ref()?.member.as_ref()?;
        let current = self.round.take().filter(is_waited_for);
        // Where the outcome knows of an answer to this very round, it is one whose confirmation was lost.
        let knows_of_answer = |round: &NodeRound| {
            let verdict = outcome.verdicts.get(member).filter(|_| round.announcement.round == outcome.round);
            matches!(verdict, Some(Verdict::Accepted { staleness: 0, .. } | Verdict::Declined { .. }))
        };
        let current = current.filter(|round| !knows_of_answer(round));
        // The earliest round in which it could count is the one after.
        let into = outcome.round + 1;
        let contributes = self.participation == Participation::Contribute && into <= num_rounds;
        let counts = |round: &NodeRound| contributes && into.saturating_sub(round.announcement.round) <= limit;
        // What was begun first is done first.
        self.late.take().filter(counts).or_else(|| current.filter(counts))
    }

    pub(super) fn round_mut(&mut self, number: u32) -> Option<&mut NodeRound> {
        self.round.iter_mut().chain(&mut self.late).find(|round| round.announcement.round == number)
    }
}

impl NodeRound {
    /// What is to be sent for this round.
    pub(super) fn pending_answer(&self, member: &MemberName) -> Option<NodeEffect> {
        let Announcement { charter, round, .. } = self.announcement;
        match &self.progress {
            Progress::Trained(trained) => {
                let contribution = trained.contribution(member, &self.announcement);
                Some(NodeEffect::SendContribution { contribution })
            }
            Progress::Declining { reason, .. } => {
                let (member, reason) = (member.clone(), reason.clone());
                Some(NodeEffect::SendDecline { decline: Decline { charter, round, member, reason } })
            }
            Progress::Accepted | Progress::Sent(_) | Progress::Declined { .. } => None,
        }
    }
}

impl ContributedCpt {
    /// The contribution that this training result becomes.
    fn contribution(&self, member: &MemberName, announcement: &Announcement) -> Contribution {
        Contribution {
            charter: announcement.charter,
            round: announcement.round,
            base: announcement.base,
            member: member.clone(),
            weights: self.weights(),
            metrics: self.metrics().clone(),
        }
    }
}
