//! Entries and commits: what may follow in a log, and what it must look like.

use crate::note::{Checkpoint, NoteError, SignedCheckpoint};
use crate::tile::MAX_ENTRY_BYTES;
use crate::tree::{Frontier, TreeHash};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tapestry_core::{CanonicalError, Digest, PublicKey, SecretKey, Timestamp, to_canonical_json};

/// The largest commit that is read or written, in bytes.
pub const MAX_COMMIT_BYTES: usize = 32 << 20;
/// The most entries of one commit.
pub const MAX_COMMIT_ENTRIES: usize = 1 << 16;

/// One entry of a log. Its canonical JSON (RFC 8785) is the leaf of the tree.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry<E> {
    /// The number of the entry, from 1.
    pub seq: u64,
    /// Whose entry this is and what follows, where that is another than the writer before; always in the first entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writer: Option<PublicKey>,
    /// The last checkpoint of the writer before it, as it signed it; where the writer changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// Who may take the log over after this entry, in place of those who were named before; absent where that stays as
    /// it was. Nobody, at first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub successors: Option<BTreeSet<PublicKey>>,
    /// The digest of this entry in the log that it was taken over from, where that was written by an older version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub was: Option<Digest>,
    /// When it was written, by the writer's clock; never before the entry before it.
    pub at: Timestamp,
    /// What happened.
    pub event: E,
}

/// The parts of an entry that decide its place, without its event.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(crate) struct Outline {
    pub(crate) seq: u64,
    pub(crate) writer: Option<PublicKey>,
    pub(crate) after: Option<String>,
    pub(crate) successors: Option<BTreeSet<PublicKey>>,
    pub(crate) at: Timestamp,
}

impl<E> Entry<E> {
    fn outline(&self) -> Outline {
        Outline {
            seq: self.seq,
            writer: self.writer,
            after: self.after.clone(),
            successors: self.successors.clone(),
            at: self.at,
        }
    }
}

/// The end of a log, which decides what may follow. It does not grow with the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    founder: PublicKey,
    origin: String,
    writer: PublicKey,
    successors: BTreeSet<PublicKey>,
    frontier: Frontier,
    last_at: Timestamp,
    sealed: Option<SignedCheckpoint>,
}

/// A commit that was checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Accepted<E> {
    /// Its entries.
    pub entries: Vec<Entry<E>>,
    /// Their leaf hashes.
    pub leaves: Vec<TreeHash>,
}

/// A commit that was read: all that can be done without what comes before it, so that many are read at once. Nothing of it is
/// proved before [`Chain::place`].
#[derive(Debug, Clone, PartialEq)]
pub struct Commit<E> {
    accepted: Accepted<E>,
    note: String,
}

impl<E: DeserializeOwned> Commit<E> {
    /// Reads the entries of a commit and hashes them. It should begin with entry `first`, which is for messages alone.
    ///
    /// # Errors
    /// [`ChainError::TooLong`], [`ChainError::Unreadable`].
    pub fn read(first: u64, content: &[u8]) -> Result<Self, ChainError> {
        let unreadable = |seq: u64, reason: String| ChainError::Unreadable { seq, reason };
        let (lines, note) = split(content).map_err(|reason| unreadable(first, reason.to_owned()))?;
        let (mut entries, mut leaves) = (Vec::with_capacity(lines.len()), Vec::with_capacity(lines.len()));
        for (line, i) in lines.into_iter().zip(0..) {
            let seq = first.saturating_add(i);
            if line.len() > MAX_ENTRY_BYTES {
                return Err(ChainError::TooLong { seq, found: line.len() });
            }
            entries.push(serde_json::from_slice(line).map_err(|e| unreadable(seq, e.to_string()))?);
            leaves.push(TreeHash::of_leaf(line));
        }
        Ok(Self { accepted: Accepted { entries, leaves }, note: note.to_owned() })
    }
}

/// Why entries cannot be the next of a log.
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
    /// The checkpoint does not stand for the entries before it: an entry was changed, dropped or inserted.
    #[error(
        "the checkpoint after log entry {seq} is of {found_size} entries with root {found}; the entries lead to {expected}: one was changed, \
         dropped or inserted"
    )]
    Root {
        /// The last entry.
        seq: u64,
        /// The root that the entries lead to.
        expected: TreeHash,
        /// The checkpoint's size.
        found_size: u64,
        /// The checkpoint's root.
        found: TreeHash,
    },
    /// A checkpoint is not signed as it should be, or is none.
    #[error("the checkpoint after log entry {seq}: {source}")]
    Checkpoint {
        /// The last entry before it.
        seq: u64,
        /// What is wrong.
        source: NoteError,
    },
    /// The checkpoint is of another log.
    #[error("the checkpoint after log entry {seq} is of the log {found}, not of {expected}")]
    OtherLog {
        /// The last entry before it.
        seq: u64,
        /// This log's name.
        expected: String,
        /// The name that it carries.
        found: String,
    },
    /// A new writer has not said after what it comes.
    #[error(
        "log entry {seq} is the first of a new writer and does not hold the last checkpoint of the writer before it"
    )]
    NotAfter {
        /// The entry.
        seq: u64,
    },
    /// An entry that is too long for every reader.
    #[error("log entry {seq} would have {found} bytes; an entry has at most {MAX_ENTRY_BYTES}")]
    TooLong {
        /// The entry.
        seq: u64,
        /// Its length.
        found: usize,
    },
    /// The bytes are not a commit.
    #[error("log entry {seq} cannot be read: {reason}")]
    Unreadable {
        /// The number due.
        seq: u64,
        /// What is wrong.
        reason: String,
    },
    /// The entry has no canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

/// The name of the log that `founder` founded: the origin of its checkpoints.
#[must_use]
pub fn origin(founder: PublicKey) -> String {
    format!("tapestry/{founder}")
}

impl Chain {
    /// The empty log of `founder`, who is its writer until a successor takes it over.
    #[must_use]
    pub fn new(founder: PublicKey) -> Self {
        Self {
            founder,
            origin: origin(founder),
            writer: founder,
            successors: BTreeSet::new(),
            frontier: Frontier::default(),
            last_at: Timestamp::from_ms(0),
            sealed: None,
        }
    }

    /// The key whose log this is.
    #[must_use]
    pub const fn founder(&self) -> PublicKey {
        self.founder
    }

    /// The log's name.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
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
        self.frontier.size()
    }

    /// The root of the tree of all entries: whoever holds it can tell whether the log before it was changed.
    #[must_use]
    pub fn root(&self) -> TreeHash {
        self.frontier.root()
    }

    /// The time of the last entry.
    #[must_use]
    pub const fn last_at(&self) -> Timestamp {
        self.last_at
    }

    /// The last checkpoint, as its writer signed it; none where the log is empty.
    #[must_use]
    pub const fn sealed(&self) -> Option<&SignedCheckpoint> {
        self.sealed.as_ref()
    }

    fn checkpoint(&self) -> Checkpoint {
        Checkpoint { origin: self.origin.clone(), size: self.num_entries(), root: self.root() }
    }

    /// Makes the bytes of the next commit, by `key`: events, each with those whom it names as successors. The chain itself does
    /// not move until [`Chain::accept`] sees the commit.
    ///
    /// # Errors
    /// Where an event has no canonical form, or is too long.
    pub fn seal<E: Serialize>(
        &self,
        at: Timestamp,
        events: Vec<(E, Option<BTreeSet<PublicKey>>)>,
        key: &SecretKey,
    ) -> Result<Vec<u8>, ChainError> {
        let at = at.max(self.last_at);
        let entries = events.into_iter().enumerate().map(|(i, (event, successors))| {
            let seq = self.num_entries() + 1 + i as u64;
            let is_new = i == 0 && (seq == 1 || key.public() != self.writer);
            let writer = is_new.then(|| key.public());
            let after = self.sealed.as_ref().filter(|_| is_new).map(ToString::to_string);
            Entry { seq, writer, after, successors, was: None, at, event }
        });
        self.seal_entries(entries, key)
    }

    /// As [`Chain::seal`], of whole entries: for a log that is taken over from one of an older form.
    ///
    /// # Errors
    /// As [`Chain::seal`].
    pub fn seal_entries<E: Serialize>(
        &self,
        entries: impl IntoIterator<Item = Entry<E>>,
        key: &SecretKey,
    ) -> Result<Vec<u8>, ChainError> {
        let (mut frontier, mut content) = (self.frontier.clone(), vec![]);
        for entry in entries {
            let leaf = to_canonical_json(&entry)?;
            if leaf.len() > MAX_ENTRY_BYTES {
                return Err(ChainError::TooLong { seq: entry.seq, found: leaf.len() });
            }
            frontier.push(TreeHash::of_leaf(&leaf));
            content.extend(leaf);
            content.push(b'\n');
        }
        let checkpoint = Checkpoint { origin: self.origin.clone(), size: frontier.size(), root: frontier.root() };
        content.push(b'\n');
        content.extend(SignedCheckpoint::by(checkpoint, key).to_string().into_bytes());
        Ok(content)
    }

    /// Checks that the bytes are the next commit of this log and moves the chain over it.
    ///
    /// # Errors
    /// [`ChainError`]; the chain has not moved.
    pub fn accept<E: DeserializeOwned>(&mut self, content: &[u8]) -> Result<Accepted<E>, ChainError> {
        self.place(Commit::read(self.num_entries() + 1, content)?)
    }

    /// Checks that a commit that was read is the next of this log and moves the chain over it.
    ///
    /// # Errors
    /// [`ChainError`]; the chain has not moved.
    pub fn place<E>(&mut self, commit: Commit<E>) -> Result<Accepted<E>, ChainError> {
        let Commit { accepted, note } = commit;
        let mut next = self.clone();
        for (i, (entry, leaf)) in accepted.entries.iter().zip(&accepted.leaves).enumerate() {
            if i > 0 && entry.writer.is_some() {
                let reason = "the writer changes within a commit".into();
                return Err(ChainError::Unreadable { seq: entry.seq, reason });
            }
            next.follow(&entry.outline())?;
            next.frontier.push(*leaf);
        }
        let note = note.parse().map_err(|source| ChainError::Checkpoint { seq: next.num_entries(), source })?;
        next.check_seal(&note)?;
        if note.num_signatures() != 1 {
            let reason = "its checkpoint is signed by another than the writer".into();
            return Err(ChainError::Unreadable { seq: next.num_entries(), reason });
        }
        next.sealed = Some(note);
        *self = next;
        Ok(accepted)
    }

    /// Checks that an entry may be the next, and takes up what it says of who writes. The tree is moved by the caller.
    pub(crate) fn follow(&mut self, entry: &Outline) -> Result<(), ChainError> {
        let (seq, expected) = (entry.seq, self.num_entries() + 1);
        if seq != expected {
            return Err(ChainError::Number { expected, found: seq });
        }
        if entry.at < self.last_at {
            return Err(ChainError::Time { seq, found: entry.at, previous: self.last_at });
        }
        if let Some(writer) = entry.writer {
            if !self.admits(&writer) {
                return Err(ChainError::Writer { seq, writer: self.writer, found: writer });
            }
            self.check_after(seq, entry.after.as_deref())?;
            self.writer = writer;
        } else if seq == 1 || entry.after.is_some() {
            return Err(ChainError::Unreadable {
                seq,
                reason: "the first entry of a writer names it, and no other does".into(),
            });
        }
        self.last_at = entry.at;
        if let Some(successors) = &entry.successors {
            self.successors.clone_from(successors);
        }
        Ok(())
    }

    /// The checkpoint that a new writer found is the one that the writer before it signed.
    fn check_after(&self, seq: u64, after: Option<&str>) -> Result<(), ChainError> {
        let Some(after) = after else {
            return if seq == 1 { Ok(()) } else { Err(ChainError::NotAfter { seq }) };
        };
        let note: SignedCheckpoint =
            after.parse().map_err(|source| ChainError::Checkpoint { seq: self.num_entries(), source })?;
        self.check_seal(&note)?;
        if note.num_signatures() == 1 { Ok(()) } else { Err(ChainError::NotAfter { seq }) }
    }

    /// Checks that a checkpoint is of this log, of all entries so far, and by its writer.
    ///
    /// # Errors
    /// [`ChainError`].
    pub fn check_seal(&self, note: &SignedCheckpoint) -> Result<(), ChainError> {
        let (expected, found) = (self.checkpoint(), note.checkpoint());
        let seq = expected.size;
        if found.origin != expected.origin {
            return Err(ChainError::OtherLog { seq, expected: expected.origin, found: found.origin.clone() });
        }
        if *found != expected {
            return Err(ChainError::Root { seq, expected: expected.root, found_size: found.size, found: found.root });
        }
        note.verify_by(&self.writer).map_err(|source| ChainError::Checkpoint { seq, source })?;
        Ok(())
    }

    /// Moves the tree over a leaf, or over a complete subtree of `2^height` leaves.
    pub(crate) fn grow(&mut self, root: TreeHash, height: u32) {
        self.frontier.push_subtree(root, height);
    }

    /// Takes up the time of entries that say nothing else.
    pub(crate) const fn passed(&mut self, at: Timestamp) {
        self.last_at = at;
    }
}

/// The entries of a commit, and its note: one line an entry, an empty line, the note.
pub(crate) fn split(content: &[u8]) -> Result<(Vec<&[u8]>, &str), &'static str> {
    if content.len() > MAX_COMMIT_BYTES {
        return Err("it is longer than any commit");
    }
    let (mut rest, mut lines) = (content, vec![]);
    loop {
        let end = memchr::memchr(b'\n', rest).ok_or("it is cut off: the checkpoint is missing")?;
        let line = &rest[..end];
        rest = &rest[end + 1..];
        if line.is_empty() {
            break;
        }
        if lines.len() == MAX_COMMIT_ENTRIES {
            return Err("it has more entries than any commit");
        }
        lines.push(line);
    }
    if lines.is_empty() {
        return Err("it has no entries");
    }
    Ok((lines, std::str::from_utf8(rest).map_err(|_| "its checkpoint is no text")?))
}
