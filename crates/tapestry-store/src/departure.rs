//! A blob that leaves in pieces, each read when the one before it is on its way.

use crate::blob::BlobStore;
use crate::buffer::PIECE_BYTES;
use crate::pack::OpenBlob;
use crate::stream::on_blocking_thread;
use crate::{ChunkBuffer, StoreError, folder};
use bytes::Bytes;
use std::fmt;
use std::sync::Arc;
use tapestry_core::Digest;

/// The content of a blob, not checked, for one who will check it: the receiver of a transfer. In a folder it takes the memory of one
/// piece, elsewhere that of the blob.
pub struct Departure {
    size_bytes: u64,
    at: u64,
    source: Source,
}

enum Source {
    File(Arc<OpenBlob>),
    Memory(Bytes),
}

impl fmt::Debug for Departure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Departure").field("size_bytes", &self.size_bytes).field("at", &self.at).finish_non_exhaustive()
    }
}

impl BlobStore {
    /// Opens a blob to be sent.
    ///
    /// # Errors
    /// As [`Self::get`], but for [`StoreError::Damaged`].
    pub async fn departure(&self, digest: Digest) -> Result<Departure, StoreError> {
        self.fetch(digest).await?;
        if !self.is_in_files() {
            let content = self.get_unverified(digest).await?;
            return Ok(Departure { size_bytes: content.len() as u64, at: 0, source: Source::Memory(content) });
        }
        let store = self.clone();
        on_blocking_thread(move || {
            let missing = || StoreError::Missing { digest, place: store.place().to_owned() };
            let blob = store.open_blob(digest)?.ok_or_else(missing)?;
            Ok(Departure { size_bytes: blob.size, at: 0, source: Source::File(Arc::new(blob)) })
        })
        .await
    }
}

impl Departure {
    /// How long the blob is.
    #[must_use]
    pub const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Leaves out what is before `at`.
    pub fn skip_to(&mut self, at: u64) {
        self.at = at.min(self.size_bytes);
    }

    /// The next piece; `None` at the end.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        let len = usize::try_from(self.size_bytes - self.at).unwrap_or(usize::MAX).min(PIECE_BYTES);
        if len == 0 {
            return Ok(None);
        }
        let start = self.at;
        let piece = match &self.source {
            Source::Memory(content) => {
                let start = usize::try_from(start).unwrap_or(usize::MAX);
                content.slice(start..start + len)
            }
            Source::File(open) => {
                let mut piece = ChunkBuffer::new(len);
                // What the page cache has, it gives at once; for the rest somebody else waits.
                let cached = folder::read_cached(&open.file, open.start + start, &mut piece.room()[..len]);
                if cached < len {
                    let open = Arc::clone(open);
                    let read = move || {
                        folder::fill(&open.file, &open.path, open.start + start, cached, &mut piece, len)
                            .map_err(|error| StoreError::file("read", &open.path, error))?;
                        Ok(piece)
                    };
                    on_blocking_thread(read).await?.into_bytes()
                } else {
                    piece.filled(len);
                    piece.into_bytes()
                }
            }
        };
        self.at += len as u64;
        Ok(Some(piece))
    }
}
