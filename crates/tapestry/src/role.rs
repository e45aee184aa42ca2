//! A role's state as the fold of its log: written and synced first, applied after.

use crate::clock::now;
use crate::home::Home;
use crate::stores::Place;
use anyhow::{Context as _, Result};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use tapestry_core::{PublicKey, SecretKey};
use tapestry_ledger::Entry;
use tapestry_round::RoundError;
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent};
use tapestry_round::node::{Node, NodeEvent};
use tapestry_store::{LogIndex, LogStore, RoleLog};

/// A state machine that is the fold of a log.
pub(crate) trait Machine: Clone + Send {
    /// What its log holds.
    type Event: Serialize + DeserializeOwned + Send + Sync + 'static;

    /// The state of an empty log that `founder` founds.
    fn empty(founder: PublicKey) -> Self;

    /// Who may take the log over after an event, where that changes it.
    fn successors(&self, event: &Self::Event) -> Option<BTreeSet<PublicKey>>;

    /// Moves over one event.
    fn apply(&mut self, event: &Self::Event) -> Result<(), RoundError>;
}

impl Machine for Coordinator {
    type Event = CoordinatorEvent;

    fn successors(&self, event: &CoordinatorEvent) -> Option<BTreeSet<PublicKey>> {
        Self::successors(self, event)
    }

    fn empty(key: PublicKey) -> Self {
        Self::new(key)
    }

    fn apply(&mut self, event: &CoordinatorEvent) -> Result<(), RoundError> {
        Self::apply(self, event)
    }
}

impl Machine for Node {
    type Event = NodeEvent;

    fn successors(&self, event: &NodeEvent) -> Option<BTreeSet<PublicKey>> {
        Self::successors(self, event)
    }

    fn empty(key: PublicKey) -> Self {
        Self::new(key)
    }

    fn apply(&mut self, event: &NodeEvent) -> Result<(), RoundError> {
        Self::apply(self, event)
    }
}

/// A role: its state, and the log behind it.
pub(crate) struct Role<M: Machine> {
    state: M,
    log: RoleLog<M::Event>,
}

impl<M: Machine> Role<M> {
    /// Reads the log in `home`, checks it and folds it.
    pub(crate) async fn open(home: &Home, key: &SecretKey) -> Result<Self> {
        Self::open_on(Place::of(home)?.log().await?, key).await
    }

    /// As [`Self::open`], of a log that is elsewhere.
    pub(crate) async fn open_on(log: LogStore, key: &SecretKey) -> Result<Self> {
        let place = log.place().to_owned();
        let opened = RoleLog::open_shared(log, key.clone()).await;
        let (log, entries) = opened.with_context(|| format!("in {place}"))?;
        Self::fold(log, &entries)
    }

    /// As [`Self::open_on`], of a log that `founder` founded, even where it is still empty.
    pub(crate) async fn open_founded(log: LogStore, key: &SecretKey, founder: PublicKey) -> Result<Self> {
        let place = log.place().to_owned();
        let opened = RoleLog::open_founded(log, key.clone(), founder).await;
        let (log, entries) = opened.with_context(|| format!("in {place}"))?;
        Self::fold(log, &entries)
    }

    fn fold(log: RoleLog<M::Event>, entries: &[Entry<M::Event>]) -> Result<Self> {
        let mut role = Self { state: M::empty(log.chain().founder()), log };
        for entry in entries {
            role.apply(entry)?;
        }
        Ok(role)
    }

    fn apply(&mut self, entry: &Entry<M::Event>) -> Result<()> {
        let applied = self.state.apply(&entry.event);
        applied.with_context(|| format!("entry {} of the log cannot follow", entry.seq))
    }

    /// Takes up what another process has written to the log since; whether there was anything.
    pub(crate) async fn follow(&mut self) -> Result<bool> {
        let entries = self.log.follow().await?;
        for entry in &entries {
            self.apply(entry)?;
        }
        Ok(!entries.is_empty())
    }

    /// Takes up a commit that came from elsewhere: checked, then durable, then applied.
    pub(crate) async fn take(&mut self, content: Bytes) -> Result<()> {
        for entry in self.log.take(content).await? {
            self.apply(&entry)?;
        }
        Ok(())
    }

    /// Whether somebody else has written to the log: then this process has no say any more.
    pub(crate) async fn is_overtaken(&self) -> Result<bool> {
        Ok(self.log.is_overtaken().await?)
    }

    pub(crate) const fn state(&self) -> &M {
        &self.state
    }

    /// For proofs about the log, which see what is recorded later.
    pub(crate) const fn index(&self) -> &LogIndex {
        self.log.index()
    }

    /// Makes events durable, all of them as one commit, and moves the state over them.
    ///
    /// # Errors
    /// The state stands where it stood.
    pub(crate) async fn record(&mut self, events: Vec<M::Event>) -> Result<()> {
        let mut next = self.state.clone();
        let mut named = vec![];
        for event in events {
            next.apply(&event)?;
            let successors = next.successors(&event);
            named.push((event, successors));
        }
        self.log.append_all(now(), named).await?;
        self.state = next;
        Ok(())
    }
}
