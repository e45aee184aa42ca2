//! The coordinator's driver: turns messages into inputs and effects into work.

use tapestry_core::{SecretKey, Signed};
use tapestry_round::coordinator::{Coordinator, CoordinatorEffect, CoordinatorEvent, CoordinatorInput};
use tapestry_round::{Blame, Contribution, News, RoundError};

use crate::Sabotage;
use crate::checks::Violation;
use crate::model::{Manifest, Vector};
use crate::network::{Happening, Message, Party};
use crate::role::{Fate, Taken};
use crate::scenario;
use crate::world::World;

/// Grows with each change of what nodes are told.
fn version_of(state: &Coordinator) -> u64 {
    let tenure = 2 * state.tenure_number() + u64::from(state.hand_over().is_some());
    (tenure << 32) + 2 * state.outcomes().len() as u64 + u64::from(state.round().is_some())
}

/// What a coordinator with this state and key tells everybody, signed.
pub(crate) fn news_of(state: &Coordinator, key: &SecretKey) -> News {
    let sign = |announcement: &_| Signed::by(Clone::clone(announcement), key).expect("canonical");
    News {
        version: version_of(state),
        tenure: state.tenure().cloned(),
        hand_over: state.hand_over().map(|given| Signed::by(given.clone(), key).expect("canonical")),
        announcement: state.round().map(|round| sign(&round.announcement)),
        outcome: state.outcomes().last().map(|outcome| Signed::by(outcome.clone(), key).expect("canonical")),
        ..News::default()
    }
}

impl World {
    pub(crate) fn coordinator_starts(&mut self) -> Result<(), Violation> {
        self.pushed.clear();
        if self.coordinator.state().is_some_and(|state| state.charter().is_none()) {
            let charter = self.scenario.charter.clone();
            self.must_take(CoordinatorInput::AdoptCharter(charter))?;
        }
        self.takes_role()?;
        self.coordinator_wakes()
    }

    pub(crate) fn coordinator_wakes(&mut self) -> Result<(), Violation> {
        self.must_take(CoordinatorInput::Tick)?;
        self.start_coordinator_work();
        let at_ms = self.now_ms + self.random.between(500, 2_000);
        self.plan(at_ms, Happening::Wakes { party: Party::Coordinator, life: self.coordinator.life() });
        Ok(())
    }

    /// Feeds an input that the machine must take.
    pub(crate) fn must_take(&mut self, input: CoordinatorInput) -> Result<(), Violation> {
        self.coordinator_takes(input)?.map_err(|error| format!("the coordinator refuses its own driver: {error}"))
    }

    /// Feeds an input; the inner error is the machine's.
    fn coordinator_takes(&mut self, input: CoordinatorInput) -> Result<Result<(), RoundError>, Violation> {
        let (clock_ms, probability) = (self.clock_ms(Party::Coordinator), self.crash_probability());
        let old = self.takes_with_an_old_time(&input, self.coordinator.now(clock_ms));
        let kept = self.sabotage.map(|_| input.clone());
        let random = &mut self.random;
        let mut fate = || Self::fate_of(random, probability);
        let taken = match old {
            Some(events) => Ok(self.coordinator.write(self.coordinator.now(clock_ms), events, &mut fate)?),
            None => self.coordinator.input(clock_ms, input, &mut fate)?,
        };
        match taken {
            Ok(taken) => self.coordinator_wrote(taken).map(Ok),
            Err(error) => match kept.and_then(|input| self.recorded_anyway(input, &error)) {
                Some(event @ CoordinatorEvent::MessageRefused { .. }) => self.record_anyway(event).map(|()| Err(error)),
                Some(event) => self.record_anyway(event).map(Ok),
                None => Ok(Err(error)),
            },
        }
    }

    pub(crate) fn coordinator_wrote(&mut self, taken: Taken<CoordinatorEvent>) -> Result<(), Violation> {
        let mut is_news = false;
        for (at, event) in &taken.events {
            self.tell(|| format!("coordinator writes {}", event.name()));
            self.checks.coordinator_event(*at, event, &self.blobs)?;
            self.num_entries += 1;
            is_news |= matches!(event, CoordinatorEvent::RoundAnnounced { .. } | CoordinatorEvent::Ended { .. });
        }
        if taken.died {
            self.died(Party::Coordinator);
            return Ok(());
        }
        if is_news {
            for node in 0..self.nodes.len() {
                self.send_news(node);
            }
        }
        self.start_coordinator_work();
        Ok(())
    }

    fn send_news(&mut self, node: usize) {
        if let Some(mut news) = self.news() {
            self.tell_another_end(node, &mut news);
            self.send(Party::Coordinator, Party::Node(node), Message::News(Box::new(news)));
        }
    }

    /// What the coordinator tells everybody, signed. It is signed once: a signature of the same document is the same.
    fn news(&mut self) -> Option<News> {
        let state = self.coordinator.state()?;
        let version = version_of(state);
        if let Some(news) = self.news.as_ref().filter(|news| news.version == version) {
            return Some(news.clone());
        }
        self.news = Some(news_of(state, self.coordinator.key()));
        self.news.clone()
    }

    pub(crate) fn coordinator_hears(&mut self, from: Party, message: Message) -> Result<(), Violation> {
        if self.deposed_hears(from, &message)? || self.coordinator.state().is_none() {
            return Ok(());
        }
        match (from, message) {
            (Party::Node(node), Message::Ask { version }) if self.coordinator.state().map(version_of) != version => {
                self.send_news(node);
            }
            (Party::Node(_), Message::PullManifest { connection, model }) => {
                if let Some(manifest) = self.store.manifest(&model).cloned() {
                    self.send(Party::Coordinator, from, Message::Manifest { connection, model, manifest });
                }
            }
            (Party::Node(_), Message::Pull { connection, chunk: digest }) => {
                if let Some(chunk) = self.store.chunk(&digest) {
                    self.send(Party::Coordinator, from, Message::Pulled { connection, digest, chunk });
                }
            }
            (Party::Node(_), Message::Offer { connection, manifest }) => {
                // What is said to be here is durable.
                self.store.sync();
                let chunks = self.store.lacks(&manifest);
                self.send(Party::Coordinator, from, Message::Lacking { connection, chunks });
            }
            (Party::Node(node), Message::Push { connection, digest, chunk }) if chunk.digest() == digest => {
                self.chunk_arrives(node, connection, digest, chunk);
            }
            (_, Message::Contribute(signed, manifest)) => self.hears_contribution(from, signed, manifest)?,
            (_, Message::Decline(decline)) => {
                let sender = self.key_of(from);
                let round = decline.document.round;
                let answer = self.coordinator_takes(CoordinatorInput::Decline { sender, decline })?;
                self.answer(from, answer, Message::DeclineConfirmed { round }, None)?;
            }
            (_, Message::Attend(attendance)) => {
                let sender = self.key_of(from);
                let number = attendance.document.number;
                let answer = self.coordinator_takes(CoordinatorInput::Attend { sender, attendance })?;
                self.answer(from, answer, Message::AttendanceConfirmed { number }, None)?;
            }
            // No news is not told, a chunk under a false name is not kept, and nobody else has anything to say to a coordinator.
            _ => {}
        }
        Ok(())
    }

    fn chunk_arrives(
        &mut self,
        node: usize,
        connection: u64,
        digest: tapestry_core::Digest,
        chunk: crate::model::Chunk,
    ) {
        let probability = self.crash_probability();
        match Self::fate_of(&mut self.random, probability) {
            Fate::DiskFull => {
                self.tell(|| "the coordinator's disk is full".into());
                return;
            }
            Fate::DiesBefore => return self.died(Party::Coordinator),
            Fate::DiesUnsynced => {
                self.store.write_chunk(digest, chunk);
                return self.died(Party::Coordinator);
            }
            Fate::DiesAfter => {
                self.store.write_chunk(digest, chunk);
                self.store.sync();
                return self.died(Party::Coordinator);
            }
            Fate::Done => self.store.write_chunk(digest, chunk),
        }
        if self.sabotage == Some(Sabotage::ConfirmsUnsyncedChunks) {
            self.send(Party::Coordinator, Party::Node(node), Message::Held { connection, digest });
            return;
        }
        // Chunks are made durable together, and then confirmed.
        if self.pushed.is_empty() {
            let at_ms = self.now_ms + self.random.between(1, if self.is_calm() { 5 } else { 300 });
            self.plan(at_ms, Happening::ChunksSynced { life: self.coordinator.life() });
        }
        self.pushed.push((node, connection, digest));
    }

    pub(crate) fn chunks_synced(&mut self, life: u32) {
        if self.coordinator.state().is_none() || self.coordinator.life() != life {
            return;
        }
        self.store.sync();
        for (node, connection, digest) in std::mem::take(&mut self.pushed) {
            self.send(Party::Coordinator, Party::Node(node), Message::Held { connection, digest });
        }
    }

    fn hears_contribution(
        &mut self,
        from: Party,
        contribution: Signed<Contribution>,
        manifest: Manifest,
    ) -> Result<(), Violation> {
        // The chunks come first: a contribution whose weights are not there is not looked at.
        if manifest.digest() != contribution.document.weights || !self.store.lacks(&manifest).is_empty() {
            return Ok(());
        }
        self.store.write_manifest(manifest);
        if self.sabotage != Some(Sabotage::ConfirmsUnsyncedChunks) {
            self.store.sync();
        }
        let (sender, document) = (self.key_of(from), contribution.document.clone());
        let answer = self.coordinator_takes(CoordinatorInput::Contribute { sender, contribution })?;
        if answer.is_ok() && self.coordinator.state().is_some() {
            self.checks.confirmed(&document)?;
        }
        let round = document.round;
        self.answer(from, answer, Message::Confirmed { round }, Some(Message::NotTaken { round }))
    }

    /// Confirms what was taken, records what was not and should have been right.
    fn answer(
        &mut self,
        to: Party,
        answer: Result<(), RoundError>,
        confirmation: Message,
        refusal: Option<Message>,
    ) -> Result<(), Violation> {
        let Some(state) = self.coordinator.state() else { return Ok(()) };
        let error = match answer {
            Ok(()) => {
                self.send(Party::Coordinator, to, confirmation);
                return Ok(());
            }
            Err(error) => error,
        };
        if error.blame() == Blame::Internal {
            return Err(format!("a message led the coordinator to an inner error: {error}"));
        }
        let sender = self.key_of(to);
        let member = state.charter().and_then(|charter| charter.document.member_of(sender).ok().cloned());
        let events: Vec<_> = member.and_then(|member| state.refusal(&member, &error)).into_iter().collect();
        self.tell(|| format!("coordinator does not take it: {error}"));
        let now = self.coordinator.now(self.clock_ms(Party::Coordinator));
        let probability = self.crash_probability();
        let random = &mut self.random;
        let taken = self.coordinator.write(now, events, &mut || Self::fate_of(random, probability))?;
        self.coordinator_wrote(taken)?;
        match refusal {
            Some(refusal) if self.coordinator.state().is_some() => self.send(Party::Coordinator, to, refusal),
            _ => {}
        }
        Ok(())
    }

    fn start_coordinator_work(&mut self) {
        for effect in self.coordinator.take_work() {
            if self.sabotage == Some(Sabotage::ForgetsToMerge) && matches!(effect, CoordinatorEffect::Merge(_)) {
                continue;
            }
            self.tell(|| format!("coordinator starts {effect:?}"));
            let life = self.coordinator.life();
            let num_results = if self.random.chance(0.1) { 2 } else { 1 };
            let is_done = self.is_calm() || !self.random.chance(self.scenario.weather.failure_per_work);
            for _ in 0..num_results {
                let at_ms = self.now_ms + self.random.between(10, 2_000);
                let effect = effect.clone();
                self.plan(at_ms, Happening::CoordinatorWorked { life, effect, is_done });
            }
        }
    }

    /// Work is done. Its result may be late or come twice; then the machine does not take it, and that is all.
    pub(crate) fn coordinator_worked(
        &mut self,
        life: u32,
        effect: &CoordinatorEffect,
        is_done: bool,
    ) -> Result<(), Violation> {
        if self.coordinator.state().is_none() || self.coordinator.life() != life {
            return Ok(());
        }
        let was_due = self.coordinator.state().is_some_and(|state| state.pending().contains(effect));
        self.coordinator.work_ended(effect);
        if !is_done {
            return Ok(());
        }
        let Some(input) = self.result(effect)? else { return Ok(()) };
        match self.coordinator_takes(input)? {
            Err(error) if was_due => Err(format!("a result that was due is not taken: {error}")),
            _ => Ok(()),
        }
    }

    /// What came of the work; none where its result could not be stored.
    fn result(&mut self, effect: &CoordinatorEffect) -> Result<Option<CoordinatorInput>, Violation> {
        let find = |digest| self.store.find(digest).ok_or_else(|| format!("{effect:?} lacks a blob"));
        Ok(Some(match effect {
            CoordinatorEffect::MeasureBase { base } => {
                CoordinatorInput::BaseMeasured { base: *base, bpb: find(base)?.open_bpb() }
            }
            CoordinatorEffect::MeasureCommunity { base, member } => {
                let bpb = Some(find(base)?.community_bpb(member));
                CoordinatorInput::CommunityMeasured { base: *base, member: member.clone(), bpb }
            }
            CoordinatorEffect::Screen { round, member, base, weights } => {
                let screening = match self.sabotage {
                    Some(Sabotage::ScreensNothing) => find(base)?.screening(&find(base)?, member),
                    _ => find(weights)?.screening(&find(base)?, member),
                };
                CoordinatorInput::Screened { round: *round, member: member.clone(), weights: *weights, screening }
            }
            CoordinatorEffect::Merge(work) => {
                let inputs: Result<Vec<_>, Violation> =
                    work.inputs.iter().map(|input| Ok((find(&input.weights)?, input.share))).collect();
                let mut merged = Vector::merged(&inputs?);
                if self.sabotage == Some(Sabotage::MergesSomethingElse) {
                    merged = merged.trained(0, &mut self.random);
                }
                self.checks.merging(work)?;
                if !self.keep(Party::Coordinator, &merged) {
                    return Ok(None);
                }
                // The state of a method that keeps one: here, any vector that follows from the merge.
                let states = vec![merged.digest(); work.method.demands().num_states];
                CoordinatorInput::Merged { round: work.round, model: merged.digest(), states }
            }
            CoordinatorEffect::MeasureMerged { round, model } => {
                let bpb = find(model)?.open_bpb();
                let bpb = if self.sabotage == Some(Sabotage::OpensTheGate) {
                    bpb.min(Vector::adopted().open_bpb())
                } else {
                    bpb
                };
                CoordinatorInput::MergedMeasured { round: *round, model: *model, bpb }
            }
        }))
    }

    pub(crate) fn key_of(&self, party: Party) -> tapestry_core::PublicKey {
        match party {
            Party::Coordinator => self.coordinator.key().public(),
            Party::Node(node) => self.nodes[node].role.key().public(),
            Party::Stranger | Party::Mirror | Party::Deposed => scenario::key(scenario::STRANGER).public(),
        }
    }
}
