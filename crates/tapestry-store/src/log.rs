//! A log as write-once, numbered objects: creating the one with the next number is the compare-and-swap.

use crate::objects::Objects;
use crate::{LogError, StoreError};
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use serde::de::IgnoredAny;
use std::path::Path;
use std::sync::Arc;
use tapestry_core::PublicKey;
use tapestry_ledger::{ChainError, Entry, MAX_COMMIT_BYTES};

/// Commits of entries, each written once: the commit that begins with entry 1 is the file `00000000000000000001.commit`.
///
/// A commit ends where the next begins, so of two writers that have seen the same log and want to go on, one wins and the
/// other is told. What the commits say is not looked at here: see [`RoleLog`](crate::RoleLog).
#[derive(Debug, Clone)]
pub struct LogStore {
    objects: Objects,
}

/// What lies in a log's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Listing {
    /// The number of the first entry of each commit, in order.
    pub(crate) commits: Vec<u64>,
    /// How many entries of the older form there are, numbered from 1.
    pub(crate) num_older: u64,
}

impl LogStore {
    /// The log in `folder`, which is made where it is missing. What a crash left half-written there is removed.
    ///
    /// # Errors
    /// Where the folder cannot be made, cleaned or read.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self { objects: Objects::open_folder(folder)? })
    }

    /// The log in `folder`, for reading: the folder is not changed.
    ///
    /// # Errors
    /// Where there is no such folder.
    pub fn open_to_read(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self { objects: Objects::read_folder(folder)? })
    }

    /// The log in any store, such as a bucket; `place` is what messages call it. The store must be durable on return
    /// from a write.
    #[must_use]
    pub fn on(store: Arc<dyn ObjectStore>, place: &str) -> Self {
        Self { objects: Objects::new(store, place) }
    }

    /// An empty log that lives as long as its clones.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { objects: Objects::in_memory() }
    }

    /// What messages call the place where this log is kept.
    #[must_use]
    pub fn place(&self) -> &str {
        self.objects.place()
    }

    /// Writes the commit that begins with entry `first`, which is durable on return.
    ///
    /// # Errors
    /// [`LogError::Taken`] where there is one already. On any other error the commit was not written, or (where only the
    /// confirmation failed) will be found when the log is next opened.
    pub async fn append(&self, first: u64, content: Bytes) -> Result<(), LogError> {
        if self.objects.create(&commit_path(first), content).await? {
            return Ok(());
        }
        Err(LogError::Taken { place: self.place().to_owned(), seq: first })
    }

    /// The numbers of the commits' first entries, in order.
    ///
    /// # Errors
    /// [`LogError::Foreign`], [`LogError::Gap`] among entries of the older form, or the store's failure.
    pub async fn commits(&self) -> Result<Vec<u64>, LogError> {
        Ok(self.listing().await?.commits)
    }

    pub(crate) async fn listing(&self) -> Result<Listing, LogError> {
        let (mut commits, mut older) = (vec![], vec![]);
        for name in self.objects.names().await? {
            // Names with a leading dot are the file system's own or a desktop's.
            if name.starts_with('.') {
                continue;
            }
            match number(&name) {
                Some((number, "commit")) => commits.push(number),
                Some((number, "json")) => older.push(number),
                _ => return Err(LogError::Foreign { object: format!("{}/{name}", self.place()) }),
            }
        }
        commits.sort_unstable();
        older.sort_unstable();
        for (missing, next) in (1..).zip(&older) {
            if missing != *next {
                return Err(self.gap(missing, *next));
            }
        }
        Ok(Listing { commits, num_older: older.len() as u64 })
    }

    /// The bytes of the commit that begins with entry `first`; `None` where there is none.
    ///
    /// # Errors
    /// Where the commit is longer than [`MAX_COMMIT_BYTES`], or the store fails.
    pub async fn read(&self, first: u64) -> Result<Option<Bytes>, LogError> {
        Ok(self.objects.read(&commit_path(first), MAX_COMMIT_BYTES as u64).await?)
    }

    /// The bytes of an entry of the older form.
    pub(crate) async fn read_older(&self, seq: u64) -> Result<Bytes, LogError> {
        let read = self.objects.read(&ObjectPath::from(format!("{seq:020}.json")), 4 << 20).await?;
        read.ok_or_else(|| self.gap(seq, seq + 1))
    }

    /// Whether there is a commit that begins with entry `first`.
    ///
    /// # Errors
    /// The store's failure.
    pub async fn has(&self, first: u64) -> Result<bool, LogError> {
        Ok(self.objects.size(&commit_path(first)).await?.is_some())
    }

    /// Who the first entry says founded this log; none where there is no entry. The commit proves it: it is signed by that key.
    ///
    /// # Errors
    /// Where the first entry names nobody, or cannot be read.
    pub async fn founder(&self) -> Result<Option<PublicKey>, LogError> {
        let Some(content) = self.read(1).await? else {
            let num_left = self.listing().await?.num_older;
            return match num_left {
                0 => Ok(None),
                _ => Err(LogError::OlderForm { place: self.place().to_owned(), num_left }),
            };
        };
        founder_of(&content).map(Some).map_err(|reason| self.wrong(ChainError::Unreadable { seq: 1, reason }))
    }

    /// The bytes of a commit that was seen.
    pub(crate) async fn read_existing(&self, first: u64) -> Result<Bytes, LogError> {
        self.read(first).await?.ok_or_else(|| self.gap(first, first + 1))
    }

    pub(crate) fn gap(&self, missing: u64, next: u64) -> LogError {
        LogError::Gap { place: self.place().to_owned(), missing, next }
    }

    pub(crate) fn wrong(&self, source: ChainError) -> LogError {
        LogError::Chain { place: self.place().to_owned(), source }
    }
}

/// The key that the first entry of a log names in the bytes of its first commit.
pub(crate) fn founder_of(content: &[u8]) -> Result<PublicKey, String> {
    let line = content.split(|b| *b == b'\n').next().unwrap_or_default();
    let entry: Entry<IgnoredAny> = serde_json::from_slice(line).map_err(|error| error.to_string())?;
    entry.writer.ok_or_else(|| "it does not name its writer".to_owned())
}

fn commit_path(first: u64) -> ObjectPath {
    ObjectPath::from(format!("{first:020}.commit"))
}

/// The number in an object's name, and what comes after the point.
fn number(name: &str) -> Option<(u64, &str)> {
    let (digits, kind) = name.split_once('.')?;
    let is_number = digits.len() == 20 && digits.bytes().all(|b| b.is_ascii_digit());
    let number = if is_number { digits.parse().ok()? } else { None? };
    Some((number, kind))
}
