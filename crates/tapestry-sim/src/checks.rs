//! What must hold at every moment, kept apart from the machines under test: a second, naive book-keeping of the same
//! world that only looks at durable events and at what was promised to whom.

use std::collections::{BTreeMap, BTreeSet};

use tapestry_core::{Digest, MemberName, Signed, Timestamp};
use tapestry_governance::Charter;
use tapestry_merge::weights::WeightRecord;
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent, LateContribution, MergeWork};
use tapestry_round::node::{Node, NodeEvent};
use tapestry_round::{Announcement, Attendance, Contribution, Outcome, RoundResult, Screening, Verdict};

use crate::model::{Blobs, Vector};
use crate::scenario::Scenario;

/// A promise that was broken.
pub(crate) type Violation = String;

/// The book-keeping.
#[derive(Debug)]
pub(crate) struct Checks {
    charter: Signed<Charter>,
    charter_digest: Digest,
    /// Members whose messages follow the protocol.
    honest: BTreeSet<MemberName>,
    announcements: Vec<Announcement>,
    outcomes: Vec<Outcome>,
    /// By the round in which they count, which for late ones is not the one that they were trained for.
    received: BTreeMap<(u32, MemberName), Contribution>,
    attendances: BTreeMap<MemberName, Attendance>,
    declined: BTreeSet<(u32, MemberName)>,
    /// Contributions whose arrival was confirmed to their member.
    confirmed: BTreeMap<(u32, MemberName), Contribution>,
    num_refusals: BTreeMap<MemberName, u32>,
    /// The state of the method of merging, and that of the last merge that is recorded.
    states: Vec<Digest>,
    latest_states: Vec<Digest>,
    /// By node: rounds whose training is durable.
    trained: Vec<BTreeSet<u32>>,
}

/// Whether what was received is what was confirmed, or the newer one of the same member that took its place.
fn stands_for(received: &Contribution, confirmed: &Contribution) -> bool {
    received.weights == confirmed.weights || received.round > confirmed.round
}

fn require(condition: bool, violation: impl FnOnce() -> String) -> Result<(), Violation> {
    if condition { Ok(()) } else { Err(violation()) }
}

impl Checks {
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let follows = scenario.members.iter().filter(|member| member.character.follows_protocol());
        Self {
            charter: scenario.charter.clone(),
            charter_digest: scenario.charter.digest().expect("a charter has a canonical form"),
            honest: follows.map(|member| member.name.clone()).collect(),
            announcements: vec![],
            outcomes: vec![],
            received: BTreeMap::new(),
            attendances: BTreeMap::new(),
            declined: BTreeSet::new(),
            confirmed: BTreeMap::new(),
            num_refusals: BTreeMap::new(),
            states: vec![],
            latest_states: vec![],
            trained: scenario.members.iter().map(|_| BTreeSet::new()).collect(),
        }
    }

    pub(crate) fn outcomes(&self) -> &[Outcome] {
        &self.outcomes
    }

    /// The Shared Base after `num_rounds` rounds.
    fn base_after(&self, num_rounds: u32) -> Option<Digest> {
        match num_rounds {
            0 => Some(self.charter.document.base),
            n => self.outcomes.get(n as usize - 1).map(|outcome| outcome.base),
        }
    }

    fn open(&self) -> Result<&Announcement, Violation> {
        let is_open = self.announcements.len() == self.outcomes.len() + 1;
        self.announcements.last().filter(|_| is_open).ok_or_else(|| "an answer without an open round".into())
    }

    /// An event of the coordinator is durable.
    pub(crate) fn coordinator_event(
        &mut self,
        at: Timestamp,
        event: &CoordinatorEvent,
        blobs: &Blobs,
    ) -> Result<(), Violation> {
        match event {
            CoordinatorEvent::CharterAdopted { charter } => {
                require(*charter == self.charter, || "another charter was adopted".into())
            }
            CoordinatorEvent::BaseMeasured { .. } | CoordinatorEvent::CommunityMeasured { .. } => Ok(()),
            CoordinatorEvent::Merged { states, .. } => {
                self.latest_states.clone_from(states);
                Ok(())
            }
            CoordinatorEvent::RoundAnnounced { announcement } => self.announced(at, announcement),
            CoordinatorEvent::ContributionReceived { contribution } => self.contributed(at, contribution),
            CoordinatorEvent::Declined { decline } => {
                let document = &decline.document;
                let key = self.charter.document.members.get(&document.member).ok_or("a stranger declined")?;
                decline.verify_by(key).map_err(|e| format!("a forged decline was recorded: {e}"))?;
                self.first_answer(document.round, &document.member)?;
                self.declined.insert((document.round, document.member.clone()));
                Ok(())
            }
            CoordinatorEvent::Missing { round, member, .. } => {
                self.first_answer(*round, member)?;
                let closes_at = self.open()?.closes_at;
                require(at >= closes_at, || format!("{member} was given up before the window closed"))
            }
            CoordinatorEvent::Attended { attendance } => self.attended(attendance),
            CoordinatorEvent::Late { round, member, taken: Some(taken), .. } => self.late(at, *round, member, taken),
            // What is too late is nobody's fault, and does not fill the log either.
            CoordinatorEvent::Late { member, .. } => self.refused(member),
            CoordinatorEvent::MessageRefused { member, reason, .. } => {
                require(!self.honest.contains(member), || format!("honest {member} is blamed: {reason}"))?;
                self.refused(member)
            }
            CoordinatorEvent::ContributionScreened { round, member, verdict, .. } => {
                self.judged(*round, member, verdict, blobs)
            }
            CoordinatorEvent::MergeStarted { weights, .. } => {
                let sum: f64 = weights.iter().map(|record| record.weight).sum();
                require((sum - 1.0).abs() < 1e-14, || format!("the weights sum to {sum}"))?;
                let cap = self.charter.document.merge.influence_cap;
                for record in weights {
                    let is_in_bounds = record.weight > 0.0 && record.weight <= cap * (1.0 + 1e-12);
                    require(is_in_bounds, || format!("the cap {cap} is broken: {record:?}"))?;
                    require(record.score_bpb <= record.floor_bpb, || format!("below the floor: {record:?}"))?;
                }
                let open = self.open()?.round;
                for record in weights {
                    let contribution =
                        self.received.get(&(open, record.member.clone())).ok_or("a weight of nothing")?;
                    let is_right = record.staleness == open - contribution.round;
                    require(is_right, || format!("late by {}: {record:?}", open - contribution.round))?;
                }
                let are_in_time = weights.iter().all(|record| record.staleness == 0);
                let is_equal = weights.windows(2).all(|pair| (pair[0].weight - pair[1].weight).abs() < 1e-12);
                let must_be = self.charter.document.merge.weighting.is_uniform();
                require(is_equal || !must_be || !are_in_time, || format!("uniform weights differ: {weights:?}"))?;
                let needed = self.charter.document.rounds.min_contributions as usize;
                require(weights.len() >= needed, || format!("a merge of {}, fewer than {needed}", weights.len()))
            }
            CoordinatorEvent::Ended { outcome, .. } => self.ended(outcome, blobs),
        }
    }

    fn announced(&mut self, at: Timestamp, announcement: &Announcement) -> Result<(), Violation> {
        let number = announcement.round;
        require(self.announcements.len() == self.outcomes.len(), || "two rounds are open".into())?;
        require(number as usize == self.announcements.len() + 1, || format!("round {number} is out of order"))?;
        require(number <= self.charter.document.rounds.num_rounds, || "a round too many".into())?;
        require(Some(announcement.base) == self.base_after(number - 1), || "the chain of bases is broken".into())?;
        require(self.charter.document.check_time(at).is_ok(), || "a round under an expired charter".into())?;
        self.announcements.push(announcement.clone());
        self.num_refusals.clear();
        Ok(())
    }

    fn contributed(&mut self, at: Timestamp, signed: &Signed<Contribution>) -> Result<(), Violation> {
        let contribution = &signed.document;
        let key = self.charter.document.members.get(&contribution.member).ok_or("a stranger contributed")?;
        signed.verify_by(key).map_err(|e| format!("a forged contribution was recorded: {e}"))?;
        let open = self.open()?;
        let fits = contribution.round == open.round
            && contribution.base == open.base
            && contribution.charter == self.charter_digest;
        require(fits, || "a contribution to another round was recorded".into())?;
        require(at < open.closes_at, || format!("{} was taken after the window closed", contribution.member))?;
        self.first_answer(contribution.round, &contribution.member)?;
        self.received.insert((contribution.round, contribution.member.clone()), contribution.clone());
        Ok(())
    }

    /// A member has one answer in a round. One in time takes the place of a late one.
    fn first_answer(&self, round: u32, member: &MemberName) -> Result<(), Violation> {
        let key = (round, member.clone());
        let known = self.received.get(&key);
        let is_first = known.is_none_or(|known| known.round < round) && !self.declined.contains(&key);
        require(is_first && self.open()?.round == round, || format!("{member} has two answers in round {round}"))
    }

    fn refused(&mut self, member: &MemberName) -> Result<(), Violation> {
        let num_refusals = self.num_refusals.entry(member.clone()).or_default();
        *num_refusals += 1;
        require(*num_refusals <= Coordinator::MAX_REFUSALS, || format!("{member} fills the log"))
    }

    fn attended(&mut self, signed: &Signed<Attendance>) -> Result<(), Violation> {
        let attendance = &signed.document;
        let key = self.charter.document.members.get(&attendance.member).ok_or("a stranger left")?;
        signed.verify_by(key).map_err(|e| format!("a forged attendance was recorded: {e}"))?;
        let last = self.attendances.insert(attendance.member.clone(), attendance.clone());
        let is_next = attendance.number > last.map_or(0, |last| last.number);
        require(is_next, || format!("an old attendance of {} was taken", attendance.member))
    }

    /// A late contribution was missed in its round, comes from that round's base, and counts once, as late as the charter allows.
    fn late(
        &mut self,
        at: Timestamp,
        round: u32,
        member: &MemberName,
        taken: &LateContribution,
    ) -> Result<(), Violation> {
        let LateContribution { into, contribution: signed } = taken;
        let contribution = &signed.document;
        let key = self.charter.document.members.get(member).ok_or("a stranger is late")?;
        signed.verify_by(key).map_err(|e| format!("a forged late contribution was recorded: {e}"))?;
        let fits = contribution.round == round
            && contribution.member == *member
            && contribution.charter == self.charter_digest
            && self.base_after(round - 1) == Some(contribution.base);
        require(fits, || "a late contribution to nothing was recorded".into())?;
        let key = (round, member.clone());
        let (known, has_declined) = (self.received.get(&key), self.declined.contains(&key));
        let has_answered = known.is_some_and(|known| known.round == round) || has_declined;
        require(!has_answered, || format!("{member} was not missing in round {round}"))?;
        let is_over = match self.outcomes.get(round as usize - 1) {
            Some(_) => true,
            // A round that waits neither for who is away nor for who is late in it ends before its window does.
            None => at >= self.open()?.closes_at || known.is_some() || self.attendances.contains_key(member),
        };
        require(is_over, || format!("{member} was not late in round {round}"))?;
        let terms = &self.charter.document.rounds;
        let ended = u32::try_from(self.outcomes.len()).expect("a few");
        let counts = *into > round && *into <= terms.num_rounds && into - round <= terms.late_rounds;
        require(counts && (ended + 1..=ended + 2).contains(into), || format!("round {round} counts in {into}"))?;
        let known = self.received.insert((*into, member.clone()), contribution.clone());
        require(known.is_none_or(|known| known.round < round), || format!("{member} has two answers in round {into}"))
    }

    /// A poisoned contribution is never accepted, by facts measured here and not by the machine.
    fn judged(&self, round: u32, member: &MemberName, verdict: &Verdict, blobs: &Blobs) -> Result<(), Violation> {
        if !matches!(verdict, Verdict::Accepted { .. }) {
            return Ok(());
        }
        let terms = &self.charter.document.screening;
        let contribution = self.received.get(&(round, member.clone())).ok_or("a verdict on nothing")?;
        let base = blobs.find(&contribution.base).ok_or("the base is lost")?;
        let open_base = blobs.find(&self.open()?.base).ok_or("the base is lost")?;
        let weights = blobs.find(&contribution.weights).ok_or("contributed weights are lost")?;
        let floor = open_base.open_bpb() * (1.0 + terms.max_bpb_rise);
        let is_sound = match weights.screening(base, member) {
            Screening::Measured { relative_change, bpb, .. } => {
                relative_change <= terms.max_relative_change && bpb.is_some_and(|bpb| bpb <= floor)
            }
            _ => false,
        };
        require(is_sound, || format!("poisoned weights of {member} were accepted: {weights:?}"))
    }

    fn ended(&mut self, outcome: &Outcome, blobs: &Blobs) -> Result<(), Violation> {
        let open = self.open()?;
        require(outcome.round == open.round, || "an outcome of another round".into())?;
        let members: Vec<_> = self.charter.document.members.keys().collect();
        require(outcome.verdicts.keys().collect::<Vec<_>>() == members, || "a member without a verdict".into())?;
        for ((_, member), confirmed) in self.confirmed.iter().filter(|((round, _), _)| *round == outcome.round) {
            let received = self.received.get(&(outcome.round, member.clone()));
            let is_there = received.is_some_and(|found| stands_for(found, confirmed));
            let is_judged = matches!(outcome.verdicts[member], Verdict::Accepted { .. } | Verdict::Refused { .. });
            require(is_there && is_judged, || format!("a confirmed contribution of {member} is lost"))?;
        }
        let accepted = |(member, verdict): (&MemberName, &Verdict)| {
            matches!(verdict, Verdict::Accepted { .. }).then(|| member.clone())
        };
        let accepted: Vec<_> = outcome.verdicts.iter().filter_map(accepted).collect();
        match outcome.result {
            RoundResult::Abandoned { .. } => {
                require(outcome.base == open.base, || "an abandoned round changed the base".into())?;
            }
            RoundResult::Published { .. } => {
                self.states = self.latest_states.clone();
                let merged: Vec<_> = outcome.weights.iter().map(|record| record.member.clone()).collect();
                require(merged == accepted, || format!("merged {merged:?}, accepted {accepted:?}"))?;
                let input = |record: &WeightRecord| {
                    let contribution = self.received.get(&(outcome.round, record.member.clone()))?;
                    Some((blobs.find(&contribution.weights)?, record.weight))
                };
                let inputs: Option<Vec<_>> = outcome.weights.iter().map(input).collect();
                let again = Vector::merged(&inputs.ok_or("a merged contribution is lost")?).digest();
                require(again == outcome.base, || "the published base is not the merge of the accepted".into())?;
            }
        }
        self.outcomes.push(outcome.clone());
        Ok(())
    }

    /// The coordinator's driver merges.
    pub(crate) fn merging(&self, work: &MergeWork) -> Result<(), Violation> {
        // Work that was begun twice may end when its round is over; its result is then not taken.
        if !self.open().is_ok_and(|open| open.round == work.round) {
            return Ok(());
        }
        require(work.method == self.charter.document.merge.method.clone().in_round(work.round), || {
            "not the charter's method".into()
        })?;
        let (expected, found) = (&self.states, &work.states);
        require(expected == found, || format!("the method goes on from {found:?}, not from {expected:?}"))
    }

    /// The coordinator told a member that its contribution arrived: it counts in some round, or the member's newer one does.
    pub(crate) fn confirmed(&mut self, contribution: &Contribution) -> Result<(), Violation> {
        let of_member = self.received.iter().filter(|((_, member), _)| *member == contribution.member);
        let mut counting = of_member.filter(|(_, found)| stands_for(found, contribution));
        let ((into, _), _) = counting.next().ok_or("a contribution was confirmed that is not in the log")?;
        self.confirmed.insert((*into, contribution.member.clone()), contribution.clone());
        Ok(())
    }

    /// A node starts Contributed CPT.
    pub(crate) fn training_starts(&self, node: usize, round: u32) -> Result<(), Violation> {
        require(!self.trained[node].contains(&round), || format!("node {node} trains twice for round {round}"))
    }

    /// An event of a node is durable.
    pub(crate) fn node_event(&mut self, node: usize, event: &NodeEvent) -> Result<(), Violation> {
        match event {
            NodeEvent::Trained { round, .. } => {
                require(self.trained[node].insert(*round), || format!("node {node} trained twice in round {round}"))
            }
            NodeEvent::RoundAccepted { announcement } => {
                let is_real = self.announcements.contains(&announcement.document);
                require(is_real, || format!("node {node} follows a round that was never announced"))
            }
            NodeEvent::OutcomeAccepted { outcome } => {
                let is_real = self.outcomes.contains(&outcome.document);
                require(is_real, || format!("node {node} believes an outcome that never was"))
            }
            _ => Ok(()),
        }
    }

    /// What holds for a living node at every moment: it is on the base that its last outcome says.
    pub(crate) fn node_state(&self, node: usize, state: &Node) -> Result<(), Violation> {
        if state.charter().is_none() {
            return Ok(());
        }
        let num_rounds = state.last_outcome().map_or(0, |outcome| outcome.round);
        let expected = self.base_after(num_rounds);
        require(state.base() == expected, || {
            format!("node {node} is on {:?} after round {num_rounds}, not on {expected:?}", state.base())
        })
    }

    /// What holds for the living coordinator at every moment.
    pub(crate) fn coordinator_state(&self, state: &Coordinator) -> Result<(), Violation> {
        require(state.outcomes() == self.outcomes, || "the coordinator forgot an outcome".into())?;
        let expected = self.base_after(u32::try_from(self.outcomes.len()).expect("a few"));
        require(state.charter().is_none() || state.base() == expected, || "the coordinator is on another base".into())
    }
}
