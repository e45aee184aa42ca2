//! The append-only log of a role: every entry is chained to the one before it and signed by the role's key.
//!
//! An entry is a [`Signed`] document with its number, the digest of the entry before it, its writer, a time and an event.
//! The first entry is chained to the key of the log's founder, so a log cannot be passed off as another role's. Changing,
//! dropping, inserting or reordering an entry breaks the chain; re-making the chain needs the key. What this does *not*
//! prevent is the key's owner rewriting its own history, or showing two histories to two readers: that takes witnesses
//! (SECURITY.md).
//!
//! A log has one writer at a time. An entry may name *successors*, keys that may take the log over; an entry that one of
//! them signs makes it the writer from there on, and what the one before it writes after that is no entry of this log.
//!
//! Pure: bytes in, verdict out. Where entries are kept is the store's business.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tapestry_core::{CanonicalError, Digest, Document, PublicKey, SecretKey, Signed, SignedError, Timestamp};

/// One entry of a log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry<E> {
    /// The number of the entry, from 1.
    pub seq: u64,
    /// The digest of the entry before it; for entry 1 the digest that stands for the key ([`Chain::new`]).
    pub previous: Digest,
    /// Whose entry this is: the log's writer so far, or one of its successors, who is the writer from here on.
    pub writer: PublicKey,
    /// Who may take the log over after this entry, in place of those who were named before; absent where that stays as
    /// it was. Nobody, at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successors: Option<BTreeSet<PublicKey>>,
    /// When it was written, by the writer's clock; never before the entry before it.
    pub at: Timestamp,
    /// What happened.
    pub event: E,
}

impl<E: Serialize> Document for Entry<E> {
    const DOMAIN: &'static str = "log-entry/2";
}

/// The end of a log, which decides what the next entry must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    founder: PublicKey,
    writer: PublicKey,
    successors: BTreeSet<PublicKey>,
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
    /// Whoever wrote it may not.
    #[error(
        "log entry {seq} is written by {found}; this log is written by {writer}, and {found} was not named as a successor"
    )]
    Writer {
        /// The entry.
        seq: u64,
        /// The writer of the entry before it.
        writer: PublicKey,
        /// The entry's.
        found: PublicKey,
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
    /// The empty log of `founder`, who is its writer until a successor takes it over.
    #[must_use]
    pub fn new(founder: PublicKey) -> Self {
        let head = Self::root(founder);
        Self {
            founder,
            writer: founder,
            successors: BTreeSet::new(),
            num_entries: 0,
            head,
            last_at: Timestamp::from_ms(0),
        }
    }

    /// What the first entry of the log of `founder` is chained to.
    #[must_use]
    pub fn root(founder: PublicKey) -> Digest {
        Digest::of(format!("tapestry:log/1\n{founder}").as_bytes())
    }

    /// The key whose log this is.
    #[must_use]
    pub const fn founder(&self) -> PublicKey {
        self.founder
    }

    /// The key that wrote the last entry; the founder's where there is none.
    #[must_use]
    pub const fn writer(&self) -> PublicKey {
        self.writer
    }

    /// Whether `key` may write the next entry.
    #[must_use]
    pub fn admits(&self, key: &PublicKey) -> bool {
        *key == self.writer || self.successors.contains(key)
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

    /// Makes the next entry, by `key`. The chain itself does not move until [`Chain::accept`] sees the entry, after it is durable.
    ///
    /// # Errors
    /// Where the event has no canonical form.
    pub fn seal<E: Serialize>(
        &self,
        at: Timestamp,
        event: E,
        key: &SecretKey,
    ) -> Result<Signed<Entry<E>>, CanonicalError> {
        self.seal_naming(at, event, None, key)
    }

    /// As [`Chain::seal`], and names who may take the log over.
    ///
    /// # Errors
    /// As [`Chain::seal`].
    pub fn seal_naming<E: Serialize>(
        &self,
        at: Timestamp,
        event: E,
        successors: Option<BTreeSet<PublicKey>>,
        key: &SecretKey,
    ) -> Result<Signed<Entry<E>>, CanonicalError> {
        let (seq, writer, at) = (self.num_entries + 1, key.public(), at.max(self.last_at));
        Signed::by(Entry { seq, previous: self.head, writer, successors, at, event }, key)
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
        if !self.admits(&entry.writer) {
            return Err(ChainError::Writer { seq, writer: self.writer, found: entry.writer });
        }
        signed.verify_by(&entry.writer).map_err(|source| ChainError::Signature { seq, source })?;
        self.head = signed.digest()?;
        (self.num_entries, self.writer, self.last_at) = (seq, entry.writer, entry.at);
        if let Some(successors) = &entry.successors {
            self.successors.clone_from(successors);
        }
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
