//! A role: a state machine, its durable log, and what is lost when its process dies.
//!
//! Drives the machines by the same contract as the binary: decide, write, sync, apply, then act. A crash can fall at every point of a write
//! ([`Fate`]), and a power loss takes what was not synced.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use tapestry_core::{PublicKey, SecretKey, Timestamp};
use tapestry_ledger::Chain;
use tapestry_round::RoundError;
use tapestry_round::coordinator::{Coordinator, CoordinatorEffect, CoordinatorEvent, CoordinatorInput};
use tapestry_round::node::{Node, NodeEffect, NodeEvent, NodeInput};

use crate::checks::Violation;
use crate::random::Random;

/// A state machine that is the fold of a log.
pub(crate) trait Machine: Clone + PartialEq + std::fmt::Debug {
    type Event: Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug;
    type Input;
    type Effect: Clone + PartialEq + std::fmt::Debug;

    fn empty(key: PublicKey) -> Self;
    fn handle(&self, now: Timestamp, input: Self::Input) -> Result<Vec<Self::Event>, RoundError>;
    fn apply(&mut self, event: &Self::Event) -> Result<(), RoundError>;
    fn pending(&self) -> Vec<Self::Effect>;
    fn successors(&self, event: &Self::Event) -> Option<BTreeSet<PublicKey>>;
}

macro_rules! machine {
    ($machine:ty, $event:ty, $input:ty, $effect:ty, $successors:expr) => {
        impl Machine for $machine {
            type Event = $event;
            type Input = $input;
            type Effect = $effect;

            fn empty(key: PublicKey) -> Self {
                Self::new(key)
            }

            fn handle(&self, now: Timestamp, input: $input) -> Result<Vec<$event>, RoundError> {
                Self::handle(self, now, input)
            }

            fn apply(&mut self, event: &$event) -> Result<(), RoundError> {
                Self::apply(self, event)
            }

            fn pending(&self) -> Vec<$effect> {
                Self::pending(self)
            }

            fn successors(&self, event: &$event) -> Option<BTreeSet<PublicKey>> {
                ($successors)(self, event)
            }
        }
    };
}

machine!(Coordinator, CoordinatorEvent, CoordinatorInput, CoordinatorEffect, Coordinator::successors);
machine!(Node, NodeEvent, NodeInput, NodeEffect, Node::successors);

/// What becomes of one write. A write is whole or not there: a temporary file that is synced and renamed leaves nothing half done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is durable, and confirmed.
    Done,
    /// The process dies before anything can be seen of it. A torn temporary file is the same: nobody reads it.
    DiesBefore,
    /// The process dies when the entry can be seen and is not synced: a power loss may take it away again.
    DiesUnsynced,
    /// The process dies when it is durable and nobody was told.
    DiesAfter,
    /// The disk is full: nothing is written.
    DiskFull,
}

/// A party that keeps a log.
#[derive(Debug)]
pub(crate) struct Role<M: Machine> {
    /// Whose log it is.
    founder: PublicKey,
    /// Who writes it now.
    key: SecretKey,
    /// None while its process is dead.
    state: Option<M>,
    /// What can be seen of the log: its entries as bytes, each in a commit of its own.
    entries: Vec<Vec<u8>>,
    /// The same, as they were read and verified once, with the end of the chain after each.
    read: Vec<(Timestamp, M::Event, Chain)>,
    /// How many of them a power loss leaves.
    num_synced: usize,
    /// A fault of the driver: it acts on what is not synced yet.
    forgets_to_sync: bool,
    /// The fold of the events that somebody may have acted on, kept apart from the state.
    fold: M,
    num_folded: usize,
    /// How often it was started; work of an earlier life is lost.
    life: u32,
    /// Work that is under way.
    doing: Vec<M::Effect>,
}

/// What became of an input.
#[derive(Debug)]
pub(crate) struct Taken<E> {
    /// The events that are durable now, each with its time.
    pub(crate) events: Vec<(Timestamp, E)>,
    /// Whether the process died on the way.
    pub(crate) died: bool,
}

impl<M: Machine> Role<M> {
    pub(crate) fn new(key: SecretKey, forgets_to_sync: bool) -> Self {
        let public = key.public();
        Self {
            founder: public,
            key,
            state: Some(M::empty(public)),
            entries: vec![],
            read: vec![],
            num_synced: 0,
            forgets_to_sync,
            fold: M::empty(public),
            num_folded: 0,
            life: 1,
            doing: vec![],
        }
    }

    pub(crate) const fn key(&self) -> &SecretKey {
        &self.key
    }

    /// Another process, perhaps on another machine, is the one that starts next on this log. This one is gone.
    pub(crate) fn pass_to(&mut self, key: SecretKey) {
        self.die();
        self.key = key;
    }

    /// The log is with its founder where nobody else can have it.
    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(crate) const fn state(&self) -> Option<&M> {
        self.state.as_ref()
    }

    pub(crate) const fn life(&self) -> u32 {
        self.life
    }

    pub(crate) fn log(&self) -> &[Vec<u8>] {
        &self.entries
    }

    fn chain(&self) -> Chain {
        self.read.last().map_or_else(|| Chain::new(self.founder), |(_, _, chain)| chain.clone())
    }

    /// The clock of this role, which never runs behind its log.
    pub(crate) fn now(&self, clock_ms: u64) -> Timestamp {
        Timestamp::from_ms(clock_ms).max(self.chain().last_at())
    }

    /// Decides on `input` and makes what follows durable.
    ///
    /// # Errors
    /// Those of [`Role::write`]; the inner error is the machine's. Nothing happens where there is no process.
    pub(crate) fn input(
        &mut self,
        clock_ms: u64,
        input: M::Input,
        fate: &mut dyn FnMut() -> Fate,
    ) -> Result<Result<Taken<M::Event>, RoundError>, Violation> {
        let now = self.now(clock_ms);
        let Some(state) = &self.state else { return Ok(Ok(Taken { events: vec![], died: false })) };
        match state.handle(now, input) {
            Ok(events) => self.write(now, events, fate).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Makes events durable one by one and moves the state over each. A full disk ends the process, as it does the binary's: the state never
    /// runs ahead of the log.
    ///
    /// # Errors
    /// Where an event cannot be written, read back, or applied: a decided event always can.
    pub(crate) fn write(
        &mut self,
        now: Timestamp,
        events: Vec<M::Event>,
        fate: &mut dyn FnMut() -> Fate,
    ) -> Result<Taken<M::Event>, Violation> {
        let mut durable = vec![];
        for event in events {
            let fate = fate();
            if matches!(fate, Fate::DiesBefore | Fate::DiskFull) {
                self.die();
                return Ok(Taken { events: durable, died: true });
            }
            let (at, event) = self.append(now, event)?;
            if fate == Fate::DiesUnsynced {
                self.die();
                return Ok(Taken { events: durable, died: true });
            }
            // A driver that forgets to sync leaves that to the write after.
            self.num_synced = self.entries.len() - usize::from(self.forgets_to_sync);
            self.fold_further()?;
            durable.push((at, event.clone()));
            if fate == Fate::DiesAfter {
                self.die();
                return Ok(Taken { events: durable, died: true });
            }
            let state = self.state.as_mut().ok_or("a dead role writes")?;
            state.apply(&event).map_err(|e| format!("a decided event does not follow: {e}"))?;
        }
        Ok(Taken { events: durable, died: false })
    }

    /// Writes an entry and reads it again from its bytes, which is where its signature and its place in the chain are verified.
    fn append(&mut self, now: Timestamp, event: M::Event) -> Result<(Timestamp, M::Event), Violation> {
        let mut chain = self.chain();
        // As the binary does: whom an event makes a successor, the state after it says.
        let successors = match self.state.clone() {
            Some(mut next) => {
                next.apply(&event).map_err(|e| format!("a decided event does not follow: {e}"))?;
                next.successors(&event)
            }
            None => None,
        };
        let bytes = chain.seal(now, vec![(event.clone(), successors)], &self.key);
        let bytes = bytes.map_err(|e| format!("an event cannot be written: {e}: {event:?}"))?;
        let read = chain.accept::<M::Event>(&bytes);
        let read = read.map_err(|e| format!("a written entry cannot be read: {e}: {event:?}"))?;
        let [read] = read.entries.as_slice() else { return Err("one event gave other than one entry".into()) };
        if read.event != event {
            return Err(format!("an event does not survive its JSON form: {event:?}"));
        }
        self.entries.push(bytes);
        self.read.push((read.at, read.event.clone(), chain));
        Ok((read.at, read.event.clone()))
    }

    fn fold_further(&mut self) -> Result<(), Violation> {
        for (_, event, _) in &self.read[self.num_folded..] {
            self.fold.apply(event).map_err(|e| format!("a decided event does not follow: {e}"))?;
        }
        self.num_folded = self.read.len();
        Ok(())
    }

    /// The process ends, with everything that was only in its memory. What it wrote stays visible, synced or not.
    pub(crate) fn die(&mut self) {
        self.state = None;
        self.doing.clear();
    }

    /// The machine loses power: of what was not synced, any number of the first entries is left.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        let num_left = self.num_synced + random.index(self.entries.len() - self.num_synced + 1);
        self.entries.truncate(num_left);
        self.read.truncate(num_left);
    }

    /// A new process makes durable what it finds, and folds it. Gives the events that nobody has seen before: written, and not confirmed.
    ///
    /// # Errors
    /// Where the fold of the log is not the state that the role was in.
    pub(crate) fn start(&mut self, trusts_what_it_finds: bool) -> Result<Vec<(Timestamp, M::Event)>, Violation> {
        if !trusts_what_it_finds {
            self.num_synced = self.entries.len();
        }
        let mut state = M::empty(self.founder);
        for (_, event, _) in &self.read {
            state.apply(event).map_err(|e| e.to_string())?;
        }
        let new = self.read.get(self.num_folded..).unwrap_or_default();
        let new: Vec<_> = new.iter().map(|(at, event, _)| (*at, event.clone())).collect();
        if self.forgets_to_sync {
            (self.fold, self.num_folded) = (state.clone(), self.read.len());
        } else {
            if self.num_folded > self.read.len() {
                return Err("an entry of the log that was acted on is gone".into());
            }
            self.fold_further()?;
            if state != self.fold {
                return Err(format!("the fold of the log is not the state: {state:?} and {:?}", self.fold));
            }
        }
        self.state = Some(state);
        self.life += 1;
        Ok(new)
    }

    /// The end of the chain and the fold of the log, from its bytes alone: every signature is verified again.
    ///
    /// # Errors
    /// Where the log does not verify, or an event cannot follow, or it is not the log that was acted on.
    pub(crate) fn verify_log(&self) -> Result<(), Violation> {
        let (mut chain, mut state) = (Chain::new(self.founder), M::empty(self.founder));
        for bytes in &self.entries {
            let read = chain.accept::<M::Event>(bytes).map_err(|e| format!("the log does not verify: {e}"))?;
            for entry in &read.entries {
                state.apply(&entry.event).map_err(|e| e.to_string())?;
            }
        }
        let is_same = self.num_folded != self.entries.len() || state == self.fold;
        if is_same { Ok(()) } else { Err("the log from its bytes is not the log that was acted on".into()) }
    }

    /// Changes one byte of the durable log: a fault that only its verification can notice.
    pub(crate) fn corrupt_log(&mut self, random: &mut Random) {
        let number = random.index(self.entries.len().max(1));
        if let Some(entry) = self.entries.get_mut(number) {
            // A digit of the entry's own time or number: the JSON stays well formed.
            let digits: Vec<usize> = (0..entry.len()).filter(|at| entry[*at] == b'1').collect();
            if let Some(at) = digits.get(random.index(digits.len().max(1))) {
                entry[*at] = b'2';
            }
        }
    }

    /// Whether the living state is the fold of what was written.
    pub(crate) fn is_fold_of_its_log(&self) -> bool {
        self.state.as_ref().is_none_or(|state| *state == self.fold)
    }

    /// Work that the state waits for and nobody does yet; marks it as under way.
    pub(crate) fn take_work(&mut self) -> Vec<M::Effect> {
        let Some(state) = &self.state else { return vec![] };
        let new: Vec<_> = state.pending().into_iter().filter(|effect| !self.doing.contains(effect)).collect();
        self.doing.extend(new.iter().cloned());
        new
    }

    /// Work that ended, in whatever way.
    pub(crate) fn work_ended(&mut self, effect: &M::Effect) {
        self.doing.retain(|doing| doing != effect);
    }
}
