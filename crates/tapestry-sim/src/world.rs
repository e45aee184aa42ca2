//! The world: everything that exists in one simulation, and how time passes in it.

use std::collections::BinaryHeap;

use tapestry_core::{Digest, DigestHasher};
use tapestry_round::coordinator::Coordinator;
use tapestry_round::node::Node;
use tapestry_round::{News, RoundResult};

use crate::checks::{Checks, Violation};
use crate::model::{Blobs, Vector};
use crate::network::{Happening, Message, Party, Planned};
use crate::random::Random;
use crate::role::{Fate, Role};
use crate::scenario::{Character, Partition, START_MS, Scenario};
use crate::store::Store;
use crate::takeover::Deposed;
use crate::transfer::Transfer;
use crate::{Sabotage, Summary};

/// A simulation that is under way.
pub(crate) struct World {
    pub(crate) now_ms: u64,
    queue: BinaryHeap<Planned>,
    num_planned: u64,
    pub(crate) random: Random,
    pub(crate) scenario: Scenario,
    pub(crate) sabotage: Option<Sabotage>,
    pub(crate) coordinator: Role<Coordinator>,
    /// What the coordinator stores.
    pub(crate) store: Store,
    /// Chunks that wait to be synced together, with who is to be told over which connection.
    pub(crate) pushed: Vec<(usize, u64, Digest)>,
    /// A coordinator that another has replaced, and that does not know it yet.
    pub(crate) deposed: Option<Deposed>,
    /// What the coordinator last told, signed.
    pub(crate) news: Option<News>,
    /// Every model that was ever made.
    pub(crate) blobs: Blobs,
    coordinator_skew_ms: u64,
    pub(crate) nodes: Vec<NodeSide>,
    pub(crate) checks: Checks,
    /// What a forger has seen on its way through the world.
    pub(crate) seen: Vec<Message>,
    trace: DigestHasher,
    /// Lines for people; none are made unless somebody wants them.
    pub(crate) story: Option<Vec<String>>,
    num_messages: u64,
    num_crashes: u64,
    num_power_losses: u64,
    pub(crate) num_entries: u64,
    pub(crate) num_connections: u64,
}

/// A node with what it stores.
#[derive(Debug)]
pub(crate) struct NodeSide {
    pub(crate) role: Role<Node>,
    pub(crate) store: Store,
    pub(crate) upload: Option<Transfer>,
    pub(crate) download: Option<Transfer>,
    skew_ms: u64,
    /// The version of the news that this life has taken.
    pub(crate) version: Option<u64>,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>, tells_story: bool) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::new(&mut random);
        Self::of(scenario, random, sabotage, tells_story)
    }

    pub(crate) fn of(scenario: Scenario, random: Random, sabotage: Option<Sabotage>, tells_story: bool) -> Self {
        let coordinator = Role::new(scenario.coordinator_key.clone(), sabotage == Some(Sabotage::CoordinatorSkipsSync));
        let forgets = sabotage == Some(Sabotage::NodeSkipsSync);
        let node = |key: &tapestry_core::SecretKey| NodeSide {
            role: Role::new(key.clone(), forgets),
            store: Store::default(),
            upload: None,
            download: None,
            skew_ms: 0,
            version: None,
        };
        let nodes = scenario.members.iter().map(|member| node(&member.key)).collect();
        let mut blobs = Blobs::default();
        blobs.put(Vector::adopted());
        let mut store = Store::default();
        store.adopt(&Vector::adopted());
        let checks = Checks::new(&scenario);
        Self {
            now_ms: START_MS,
            queue: BinaryHeap::new(),
            num_planned: 0,
            random,
            scenario,
            sabotage,
            coordinator,
            store,
            pushed: vec![],
            deposed: None,
            news: None,
            blobs,
            coordinator_skew_ms: 0,
            nodes,
            checks,
            seen: vec![],
            trace: DigestHasher::new(),
            story: tells_story.then(Vec::new),
            num_messages: 0,
            num_crashes: 0,
            num_power_losses: 0,
            num_entries: 0,
            num_connections: 0,
        }
    }

    /// Lets time pass until everything is done.
    pub(crate) fn run(&mut self) -> Result<Summary, Violation> {
        self.begin()?;
        let terms = self.scenario.charter.document.rounds.clone();
        let patience_ms = 120_000 + u64::from(terms.num_rounds) * (terms.window_ms + 60_000);
        let deadline_ms = self.scenario.weather.calm_at_ms + patience_ms;
        while let Some(Planned { at_ms, happening, .. }) = self.queue.pop() {
            self.now_ms = at_ms;
            if self.now_ms > deadline_ms {
                return if self.is_expired() { self.end() } else { Err(self.what_is_missing()) };
            }
            let touched = happening.touches();
            self.happen(happening)?;
            self.check(touched)?;
            if self.is_complete() {
                return self.end();
            }
        }
        Err("nothing will ever happen again".into())
    }

    fn begin(&mut self) -> Result<(), Violation> {
        self.start(Party::Coordinator, true)?;
        for node in 0..self.nodes.len() {
            if self.scenario.members[node].character.has_node() {
                let at_ms = self.now_ms + self.random.below(3_000);
                self.plan(at_ms, Happening::Starts { party: Party::Node(node) });
                self.nodes[node].role.die();
            }
        }
        if self.scenario.weather.crash_every_ms < u64::MAX {
            self.plan_crash();
        }
        let is_wanderer = |node: &usize| self.scenario.members[*node].character == Character::Wanderer;
        for node in (0..self.nodes.len()).filter(is_wanderer).collect::<Vec<_>>() {
            let at_ms = self.now_ms + self.random.between(4_000, 20_000);
            self.plan(at_ms, Happening::ChangesMind { node });
        }
        for at_ms in self.scenario.take_overs_ms.clone() {
            self.plan(at_ms, Happening::TakesOver);
        }
        if self.scenario.weather.max_clock_skew_ms > 0 {
            self.plan(self.now_ms + 1_000, Happening::ClockJumps);
        }
        if self.scenario.has_mischief {
            self.plan(self.now_ms + 1_000, Happening::Mischief);
        }
        Ok(())
    }

    pub(crate) fn plan(&mut self, at_ms: u64, happening: Happening) {
        self.num_planned += 1;
        self.queue.push(Planned { at_ms, number: self.num_planned, happening });
    }

    fn plan_crash(&mut self) {
        let at_ms = self.now_ms + self.random.below(2 * self.scenario.weather.crash_every_ms);
        if at_ms < self.scenario.weather.calm_at_ms {
            self.plan(at_ms, Happening::Crash);
        }
    }

    pub(crate) const fn is_calm(&self) -> bool {
        self.now_ms >= self.scenario.weather.calm_at_ms
    }

    pub(crate) fn clock_ms(&self, party: Party) -> u64 {
        self.now_ms
            + match party {
                Party::Coordinator => self.coordinator_skew_ms,
                Party::Node(node) => self.nodes[node].skew_ms,
                Party::Stranger | Party::Mirror | Party::Deposed => 0,
            }
    }

    /// Adds a line to the story.
    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:>8} ms  {}", self.now_ms - START_MS, line()));
        }
    }

    /// What becomes of the next write.
    pub(crate) fn fate_of(random: &mut Random, (crash, full): (f64, f64)) -> Fate {
        let roll = random.unit();
        match roll {
            _ if roll >= crash + full => Fate::Done,
            _ if roll >= crash => Fate::DiskFull,
            _ => [Fate::DiesBefore, Fate::DiesUnsynced, Fate::DiesAfter][random.index(3)],
        }
    }

    /// How likely a write kills its process, and how likely it finds the disk full.
    pub(crate) const fn crash_probability(&self) -> (f64, f64) {
        let weather = &self.scenario.weather;
        if self.is_calm() { (0.0, 0.0) } else { (weather.crash_per_write, weather.full_per_write) }
    }

    /// Sends a message, as well as the weather lets it.
    pub(crate) fn send(&mut self, from: Party, to: Party, message: Message) {
        let weather = &self.scenario.weather;
        let is_calm = self.is_calm();
        let (loss, duplication) = if is_calm { (0.0, 0.0) } else { (weather.loss, weather.duplication) };
        let max_delay_ms = if is_calm { 50 } else { weather.max_delay_ms };
        let cuts = |cut: &Partition| {
            (cut.from, cut.to) == (from, to) && (cut.starts_ms..cut.ends_ms).contains(&self.now_ms) && !is_calm
        };
        let is_cut = weather.partitions.iter().any(cuts);
        if is_cut || self.random.chance(loss) {
            self.tell(|| format!("lost: {from:?} to {to:?}: {}", message.name()));
            return;
        }
        let num_copies = if self.random.chance(duplication) { 2 } else { 1 };
        for _ in 0..num_copies {
            let at_ms = self.now_ms + self.random.between(1, max_delay_ms);
            self.plan(at_ms, Happening::Arrives { from, to, message: message.clone() });
        }
    }

    fn happen(&mut self, happening: Happening) -> Result<(), Violation> {
        self.trace.update(&self.now_ms.to_le_bytes());
        match happening {
            Happening::Arrives { from, to, message } => {
                self.num_messages += 1;
                self.trace.update(message.name().as_bytes());
                self.tell(|| format!("{from:?} to {to:?}: {}", message.name()));
                match to {
                    Party::Coordinator => self.coordinator_hears(from, message),
                    Party::Node(node) => self.node_hears(node, from, message),
                    Party::Mirror => {
                        self.mirror_hears(from, &message);
                        Ok(())
                    }
                    Party::Stranger | Party::Deposed => Ok(()),
                }
            }
            Happening::ChunksSynced { life } => {
                self.chunks_synced(life);
                Ok(())
            }
            Happening::ChangesMind { node } => self.changes_mind(node),
            Happening::TakesOver => self.takes_over(),
            Happening::ClockJumps => {
                self.clock_jumps();
                Ok(())
            }
            Happening::Wakes { party: Party::Coordinator, life } if life == self.coordinator.life() => {
                self.coordinator_wakes()
            }
            Happening::Wakes { party: Party::Node(node), life } if life == self.nodes[node].role.life() => {
                self.node_wakes(node)
            }
            Happening::Wakes { .. } => Ok(()),
            Happening::CoordinatorWorked { life, effect, is_done } => self.coordinator_worked(life, &effect, is_done),
            Happening::NodeWorked { node, life, effect, is_done } => self.node_worked(node, life, &effect, is_done),
            Happening::Crash => {
                let number = self.random.index(self.nodes.len() + 1);
                self.crash(if number == self.nodes.len() { Party::Coordinator } else { Party::Node(number) });
                self.plan_crash();
                Ok(())
            }
            Happening::Starts { party } => self.start(party, false),
            Happening::Mischief => {
                self.mischief();
                // Harm does not stop when the weather clears: what is promised holds in spite of it.
                let at_ms = self.now_ms + self.random.between(1_000, 5_000);
                self.plan(at_ms, Happening::Mischief);
                Ok(())
            }
        }
    }

    /// Ends a process between two writes.
    fn crash(&mut self, party: Party) {
        let is_alive = match party {
            Party::Coordinator => self.coordinator.state().is_some(),
            Party::Node(node) => self.nodes[node].role.state().is_some(),
            Party::Stranger | Party::Mirror | Party::Deposed => false,
        };
        if is_alive && (party == Party::Coordinator || self.has_node(party)) {
            self.died(party);
        }
    }

    fn has_node(&self, party: Party) -> bool {
        matches!(party, Party::Node(node) if self.scenario.members[node].character.has_node())
    }

    /// A process has ended, perhaps with its machine; it will be started again.
    pub(crate) fn died(&mut self, party: Party) {
        self.num_crashes += 1;
        let loses_power = self.random.chance(self.scenario.weather.power_per_crash);
        self.num_power_losses += u64::from(loses_power);
        match party {
            Party::Coordinator => {
                self.coordinator.die();
                self.pushed.clear();
                if loses_power {
                    self.coordinator.lose_power(&mut self.random);
                    self.store.lose_power(&mut self.random);
                }
            }
            Party::Node(node) => {
                let node = &mut self.nodes[node];
                node.role.die();
                (node.upload, node.download) = (None, None);
                if loses_power {
                    node.role.lose_power(&mut self.random);
                    node.store.lose_power(&mut self.random);
                }
            }
            Party::Stranger | Party::Mirror | Party::Deposed => {}
        }
        let at_ms = self.now_ms + self.random.between(100, 5_000);
        self.tell(|| format!("{party:?} dies{}", if loses_power { " of a power loss" } else { "" }));
        self.plan(at_ms, Happening::Starts { party });
    }

    /// A clock of this world: right once it is calm, and ahead by up to a bound before.
    fn skew_ms(&mut self) -> u64 {
        if self.is_calm() { 0 } else { self.random.between(0, self.scenario.weather.max_clock_skew_ms) }
    }

    /// Some clock is set, forwards or back.
    fn clock_jumps(&mut self) {
        let skew_ms = self.skew_ms();
        match self.random.index(self.nodes.len() + 1) {
            node if node < self.nodes.len() => self.nodes[node].skew_ms = skew_ms,
            _ => self.coordinator_skew_ms = skew_ms,
        }
        if self.is_calm() {
            self.coordinator_skew_ms = 0;
            self.nodes.iter_mut().for_each(|node| node.skew_ms = 0);
        } else {
            let at_ms = self.now_ms + self.random.between(1_000, 20_000);
            self.plan(at_ms, Happening::ClockJumps);
        }
    }

    pub(crate) fn start(&mut self, party: Party, is_first: bool) -> Result<(), Violation> {
        let skew_ms = self.skew_ms();
        let trusts = self.sabotage == Some(Sabotage::TrustsUnsyncedLog);
        self.tell(|| format!("{party:?} starts"));
        match party {
            Party::Coordinator => {
                self.coordinator_skew_ms = skew_ms;
                if !is_first {
                    // What an earlier process wrote and nobody saw counts from now on.
                    for (at, event) in self.coordinator.start(trusts)? {
                        self.checks.coordinator_event(at, &event, &self.blobs)?;
                        self.num_entries += 1;
                    }
                    if self.sabotage != Some(Sabotage::ConfirmsUnsyncedChunks) {
                        self.store.sync();
                    }
                }
                self.coordinator_starts()
            }
            Party::Node(node) => {
                self.nodes[node].skew_ms = skew_ms;
                self.nodes[node].version = None;
                for (_, event) in self.nodes[node].role.start(trusts)? {
                    self.checks.node_event(node, &event)?;
                }
                if self.sabotage != Some(Sabotage::NodeSkipsSync) {
                    self.nodes[node].store.sync();
                }
                self.node_starts(node)
            }
            Party::Stranger | Party::Mirror | Party::Deposed => Ok(()),
        }
    }

    /// What must hold at every moment, of the role that something happened to.
    fn check(&self, touched: Option<Party>) -> Result<(), Violation> {
        match touched {
            Some(Party::Coordinator) => {
                if !self.coordinator.is_fold_of_its_log() {
                    return Err("the coordinator's state is not the fold of its log".into());
                }
                self.coordinator.state().map_or(Ok(()), |state| self.checks.coordinator_state(state))
            }
            Some(Party::Node(number)) => {
                let role = &self.nodes[number].role;
                if !role.is_fold_of_its_log() {
                    return Err(format!("the state of node {number} is not the fold of its log"));
                }
                role.state().map_or(Ok(()), |state| self.checks.node_state(number, state))
            }
            _ => Ok(()),
        }
    }

    fn is_complete(&self) -> bool {
        let is_node_complete = |(number, node): (usize, &NodeSide)| {
            !self.has_node(Party::Node(number)) || node.role.state().is_some_and(Node::is_complete)
        };
        self.is_calm()
            && self.coordinator.state().is_some_and(Coordinator::is_complete)
            && self.nodes.iter().enumerate().all(is_node_complete)
    }

    /// Whether the charter may be over by somebody's clock. Then nothing new begins, and nothing need come to its end.
    pub(crate) fn is_expired(&self) -> bool {
        let valid_until = self.scenario.charter.document.valid_until.as_ms();
        self.now_ms + self.scenario.weather.max_clock_skew_ms >= valid_until
    }

    fn what_is_missing(&self) -> Violation {
        let nodes: Vec<_> = self.nodes.iter().map(|node| node.role.state().map(Node::is_complete)).collect();
        let coordinator = self.coordinator.state().map(|state| (state.outcomes().len(), state.pending()));
        format!("faults stopped, and still not all is done: coordinator {coordinator:?}, nodes {nodes:?}")
    }

    /// Logs are verified once more from their bytes, and the world is summed up.
    fn end(&mut self) -> Result<Summary, Violation> {
        // One node's is enough: every entry was verified when it was written, and checking signatures is what takes time.
        let witness = self.random.index(self.nodes.len());
        if self.sabotage == Some(Sabotage::ChangesAnEntry) {
            self.coordinator.corrupt_log(&mut self.random);
        }
        self.coordinator.verify_log()?;
        self.nodes[witness].role.verify_log()?;
        self.checks.end(self.nodes.iter().filter_map(|node| node.role.state()))?;
        let logs = self.nodes.iter().map(|node| node.role.log());
        logs.chain([self.coordinator.log()]).flatten().for_each(|bytes| self.trace.update(bytes));
        let outcomes = self.checks.outcomes();
        let num_published =
            outcomes.iter().filter(|outcome| matches!(outcome.result, RoundResult::Published { .. })).count();
        Ok(Summary {
            trace: self.trace.finish(),
            num_rounds: outcomes.len(),
            num_published,
            num_messages: self.num_messages,
            num_crashes: self.num_crashes,
            num_power_losses: self.num_power_losses,
            num_entries: self.num_entries,
            num_late: self.checks.num_late(),
            num_tenures: self.checks.num_tenures(),
            num_members: self.nodes.len(),
            simulated_ms: self.now_ms - START_MS,
        })
    }
}
