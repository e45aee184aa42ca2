//! A role's state as the fold of its log: written and synced first, applied after.

use crate::clock::now;
use crate::home::Home;
use anyhow::{Context as _, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tapestry_core::{PublicKey, SecretKey};
use tapestry_round::RoundError;
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent};
use tapestry_round::node::{Node, NodeEvent};
use tapestry_store::{BlobStore, RoleLog};

/// A state machine that is the fold of a log.
pub(crate) trait Machine: Clone + Send {
    /// What its log holds.
    type Event: Serialize + DeserializeOwned + Send + Sync;

    /// The state of an empty log.
    fn empty(key: PublicKey) -> Self;

    /// Moves over one event.
    fn apply(&mut self, event: &Self::Event) -> Result<(), RoundError>;
}

impl Machine for Coordinator {
    type Event = CoordinatorEvent;

    fn empty(key: PublicKey) -> Self {
        Self::new(key)
    }

    fn apply(&mut self, event: &CoordinatorEvent) -> Result<(), RoundError> {
        Self::apply(self, event)
    }
}

impl Machine for Node {
    type Event = NodeEvent;

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
        let dir = home.log_dir();
        let (log, entries) = RoleLog::open(&dir, key.clone()).await.with_context(|| format!("in {}", dir.display()))?;
        let mut state = M::empty(key.public());
        for entry in &entries {
            let applied = state.apply(&entry.event);
            applied.with_context(|| format!("entry {} of the log in {} cannot follow", entry.seq, dir.display()))?;
        }
        Ok(Self { state, log })
    }

    pub(crate) const fn state(&self) -> &M {
        &self.state
    }

    /// Makes events durable, one by one, and moves the state over each.
    ///
    /// # Errors
    /// The state stands at the last durable event.
    pub(crate) async fn record(&mut self, events: Vec<M::Event>) -> Result<()> {
        for event in events {
            let mut next = self.state.clone();
            next.apply(&event)?;
            self.log.append(now(), event).await?;
            self.state = next;
        }
        Ok(())
    }
}

/// The blobs of a role.
pub(crate) async fn open_blobs(home: &Home) -> Result<BlobStore> {
    let dir = home.blobs_dir();
    BlobStore::open_folder(&dir).await.with_context(|| format!("cannot open the blobs in {}", dir.display()))
}
