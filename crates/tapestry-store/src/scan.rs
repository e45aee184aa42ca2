//! One pass over a chunk in constant memory: checked while it is used.

use crate::pack::OpenBlob;
use crate::verified::{WINDOW, damaged, open_chunk, will_read};
use crate::{StoreError, WeightsReader};
use bytes::Bytes;
use std::fmt;
use tapestry_core::{Digest, DigestHasher};

/// A chunk of weights, window by window. That it is what its digest says is known only when the last window has been taken and
/// [`ChunkScan::window`] has answered `None`: until then nothing that follows from it may leave the caller.
pub struct ChunkScan<'a> {
    reader: &'a WeightsReader,
    index: usize,
    digest: Digest,
    size: u64,
    at: u64,
    source: Source,
    /// None where the chunk has been checked before.
    hasher: Option<DigestHasher>,
}

enum Source {
    File(OpenBlob, Vec<u8>),
    /// Where blobs are no files; checked already.
    Memory(Bytes),
}

impl fmt::Debug for ChunkScan<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChunkScan").field("index", &self.index).field("at", &self.at).finish_non_exhaustive()
    }
}

impl WeightsReader {
    /// Whether this reader has found chunk number `index` to be what its digest says.
    ///
    /// # Panics
    /// Where there is no such chunk.
    #[must_use]
    pub fn is_checked(&self, index: usize) -> bool {
        self.verified().is_verified(index)
    }

    /// Begins a pass over chunk number `index` of the data.
    ///
    /// # Errors
    /// Where it is missing, or has another size than its place asks for.
    ///
    /// # Panics
    /// Where there is no such chunk.
    pub fn scan(&self, index: usize) -> Result<ChunkScan<'_>, StoreError> {
        let (digest, size) = (self.manifest().data.chunks[index], self.manifest().data.chunk_size(index));
        self.store().fetch_blocking(digest)?;
        let source = if self.store().is_in_files() {
            let blob = open_chunk(self.store(), index, digest, size)?;
            will_read(&blob.file, blob.start, size);
            Source::File(blob, vec![0; WINDOW])
        } else {
            Source::Memory(self.chunk(index)?)
        };
        let is_known = matches!(source, Source::Memory(_)) || self.verified().is_verified(index);
        let hasher = (!is_known).then(DigestHasher::new);
        Ok(ChunkScan { reader: self, index, digest, size, at: 0, source, hasher })
    }
}

impl ChunkScan<'_> {
    /// The next window of the chunk: 256 KiB, less at its end; `None` when all of it has been taken and is what its digest says.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] at the end; or where the file cannot be read.
    pub fn window(&mut self) -> Result<Option<&[u8]>, StoreError> {
        if self.at == self.size {
            return self.finish().map(|()| None);
        }
        let len = usize::try_from(self.size - self.at).unwrap_or(usize::MAX).min(WINDOW);
        let at = self.at;
        self.at += len as u64;
        let window = match &mut self.source {
            Source::File(blob, window) => {
                let window = &mut window[..len];
                blob.read_exact_at(window, at).map_err(|error| StoreError::file("read", &blob.path, error))?;
                &*window
            }
            Source::Memory(content) => {
                let at = usize::try_from(at).expect("a place in memory");
                &content[at..at + len]
            }
        };
        if let Some(hasher) = &mut self.hasher {
            hasher.update(window);
        }
        Ok(Some(window))
    }

    fn finish(&mut self) -> Result<(), StoreError> {
        let Some(hasher) = self.hasher.take() else { return Ok(()) };
        let found = hasher.finish();
        if found == self.digest {
            self.reader.verified().set_verified(self.index);
            return Ok(());
        }
        match &self.source {
            Source::File(blob, _) => Err(damaged(&blob.path, self.digest, found, self.size)),
            Source::Memory(_) => Ok(()),
        }
    }
}
