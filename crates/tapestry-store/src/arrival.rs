//! A blob that comes in pieces, each hashed and written while the next one is on its way.

use crate::blob;
use crate::filling::PackSlot;
use crate::folder::StagedFile;
use crate::stream::{CHUNK_LEN, ended};
use crate::{BlobStore, ChunkBuffer, Staged, StoreError};
use std::fmt;
use tapestry_core::{CHUNK_BYTES, Digest, DigestHasher};
use tokio::task::JoinHandle;

/// A blob on its way into a store. Dropped before it is finished, it leaves nothing.
///
/// In a folder it takes the memory of two pieces, however long it takes to come; elsewhere the memory of a chunk.
pub struct Arrival {
    store: BlobStore,
    expected: Digest,
    size_bytes: u64,
    progress: Progress,
}

enum Progress {
    Idle(Box<Content>),
    Working(JoinHandle<Result<Box<Content>, StoreError>>),
    /// A piece could not be written.
    Failed,
}

/// What has come so far.
struct Content {
    hasher: DigestHasher,
    size_bytes: u64,
    kept: Kept,
}

enum Kept {
    Nowhere,
    File(StagedFile),
    Slot(PackSlot),
    Memory(ChunkBuffer),
}

impl fmt::Debug for Arrival {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arrival").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl BlobStore {
    /// Gets ready for the blob `expected`. Nothing is made before the first piece.
    #[must_use]
    pub fn arrival(&self, expected: Digest) -> Arrival {
        let content = Content { hasher: DigestHasher::new(), size_bytes: 0, kept: Kept::Nowhere };
        Arrival { store: self.clone(), expected, size_bytes: 0, progress: Progress::Idle(Box::new(content)) }
    }
}

impl Arrival {
    /// Bytes that have come so far.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Takes the next piece, and returns as soon as the one before it is written. All but the last have
    /// [`PIECE_BYTES`](crate::PIECE_BYTES), or any other whole number of pages.
    ///
    /// # Errors
    /// Where the store fails, or the blob is longer than any; then it cannot be finished.
    pub async fn write(&mut self, piece: ChunkBuffer) -> Result<(), StoreError> {
        let mut content = self.content().await?;
        self.size_bytes += piece.len() as u64;
        if self.size_bytes > CHUNK_BYTES {
            return Err(StoreError::TooLarge { found: self.size_bytes });
        }
        // Here, while the processor still has it at hand.
        content.hasher.update(piece.as_slice());
        let (store, expected) = (self.store.clone(), self.expected);
        let work = move || {
            content.add(&store, expected, &piece)?;
            Ok(content)
        };
        self.progress = Progress::Working(tokio::task::spawn_blocking(work));
        Ok(())
    }

    /// Checks what has come, and stages it.
    ///
    /// # Errors
    /// [`StoreError::WrongContent`] where it is something else; otherwise where the store fails.
    pub async fn finish(mut self) -> Result<Staged, StoreError> {
        let content = *self.content().await?;
        let found = content.hasher.finish();
        let digest = self.expected;
        if found != digest {
            return Err(StoreError::WrongContent { expected: digest, found });
        }
        match content.kept {
            Kept::File(file) => Ok(Staged { digest, kept: blob::Kept::InFile(file) }),
            Kept::Slot(slot) => Ok(Staged { digest, kept: blob::Kept::InSlot(slot) }),
            Kept::Memory(memory) => self.store.stage(digest, memory.into_bytes()).await,
            Kept::Nowhere => self.store.stage(digest, bytes::Bytes::new()).await,
        }
    }

    /// What has come, once nobody writes it any more. A caller that gives up waiting can come back.
    async fn content(&mut self) -> Result<Box<Content>, StoreError> {
        if let Progress::Working(work) = &mut self.progress {
            let ended = ended(work.await);
            self.progress = Progress::Failed;
            self.progress = Progress::Idle(ended?);
        }
        match std::mem::replace(&mut self.progress, Progress::Failed) {
            Progress::Idle(content) => Ok(content),
            Progress::Working(_) | Progress::Failed => Err(StoreError::Interrupted),
        }
    }
}

impl Content {
    fn add(&mut self, store: &BlobStore, expected: Digest, piece: &ChunkBuffer) -> Result<(), StoreError> {
        if let Kept::Nowhere = self.kept {
            self.kept = match (store.file(expected), store.commits()) {
                (Some(name), Some(commits)) => match store.slot(expected) {
                    Some(slot) => Kept::Slot(slot),
                    None => Kept::File(commits.begin(&name, piece.len(), store.is_read_soon())?),
                },
                _ => Kept::Memory(ChunkBuffer::new(CHUNK_LEN)),
            };
        }
        match &mut self.kept {
            Kept::File(file) => file.write(piece, self.size_bytes)?,
            Kept::Slot(slot) => slot.write(piece, self.size_bytes)?,
            Kept::Memory(memory) => drop(memory.fill_from(piece.as_slice())),
            Kept::Nowhere => {}
        }
        self.size_bytes += piece.len() as u64;
        Ok(())
    }
}
