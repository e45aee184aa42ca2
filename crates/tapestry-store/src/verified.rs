//! Chunks that are files, read in place by many threads without being held in memory.

use crate::StoreError;
use crate::blob::BlobStore;
use crate::pack::OpenBlob;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tapestry_core::{Digest, DigestHasher};

/// Bytes that are hashed at a time.
pub(crate) const WINDOW: usize = 256 << 10;

/// Which chunks of a content this process has found to be what their digests say.
///
/// A chunk is checked once. Whoever changes a file of the store in the moments between that check and a read can make this
/// process read something else; blobs are written once and never changed, and what is merged from them is hashed anew.
#[derive(Debug)]
pub(crate) struct VerifiedChunks(Vec<Mutex<bool>>);

impl VerifiedChunks {
    pub(crate) fn new(num_chunks: usize) -> Self {
        Self((0..num_chunks).map(|_| Mutex::new(false)).collect())
    }

    /// Whether a chunk has been checked. Whoever holds the answer may check it; others who want to know wait for that.
    fn lock(&self, index: usize) -> MutexGuard<'_, bool> {
        self.0[index].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a chunk has been checked.
    pub(crate) fn is_verified(&self, index: usize) -> bool {
        *self.lock(index)
    }

    /// Somebody has checked a chunk.
    pub(crate) fn set_verified(&self, index: usize) {
        *self.lock(index) = true;
    }

    /// Fills `buffer` with the bytes of the chunk `index` from `offset` on.
    pub(crate) fn read(
        &self,
        store: &BlobStore,
        index: usize,
        digest: Digest,
        size: u64,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        let mut is_verified = self.lock(index);
        let blob = open_chunk(store, index, digest, size)?;
        let failed = |error: io::Error| StoreError::file("read", &blob.path, error);
        if !*is_verified {
            let found = hash_range(&blob.file, blob.start, size).map_err(failed)?;
            if found != digest {
                return Err(damaged(&blob.path, digest, found, size));
            }
            *is_verified = true;
        }
        drop(is_verified);
        blob.read_exact_at(buffer, offset).map_err(failed)
    }
}

/// A chunk, which has the size that its place asks for.
pub(crate) fn open_chunk(store: &BlobStore, index: usize, digest: Digest, size: u64) -> Result<OpenBlob, StoreError> {
    let blob = store.open_blob(digest)?;
    let blob = blob.ok_or_else(|| StoreError::Missing { digest, place: store.place().to_owned() })?;
    if blob.size != size {
        return Err(StoreError::ChunkSize { index, digest, expected: size, found: blob.size });
    }
    Ok(blob)
}

pub(crate) fn damaged(path: &Path, digest: Digest, found: Digest, size_bytes: u64) -> StoreError {
    StoreError::Damaged { digest, found, size_bytes, object: path.display().to_string() }
}

/// Has the system fetch a part of a file from the disk, in as few requests as it can.
pub(crate) fn will_read(file: &File, start: u64, size: u64) {
    #[cfg(target_os = "linux")]
    {
        // Only speed is lost where it does not want to.
        let _ = rustix::fs::fadvise(file, start, NonZeroU64::new(size), rustix::fs::Advice::WillNeed);
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (file, start, size);
}

/// The digest of `size` bytes of a file from `start` on, in constant memory.
pub(crate) fn hash_range(file: &File, start: u64, size: u64) -> io::Result<Digest> {
    will_read(file, start, size);
    let mut hasher = DigestHasher::new();
    let mut window = vec![0; WINDOW];
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at).unwrap_or(usize::MAX).min(WINDOW);
        file.read_exact_at(&mut window[..len], start + at)?;
        hasher.update(&window[..len]);
        at += len as u64;
    }
    Ok(hasher.finish())
}
