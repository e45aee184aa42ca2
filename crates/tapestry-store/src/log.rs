//! A log as write-once, numbered objects: creating the next number is the compare-and-swap.

use crate::objects::Objects;
use crate::{LogError, StoreError};
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use std::path::Path;
use std::sync::Arc;
use tapestry_core::{PublicKey, Signed};
use tapestry_ledger::{ChainError, Entry, MAX_ENTRY_BYTES};

/// Numbered entries, each written once: entry 1 is the file `00000000000000000001.json`.
///
/// Of two writers that want the same number, one wins and the other is told. What the entries say is not looked at here:
/// see [`RoleLog`](crate::RoleLog).
#[derive(Debug, Clone)]
pub struct LogStore {
    objects: Objects,
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

    /// Writes entry `seq`, which is durable on return.
    ///
    /// # Errors
    /// [`LogError::Taken`] where there is one already, [`LogError::NotNext`] where the one before it is missing. On any
    /// other error the entry was not written, or (where only the confirmation failed) will be found when the log is next
    /// opened.
    pub async fn append(&self, seq: u64, content: Bytes) -> Result<(), LogError> {
        let found = content.len() as u64;
        if found > limit() {
            return Err(LogError::TooLong { seq, found, limit: limit() });
        }
        let place = || self.place().to_owned();
        let is_next = seq == 1 || (seq > 1 && self.objects.size(&entry_path(seq - 1)).await?.is_some());
        if !is_next {
            return Err(LogError::NotNext { place: place(), seq });
        }
        if self.objects.create(&entry_path(seq), content).await? {
            return Ok(());
        }
        Err(LogError::Taken { place: place(), seq })
    }

    /// How many entries there are. They are numbered from 1 without a gap.
    ///
    /// # Errors
    /// [`LogError::Gap`], [`LogError::Foreign`], or the store's failure.
    pub async fn num_entries(&self) -> Result<u64, LogError> {
        let mut numbers = vec![];
        for name in self.objects.names().await? {
            // Names with a leading dot are the file system's own or a desktop's.
            if name.starts_with('.') {
                continue;
            }
            let object = || format!("{}/{name}", self.place());
            numbers.push(number(&name).ok_or_else(|| LogError::Foreign { object: object() })?);
        }
        numbers.sort_unstable();
        for (missing, next) in (1..).zip(&numbers) {
            if missing != *next {
                return Err(LogError::Gap { place: self.place().to_owned(), missing, next: *next });
            }
        }
        Ok(numbers.len() as u64)
    }

    /// The bytes of entry `seq`; `None` where there is none.
    ///
    /// # Errors
    /// Where the entry is longer than [`MAX_ENTRY_BYTES`], or the store fails.
    pub async fn read(&self, seq: u64) -> Result<Option<Bytes>, LogError> {
        Ok(self.objects.read(&entry_path(seq), limit()).await?)
    }

    /// Whether there is an entry `seq`.
    ///
    /// # Errors
    /// The store's failure.
    pub async fn has(&self, seq: u64) -> Result<bool, LogError> {
        Ok(self.objects.size(&entry_path(seq)).await?.is_some())
    }

    /// Who the first entry says founded this log; none where there is no entry. The entry proves it: it is chained to that
    /// key, and signed by it.
    ///
    /// # Errors
    /// Where the first entry names nobody, or cannot be read.
    pub async fn founder(&self) -> Result<Option<PublicKey>, LogError> {
        let Some(content) = self.read(1).await? else { return Ok(None) };
        let read = serde_json::from_slice::<Signed<Entry<serde_json::Value>>>(&content);
        let unreadable = |error: serde_json::Error| LogError::Chain {
            place: self.place().to_owned(),
            source: ChainError::Unreadable { seq: 1, reason: error.to_string() },
        };
        Ok(Some(read.map_err(unreadable)?.document.writer))
    }

    /// All entries with their numbers, in order.
    ///
    /// # Errors
    /// As [`Self::num_entries`] and [`Self::read`].
    pub async fn read_all(&self) -> Result<Vec<(u64, Bytes)>, LogError> {
        let num_entries = self.num_entries().await?;
        let mut entries = vec![];
        for seq in 1..=num_entries {
            entries.push((seq, self.read_existing(seq, num_entries).await?));
        }
        Ok(entries)
    }

    /// The bytes of an entry of a log that has `num_entries`.
    pub(crate) async fn read_existing(&self, seq: u64, num_entries: u64) -> Result<Bytes, LogError> {
        let gap = || LogError::Gap { place: self.place().to_owned(), missing: seq, next: num_entries };
        self.read(seq).await?.ok_or_else(gap)
    }
}

const fn limit() -> u64 {
    MAX_ENTRY_BYTES as u64
}

fn entry_path(seq: u64) -> ObjectPath {
    ObjectPath::from(format!("{seq:020}.json"))
}

/// The number in an entry's name, if it is exactly the name that an entry of that number has.
fn number(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".json").filter(|d| d.len() == 20 && d.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}
