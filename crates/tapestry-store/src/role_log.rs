//! A role's log: events that are chained, signed and durable before anybody acts on them.

use crate::{LogError, LogStore};
use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::path::Path;
use tapestry_core::{PublicKey, SecretKey, Timestamp, to_canonical_json};
use tapestry_ledger::{Chain, ChainError, Entry};

/// The log of one role, open for appending. `E` is what an entry records.
#[derive(Debug)]
pub struct RoleLog<E> {
    store: LogStore,
    key: SecretKey,
    chain: Chain,
    events: PhantomData<fn(E) -> E>,
}

impl<E: Serialize + DeserializeOwned> RoleLog<E> {
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
        let (chain, entries) = verify_log_on(&store, founder).await?;
        Ok((Self { store, key, chain, events: PhantomData }, entries))
    }

    /// Reads and checks what others have written since.
    ///
    /// # Errors
    /// As [`Self::open`]; the log stands at the last entry that was read.
    pub async fn follow(&mut self) -> Result<Vec<Entry<E>>, LogError> {
        let mut entries = vec![];
        while let Some(content) = self.store.read(self.chain.num_entries() + 1).await? {
            entries.push(self.accept(&content)?);
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

    /// Takes over an entry that came from elsewhere: checked first, and durable on return.
    ///
    /// # Errors
    /// Where it is not the next of this log, or the store fails.
    pub async fn take(&mut self, content: Bytes) -> Result<Entry<E>, LogError> {
        let mut chain = self.chain.clone();
        let wrong = |source: ChainError| LogError::Chain { place: self.store.place().to_owned(), source };
        let entry = chain.accept_bytes(&content).map_err(wrong)?;
        self.store.append(entry.seq, content).await?;
        self.chain = chain;
        Ok(entry)
    }

    fn accept(&mut self, content: &[u8]) -> Result<Entry<E>, LogError> {
        let wrong = |source: ChainError| LogError::Chain { place: self.store.place().to_owned(), source };
        self.chain.accept_bytes(content).map_err(wrong)
    }

    /// Chains, signs and writes the next entry. It is durable on return; act on it only then.
    ///
    /// # Errors
    /// Where the entry is too long, the number is taken by another writer, or the store fails. The log then stands where
    /// it stood, and the same call may be made again.
    pub async fn append(&mut self, at: Timestamp, event: E) -> Result<Entry<E>, LogError> {
        self.append_naming(at, event, None).await
    }

    /// As [`Self::append`], and names who may take the log over after it.
    ///
    /// # Errors
    /// As [`Self::append`].
    pub async fn append_naming(
        &mut self,
        at: Timestamp,
        event: E,
        successors: Option<BTreeSet<PublicKey>>,
    ) -> Result<Entry<E>, LogError> {
        let wrong = |source| LogError::Chain { place: self.store.place().to_owned(), source };
        let signed = self.chain.seal_naming(at, event, successors, &self.key).map_err(|e| wrong(e.into()))?;
        let content = to_canonical_json(&signed).map_err(|e| wrong(e.into()))?;
        // Accepted on the side first: nothing that could not be read back is ever written.
        let mut chain = self.chain.clone();
        chain.accept(&signed).map_err(wrong)?;
        self.store.append(signed.document.seq, content.into()).await?;
        self.chain = chain;
        Ok(signed.document)
    }

    /// The end of the log: how many entries, and the digest of the last.
    #[must_use]
    pub const fn chain(&self) -> &Chain {
        &self.chain
    }
}

/// Reads and checks the log of `key`, which founded it, in `folder` without changing anything. With `serde_json::Value` for `E`, events
/// need not be known.
///
/// An honest log that lost its last entries verifies too: compare [`Chain::head`] with one that was noted elsewhere.
///
/// # Errors
/// Where the log has a gap, does not verify, or cannot be read.
pub async fn verify_log<E: Serialize + DeserializeOwned>(
    folder: &Path,
    key: PublicKey,
) -> Result<(Chain, Vec<Entry<E>>), LogError> {
    verify_log_on(&LogStore::open_to_read(folder)?, key).await
}

/// As [`verify_log`], on any store.
///
/// # Errors
/// As [`verify_log`].
pub async fn verify_log_on<E: Serialize + DeserializeOwned>(
    store: &LogStore,
    key: PublicKey,
) -> Result<(Chain, Vec<Entry<E>>), LogError> {
    let mut chain = Chain::new(key);
    let mut entries = vec![];
    let num_entries = store.num_entries().await?;
    for seq in 1..=num_entries {
        let content = store.read_existing(seq, num_entries).await?;
        let wrong = |source: ChainError| LogError::Chain { place: store.place().to_owned(), source };
        entries.push(chain.accept_bytes(&content).map_err(wrong)?);
    }
    Ok((chain, entries))
}
