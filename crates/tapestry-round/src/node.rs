//! A node's side of the Shared-Base Loop, and the Sovereign Build that follows it.
//!
//! A node trusts the charter and nothing else: it checks the quorum, its own membership, the time, and that whoever
//! announces a round is the coordinator that the members chose and starts from what was published before.
//!
//! Only [`ContributedCpt`] can become a contribution. [`SovereignModel`], the result of Private CPT, has no way into one:
//! no function of this crate takes it, and it holds no manifest of weights that the store could send.

mod coordinators;
mod event;
mod governing;
mod participation;
mod pending;
#[cfg(test)]
mod tests;
mod witness;

pub use witness::Seen;

pub use event::{
    ContributedCpt, Measurement, NodeEffect, NodeEvent, NodeInput, Participation, SovereignModel, Subject,
    TransferMetrics,
};

use crate::{Announcement, Decline, News, Outcome, RoundError, RoundResult};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tapestry_core::{Digest, MemberName, PublicKey, Signed, Timestamp};
use tapestry_governance::{Charter, Departure, Governance, Step};
use witness::Checked;

/// The state of a node: the fold of its log.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    key: PublicKey,
    membership: Option<Membership>,
    /// A decision whose proof is being read.
    gathered: Option<governing::Gathered>,
    /// This member leaves.
    departure: Option<Signed<Departure>>,
    is_departure_sent: bool,
    seen: Option<Seen>,
    /// Whether the coordinator has this node's cosignature of what was seen.
    is_cosigned: bool,
    /// How many entries the round that was accepted last rests on.
    witnessed_round: Option<u64>,
    has_seen_two_histories: bool,
    /// The last base that was on this machine.
    held: Option<Digest>,
    /// Who coordinates.
    role: coordinators::Role,
    /// The newest model that the charter's chain of publications leads to.
    base: Option<Digest>,
    /// Whether that model is on this machine.
    is_base_held: bool,
    round: Option<NodeRound>,
    /// A round that ended before this node was done with it, and in which the charter lets it be late.
    late: Option<NodeRound>,
    participation: Participation,
    /// What the operator has said last of being away or back; number 0 where that was never said.
    attendance: participation::Attendance,
    /// The number of the last attendance that the coordinator has confirmed.
    confirmed_attendance: u64,
    last_outcome: Option<Outcome>,
    measured: BTreeSet<Subject>,
    sovereign: Option<SovereignModel>,
}

#[derive(Debug, Clone, PartialEq)]
struct Membership {
    /// None for a moment, while one that was admitted later reads the history of its consortium.
    member: Option<MemberName>,
    governance: Arc<Governance>,
}

impl Membership {
    fn charter(&self) -> &Charter {
        &self.governance.charter().document
    }
}

/// A node's view of the open round.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeRound {
    /// How it was announced.
    pub announcement: Announcement,
    /// What this node has done.
    pub progress: Progress,
}

/// How far a node is with a round. Each step names what has been done.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress {
    /// The announcement was checked and accepted.
    Accepted,
    /// Contributed CPT is done.
    Trained(ContributedCpt),
    /// The coordinator has confirmed that the contribution arrived.
    Sent(ContributedCpt),
    /// This node cannot or will not take part; what it has trained, it keeps.
    Declining {
        /// What the other members are told.
        reason: String,
        /// What it has trained.
        kept: Option<ContributedCpt>,
    },
    /// The coordinator knows.
    Declined {
        /// What it has trained.
        kept: Option<ContributedCpt>,
    },
}

impl Node {
    /// A node with an empty log.
    #[must_use]
    pub const fn new(key: PublicKey) -> Self {
        Self {
            key,
            membership: None,
            gathered: None,
            departure: None,
            is_departure_sent: false,
            seen: None,
            is_cosigned: false,
            witnessed_round: None,
            has_seen_two_histories: false,
            held: None,
            role: coordinators::Role { tenure: None, addresses: BTreeMap::new(), hand_over: None },
            base: None,
            is_base_held: false,
            round: None,
            late: None,
            participation: Participation::Contribute,
            attendance: participation::Attendance::UNSAID,
            confirmed_attendance: 0,
            last_outcome: None,
            measured: BTreeSet::new(),
            sovereign: None,
        }
    }

    /// The charter that this node follows.
    #[must_use]
    pub fn charter(&self) -> Option<&Signed<Charter>> {
        self.membership.as_ref().map(|membership| membership.governance.charter())
    }

    /// The name under which this node's key is in the charter.
    #[must_use]
    pub fn member(&self) -> Option<&MemberName> {
        self.membership.as_ref()?.member.as_ref()
    }

    /// The open round.
    #[must_use]
    pub const fn round(&self) -> Option<&NodeRound> {
        self.round.as_ref()
    }

    /// The round that has ended and in which this node may still be late.
    #[must_use]
    pub const fn late_round(&self) -> Option<&NodeRound> {
        self.late.as_ref()
    }

    /// How this member takes part.
    #[must_use]
    pub const fn participation(&self) -> &Participation {
        &self.participation
    }

    /// The newest Shared Base known.
    #[must_use]
    pub const fn base(&self) -> Option<Digest> {
        self.base
    }

    /// The end of the last round that ended.
    #[must_use]
    pub const fn last_outcome(&self) -> Option<&Outcome> {
        self.last_outcome.as_ref()
    }

    /// The Sovereign Model, once it is built.
    #[must_use]
    pub const fn sovereign(&self) -> Option<&SovereignModel> {
        self.sovereign.as_ref()
    }

    /// Whether the loop has ended and the Sovereign Model is built and measured.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.is_over() && self.sovereign.is_some() && self.pending().is_empty()
    }

    /// Decides what follows from `input`. The state is unchanged until the events are durable and applied.
    ///
    /// # Errors
    /// [`RoundError`]: the input is not taken, and why.
    pub fn handle(&self, now: Timestamp, input: NodeInput) -> Result<Vec<NodeEvent>, RoundError> {
        match input {
            NodeInput::Join { history } => self.join(now, &history),
            NodeInput::Leave { departure } => self.leave(departure),
            NodeInput::Compare { view } => self.compare(view),
            NodeInput::DepartureSent => {
                self.expect(self.departure.is_some() && !self.is_departure_sent, "confirmation")?;
                Ok(vec![NodeEvent::DepartureSent {}])
            }
            NodeInput::CosignatureSent { size } => {
                let is_due = !self.is_cosigned && self.seen.as_ref().is_some_and(|seen| seen.size == size);
                self.expect(is_due, "confirmation")?;
                Ok(vec![NodeEvent::CosignatureSent { size }])
            }
            NodeInput::Participate(participation) => self.participate(participation),
            NodeInput::AttendanceSent { number } => {
                self.expect(self.is_attendance_due() && number == self.attendance.number, "confirmation")?;
                Ok(vec![NodeEvent::AttendanceSent { number }])
            }
            NodeInput::LateRefused { round } => {
                let is_due = self.late.as_ref().is_some_and(|late| late.announcement.round == round);
                self.expect(is_due, "refusal")?;
                Ok(vec![NodeEvent::LateRefused { round }])
            }
            NodeInput::News(news) => self.news(now, news),
            NodeInput::BasePulled { base, transfer } => {
                self.expect(self.base == Some(base) && !self.is_base_held, "base")?;
                Ok(vec![NodeEvent::BaseHeld { base, transfer }])
            }
            NodeInput::Trained { round, contributed } => {
                self.expect_round(round, "training result", |p| matches!(p, Progress::Accepted))?;
                if !contributed.metrics().is_finite() {
                    let reason = "training diverged: a loss is NaN or infinite".into();
                    return Ok(vec![NodeEvent::Declining { round, reason }]);
                }
                let mut events = vec![NodeEvent::Trained { round, contributed }];
                if let Participation::KeepPrivate { .. } = self.participation {
                    events.push(NodeEvent::Declining { round, reason: self.participation.words() });
                }
                Ok(events)
            }
            NodeInput::CannotTrain { round, reason } => {
                self.expect_round(round, "training result", |p| matches!(p, Progress::Accepted))?;
                Ok(vec![NodeEvent::Declining { round, reason: cut(reason) }])
            }
            NodeInput::ContributionSent { round, transfer } => {
                self.expect_round(round, "confirmation", |p| matches!(p, Progress::Trained(_)))?;
                Ok(vec![NodeEvent::ContributionSent { round, transfer }])
            }
            NodeInput::DeclineSent { round } => {
                self.expect_round(round, "confirmation", |p| matches!(p, Progress::Declining { .. }))?;
                Ok(vec![NodeEvent::DeclineSent { round }])
            }
            NodeInput::Measured(measurement) => {
                if self.measured.contains(&measurement.subject) {
                    return Ok(vec![]);
                }
                let is_finite = measurement.held_out_bpb.is_none_or(f64::is_finite)
                    && measurement.open_bpb.is_none_or(f64::is_finite)
                    && measurement.wall_seconds.is_finite();
                if !is_finite {
                    return Err(RoundError::NotFinite { what: "a model's bits per byte" });
                }
                Ok(vec![NodeEvent::Measured(measurement)])
            }
            NodeInput::SovereignBuilt { model, metrics } => {
                let is_known = self.sovereign.as_ref().is_some_and(|known| known.base() == model.base());
                self.expect(!is_known, "Sovereign Model")?;
                if !metrics.is_finite() {
                    return Err(RoundError::NotFinite { what: "a loss of the Sovereign Build" });
                }
                Ok(vec![NodeEvent::SovereignBuilt { model, metrics }])
            }
        }
    }

    /// The name of a member that was admitted after the founding.
    fn learn_name(&mut self) {
        let Some(membership) = &mut self.membership else { return };
        if let Some(name) = membership.governance.member_of(&self.key) {
            membership.member = Some(name.clone());
        }
    }

    /// Checks what the coordinator says and takes what is new.
    fn news(&self, now: Timestamp, news: News) -> Result<Vec<NodeEvent>, RoundError> {
        if self.has_seen_two_histories {
            return Err(RoundError::TwoHistories);
        }
        let mut events = vec![];
        let mut next = self.clone();
        if let Some(new) = &news.governance {
            next.take_steps(new, &mut events)?;
        }
        let membership = next.membership.clone().ok_or(RoundError::NoCharter)?;
        let (governance, charter) = (&membership.governance, membership.charter());
        if !next.is_member() {
            return Ok(events);
        }
        // What it stands on was checked before it went into the log, and what is in the log stays as it is.
        charter.check_time(now)?;
        next.take_tenure(governance, news.tenure, &mut events)?;
        let coordinator = next.coordinator().ok_or(RoundError::NoCharter)?;
        if let Some(view) = &news.log {
            match next.check_view(view) {
                Ok(Checked::Known) => {}
                Ok(Checked::Continues(event)) => next.push(&mut events, event)?,
                // Nothing else of what this coordinator says is taken.
                Ok(Checked::Differs(event)) => return Ok(vec![event]),
                // Without what it rests on, no round is accepted below.
                Err(RoundError::OldView { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        // Not all that was decided is told at once; what goes by the rest of it comes again.
        let has_more = news.governance.is_some();
        let is_ahead = |charter: &Digest| has_more && !governance.knows(charter);
        if let Some(signed) = news.outcome {
            let outcome = signed.verify_by(&coordinator)?;
            if is_ahead(&outcome.charter) {
                return Ok(events);
            }
            check_charter(governance, outcome.charter)?;
            let last_round = next.last_outcome.as_ref().map_or(0, |last| last.round);
            if outcome.round > last_round {
                next.check_outcome(governance, outcome)?;
                next.push(&mut events, NodeEvent::OutcomeAccepted { outcome: signed })?;
            }
        }
        if let Some(signed) = news.hand_over {
            next.take_hand_over(governance, signed, &mut events)?;
        }
        if let Some(signed) = news.announcement {
            let announcement = signed.verify_by(&coordinator)?;
            if is_ahead(&announcement.charter) {
                return Ok(events);
            }
            check_charter(governance, announcement.charter)?;
            let is_open = next.round.as_ref().is_some_and(|open| open.announcement.round >= announcement.round);
            let is_over = next.last_outcome.as_ref().is_some_and(|last| last.round >= announcement.round);
            if !is_open && !is_over {
                if announcement.charter != governance.digest() {
                    // What was decided since comes with the next news, or the coordinator holds it back.
                    let (expected, found) = (governance.digest(), announcement.charter);
                    return Err(RoundError::OtherCharter { expected, found });
                }
                next.check_announcement(charter, announcement)?;
                let expected = next.base.ok_or(RoundError::NoCharter)?;
                if announcement.base != expected {
                    let (round, found) = (announcement.round, announcement.base);
                    return Err(RoundError::UnexpectedBase { round, expected, found });
                }
                if let Participation::Away { .. } = self.participation {
                    return Ok(events);
                }
                let rests_on = match next.witnessed(news.log.as_ref()) {
                    Err(RoundError::OldView { .. }) => return Ok(events),
                    checked => checked?,
                };
                let round = announcement.round;
                let witnessed = news.log.filter(|_| governance.num_witnesses() > 0).map(|view| view.checkpoint);
                next.push(&mut events, NodeEvent::RoundAccepted { announcement: signed, rests_on, witnessed })?;
                if let Participation::Decline { .. } = self.participation {
                    next.push(&mut events, NodeEvent::Declining { round, reason: self.participation.words() })?;
                }
            }
        }
        Ok(events)
    }

    /// The terms of a new round are the charter's: which number it has, that it is one of those agreed, and its window.
    fn check_announcement(&self, charter: &Charter, announcement: &Announcement) -> Result<(), RoundError> {
        let bent = |term, expected, found| Err(RoundError::BentCharter { term, expected, found });
        let due = self.last_outcome.as_ref().map_or(0, |outcome| outcome.round) + 1;
        if announcement.round != due {
            return bent("the number of the round", due.into(), announcement.round.into());
        }
        let num_rounds = charter.rounds.num_rounds;
        if announcement.round > num_rounds {
            return bent("the number of the last round", num_rounds.into(), announcement.round.into());
        }
        if announcement.closes_at != announcement.opened_at.plus(charter.window()) {
            let found_ms = announcement.closes_at.as_ms().saturating_sub(announcement.opened_at.as_ms());
            return bent("the window in milliseconds", charter.rounds.window_ms, found_ms);
        }
        Ok(())
    }

    /// A round that ended is one of those agreed, and leaves the base alone where it was abandoned. Whether a published base
    /// is the merge that it claims to be is not visible from here.
    fn check_outcome(&self, governance: &Governance, outcome: &Outcome) -> Result<(), RoundError> {
        let num_rounds = governance.most_rounds();
        if outcome.round > num_rounds {
            let term = "the number of the last round";
            return Err(RoundError::BentCharter { term, expected: num_rounds.into(), found: outcome.round.into() });
        }
        let follows = self.last_outcome.as_ref().map_or(0, |last| last.round) + 1 == outcome.round;
        match (&outcome.result, self.base) {
            (RoundResult::Abandoned { .. }, Some(expected)) if follows && outcome.base != expected => {
                Err(RoundError::UnexpectedBase { round: outcome.round, expected, found: outcome.base })
            }
            _ => Ok(()),
        }
    }

    fn expect(&self, condition: bool, what: &'static str) -> Result<(), RoundError> {
        if condition { Ok(()) } else { Err(RoundError::Unexpected { what }) }
    }

    fn expect_round(
        &self,
        number: u32,
        what: &'static str,
        is_due: impl Fn(&Progress) -> bool,
    ) -> Result<(), RoundError> {
        let mut rounds = self.round.iter().chain(&self.late);
        let is_due = rounds.any(|r| r.announcement.round == number && is_due(&r.progress));
        self.expect(is_due, what)
    }

    fn push(&mut self, events: &mut Vec<NodeEvent>, event: NodeEvent) -> Result<(), RoundError> {
        self.apply(&event)?;
        events.push(event);
        Ok(())
    }

    /// Moves the state over an event of its log.
    ///
    /// # Errors
    /// Where the event cannot follow in this state: the log is not one that this machine wrote.
    pub fn apply(&mut self, event: &NodeEvent) -> Result<(), RoundError> {
        let unexpected = RoundError::Unexpected { what: event.name() };
        match event {
            NodeEvent::Joined { charter } => {
                let governance = Arc::new(Governance::found(charter.clone())?);
                let member = charter.document.member_of(self.key).ok().cloned();
                self.base = Some(charter.document.base);
                self.membership = Some(Membership { member, governance });
            }
            NodeEvent::Proposed { proposal } => self.apply_proposal(proposal),
            NodeEvent::Voted { vote } => self.apply_vote(vote)?,
            NodeEvent::Decided { proposal } => {
                self.apply_decision(*proposal)?;
                self.learn_name();
            }
            NodeEvent::KeyRotated { rotation } => self.apply_step(&Step::Rotated(rotation.clone()))?,
            NodeEvent::Left { departure } => self.apply_step(&Step::Left(departure.clone()))?,
            NodeEvent::CharterReplaced { charter } => {
                self.apply_step(&Step::Founded(Box::new(charter.clone())))?;
                self.learn_name();
            }
            NodeEvent::Leaving { departure } => {
                self.departure = Some(departure.clone());
                (self.round, self.late) = (None, None);
            }
            NodeEvent::DepartureSent {} => self.is_departure_sent = true,
            NodeEvent::CheckpointSeen { checkpoint } => self.apply_seen(checkpoint)?,
            NodeEvent::CosignatureSent { .. } => self.is_cosigned = true,
            NodeEvent::HistoriesDiffer { .. } => self.has_seen_two_histories = true,
            NodeEvent::CoordinatorChanged { tenure } => self.apply_tenure(&tenure.document),
            NodeEvent::CoordinatorMoves { hand_over } => self.apply_hand_over(&hand_over.document),
            NodeEvent::RoundAccepted { announcement, rests_on, .. } => {
                self.witnessed_round = Some(*rests_on);
                let announcement = announcement.document.clone();
                self.round = Some(NodeRound { announcement, progress: Progress::Accepted });
            }
            NodeEvent::Participates { participation } => {
                self.attendance = self.attendance.after(&self.participation, participation);
                self.participation = participation.clone();
                self.late = self.late.take().filter(|_| *participation == Participation::Contribute);
            }
            NodeEvent::AttendanceSent { number } => self.confirmed_attendance = *number,
            NodeEvent::LateRefused { .. } => self.late = None,
            NodeEvent::OutcomeAccepted { outcome } => {
                let outcome = outcome.document.clone();
                self.late = self.still_late(&outcome);
                if self.base != Some(outcome.base) {
                    self.is_base_held = false;
                    self.base = Some(outcome.base);
                }
                self.round = None;
                self.last_outcome = Some(outcome);
            }
            NodeEvent::BaseHeld { base, .. } => {
                self.is_base_held = true;
                self.held = Some(*base);
            }
            NodeEvent::Trained { round, contributed } => {
                self.round_mut(*round).ok_or(unexpected)?.progress = Progress::Trained(contributed.clone());
            }
            NodeEvent::ContributionSent { round, .. } => {
                if self.late.as_ref().is_some_and(|late| late.announcement.round == *round) {
                    self.late = None;
                    return Ok(());
                }
                let round = self.round_mut(*round).ok_or(RoundError::NoRound)?;
                let Progress::Trained(contributed) = &round.progress else { return Err(unexpected) };
                round.progress = Progress::Sent(contributed.clone());
            }
            NodeEvent::Declining { round, reason } => {
                if self.late.as_ref().is_some_and(|late| late.announcement.round == *round) {
                    // The others know already that nothing came in time.
                    self.late = None;
                    return Ok(());
                }
                let round = self.round_mut(*round).ok_or(unexpected)?;
                let kept = match &round.progress {
                    Progress::Trained(contributed) => Some(contributed.clone()),
                    _ => None,
                };
                round.progress = Progress::Declining { reason: reason.clone(), kept };
            }
            NodeEvent::DeclineSent { round } => {
                let round = self.round_mut(*round).ok_or(RoundError::NoRound)?;
                let Progress::Declining { kept, .. } = &round.progress else { return Err(unexpected) };
                round.progress = Progress::Declined { kept: kept.clone() };
            }
            NodeEvent::Measured(measurement) => {
                self.measured.insert(measurement.subject);
            }
            NodeEvent::SovereignBuilt { model, .. } => {
                self.measured.remove(&Subject::Sovereign);
                self.sovereign = Some(model.clone());
            }
        }
        Ok(())
    }
}

/// What is signed under a charter is of this consortium.
fn check_charter(governance: &Governance, found: Digest) -> Result<(), RoundError> {
    let expected = governance.digest();
    if governance.knows(&found) { Ok(()) } else { Err(RoundError::OtherCharter { expected, found }) }
}

/// A reason as long as the coordinator accepts.
fn cut(mut reason: String) -> String {
    let mut end = reason.len().min(Decline::MAX_REASON_BYTES);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    reason.truncate(end);
    reason
}
