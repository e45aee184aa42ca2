//! The append-only log of a role: every entry is chained to the one before it and signed by the role's key.
//!
//! An entry is a [`Signed`] document with its number, the digest of the entry before it, a time and an event. The first
//! entry is chained to the key itself, so a log cannot be passed off as another role's. Changing, dropping, inserting or
//! reordering an entry breaks the chain; re-making the chain needs the key. What this does *not* prevent is the key's
//! owner rewriting its own history, or showing two histories to two readers: that takes witnesses (SECURITY.md).
//!
//! Pure: bytes in, verdict out. Where entries are kept is the store's business.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tapestry_core::{CanonicalError, Digest, Document, PublicKey, SecretKey, Signed, SignedError, Timestamp};

/// One entry of a log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry<E> {
    /// The number of the entry, from 1.
    pub seq: u64,
    /// The digest of the entry before it; for entry 1 the digest that stands for the key ([`Chain::new`]).
    pub previous: Digest,
    /// When it was written, by the writer's clock; never before the entry before it.
    pub at: Timestamp,
    /// What happened.
    pub event: E,
}

impl<E: Serialize> Document for Entry<E> {
    const DOMAIN: &'static str = "log-entry/1";
}

/// The end of a log, which decides what the next entry must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chain {
    key: PublicKey,
    num_entries: u64,
    head: Digest,
    last_at: Timestamp,
}

/// Why an entry cannot be the next of a log.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// An entry is missing, repeated or out of order.
    #[error("log entry {expected} is missing: found entry {found} in its place")]
    Number {
        /// The number due.
        expected: u64,
        /// The number found.
        found: u64,
    },
    /// The entry does not follow from the one before it.
    #[error(
        "log entry {seq} does not follow from the entry before it: expected previous digest {expected}, found {found}; an entry was changed, dropped or inserted"
    )]
    Broken {
        /// The entry.
        seq: u64,
        /// The digest of the entry before it.
        expected: Digest,
        /// The digest that it names.
        found: Digest,
    },
    /// Time runs backwards.
    #[error("log entry {seq} is dated {found}, before the entry before it ({previous})")]
    Time {
        /// The entry.
        seq: u64,
        /// Its time.
        found: Timestamp,
        /// The time of the entry before it.
        previous: Timestamp,
    },
    /// The signature is missing or false.
    #[error("log entry {seq}: {source}")]
    Signature {
        /// The entry.
        seq: u64,
        /// What is wrong.
        source: SignedError,
    },
    /// The bytes are not an entry.
    #[error("log entry {seq} cannot be read: {reason}")]
    Unreadable {
        /// The number due.
        seq: u64,
        /// What the parser said.
        reason: String,
    },
    /// The entry has no canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

/// An entry longer than this is not read.
pub const MAX_ENTRY_BYTES: usize = 4 << 20;

impl Chain {
    /// The empty log of `key`.
    #[must_use]
    pub fn new(key: PublicKey) -> Self {
        let head = Digest::of(format!("tapestry:log/1\n{key}").as_bytes());
        Self { key, num_entries: 0, head, last_at: Timestamp::from_ms(0) }
    }

    /// How many entries the log has.
    #[must_use]
    pub const fn num_entries(&self) -> u64 {
        self.num_entries
    }

    /// The digest of the last entry: whoever holds it can tell whether the log before it was changed.
    #[must_use]
    pub const fn head(&self) -> Digest {
        self.head
    }

    /// The time of the last entry.
    #[must_use]
    pub const fn last_at(&self) -> Timestamp {
        self.last_at
    }

    /// Makes the next entry. The chain itself does not move until [`Chain::accept`] sees the entry, after it is durable.
    ///
    /// # Errors
    /// Where the event has no canonical form.
    pub fn seal<E: Serialize>(
        &self,
        at: Timestamp,
        event: E,
        key: &SecretKey,
    ) -> Result<Signed<Entry<E>>, CanonicalError> {
        let entry = Entry { seq: self.num_entries + 1, previous: self.head, at: at.max(self.last_at), event };
        Signed::by(entry, key)
    }

    /// Checks that `signed` is the next entry of this log and moves the chain over it.
    ///
    /// # Errors
    /// [`ChainError`]; the chain has not moved.
    pub fn accept<E: Serialize>(&mut self, signed: &Signed<Entry<E>>) -> Result<(), ChainError> {
        let entry = &signed.document;
        let (seq, expected) = (entry.seq, self.num_entries + 1);
        if seq != expected {
            return Err(ChainError::Number { expected, found: seq });
        }
        if entry.previous != self.head {
            return Err(ChainError::Broken { seq, expected: self.head, found: entry.previous });
        }
        if entry.at < self.last_at {
            return Err(ChainError::Time { seq, found: entry.at, previous: self.last_at });
        }
        signed.verify_by(&self.key).map_err(|source| ChainError::Signature { seq, source })?;
        *self = Self { key: self.key, num_entries: seq, head: signed.digest()?, last_at: entry.at };
        Ok(())
    }

    /// Reads, checks and accepts the stored bytes of the next entry.
    ///
    /// # Errors
    /// [`ChainError`]; the chain has not moved.
    pub fn accept_bytes<E: Serialize + DeserializeOwned>(&mut self, bytes: &[u8]) -> Result<Entry<E>, ChainError> {
        let unreadable = |reason: String| ChainError::Unreadable { seq: self.num_entries + 1, reason };
        if bytes.len() > MAX_ENTRY_BYTES {
            return Err(unreadable(format!("{} bytes are more than the {MAX_ENTRY_BYTES} of an entry", bytes.len())));
        }
        let signed: Signed<Entry<E>> = serde_json::from_slice(bytes).map_err(|e| unreadable(e.to_string()))?;
        self.accept(&signed)?;
        Ok(signed.document)
    }
}

#[cfg(test)]
mod tests;
