//! The coordinator's side of the Shared-Base Loop.
//!
//! What is written when, and why that order is safe:
//!
//! | event | written before | after a crash |
//! | --- | --- | --- |
//! | `RoundAnnounced` | any node can see the round | the round goes on with the same window |
//! | `ContributionReceived` | the member is told that it arrived; its chunks are durable already | screened again |
//! | `ContributionScreened` | the verdict is shown | the verdict stands |
//! | `MergeStarted` | the merge runs; fixes who is in and with which weight | the merge runs again, with equal bytes |
//! | `Merged` | the gate is measured | the gate is measured again |
//! | `Ended` | the new base is shown to anyone | the next round opens |

mod answers;
mod event;
mod governing;
mod judging;
mod role;
#[cfg(test)]
mod tests;
mod witness;

pub use event::{CoordinatorEffect, CoordinatorEvent, CoordinatorInput, LateContribution, MergeInput, MergeWork};
pub use governing::OpenProposal;
pub use witness::Witnessed;

use crate::documents;
use crate::{Announcement, Attendance, Contribution, HandOver, Outcome, RoundError, RoundResult, Tenure, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use tapestry_core::{Digest, MemberName, PublicKey, Signed, Timestamp};
use tapestry_governance::{Charter, Governance, KeyRotation};
use tapestry_merge::weights::{Bounds, Candidate, CommunityScore, WeightRecord};

/// The state of a coordinator: the fold of its log.
#[derive(Debug, Clone, PartialEq)]
pub struct Coordinator {
    /// The key whose log this is: the charter's coordinator.
    founder: PublicKey,
    /// How the role's holder took it, where it changed hands.
    tenure: Option<Signed<Tenure>>,
    /// To whom the holder has given the role, until it is taken.
    hand_over: Option<HandOver>,
    num_events: u64,
    /// The charter in force, and how it came about.
    governance: Option<Arc<Governance>>,
    /// What is proposed and not decided.
    proposals: Vec<OpenProposal>,
    decided: BTreeSet<Digest>,
    /// New keys that wait for the end of the open round.
    rotations: Vec<Signed<KeyRotation>>,
    witnessed: Option<Witnessed>,
    cosigned: Option<Witnessed>,
    witness_due: u64,
    base: Option<Digest>,
    /// The base that each round was announced with.
    bases: Vec<Digest>,
    /// Bits per byte on the open held-out text, by model.
    measured: BTreeMap<Digest, f64>,
    round: Option<Round>,
    outcomes: Vec<Outcome>,
    /// Bits per byte of the open round's base on the open text of each member's community, where the charter asks for it.
    /// None where it gives no finite value there.
    community: BTreeMap<MemberName, Option<f64>>,
    /// The method's state after the last published merge.
    states: Vec<Digest>,
    /// Messages refused since the round was announced, by member.
    num_refused: BTreeMap<MemberName, u32>,
    /// Late contributions that wait for the next round.
    late: BTreeMap<MemberName, Signed<Contribution>>,
    /// The newest contribution that was taken of each member.
    taken: BTreeMap<MemberName, Contribution>,
    /// Who has left or come back, last.
    attendances: BTreeMap<MemberName, Attendance>,
}

/// An open round.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// How it was announced.
    pub announcement: Announcement,
    /// Who has answered what.
    pub answers: BTreeMap<MemberName, Answer>,
    /// Where it stands.
    pub phase: Phase,
}

/// A member's answer to an open round.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Received, not yet screened.
    Received(Box<Signed<Contribution>>),
    /// Received and judged.
    Judged(Box<Signed<Contribution>>, Verdict),
    /// Declined, away, or missing when the window closed.
    Absent(Verdict),
}

/// Where an open round stands. Each phase names what it awaits.
#[derive(Debug, Clone, PartialEq)]
pub enum Phase {
    /// Answers, until all are in or the window closes.
    Collecting,
    /// The merged model.
    Merging {
        /// The weights that were decided.
        weights: Vec<WeightRecord>,
    },
    /// The merged model's bits per byte.
    Gating {
        /// The weights that were decided.
        weights: Vec<WeightRecord>,
        /// The merged model.
        model: Digest,
        /// The method's state that comes with it.
        states: Vec<Digest>,
    },
}

impl Round {
    /// Whether a first answer is still taken. The window is a rule, not a race against the clock's next tick.
    fn is_open(&self, now: Timestamp) -> bool {
        matches!(self.phase, Phase::Collecting) && now < self.announcement.closes_at
    }
}

impl Coordinator {
    /// How many refused messages of one member are recorded in one round.
    pub const MAX_REFUSALS: u32 = 16;

    /// A coordinator with an empty log, which `founder` founds.
    #[must_use]
    pub const fn new(founder: PublicKey) -> Self {
        Self {
            founder,
            tenure: None,
            hand_over: None,
            num_events: 0,
            governance: None,
            proposals: vec![],
            decided: BTreeSet::new(),
            rotations: vec![],
            witnessed: None,
            cosigned: None,
            witness_due: 0,
            base: None,
            bases: vec![],
            measured: BTreeMap::new(),
            round: None,
            outcomes: vec![],
            community: BTreeMap::new(),
            states: vec![],
            num_refused: BTreeMap::new(),
            late: BTreeMap::new(),
            taken: BTreeMap::new(),
            attendances: BTreeMap::new(),
        }
    }

    /// The charter in force.
    #[must_use]
    pub fn charter(&self) -> Option<&Signed<Charter>> {
        self.governance.as_ref().map(|governance| governance.charter())
    }

    /// The Shared Base as it stands.
    #[must_use]
    pub const fn base(&self) -> Option<Digest> {
        self.base
    }

    /// Bits per byte of `model` on the open held-out text, where it was measured.
    #[must_use]
    pub fn measured_bpb(&self, model: &Digest) -> Option<f64> {
        self.measured.get(model).copied()
    }

    /// The open round.
    #[must_use]
    pub const fn round(&self) -> Option<&Round> {
        self.round.as_ref()
    }

    /// The rounds that ended, oldest first.
    #[must_use]
    pub fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// Late contributions that wait for the next round, by member.
    #[must_use]
    pub const fn late(&self) -> &BTreeMap<MemberName, Signed<Contribution>> {
        &self.late
    }

    /// How many events were applied: the version of the state.
    #[must_use]
    pub const fn num_events(&self) -> u64 {
        self.num_events
    }

    /// Whether every round of the charter has ended.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        let num_rounds = self.charter().map_or(u32::MAX, |charter| charter.document.rounds.num_rounds);
        self.round.is_none() && self.outcomes.len() >= num_rounds as usize
    }

    /// When time alone changes something: the end of the open window, or of a vote where no round is open.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Timestamp> {
        let Some(round) = self.round.as_ref().filter(|_| self.hand_over.is_none()) else { return self.next_closing() };
        matches!(round.phase, Phase::Collecting).then_some(round.announcement.closes_at)
    }

    /// What this state waits to have done. Asking again gives the same until an input answers it.
    #[must_use]
    pub fn pending(&self) -> Vec<CoordinatorEffect> {
        let Some(signed) = self.charter().filter(|_| self.hand_over.is_none()) else { return vec![] };
        let base = signed.document.base;
        if !self.measured.contains_key(&base) {
            return vec![CoordinatorEffect::MeasureBase { base }];
        }
        let Some(round) = &self.round else { return vec![] };
        let (number, base) = (round.announcement.round, round.announcement.base);
        match &round.phase {
            Phase::Collecting => {
                let texts = signed.document.merge.community_held_out.keys();
                let unknown = texts.filter(|member| !self.community.contains_key(*member));
                let measure =
                    unknown.map(|member| CoordinatorEffect::MeasureCommunity { base, member: member.clone() });
                let screen = |(member, answer): (&MemberName, &Answer)| match answer {
                    Answer::Received(contribution) => Some(CoordinatorEffect::Screen {
                        round: number,
                        member: member.clone(),
                        base: contribution.document.base,
                        weights: contribution.document.weights,
                    }),
                    _ => None,
                };
                round.answers.iter().filter_map(screen).chain(measure).collect()
            }
            Phase::Merging { weights } => {
                let input = |record: &WeightRecord| match round.answers.get(&record.member) {
                    Some(Answer::Judged(contribution, _)) => Some(MergeInput {
                        member: record.member.clone(),
                        weights: contribution.document.weights,
                        share: record.weight,
                    }),
                    _ => None,
                };
                let inputs = weights.iter().filter_map(input).collect();
                let (method, states) = (signed.document.merge.method.clone().in_round(number), self.states.clone());
                vec![CoordinatorEffect::Merge(MergeWork { round: number, base, method, inputs, states })]
            }
            Phase::Gating { model, .. } => vec![CoordinatorEffect::MeasureMerged { round: number, model: *model }],
        }
    }

    /// Decides what follows from `input`. The state is unchanged until the events are durable and applied.
    ///
    /// # Errors
    /// [`RoundError`]: the input is not taken, and why.
    pub fn handle(&self, now: Timestamp, input: CoordinatorInput) -> Result<Vec<CoordinatorEvent>, RoundError> {
        let mut next = self.clone();
        let mut events = vec![];
        match (&self.hand_over, &input) {
            (Some(_), CoordinatorInput::Tick) => return Ok(vec![]),
            (None, _) | (Some(_), CoordinatorInput::TakeRole { .. }) => {}
            (Some(HandOver { to, .. }), _) => return Err(RoundError::HandedOver { to: *to }),
        }
        match input {
            CoordinatorInput::Tick => {}
            CoordinatorInput::TakeRole { tenure } => {
                self.check_take(&tenure)?;
                return Ok(vec![CoordinatorEvent::RoleTaken { tenure }]);
            }
            CoordinatorInput::HandOver { to, address } => {
                let hand_over = self.give_away(to, address)?;
                return Ok(vec![CoordinatorEvent::RoleHandedOver { hand_over }]);
            }
            CoordinatorInput::AdoptCharter(signed) => next.push_all(&mut events, self.adopt(now, signed)?)?,
            CoordinatorInput::Propose { sender, proposal } => {
                let Some(event) = self.propose(now, sender, proposal)? else { return Ok(vec![]) };
                next.push(&mut events, event)?;
            }
            CoordinatorInput::Vote { sender, vote } => {
                let Some(event) = self.vote(now, sender, vote)? else { return Ok(vec![]) };
                next.push(&mut events, event)?;
            }
            CoordinatorInput::Rotate { sender, rotation } => {
                let Some(event) = self.rotate(sender, rotation)? else { return Ok(vec![]) };
                next.push(&mut events, event)?;
            }
            CoordinatorInput::Leave { sender, departure } => {
                let Some(event) = self.leave(sender, departure)? else { return Ok(vec![]) };
                next.push(&mut events, event)?;
            }
            CoordinatorInput::Witnessed { checkpoint } => {
                let Some(event) = self.check_witnessed(checkpoint)? else { return Ok(vec![]) };
                next.push(&mut events, event)?;
            }
            CoordinatorInput::BaseMeasured { base, bpb } => {
                if self.measured.contains_key(&base) {
                    return Ok(vec![]);
                }
                if !bpb.is_finite() {
                    return Err(RoundError::NotFinite { what: "the base's bits per byte" });
                }
                next.push(&mut events, CoordinatorEvent::BaseMeasured { base, bpb })?;
            }
            CoordinatorInput::CommunityMeasured { base, member, bpb } => {
                let is_open = self.round.as_ref().is_some_and(|round| round.announcement.base == base);
                if !is_open || self.community.contains_key(&member) {
                    return Ok(vec![]);
                }
                let bpb = bpb.filter(|bpb| bpb.is_finite());
                next.push(&mut events, CoordinatorEvent::CommunityMeasured { base, member, bpb })?;
            }
            CoordinatorInput::Contribute { sender, contribution } => {
                let Some(event) = self.check_contribution(now, sender, contribution)? else { return Ok(vec![]) };
                next.push(&mut events, event)?;
            }
            CoordinatorInput::Decline { sender, decline } => {
                if !self.check_decline(now, sender, &decline)? {
                    return Ok(vec![]);
                }
                next.push(&mut events, CoordinatorEvent::Declined { decline })?;
            }
            CoordinatorInput::Attend { sender, attendance } => {
                if !self.check_attendance(sender, &attendance)? {
                    return Ok(vec![]);
                }
                next.push(&mut events, CoordinatorEvent::Attended { attendance })?;
            }
            CoordinatorInput::Screened { round, member, weights, screening } => {
                let screening = screening.finite();
                let verdict = self.judge(round, &member, weights, &screening)?;
                let event = CoordinatorEvent::ContributionScreened { round, member, weights, screening, verdict };
                next.push(&mut events, event)?;
            }
            CoordinatorInput::Merged { round, model, states } => {
                let (_, charter) = self.in_force()?;
                if states.len() != charter.merge.method.demands().num_states {
                    return Err(RoundError::Unexpected { what: "number of states of the method" });
                }
                next.push(&mut events, CoordinatorEvent::Merged { round, model, states })?;
            }
            CoordinatorInput::MergedMeasured { round, model, bpb } => {
                // No finite value is the worst value, and goes into the log as such.
                let bpb = if bpb.is_finite() { bpb } else { f64::MAX };
                let outcome = self.gate(round, model, bpb)?;
                next.push(&mut events, CoordinatorEvent::Ended { outcome, bpb })?;
            }
        }
        next.advance(now, &mut events)?;
        Ok(events)
    }

    /// Takes every step that follows by itself: opening a round, closing the window, starting the merge.
    fn advance(&mut self, now: Timestamp, events: &mut Vec<CoordinatorEvent>) -> Result<(), RoundError> {
        loop {
            let num_events = events.len();
            self.step(now, events)?;
            if events.len() == num_events {
                return Ok(());
            }
        }
    }

    fn step(&mut self, now: Timestamp, events: &mut Vec<CoordinatorEvent>) -> Result<(), RoundError> {
        let Some(governance) = self.governance.clone() else { return Ok(()) };
        let (charter_digest, charter) = (governance.digest(), &governance.charter().document);
        let Some(round) = &self.round else {
            if let Some(decided) = self.due_decision(now)? {
                return self.push(events, decided);
            }
            let number = u32::try_from(self.outcomes.len() + 1).unwrap_or(u32::MAX);
            let base = self.base.ok_or(RoundError::Unexpected { what: "state without a base" })?;
            let is_measured = self.measured.contains_key(&base) && self.measured.contains_key(&charter.base);
            let is_due = !self.is_complete() && is_measured && charter.check_time(now).is_ok();
            // A decision may have taken the role from this coordinator.
            if !is_due || self.wants_witnesses() || self.hand_over.is_some() {
                return Ok(());
            }
            let closes_at = now.plus(charter.window());
            let announcement = Announcement { charter: charter_digest, round: number, base, opened_at: now, closes_at };
            return self.push(events, CoordinatorEvent::RoundAnnounced { announcement });
        };
        if !matches!(round.phase, Phase::Collecting) {
            return Ok(());
        }
        let (number, closes_at) = (round.announcement.round, round.announcement.closes_at);
        if now >= closes_at {
            let names = governance.members().map(|(name, _)| name);
            let absent: Vec<_> = names.filter(|member| !round.answers.contains_key(*member)).cloned().collect();
            for member in absent {
                let reason = format!("no answer by {closes_at}, when the window closed (charter: rounds.window_ms)");
                self.push(events, CoordinatorEvent::Missing { round: number, member, reason })?;
            }
        }
        self.start_merge_if_all_judged(charter, number, events)
    }

    fn start_merge_if_all_judged(
        &mut self,
        charter: &Charter,
        number: u32,
        events: &mut Vec<CoordinatorEvent>,
    ) -> Result<(), RoundError> {
        let Some(round) = &self.round else { return Ok(()) };
        let is_judged = |member| matches!(round.answers.get(member), Some(Answer::Judged(..) | Answer::Absent(_)));
        let is_known =
            self.governance().is_some_and(|governance| governance.members().all(|(name, _)| is_judged(name)));
        if !is_known || !round.answers.keys().all(is_judged) {
            return Ok(());
        }
        let base_bpb = self.measured.get(&round.announcement.base).copied().unwrap_or(f64::MAX);
        let candidate = |(member, answer): (&MemberName, &Answer)| {
            let Answer::Judged(contribution, Verdict::Accepted { bpb, community_bpb, .. }) = answer else {
                return None;
            };
            let own = community_bpb.zip(self.community.get(member).copied().flatten());
            Some(Candidate {
                member: member.clone(),
                score_bpb: *bpb,
                base_bpb,
                community: own.map(|(score_bpb, base_bpb)| CommunityScore { score_bpb, base_bpb }),
                num_tokens: contribution.document.metrics.num_tokens,
                staleness: number - contribution.document.round.min(number),
            })
        };
        let candidates: Vec<_> = round.answers.iter().filter_map(candidate).collect();
        let is_awaited = |candidate: &Candidate| !self.community.contains_key(&candidate.member);
        if charter.merge.weighting.needs_community_texts() && candidates.iter().any(is_awaited) {
            // The base is still being measured on some community's text.
            return Ok(());
        }
        let num_accepted = candidates.len();
        let needed = charter.rounds.min_contributions as usize;
        if num_accepted < needed {
            let reason = format!("{num_accepted} contributions were accepted; the charter asks for at least {needed}");
            return self.abandon(reason, events);
        }
        let terms = &charter.merge;
        let (floor_bpb, cap) = (self.floor(charter), terms.influence_cap);
        let bounds = Bounds { floor_bpb, cap, staleness_exponent: terms.staleness_exponent };
        match terms.weighting.weigh(&candidates, &bounds) {
            Ok(weights) => self.push(events, CoordinatorEvent::MergeStarted { round: number, weights }),
            Err(error) => self.abandon(error.to_string(), events),
        }
    }

    fn abandon(&mut self, reason: String, events: &mut Vec<CoordinatorEvent>) -> Result<(), RoundError> {
        let base = self.base.ok_or(RoundError::Unexpected { what: "state without a base" })?;
        let bpb = self.measured.get(&base).copied().unwrap_or(f64::MAX);
        let outcome = self.outcome(base, RoundResult::Abandoned { reason }, vec![])?;
        self.push(events, CoordinatorEvent::Ended { outcome, bpb })
    }

    /// The quality floor of the open round, in bits per byte: what is above it is refused.
    fn floor(&self, charter: &Charter) -> f64 {
        let base = self.round.as_ref().map_or(charter.base, |round| round.announcement.base);
        self.measured.get(&base).copied().unwrap_or(0.0) * (1.0 + charter.screening.max_bpb_rise)
    }

    fn push_all(&mut self, events: &mut Vec<CoordinatorEvent>, all: Vec<CoordinatorEvent>) -> Result<(), RoundError> {
        all.into_iter().try_for_each(|event| self.push(events, event))
    }

    fn push(&mut self, events: &mut Vec<CoordinatorEvent>, event: CoordinatorEvent) -> Result<(), RoundError> {
        self.apply(&event)?;
        events.push(event);
        Ok(())
    }

    /// Moves the state over an event of its log.
    ///
    /// # Errors
    /// Where the event cannot follow in this state: the log is not one that this machine wrote.
    pub fn apply(&mut self, event: &CoordinatorEvent) -> Result<(), RoundError> {
        let unexpected = RoundError::Unexpected { what: event.name() };
        match event {
            CoordinatorEvent::CharterAdopted { charter } => {
                self.apply_charter(charter)?;
            }
            CoordinatorEvent::Proposed { proposal } => self.apply_proposal(proposal)?,
            CoordinatorEvent::Voted { vote } => self.apply_vote(vote)?,
            CoordinatorEvent::Decided { proposal, adopted, .. } => self.apply_decision(*proposal, *adopted)?,
            CoordinatorEvent::KeyRotated { rotation } => self.apply_rotation(rotation)?,
            CoordinatorEvent::Left { departure } => self.apply_departure(departure)?,
            CoordinatorEvent::Cosigned { checkpoint } => self.cosigned = Some(Witnessed::read(checkpoint, unexpected)?),
            CoordinatorEvent::Witnessed { checkpoint } => {
                self.witnessed = Some(Witnessed::read(checkpoint, unexpected)?);
                self.cosigned = None;
            }
            CoordinatorEvent::RoleTaken { tenure } => {
                self.check_take(tenure)?;
                self.tenure = Some(tenure.clone());
                self.hand_over = None;
            }
            CoordinatorEvent::RoleHandedOver { hand_over } => self.hand_over = Some(hand_over.clone()),
            CoordinatorEvent::BaseMeasured { base, bpb } => {
                self.measured.insert(*base, *bpb);
            }
            CoordinatorEvent::RoundAnnounced { announcement } => {
                let absent = self.away().map(|a| (a.member.clone(), Answer::away(a)));
                let mut answers: BTreeMap<_, _> = absent.collect();
                let governance = self.governance.clone().ok_or(RoundError::NoCharter)?;
                let late =
                    std::mem::take(&mut self.late).into_iter().filter(|(member, _)| governance.is_member(member));
                self.bases.push(announcement.base);
                answers.extend(late.map(|(member, late)| (member, Answer::Received(Box::new(late)))));
                self.round = Some(Round { announcement: announcement.clone(), answers, phase: Phase::Collecting });
                self.num_refused.clear();
                self.community.clear();
            }
            CoordinatorEvent::CommunityMeasured { member, bpb, .. } => {
                self.community.insert(member.clone(), *bpb);
            }
            CoordinatorEvent::ContributionReceived { contribution } => {
                let member = contribution.document.member.clone();
                let answer = Answer::Received(Box::new(contribution.clone()));
                self.round.as_mut().ok_or(unexpected)?.answers.insert(member.clone(), answer);
                self.taken.insert(member, contribution.document.clone());
            }
            CoordinatorEvent::Late { taken: Some(LateContribution { into, contribution }), member, .. } => {
                self.taken.insert(member.clone(), contribution.document.clone());
                match &mut self.round {
                    Some(round) if round.announcement.round == *into => {
                        round.answers.insert(member.clone(), Answer::Received(Box::new(contribution.clone())));
                    }
                    _ => {
                        self.late.insert(member.clone(), contribution.clone());
                    }
                }
            }
            CoordinatorEvent::Attended { attendance } => self.apply_attendance(&attendance.document),
            CoordinatorEvent::ContributionScreened { member, verdict, .. } => {
                let answers = &mut self.round.as_mut().ok_or(RoundError::NoRound)?.answers;
                let Some(Answer::Received(contribution)) = answers.get(member).cloned() else { return Err(unexpected) };
                answers.insert(member.clone(), Answer::Judged(contribution, verdict.clone()));
            }
            CoordinatorEvent::MessageRefused { member, .. } | CoordinatorEvent::Late { taken: None, member, .. } => {
                *self.num_refused.entry(member.clone()).or_default() += 1;
            }
            CoordinatorEvent::Declined { decline } => {
                let verdict = Verdict::Declined { reason: documents::short(&decline.document.reason) };
                let answers = &mut self.round.as_mut().ok_or(unexpected)?.answers;
                answers.insert(decline.document.member.clone(), Answer::Absent(verdict));
            }
            CoordinatorEvent::Missing { member, .. } => {
                let answers = &mut self.round.as_mut().ok_or(unexpected)?.answers;
                answers.insert(member.clone(), Answer::Absent(Verdict::Missing));
            }
            CoordinatorEvent::MergeStarted { weights, .. } => {
                self.round.as_mut().ok_or(unexpected)?.phase = Phase::Merging { weights: weights.clone() };
            }
            CoordinatorEvent::Merged { round, model, states } => {
                let open = self.round.as_mut().ok_or(RoundError::NoRound)?;
                let Phase::Merging { weights } = &open.phase else { return Err(unexpected) };
                if *round != open.announcement.round {
                    return Err(unexpected);
                }
                open.phase = Phase::Gating { weights: weights.clone(), model: *model, states: states.clone() };
            }
            CoordinatorEvent::Ended { outcome, bpb } => {
                if let RoundResult::Published { .. } = outcome.result {
                    // An abandoned merge leaves the state as it was, as it does the base.
                    if let Some(Round { phase: Phase::Gating { states, .. }, .. }) = &self.round {
                        self.states = states.clone();
                    }
                    self.measured.insert(outcome.base, *bpb);
                    self.base = Some(outcome.base);
                }
                self.outcomes.push(outcome.clone());
                self.round = None;
                self.apply_waiting();
            }
        }
        self.num_events += 1;
        if event.asks_for_witnesses() {
            self.witness_due = self.num_events;
        }
        Ok(())
    }
}
