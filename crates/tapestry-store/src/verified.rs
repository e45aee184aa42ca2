//! Chunks that are files, read in place by many threads without being held in memory.

use crate::StoreError;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tapestry_core::{Digest, DigestHasher};

/// Bytes that are hashed at a time.
const WINDOW: usize = 256 << 10;

/// Which chunks of a content this process has found to be what their digests say.
///
/// A chunk is checked once. Whoever changes a file of the store in the moments between that check and a read can make this
/// process read something else; blobs are written once and never changed, and what is merged from them is hashed anew.
#[derive(Debug)]
pub(crate) struct VerifiedChunks(Vec<AtomicBool>);

impl VerifiedChunks {
    pub(crate) fn new(num_chunks: usize) -> Self {
        Self((0..num_chunks).map(|_| AtomicBool::new(false)).collect())
    }

    /// Fills `buffer` with the bytes of the chunk `index` from `offset` on.
    pub(crate) fn read(
        &self,
        index: usize,
        digest: Digest,
        size: u64,
        path: &Path,
        offset: u64,
        buffer: &mut [u8],
    ) -> Result<(), StoreError> {
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => StoreError::Missing { digest, place: path.display().to_string() },
            _ => StoreError::file("read", path, error),
        };
        let file = File::open(path).map_err(failed)?;
        if !self.0[index].load(Ordering::Acquire) {
            let found = file.metadata().map_err(failed)?.len();
            if found != size {
                return Err(StoreError::ChunkSize { index, digest, expected: size, found });
            }
            let found = hash(&file, size).map_err(failed)?;
            if found != digest {
                let object = path.display().to_string();
                return Err(StoreError::Damaged { digest, found, size_bytes: size, object });
            }
            self.0[index].store(true, Ordering::Release);
        }
        file.read_exact_at(buffer, offset).map_err(failed)
    }
}

/// The digest of the first `size` bytes of a file, in constant memory.
fn hash(file: &File, size: u64) -> io::Result<Digest> {
    let mut hasher = DigestHasher::new();
    let mut window = vec![0; WINDOW];
    let mut at = 0;
    while at < size {
        let len = usize::try_from(size - at).unwrap_or(usize::MAX).min(WINDOW);
        file.read_exact_at(&mut window[..len], at)?;
        hasher.update(&window[..len]);
        at += len as u64;
    }
    Ok(hasher.finish())
}
