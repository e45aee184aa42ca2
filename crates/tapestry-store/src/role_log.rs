//! A role's log: events that are in a Merkle tree, signed and durable before anybody acts on them.

use crate::{LogError, LogIndex, LogStore, StoreError};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::path::Path;
use tapestry_core::{PublicKey, SecretKey, Timestamp};
use tapestry_ledger::{Chain, Commit, Entry};

/// Commits that are read at once.
const NUM_READ_AHEAD: usize = 16;

/// The log of one role, open for appending. `E` is what an entry records.
#[derive(Debug)]
pub struct RoleLog<E> {
    store: LogStore,
    key: SecretKey,
    chain: Chain,
    index: LogIndex,
    events: PhantomData<fn(E) -> E>,
}

/// A whole log that was read and checked.
#[derive(Debug)]
pub struct LogContent<E> {
    /// Its end.
    pub chain: Chain,
    /// For proofs, and for its entries as they are stored.
    pub index: LogIndex,
    /// Its entries.
    pub entries: Vec<Entry<E>>,
}

impl<E: Serialize + DeserializeOwned + Send + 'static> RoleLog<E> {
    /// Opens the log in `folder`, which is made where it is missing, and gives its entries, all of them checked.
    ///
    /// # Errors
    /// Where the log has a gap, does not verify under `key`, or cannot be read.
    pub async fn open(folder: &Path, key: SecretKey) -> Result<(Self, Vec<Entry<E>>), LogError> {
        Self::open_on(LogStore::open(folder)?, key).await
    }

    /// As [`Self::open`], on any store.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_on(store: LogStore, key: SecretKey) -> Result<(Self, Vec<Entry<E>>), LogError> {
        let founder = key.public();
        Self::open_founded(store, key, founder).await
    }

    /// As [`Self::open_on`], of a log that another may have founded: `key` may write where the log names it as a
    /// successor. Whether the founder is who it should be, the caller asks of [`Chain::founder`].
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_shared(store: LogStore, key: SecretKey) -> Result<(Self, Vec<Entry<E>>), LogError> {
        let founder = store.founder().await?.unwrap_or_else(|| key.public());
        Self::open_founded(store, key, founder).await
    }

    /// As [`Self::open_shared`], of a log that `founder` founded, even where it is still empty.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub async fn open_founded(
        store: LogStore,
        key: SecretKey,
        founder: PublicKey,
    ) -> Result<(Self, Vec<Entry<E>>), LogError> {
        let LogContent { chain, index, entries } = read_log(&store, founder).await?;
        Ok((Self { store, key, chain, index, events: PhantomData }, entries))
    }

    /// Reads and checks what others have written since.
    ///
    /// # Errors
    /// As [`Self::open`]; the log stands at the last commit that was read.
    pub async fn follow(&mut self) -> Result<Vec<Entry<E>>, LogError> {
        let mut entries = vec![];
        while let Some(content) = self.store.read(self.chain.num_entries() + 1).await? {
            entries.extend(self.accept(&content)?);
        }
        Ok(entries)
    }

    /// Whether somebody else has written the next entry: then this is no longer the log's writer.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn is_overtaken(&self) -> Result<bool, LogError> {
        self.store.has(self.chain.num_entries() + 1).await
    }

    /// Takes over a commit that came from elsewhere: checked first, and durable on return.
    ///
    /// # Errors
    /// Where it is not the next of this log, or the store fails.
    pub async fn take(&mut self, content: Bytes) -> Result<Vec<Entry<E>>, LogError> {
        self.chain.clone().accept::<E>(&content).map_err(|error| self.store.wrong(error))?;
        self.store.append(self.chain.num_entries() + 1, content.clone()).await?;
        self.accept(&content)
    }

    fn accept(&mut self, content: &[u8]) -> Result<Vec<Entry<E>>, LogError> {
        let accepted = self.chain.accept(content).map_err(|error| self.store.wrong(error))?;
        self.index.grow(accepted.leaves, self.chain.sealed().cloned());
        Ok(accepted.entries)
    }

    /// Signs and writes the next entry. It is durable on return; act on it only then.
    ///
    /// # Errors
    /// As [`Self::append_all`].
    pub async fn append(&mut self, at: Timestamp, event: E) -> Result<Entry<E>, LogError> {
        let entries = self.append_all(at, vec![(event, None)]).await?;
        Ok(entries.into_iter().next().expect("one event gives one entry"))
    }

    /// Signs and writes events, each with those whom it names as successors, as one commit: all of them are durable on return,
    /// or none is. Act on them only then. No events are no commit.
    ///
    /// # Errors
    /// Where an entry is too long, the number is taken by another writer, or the store fails. The log then stands where
    /// it stood, and the same call may be made again.
    pub async fn append_all(
        &mut self,
        at: Timestamp,
        events: Vec<(E, Option<BTreeSet<PublicKey>>)>,
    ) -> Result<Vec<Entry<E>>, LogError> {
        if events.is_empty() {
            return Ok(vec![]);
        }
        let content: Bytes = self.chain.seal(at, events, &self.key).map_err(|error| self.store.wrong(error))?.into();
        // Accepted on the side first: nothing that could not be read back is ever written.
        let mut chain = self.chain.clone();
        let accepted = chain.accept(&content).map_err(|error| self.store.wrong(error))?;
        self.store.append(self.chain.num_entries() + 1, content).await?;
        self.chain = chain;
        self.index.grow(accepted.leaves, self.chain.sealed().cloned());
        Ok(accepted.entries)
    }

    /// The end of the log: how many entries, their root, and the last checkpoint.
    #[must_use]
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }

    /// For proofs, and for its entries as they are stored. It sees what is appended later.
    #[must_use]
    pub const fn index(&self) -> &LogIndex {
        &self.index
    }
}

/// Reads and checks the log that `founder` founded, on any store, without changing anything. With `serde_json::Value` for `E`,
/// events need not be known.
///
/// An honest log that lost its last entries verifies too: compare [`Chain::root`] with a checkpoint that was noted elsewhere.
///
/// # Errors
/// Where the log has a gap, does not verify, or cannot be read.
pub async fn read_log<E: DeserializeOwned + Send + 'static>(
    store: &LogStore,
    founder: PublicKey,
) -> Result<LogContent<E>, LogError> {
    let listing = store.listing().await?;
    let (mut chain, index, mut entries) = (Chain::new(founder), LogIndex::new(store.clone()), vec![]);
    let mut commits = futures::stream::iter(listing.commits)
        .map(|first| async move {
            let content = store.read_existing(first).await?;
            // Reading entries and hashing them needs nothing of what comes before: it takes every processor there is.
            let read = tokio::task::spawn_blocking(move || Commit::read(first, &content)).await;
            let commit = read.map_err(|_| StoreError::Interrupted)?.map_err(|error| store.wrong(error))?;
            Ok::<_, LogError>((first, commit))
        })
        .buffered(NUM_READ_AHEAD);
    while let Some((first, commit)) = commits.try_next().await? {
        let due = chain.num_entries() + 1;
        if first != due {
            return Err(store.gap(due, first));
        }
        let accepted = chain.place(commit).map_err(|error| store.wrong(error))?;
        index.grow(accepted.leaves, None);
        entries.extend(accepted.entries);
    }
    index.seal(chain.sealed().cloned());
    if chain.num_entries() < listing.num_older {
        let num_left = listing.num_older - chain.num_entries();
        return Err(LogError::OlderForm { place: store.place().to_owned(), num_left });
    }
    Ok(LogContent { chain, index, entries })
}

/// As [`verify_log_on`], in a folder.
///
/// # Errors
/// As [`read_log`].
pub async fn verify_log<E: DeserializeOwned + Send + 'static>(
    folder: &Path,
    founder: PublicKey,
) -> Result<(Chain, Vec<Entry<E>>), LogError> {
    verify_log_on(&LogStore::open_to_read(folder)?, founder).await
}

/// Reads and checks a log: its end, and its entries.
///
/// # Errors
/// As [`read_log`].
pub async fn verify_log_on<E: DeserializeOwned + Send + 'static>(
    store: &LogStore,
    founder: PublicKey,
) -> Result<(Chain, Vec<Entry<E>>), LogError> {
    let LogContent { chain, entries, .. } = read_log(store, founder).await?;
    Ok((chain, entries))
}
