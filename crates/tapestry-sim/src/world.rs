//! The world: everything that exists in one simulation, and how time passes in it.

use std::collections::BinaryHeap;

use tapestry_core::DigestHasher;
use tapestry_round::RoundResult;
use tapestry_round::coordinator::Coordinator;
use tapestry_round::node::Node;

use crate::checks::{Checks, Violation};
use crate::model::{Blobs, Vector};
use crate::network::{Happening, Message, Party, Planned};
use crate::random::Random;
use crate::role::{Crash, Role};
use crate::scenario::{START_MS, Scenario};
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
}

/// A node with what it stores.
#[derive(Debug)]
pub(crate) struct NodeSide {
    pub(crate) role: Role<Node>,
    pub(crate) blobs: Blobs,
    skew_ms: u64,
    /// The version of the news that this life has taken.
    pub(crate) version: Option<u64>,
}

impl World {
    pub(crate) fn new(seed: u64, sabotage: Option<Sabotage>, tells_story: bool) -> Self {
        let mut random = Random::new(seed);
        let scenario = Scenario::new(&mut random);
        let coordinator = Role::new(scenario.coordinator_key.clone(), sabotage == Some(Sabotage::CoordinatorSkipsSync));
        let forgets = sabotage == Some(Sabotage::NodeSkipsSync);
        let node = |key: &tapestry_core::SecretKey| NodeSide {
            role: Role::new(key.clone(), forgets),
            blobs: Blobs::default(),
            skew_ms: 0,
            version: None,
        };
        let nodes = scenario.members.iter().map(|member| node(&member.key)).collect();
        let mut blobs = Blobs::default();
        blobs.put(Vector::adopted());
        let checks = Checks::new(&scenario);
        Self {
            now_ms: START_MS,
            queue: BinaryHeap::new(),
            num_planned: 0,
            random,
            scenario,
            sabotage,
            coordinator,
            blobs,
            coordinator_skew_ms: 0,
            nodes,
            checks,
            seen: vec![],
            trace: DigestHasher::new(),
            story: tells_story.then(Vec::new),
            num_messages: 0,
            num_crashes: 0,
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
            self.happen(happening)?;
            self.check()?;
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
        self.plan(self.now_ms + 1_000, Happening::Mischief);
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
                Party::Stranger => 0,
            }
    }

    /// Adds a line to the story.
    pub(crate) fn tell(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            story.push(format!("{:>8} ms  {}", self.now_ms - START_MS, line()));
        }
    }

    /// Where a crash falls around the next write.
    pub(crate) fn crash_of(random: &mut Random, probability: f64) -> Crash {
        match random.chance(probability) {
            false => Crash::No,
            true if random.chance(0.5) => Crash::BeforeDurable,
            true => Crash::AfterDurable,
        }
    }

    pub(crate) const fn crash_probability(&self) -> f64 {
        if self.is_calm() { 0.0 } else { self.scenario.weather.crash_per_write }
    }

    /// Sends a message, as well as the weather lets it.
    pub(crate) fn send(&mut self, from: Party, to: Party, message: Message) {
        let weather = &self.scenario.weather;
        let is_calm = self.is_calm();
        let (loss, duplication) = if is_calm { (0.0, 0.0) } else { (weather.loss, weather.duplication) };
        let max_delay_ms = if is_calm { 50 } else { weather.max_delay_ms };
        if self.random.chance(loss) {
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
                    Party::Stranger => Ok(()),
                }
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
            Party::Stranger => false,
        };
        if is_alive && (party == Party::Coordinator || self.has_node(party)) {
            self.died(party);
        }
    }

    fn has_node(&self, party: Party) -> bool {
        matches!(party, Party::Node(node) if self.scenario.members[node].character.has_node())
    }

    /// A process has ended; it will be started again.
    pub(crate) fn died(&mut self, party: Party) {
        self.num_crashes += 1;
        match party {
            Party::Coordinator => self.coordinator.die(),
            Party::Node(node) => self.nodes[node].role.die(),
            Party::Stranger => {}
        }
        let at_ms = self.now_ms + self.random.between(100, 5_000);
        self.tell(|| format!("{party:?} dies"));
        self.plan(at_ms, Happening::Starts { party });
    }

    fn start(&mut self, party: Party, is_first: bool) -> Result<(), Violation> {
        let skew_ms = if self.is_calm() { 0 } else { self.random.between(0, self.scenario.weather.max_clock_skew_ms) };
        self.tell(|| format!("{party:?} starts"));
        match party {
            Party::Coordinator => {
                self.coordinator_skew_ms = skew_ms;
                if !is_first {
                    self.coordinator.start()?;
                }
                self.coordinator_starts()
            }
            Party::Node(node) => {
                self.nodes[node].skew_ms = skew_ms;
                self.nodes[node].version = None;
                self.nodes[node].role.start()?;
                self.node_starts(node)
            }
            Party::Stranger => Ok(()),
        }
    }

    /// What must hold at every moment.
    fn check(&self) -> Result<(), Violation> {
        if !self.coordinator.is_fold_of_its_log() {
            return Err("the coordinator's state is not the fold of its log".into());
        }
        if let Some(state) = self.coordinator.state() {
            self.checks.coordinator_state(state)?;
        }
        for (number, node) in self.nodes.iter().enumerate() {
            if !node.role.is_fold_of_its_log() {
                return Err(format!("the state of node {number} is not the fold of its log"));
            }
            if let Some(state) = node.role.state() {
                self.checks.node_state(number, state)?;
            }
        }
        Ok(())
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
        self.coordinator.read_log()?;
        self.nodes[witness].role.read_log()?;
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
            simulated_ms: self.now_ms - START_MS,
        })
    }
}

impl Message {
    /// Its name in the story.
    pub(crate) const fn name(&self) -> &'static str {
        match self {
            Self::Ask { .. } => "ask",
            Self::Pull(_) => "pull",
            Self::Contribute(..) => "contribute",
            Self::Attend(_) => "attend",
            Self::NotTaken { .. } => "not taken",
            Self::AttendanceConfirmed { .. } => "attendance confirmed",
            Self::Decline(_) => "decline",
            Self::News(_) => "news",
            Self::Model(_) => "model",
            Self::Confirmed { .. } => "confirmed",
            Self::DeclineConfirmed { .. } => "decline confirmed",
        }
    }
}
