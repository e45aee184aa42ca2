//! A role: a state machine, its durable log, and what is lost when its process dies.
//!
//! Drives the machines by the same contract as the binary: decide, write, sync, apply, then act. A crash can fall before
//! an entry is durable (it never was), or right after (it was, and nobody has acted on it).

use serde::Serialize;
use serde::de::DeserializeOwned;
use tapestry_core::{PublicKey, SecretKey, Timestamp};
use tapestry_ledger::Chain;
use tapestry_round::RoundError;
use tapestry_round::coordinator::{Coordinator, CoordinatorEffect, CoordinatorEvent, CoordinatorInput};
use tapestry_round::node::{Node, NodeEffect, NodeEvent, NodeInput};

use crate::checks::Violation;

/// A state machine that is the fold of a log.
pub(crate) trait Machine: Clone + PartialEq + std::fmt::Debug {
    type Event: Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug;
    type Input;
    type Effect: Clone + PartialEq + std::fmt::Debug;

    fn empty(key: PublicKey) -> Self;
    fn handle(&self, now: Timestamp, input: Self::Input) -> Result<Vec<Self::Event>, RoundError>;
    fn apply(&mut self, event: &Self::Event) -> Result<(), RoundError>;
    fn pending(&self) -> Vec<Self::Effect>;
}

macro_rules! machine {
    ($machine:ty, $event:ty, $input:ty, $effect:ty) => {
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
        }
    };
}

machine!(Coordinator, CoordinatorEvent, CoordinatorInput, CoordinatorEffect);
machine!(Node, NodeEvent, NodeInput, NodeEffect);

/// Where a crash falls around one write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crash {
    No,
    BeforeDurable,
    AfterDurable,
}

/// A party that keeps a log.
#[derive(Debug)]
pub(crate) struct Role<M: Machine> {
    key: SecretKey,
    /// None while its process is dead.
    state: Option<M>,
    chain: Chain,
    /// The durable log.
    entries: Vec<Vec<u8>>,
    /// Written and not synced: lost with the process. Always empty unless the driver is sabotaged.
    unsynced: Vec<Vec<u8>>,
    forgets_to_sync: bool,
    /// The fold of the log's bytes, kept apart from the state.
    fold: M,
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
            key,
            state: Some(M::empty(public)),
            chain: Chain::new(public),
            entries: vec![],
            unsynced: vec![],
            forgets_to_sync,
            fold: M::empty(public),
            life: 1,
            doing: vec![],
        }
    }

    pub(crate) const fn key(&self) -> &SecretKey {
        &self.key
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

    /// The clock of this role, which never runs behind its log.
    pub(crate) fn now(&self, clock_ms: u64) -> Timestamp {
        Timestamp::from_ms(clock_ms).max(self.chain.last_at())
    }

    /// Decides on `input` and makes what follows durable.
    ///
    /// # Errors
    /// Those of [`Role::write`]; the inner error is the machine's. Nothing happens where there is no process.
    pub(crate) fn input(
        &mut self,
        clock_ms: u64,
        input: M::Input,
        crash: &mut dyn FnMut() -> Crash,
    ) -> Result<Result<Taken<M::Event>, RoundError>, Violation> {
        let now = self.now(clock_ms);
        let Some(state) = &self.state else { return Ok(Ok(Taken { events: vec![], died: false })) };
        match state.handle(now, input) {
            Ok(events) => self.write(now, events, crash).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    /// Makes events durable one by one and moves the state over each.
    ///
    /// # Errors
    /// Where an event cannot be written, read back, or applied: a decided event always can.
    pub(crate) fn write(
        &mut self,
        now: Timestamp,
        events: Vec<M::Event>,
        crash: &mut dyn FnMut() -> Crash,
    ) -> Result<Taken<M::Event>, Violation> {
        let mut durable = vec![];
        for event in events {
            let fate = crash();
            if fate == Crash::BeforeDurable {
                self.die();
                return Ok(Taken { events: durable, died: true });
            }
            let entry = self.chain.seal(now, event.clone(), &self.key);
            let entry = entry.map_err(|e| format!("an event has no canonical form: {e}: {event:?}"))?;
            let bytes = serde_json::to_vec(&entry).map_err(|e| format!("an entry does not serialise: {e}"))?;
            let read = self.chain.accept_bytes::<M::Event>(&bytes);
            let read = read.map_err(|e| format!("a written entry cannot be read: {e}: {event:?}"))?;
            if read.event != event {
                return Err(format!("an event does not survive its JSON form: {event:?}"));
            }
            self.fold.apply(&read.event).map_err(|e| format!("a decided event does not follow: {e}"))?;
            if self.forgets_to_sync {
                self.entries.append(&mut self.unsynced);
                self.unsynced.push(bytes);
            } else {
                self.entries.push(bytes);
            }
            durable.push((read.at, read.event));
            if fate == Crash::AfterDurable {
                self.die();
                return Ok(Taken { events: durable, died: true });
            }
            let state = self.state.as_mut().ok_or("a dead role writes")?;
            state.apply(&event).map_err(|e| format!("a decided event does not follow: {e}"))?;
        }
        Ok(Taken { events: durable, died: false })
    }

    /// The process ends, with everything that was only in its memory.
    pub(crate) fn die(&mut self) {
        self.state = None;
        self.unsynced.clear();
        self.doing.clear();
    }

    /// A new process reads the log, checks every entry and folds it.
    ///
    /// # Errors
    /// Where the log does not verify, or its fold is not the state that the role was in.
    pub(crate) fn start(&mut self) -> Result<(), Violation> {
        let (chain, state) = self.read_log()?;
        if !self.forgets_to_sync && state != self.fold {
            return Err(format!("the fold of the log is not the state: {state:?} and {:?}", self.fold));
        }
        self.fold = state.clone();
        (self.chain, self.state) = (chain, Some(state));
        self.life += 1;
        Ok(())
    }

    /// The end of the chain and the fold of the log, from its bytes alone.
    ///
    /// # Errors
    /// Where the log does not verify, or an event cannot follow.
    pub(crate) fn read_log(&self) -> Result<(Chain, M), Violation> {
        let public = self.key.public();
        let (mut chain, mut state) = (Chain::new(public), M::empty(public));
        for bytes in &self.entries {
            let entry = chain.accept_bytes::<M::Event>(bytes).map_err(|e| e.to_string())?;
            state.apply(&entry.event).map_err(|e| e.to_string())?;
        }
        Ok((chain, state))
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
