//! A role with its real log.

use crate::checks::Violation;
use crate::role::Machine;
use tapestry_core::{PublicKey, SecretKey, Timestamp};
use tapestry_ledger::{Chain, Tree};

/// A log in memory, and the state that it adds up to.
#[derive(Debug, Clone)]
pub(super) struct Ledger<M: Machine> {
    founder: PublicKey,
    pub(super) key: SecretKey,
    pub(super) chain: Chain,
    pub(super) tree: Tree,
    commits: Vec<Vec<u8>>,
    pub(super) state: M,
}

impl<M: Machine> Ledger<M> {
    pub(super) fn new(key: SecretKey) -> Self {
        let founder = key.public();
        let (chain, state) = (Chain::new(founder), M::empty(founder));
        Self { founder, key, chain, tree: Tree::default(), commits: vec![], state }
    }

    /// Writes events as one commit, reads them back from its bytes, and moves the state.
    pub(super) fn write(&mut self, now: Timestamp, events: Vec<M::Event>) -> Result<(), Violation> {
        if events.is_empty() {
            return Ok(());
        }
        let mut next = self.state.clone();
        let mut named = vec![];
        for event in events {
            next.apply(&event).map_err(|e| format!("a decided event does not follow: {e}"))?;
            let successors = next.successors(&event);
            named.push((event, successors));
        }
        let bytes = self.chain.seal(now, named, &self.key).map_err(|e| format!("cannot be written: {e}"))?;
        self.take(bytes)?;
        if self.state == next { Ok(()) } else { Err("the fold of the log is not the state".into()) }
    }

    fn take(&mut self, bytes: Vec<u8>) -> Result<(), Violation> {
        let read = self.chain.accept::<M::Event>(&bytes).map_err(|e| format!("the log does not verify: {e}"))?;
        for entry in &read.entries {
            self.state.apply(&entry.event).map_err(|e| format!("the log cannot be folded: {e}"))?;
        }
        self.tree.extend(read.leaves);
        self.commits.push(bytes);
        Ok(())
    }

    /// Dies and starts again: from the bytes alone.
    pub(super) fn restart(&mut self) -> Result<(), Violation> {
        let again = self.cut(self.commits.len())?;
        if again.state != self.state {
            return Err("the fold of the log is not the state that it was".into());
        }
        *self = again;
        Ok(())
    }

    /// The log of its first commits.
    pub(super) fn cut(&self, num_commits: usize) -> Result<Self, Violation> {
        let mut cut = Self { founder: self.founder, ..Self::new(self.key.clone()) };
        (cut.chain, cut.state) = (Chain::new(self.founder), M::empty(self.founder));
        self.commits.iter().take(num_commits).try_for_each(|bytes| cut.take(bytes.clone()))?;
        Ok(cut)
    }

    pub(super) const fn num_commits(&self) -> usize {
        self.commits.len()
    }
}
