//! What is known of a log beside its entries: the hashes of its tree, where its commits begin, and its last checkpoint. For
//! those who prove something about it while it is written.

use crate::{LogError, LogStore};
use bytes::Bytes;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};
use tapestry_ledger::tile::{Tile, TileKind, bundle};
use tapestry_ledger::{SignedCheckpoint, Tree, TreeHash};

/// A log's index. Its clones see what the log's writer adds.
#[derive(Debug, Clone)]
pub struct LogIndex {
    store: LogStore,
    known: Arc<RwLock<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    tree: Tree,
    /// The number of the first entry of each commit.
    commits: Vec<u64>,
    checkpoint: Option<SignedCheckpoint>,
}

impl LogIndex {
    pub(crate) fn new(store: LogStore) -> Self {
        Self { store, known: Arc::default() }
    }

    /// Takes up a commit: its leaves, and its checkpoint.
    pub(crate) fn grow(&self, leaves: Vec<TreeHash>, checkpoint: Option<SignedCheckpoint>) {
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        let first = known.tree.size() + 1;
        known.commits.push(first);
        known.tree.extend(leaves);
        known.checkpoint = checkpoint;
    }

    /// Takes up the last checkpoint.
    pub(crate) fn seal(&self, checkpoint: Option<SignedCheckpoint>) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).checkpoint = checkpoint;
    }

    fn known<T>(&self, see: impl FnOnce(&Known) -> T) -> T {
        see(&self.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// How many entries there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.known(|known| known.tree.size())
    }

    /// The last checkpoint, as the log's writer signed it; none where the log is empty.
    #[must_use]
    pub fn checkpoint(&self) -> Option<SignedCheckpoint> {
        self.known(|known| known.checkpoint.clone())
    }

    /// The root of the first `size` entries; none where there are fewer.
    #[must_use]
    pub fn root(&self, size: u64) -> Option<TreeHash> {
        self.known(|known| known.tree.root(size))
    }

    /// As [`Tree::inclusion`].
    #[must_use]
    pub fn inclusion(&self, index: u64, size: u64) -> Option<Vec<TreeHash>> {
        self.known(|known| known.tree.inclusion(index, size))
    }

    /// As [`Tree::consistency`].
    #[must_use]
    pub fn consistency(&self, old: u64, size: u64) -> Option<Vec<TreeHash>> {
        self.known(|known| known.tree.consistency(old, size))
    }

    /// Entries as they are stored, `range` of them counted from 0; none where there are not so many.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn entries(&self, range: Range<u64>) -> Result<Option<Vec<Bytes>>, LogError> {
        let commits = self.known(|known| {
            let start = known.commits.partition_point(|first| *first <= range.start + 1).saturating_sub(1);
            let end = known.commits.partition_point(|first| *first <= range.end);
            (range.end <= known.tree.size() && start <= end).then(|| known.commits[start..end].to_vec())
        });
        let Some(commits) = commits else { return Ok(None) };
        let mut found = vec![];
        for first in commits {
            let content = self.store.read_existing(first).await?;
            let lines = content.split(|b| *b == b'\n').take_while(|line| !line.is_empty());
            let own = lines.zip(first - 1..).filter(|(_, index)| range.contains(index));
            found.extend(own.map(|(line, _)| content.slice_ref(line)));
        }
        if found.len() as u64 == range.end - range.start {
            return Ok(Some(found));
        }
        Err(self.store.gap(range.start + 1 + found.len() as u64, range.end + 1))
    }

    /// Content of a tile; none where the log has not so many entries.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn tile(&self, tile: &Tile) -> Result<Option<Vec<u8>>, LogError> {
        match tile.kind {
            TileKind::Hashes(_) => Ok(self.known(|known| tile.hashes(&known.tree))),
            TileKind::Entries => {
                let entries = self.entries(tile.range()).await?;
                Ok(entries.map(|entries| bundle(entries.iter().map(AsRef::as_ref))))
            }
        }
    }
}
