//! Checking a log that came as files of C2SP tlog-tiles, with nothing but these files.
//!
//! What belongs to one bundle of 256 entries is checked by itself ([`Bundle::read`]), by as many threads as there are; what
//! joins them is checked in order ([`ExportCheck`]).

use crate::chain::{Chain, ChainError, Outline};
use crate::note::SignedCheckpoint;
use crate::tile::{MAX_ENTRY_BYTES, TILE_HEIGHT, TILE_WIDTH, Tile, TileKind, root_of, unbundle};
use crate::tree::TreeHash;
use tapestry_core::{PublicKey, Timestamp};

/// What is wrong with an export.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// A file is not what the layout asks for.
    #[error("{path} DOES NOT HOLD: {reason}")]
    File {
        /// The file.
        path: String,
        /// What is wrong.
        reason: String,
    },
    /// The entries are no log.
    #[error(transparent)]
    Chain(#[from] ChainError),
}

/// A bundle of entries that was checked by itself.
#[derive(Debug)]
pub struct Bundle {
    /// From the number of its first entry (from 0) on.
    first: u64,
    leaves: Vec<TreeHash>,
    root: TreeHash,
    /// Entries that say more than their event: by position.
    special: Vec<(usize, Outline)>,
    first_at: Timestamp,
    last_at: Timestamp,
}

impl Bundle {
    /// Reads the content of a tile of entries: each entry has the number that is due, and no time runs backwards.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn read(tile: &Tile, content: &[u8]) -> Result<Self, ExportError> {
        let wrong = |reason: String| ExportError::File { path: tile.path(), reason };
        if tile.kind != TileKind::Entries {
            return Err(wrong("it is no bundle of entries".into()));
        }
        if content.len() as u64 > TILE_WIDTH * (MAX_ENTRY_BYTES as u64 + 2) {
            return Err(wrong("it is longer than any bundle".into()));
        }
        let entries = unbundle(content, tile.width)
            .ok_or_else(|| wrong(format!("it does not hold {} entries and nothing else", tile.width)))?;
        let first = tile.range().start;
        let mut bundle = Self {
            first,
            leaves: Vec::with_capacity(entries.len()),
            root: TreeHash::of_nothing(),
            special: vec![],
            first_at: Timestamp::from_ms(0),
            last_at: Timestamp::from_ms(0),
        };
        for (i, entry) in entries.iter().enumerate() {
            let seq = first + 1 + i as u64;
            let outline: Outline =
                serde_json::from_slice(entry).map_err(|e| ChainError::Unreadable { seq, reason: e.to_string() })?;
            if outline.seq != seq {
                return Err(ChainError::Number { expected: seq, found: outline.seq }.into());
            }
            if outline.at < bundle.last_at {
                return Err(ChainError::Time { seq, found: outline.at, previous: bundle.last_at }.into());
            }
            if i == 0 {
                bundle.first_at = outline.at;
            }
            bundle.last_at = outline.at;
            bundle.leaves.push(TreeHash::of_leaf(entry));
            if outline.writer.is_some() || outline.after.is_some() || outline.successors.is_some() || seq == 1 {
                bundle.special.push((i, outline));
            }
        }
        bundle.root = root_of(&bundle.leaves);
        Ok(bundle)
    }

    /// The leaf hashes: the content of the tile of hashes beside it.
    #[must_use]
    pub fn leaves(&self) -> &[TreeHash] {
        &self.leaves
    }

    /// The root of a full bundle's leaves: one hash of the level above.
    #[must_use]
    pub const fn root(&self) -> TreeHash {
        self.root
    }

    /// The key that the first entry of a log says founded it.
    ///
    /// # Errors
    /// Where this is not the first bundle, or its first entry names nobody.
    pub fn founder(&self) -> Result<PublicKey, ExportError> {
        let writer = self.special.first().filter(|(i, outline)| *i == 0 && outline.seq == 1);
        let unnamed = || ChainError::Unreadable { seq: 1, reason: "it does not name its writer".into() };
        Ok(writer.and_then(|(_, outline)| outline.writer).ok_or_else(unnamed)?)
    }
}

/// A log that is checked bundle by bundle, in order.
#[derive(Debug)]
pub struct ExportCheck {
    chain: Chain,
}

impl ExportCheck {
    /// Of the log that `founder` founded.
    #[must_use]
    pub fn new(founder: PublicKey) -> Self {
        Self { chain: Chain::new(founder) }
    }

    /// Takes up the next bundle.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn follow(&mut self, bundle: &Bundle) -> Result<(), ExportError> {
        let expected = self.chain.num_entries();
        if bundle.first != expected {
            return Err(ChainError::Number { expected: expected + 1, found: bundle.first + 1 }.into());
        }
        if bundle.first_at < self.chain.last_at() {
            let (found, previous) = (bundle.first_at, self.chain.last_at());
            return Err(ChainError::Time { seq: bundle.first + 1, found, previous }.into());
        }
        if bundle.special.is_empty() && bundle.leaves.len() as u64 == TILE_WIDTH {
            self.chain.grow(bundle.root, TILE_HEIGHT);
        } else {
            let mut special = bundle.special.iter().peekable();
            for (i, leaf) in bundle.leaves.iter().enumerate() {
                if let Some((_, outline)) = special.next_if(|(at, _)| *at == i) {
                    self.chain.follow(outline)?;
                }
                self.chain.grow(*leaf, 0);
            }
        }
        self.chain.passed(bundle.last_at);
        Ok(())
    }

    /// Checks that the checkpoint is of exactly these entries, by the log's writer, and gives the end of the log.
    ///
    /// # Errors
    /// [`ExportError`].
    pub fn finish(self, checkpoint: &SignedCheckpoint) -> Result<Chain, ExportError> {
        self.chain.check_seal(checkpoint)?;
        Ok(self.chain)
    }
}

/// Checks that the content of a tile of hashes is these hashes.
///
/// # Errors
/// [`ExportError`].
pub fn check_hashes(tile: &Tile, content: &[u8], expected: &[TreeHash]) -> Result<(), ExportError> {
    let is_same = content.len() == expected.len() * 32
        && content.chunks_exact(32).zip(expected).all(|(found, hash)| found == hash.as_bytes());
    if is_same {
        return Ok(());
    }
    let reason = "its hashes are not those of the entries: it, or an entry, was changed".into();
    Err(ExportError::File { path: tile.path(), reason })
}
