//! What must hold at every moment, kept apart from the machines under test: a second, naive book-keeping of the same
//! world that only looks at durable events and at what was promised to whom.

use std::collections::{BTreeMap, BTreeSet};

use tapestry_core::{Digest, MemberName, Signed, Timestamp};
use tapestry_governance::Charter;
use tapestry_merge::weights::WeightRecord;
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent, LateContribution, MergeWork};
use tapestry_round::node::{Node, NodeEvent};
use tapestry_round::{Announcement, Attendance, Contribution, Outcome, RoundResult, Screening, Tenure, Verdict};

use crate::model::{Blobs, Vector};
use crate::scenario::Scenario;
use crate::transfer::NUM_STREAMS;
use crate::weighing::shares;

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
    received: BTreeMap<(u32, MemberName), Contribution>,
    declined: BTreeSet<(u32, MemberName)>,
    /// Contributions that were late, by the round in which they count; the newest of each member.
    late: BTreeMap<(u32, MemberName), Contribution>,
    /// The same, by the round that they were trained for, with the one in which they count.
    late_for: BTreeMap<(u32, MemberName), (u32, Digest)>,
    /// How often each member left or came back, and whether it is there.
    attendances: BTreeMap<MemberName, (u64, bool)>,
    /// Members that were away at some moment of the open round.
    were_away: BTreeSet<MemberName>,
    /// By node and model, upwards and downwards: chunks that are due, connections, chunks sent.
    uploads: BTreeMap<(usize, Digest), Sent>,
    downloads: BTreeMap<(usize, Digest), Sent>,
    /// Contributions whose arrival was confirmed to their member.
    confirmed: BTreeMap<(u32, MemberName), Digest>,
    num_refusals: BTreeMap<MemberName, u32>,
    /// How often the coordinator's role changed hands.
    num_tenures: u64,
    /// The state of the method of merging, and that of the last merge that is recorded.
    states: Vec<Digest>,
    latest_states: Vec<Digest>,
    /// By node: rounds whose training is durable.
    trained: Vec<BTreeSet<u32>>,
}

/// How much of a transfer was sent, over how many connections.
#[derive(Debug, Default)]
struct Sent {
    num_due: usize,
    num_connections: usize,
    num_sent: usize,
}

impl Sent {
    fn begins(&mut self, num_lacking: usize) {
        if self.num_connections == 0 {
            self.num_due = num_lacking;
        }
        self.num_connections += 1;
    }

    /// What is sent more than once was under way when a connection ended: one chunk a stream at most.
    fn sends(&mut self, node: usize) -> Result<(), Violation> {
        self.num_sent += 1;
        let bound = self.num_due + NUM_STREAMS * (self.num_connections - 1);
        require(self.num_sent <= bound, || {
            format!("node {node} resends more than one chunk a stream: {self:?}, at most {bound} may be sent")
        })
    }
}

pub(crate) fn require(condition: bool, violation: impl FnOnce() -> String) -> Result<(), Violation> {
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
            declined: BTreeSet::new(),
            late: BTreeMap::new(),
            late_for: BTreeMap::new(),
            attendances: BTreeMap::new(),
            were_away: BTreeSet::new(),
            uploads: BTreeMap::new(),
            downloads: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            num_refusals: BTreeMap::new(),
            num_tenures: 0,
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
            CoordinatorEvent::Proposed { .. }
            | CoordinatorEvent::Voted { .. }
            | CoordinatorEvent::Decided { .. }
            | CoordinatorEvent::KeyRotated { .. }
            | CoordinatorEvent::Left { .. } => Err("nobody votes or leaves in this world (see `governed`)".into()),
            CoordinatorEvent::BaseMeasured { .. }
            | CoordinatorEvent::Cosigned { .. }
            | CoordinatorEvent::Witnessed { .. }
            | CoordinatorEvent::CommunityMeasured { .. }
            | CoordinatorEvent::RoleHandedOver { .. } => Ok(()),
            CoordinatorEvent::RoleTaken { tenure } => {
                let Tenure { number, coordinator, .. } = tenure.document;
                self.num_tenures += 1;
                require(number == self.num_tenures + 1, || format!("tenure {number} is out of order"))?;
                let may = self.charter.document.coordinators().contains(&coordinator);
                require(may, || "a stranger has the coordinator's role".into())?;
                tenure.verify_by(&coordinator).map(drop).map_err(|e| format!("a forged tenure was recorded: {e}"))
            }
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
                // Who is late for the round may be said to be late before it is said to be missing.
                let key = (*round, member.clone());
                let has_answered = self.received.contains_key(&key) || self.declined.contains(&key);
                require(!has_answered, || format!("{member} has answered and is missing"))?;
                let closes_at = self.open()?.closes_at;
                require(at >= closes_at, || format!("{member} was given up before the window closed"))
            }
            CoordinatorEvent::Attended { attendance } => self.attended(attendance),
            CoordinatorEvent::Late { member, taken: None, .. } => self.refused(member),
            CoordinatorEvent::Late { round, member, taken: Some(LateContribution { into, contribution }), .. } => {
                let is_own = contribution.document.round == *round && contribution.document.member == *member;
                require(is_own, || "a late contribution is not the one that the event names".into())?;
                self.comes_late(at, *into, contribution)
            }
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
                let terms = &self.charter.document.merge;
                let again = shares(&terms.weighting, cap, terms.staleness_exponent, weights);
                for (record, again) in weights.iter().zip(&again) {
                    let is_same = (record.weight - again).abs() < 1e-9;
                    require(is_same, || format!("the charter gives {} the weight {again}: {record:?}", record.member))?;
                    let round = self.open()?.round;
                    let own = self.counted(round, &record.member).ok_or("a weight for nothing")?;
                    let is_age = own.round + record.staleness == round;
                    require(is_age, || format!("{} is not {} rounds late", record.member, record.staleness))?;
                    let limit = self.charter.document.rounds.late_rounds;
                    require(record.staleness <= limit, || format!("{record:?} is later than the charter's {limit}"))?;
                }
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
        let terms = &self.charter.document.rounds;
        let window_ms = announcement.closes_at.as_ms() - announcement.opened_at.as_ms();
        require(window_ms == terms.window_ms, || format!("a window of {window_ms} ms"))?;
        self.announcements.push(announcement.clone());
        self.num_refusals.clear();
        let away = self.attendances.iter().filter(|(_, (_, is_present))| !is_present);
        self.were_away = away.map(|(member, _)| member.clone()).collect();
        Ok(())
    }

    fn refused(&mut self, member: &MemberName) -> Result<(), Violation> {
        let num_refusals = self.num_refusals.entry(member.clone()).or_default();
        *num_refusals += 1;
        require(*num_refusals <= Coordinator::MAX_REFUSALS, || format!("{member} fills the log"))
    }

    fn attended(&mut self, signed: &Signed<Attendance>) -> Result<(), Violation> {
        let attendance = &signed.document;
        let key = self.charter.document.members.get(&attendance.member).ok_or("a stranger leaves")?;
        signed.verify_by(key).map_err(|e| format!("a forged attendance was recorded: {e}"))?;
        require(attendance.charter == self.charter_digest, || "an attendance under another charter".into())?;
        let known = self.attendances.entry(attendance.member.clone()).or_insert((0, true));
        require(attendance.number > known.0, || format!("{} is replayed", attendance.member))?;
        *known = (attendance.number, attendance.is_present);
        if !attendance.is_present {
            self.were_away.insert(attendance.member.clone());
        }
        Ok(())
    }

    /// A contribution to a round that ended or whose window closed counts in a later one.
    fn comes_late(&mut self, at: Timestamp, into: u32, signed: &Signed<Contribution>) -> Result<(), Violation> {
        let contribution = &signed.document;
        let Contribution { member, round, .. } = contribution;
        let key = self.charter.document.members.get(member).ok_or("a stranger contributed late")?;
        signed.verify_by(key).map_err(|e| format!("a forged late contribution was recorded: {e}"))?;
        require(contribution.charter == self.charter_digest, || "late under another charter".into())?;
        let announced = (*round as usize).checked_sub(1).and_then(|n| self.announcements.get(n));
        let announced = announced.ok_or("late for a round that never was")?;
        require(contribution.base == announced.base, || "a late contribution mixes two rounds".into())?;
        // A round that waits neither for who is away nor for who is late in it ends before its window does.
        let is_over = at >= announced.closes_at
            || self.outcomes.len() >= *round as usize
            || self.late.contains_key(&(*round, member.clone()))
            || self.were_away.contains(member);
        require(is_over, || format!("{member} is called late before the window closed"))?;
        let terms = &self.charter.document.rounds;
        let is_allowed = into > *round && into - round <= terms.late_rounds && into <= terms.num_rounds;
        require(is_allowed, || format!("round {round} may not count in {into}: {terms:?}"))?;
        require(into as usize > self.outcomes.len(), || "late into a round that has ended".into())?;
        let key = (*round, member.clone());
        let is_first =
            !self.received.contains_key(&key) && !self.declined.contains(&key) && !self.late_for.contains_key(&key);
        require(is_first, || format!("{member} answers round {round} twice, once of it late"))?;
        self.late_for.insert(key, (into, contribution.weights));
        self.late.insert((into, member.clone()), contribution.clone());
        Ok(())
    }

    /// What counts for a member in a round: what it trained for it, or what it was late with.
    fn counted(&self, round: u32, member: &MemberName) -> Option<&Contribution> {
        let key = (round, member.clone());
        self.received.get(&key).or_else(|| self.late.get(&key))
    }

    pub(crate) const fn num_tenures(&self) -> u64 {
        self.num_tenures
    }

    pub(crate) fn num_late(&self) -> u64 {
        self.late_for.len() as u64
    }

    /// A node learned which chunks of a contribution the coordinator lacks.
    pub(crate) fn upload_begins(&mut self, node: usize, model: Digest, lacking: &[Digest]) {
        self.uploads.entry((node, model)).or_default().begins(lacking.len());
    }

    pub(crate) fn chunk_pushed(&mut self, node: usize, model: Digest) -> Result<(), Violation> {
        self.uploads.entry((node, model)).or_default().sends(node)
    }

    /// A node begins to fetch what it lacks of a base.
    pub(crate) fn download_begins(&mut self, node: usize, model: Digest, lacking: &[Digest]) {
        self.downloads.entry((node, model)).or_default().begins(lacking.len());
    }

    pub(crate) fn chunk_pulled(&mut self, node: usize, model: Digest) -> Result<(), Violation> {
        self.downloads.entry((node, model)).or_default().sends(node)
    }

    /// At the end all who followed to the end are on one base.
    pub(crate) fn end<'a>(&self, nodes: impl Iterator<Item = &'a Node>) -> Result<(), Violation> {
        let num_rounds = self.charter.document.rounds.num_rounds as usize;
        let followed = nodes.filter(|node| node.last_outcome().is_some_and(|outcome| outcome.is_last));
        let bases: BTreeSet<_> = followed.filter_map(Node::base).collect();
        require(bases.len() <= 1, || format!("nodes end on several bases: {bases:?}"))?;
        require(self.outcomes.len() <= num_rounds, || "a round too many ended".into())
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

    fn first_answer(&self, round: u32, member: &MemberName) -> Result<(), Violation> {
        let key = (round, member.clone());
        let is_first =
            !self.received.contains_key(&key) && !self.declined.contains(&key) && !self.late_for.contains_key(&key);
        require(is_first && self.open()?.round == round, || format!("{member} has two answers in round {round}"))
    }

    /// Sound contributions are accepted and poisoned ones are not, by facts measured here and not by the machine.
    fn judged(&self, round: u32, member: &MemberName, verdict: &Verdict, blobs: &Blobs) -> Result<(), Violation> {
        let terms = &self.charter.document.screening;
        let open = self.open()?;
        require(open.round == round, || "a verdict of another round".into())?;
        let contribution = self.counted(round, member).ok_or("a verdict on nothing")?;
        let trained_from = blobs.find(&contribution.base).ok_or("the base is lost")?;
        let floor = blobs.find(&open.base).ok_or("the base is lost")?.open_bpb() * (1.0 + terms.max_bpb_rise);
        let weights = blobs.find(&contribution.weights);
        let is_sound = match weights.map(|weights| weights.screening(trained_from, member)) {
            Some(Screening::Measured { relative_change, bpb, .. }) => {
                relative_change <= terms.max_relative_change && bpb.is_some_and(|bpb| bpb <= floor)
            }
            _ => false,
        };
        match verdict {
            Verdict::Accepted { .. } => require(is_sound, || format!("poisoned weights of {member} were accepted")),
            Verdict::Refused { reasons } => require(!is_sound && !reasons.is_empty(), || {
                format!("sound weights of {member} were refused: {reasons:?}")
            }),
            other => Err(format!("screening {member} ends with {other:?}")),
        }
    }

    fn ended(&mut self, outcome: &Outcome, blobs: &Blobs) -> Result<(), Violation> {
        let open = self.open()?;
        require(outcome.round == open.round, || "an outcome of another round".into())?;
        let members: Vec<_> = self.charter.document.members.keys().collect();
        require(outcome.verdicts.keys().collect::<Vec<_>>() == members, || "a member without a verdict".into())?;
        for ((round, member), weights) in &self.confirmed {
            let key = (*round, member.clone());
            let counts_in = match (self.received.get(&key), self.late_for.get(&key)) {
                (Some(received), _) if received.weights == *weights => *round,
                (_, Some((into, late))) if late == weights => *into,
                _ => *round,
            };
            if counts_in == outcome.round {
                // A newer one of the same member may have come in its place.
                let counted = self.counted(counts_in, member);
                let is_there = counted.is_some_and(|counted| counted.weights == *weights || counted.round > *round);
                let is_judged = matches!(outcome.verdicts[member], Verdict::Accepted { .. } | Verdict::Refused { .. });
                require(is_there && is_judged, || format!("a confirmed contribution of {member} is lost"))?;
            }
        }
        for (member, verdict) in &outcome.verdicts {
            let is_answer = match verdict {
                Verdict::Declined { .. } => self.declined.contains(&(outcome.round, member.clone())),
                Verdict::Away { .. } => self.were_away.contains(member),
                Verdict::Left { .. } => false,
                Verdict::Missing => self.counted(outcome.round, member).is_none(),
                Verdict::Accepted { .. } | Verdict::Refused { .. } => self.counted(outcome.round, member).is_some(),
            };
            require(is_answer, || format!("{member} never answered round {} so: {verdict:?}", outcome.round))?;
        }
        let accepted = |(member, verdict): (&MemberName, &Verdict)| {
            matches!(verdict, Verdict::Accepted { .. }).then(|| member.clone())
        };
        let accepted: Vec<_> = outcome.verdicts.iter().filter_map(accepted).collect();
        match outcome.result {
            RoundResult::Abandoned { .. } => {
                require(outcome.base == open.base, || "an abandoned round changed the base".into())?;
                let merged = self.merged(outcome, blobs)?;
                let needed = self.charter.document.rounds.min_contributions as usize;
                let has_reason = match merged {
                    Some(merged) => !self.passes_gate(&merged, blobs)?,
                    None => accepted.len() < needed || !self.cap_is_feasible(accepted.len()),
                };
                require(has_reason, || format!("round {} was abandoned without a reason", outcome.round))?;
            }
            RoundResult::Published { .. } => {
                self.states = self.latest_states.clone();
                let merged: Vec<_> = outcome.weights.iter().map(|record| record.member.clone()).collect();
                require(merged == accepted, || format!("merged {merged:?}, accepted {accepted:?}"))?;
                let again = self.merged(outcome, blobs)?.ok_or("a base of nothing")?;
                require(again.digest() == outcome.base, || {
                    "the published base is not the merge of the accepted".into()
                })?;
                require(self.passes_gate(&again, blobs)?, || "the gate let a base pass that it must stop".into())?;
            }
        }
        self.outcomes.push(outcome.clone());
        Ok(())
    }

    /// What the weights of an outcome make of the contributions; none where nothing was merged.
    fn merged(&self, outcome: &Outcome, blobs: &Blobs) -> Result<Option<Vector>, Violation> {
        let input = |record: &WeightRecord| {
            let contribution = self.counted(outcome.round, &record.member)?;
            Some((blobs.find(&contribution.weights)?.clone(), record.weight))
        };
        let inputs: Option<Vec<_>> = outcome.weights.iter().map(input).collect();
        let inputs = inputs.ok_or("a merged contribution is lost")?;
        Ok((!inputs.is_empty()).then(|| Vector::merged(&inputs)))
    }

    fn passes_gate(&self, model: &Vector, blobs: &Blobs) -> Result<bool, Violation> {
        let terms = &self.charter.document;
        let adopted = blobs.find(&terms.base).ok_or("the adopted base is lost")?;
        Ok(model.open_bpb() <= adopted.open_bpb() * (1.0 + terms.gate.max_bpb_rise))
    }

    #[expect(clippy::cast_precision_loss, reason = "a number of members")]
    fn cap_is_feasible(&self, num_accepted: usize) -> bool {
        self.charter.document.merge.influence_cap * num_accepted as f64 >= 1.0 - 1e-9
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

    /// The coordinator tells a member that its contribution arrived: it is in the log.
    pub(crate) fn confirmed(&mut self, contribution: &Contribution) -> Result<(), Violation> {
        let key = (contribution.round, contribution.member.clone());
        let same = |known: &Contribution| known.weights == contribution.weights;
        let is_recorded = self.received.get(&key).is_some_and(same)
            || self.late_for.get(&key).is_some_and(|(_, weights)| *weights == contribution.weights)
            || self.late.get(&key).is_some_and(same);
        require(is_recorded, || format!("a contribution of {} is confirmed and not in the log", contribution.member))?;
        self.confirmed.insert(key, contribution.weights);
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
            NodeEvent::RoundAccepted { announcement, .. } => {
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
