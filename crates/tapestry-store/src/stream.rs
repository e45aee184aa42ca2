//! Content of any size in constant memory: cut into chunks on the way in, put together on the way out.

use crate::blocking::wait;
use crate::objects::sync_folder;
use crate::{BlobStore, ChunkBuffer, Staged, StoreError};
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use tapestry_core::{Blob, CHUNK_BYTES, Digest};

#[expect(clippy::cast_possible_truncation, reason = "8 MiB fits any address space that this runs in")]
pub(crate) const CHUNK_LEN: usize = CHUNK_BYTES as usize;

/// How many chunks share a commit.
const COMMIT_CHUNKS: usize = 16;

/// Cuts what is written into chunks and stores each as soon as it is full. Holds one chunk in memory. All are durable when it is
/// finished; what was written before a crash is durable in part.
#[derive(Debug)]
pub(crate) struct BlobWriter {
    store: BlobStore,
    chunks: Vec<Digest>,
    size_bytes: u64,
    pending: Option<ChunkBuffer>,
    staged: Vec<Staged>,
}

impl BlobWriter {
    pub(crate) const fn new(store: BlobStore) -> Self {
        Self { store, chunks: vec![], size_bytes: 0, pending: None, staged: vec![] }
    }

    pub(crate) const fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    pub(crate) fn write(&mut self, mut content: &[u8]) -> Result<(), StoreError> {
        while !content.is_empty() {
            let pending = self.pending.get_or_insert_with(|| ChunkBuffer::new(CHUNK_LEN));
            let taken = pending.fill_from(content);
            self.size_bytes += taken as u64;
            content = &content[taken..];
            if pending.is_full() {
                self.stage_pending()?;
            }
        }
        Ok(())
    }

    fn stage_pending(&mut self) -> Result<(), StoreError> {
        if let Some(pending) = self.pending.take() {
            self.staged.push(self.store.stage_blocking(pending.into_bytes())?);
        }
        if self.staged.len() >= COMMIT_CHUNKS { self.commit() } else { Ok(()) }
    }

    fn commit(&mut self) -> Result<(), StoreError> {
        let staged = std::mem::take(&mut self.staged);
        self.chunks.extend(self.store.commit_blocking(staged)?);
        Ok(())
    }

    pub(crate) fn finish(mut self) -> Result<Blob, StoreError> {
        self.stage_pending()?;
        self.commit()?;
        Ok(Blob { size_bytes: self.size_bytes, chunks: self.chunks })
    }
}

/// A file that appears under its name only when all of it is on the disk.
pub(crate) struct WholeFile {
    file: File,
    partial: PathBuf,
    path: PathBuf,
}

impl WholeFile {
    pub(crate) fn create(path: &Path) -> Result<Self, StoreError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let partial = path.with_file_name(format!(".{name}.partial"));
        let file = File::create(&partial).map_err(|e| StoreError::file("make", &partial, e))?;
        Ok(Self { file, partial, path: path.to_path_buf() })
    }

    pub(crate) fn write(&mut self, content: &[u8]) -> Result<(), StoreError> {
        self.file.write_all(content).map_err(|e| StoreError::file("write", &self.path, e))
    }

    /// Writes at a place of its own; several threads may do that at once.
    pub(crate) fn write_at(&self, content: &[u8], at: u64) -> Result<(), StoreError> {
        self.file.write_all_at(content, at).map_err(|e| StoreError::file("write", &self.path, e))
    }

    /// Gives the file its name without waiting for the disk.
    pub(crate) fn finish_for_now(self) -> Result<(), StoreError> {
        fs::rename(&self.partial, &self.path).map_err(|e| StoreError::file("write", &self.path, e))
    }

    pub(crate) fn finish(self) -> Result<(), StoreError> {
        let publish = || -> io::Result<()> {
            self.file.sync_all()?;
            fs::rename(&self.partial, &self.path)?;
            sync_folder(self.path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")))
        };
        publish().map_err(|e| StoreError::file("write", &self.path, e))
    }
}

impl Drop for WholeFile {
    fn drop(&mut self) {
        // After `finish` it is there no more; after an error it is of no use to anybody.
        let _ = fs::remove_file(&self.partial);
    }
}

/// Stores up to `limit` bytes of `reader`.
pub(crate) fn import_reader(
    store: &BlobStore,
    path: &Path,
    mut file: impl io::Read,
    limit: u64,
) -> Result<Blob, StoreError> {
    let mut writer = BlobWriter::new(store.clone());
    let mut buffer = vec![0; 1 << 20];
    loop {
        let len = file.read(&mut buffer).map_err(|e| StoreError::file("read", path, e))?;
        if len == 0 {
            return writer.finish();
        }
        writer.write(&buffer[..len])?;
        if writer.size_bytes() > limit {
            let object = path.display().to_string();
            return Err(StoreError::Oversized { object, found: writer.size_bytes(), limit });
        }
    }
}

/// Writes the chunks of `blob` in order.
pub(crate) fn export_chunks(
    store: &BlobStore,
    blob: &Blob,
    write: &mut dyn FnMut(&[u8]) -> Result<(), StoreError>,
) -> Result<(), StoreError> {
    let mut written = 0;
    for index in 0..blob.chunks.len() {
        let (store, blob) = (store.clone(), blob.clone());
        let content = wait(async move { store.chunk(&blob, index).await })?;
        write(&content)?;
        written += content.len() as u64;
    }
    if written == blob.size_bytes {
        return Ok(());
    }
    Err(StoreError::WrittenSize { expected: blob.size_bytes, found: written })
}

impl BlobStore {
    /// Stores a file of any size, in constant memory.
    ///
    /// # Errors
    /// Where the file cannot be read, or the store fails.
    pub async fn import_file(&self, path: &Path) -> Result<Blob, StoreError> {
        let (store, path) = (self.clone(), path.to_path_buf());
        on_blocking_thread(move || {
            let file = File::open(&path).map_err(|e| StoreError::file("open", &path, e))?;
            import_reader(&store, &path, file, u64::MAX)
        })
        .await
    }

    /// Writes a blob of any size to a file, in constant memory. The file is there whole or not at all.
    ///
    /// # Errors
    /// Where a chunk is missing or damaged, or the file cannot be written.
    pub async fn export_file(&self, blob: &Blob, path: &Path) -> Result<(), StoreError> {
        let (store, blob, path) = (self.clone(), blob.clone(), path.to_path_buf());
        on_blocking_thread(move || {
            let mut file = WholeFile::create(&path)?;
            export_chunks(&store, &blob, &mut |content| file.write(content))?;
            file.finish()
        })
        .await
    }
}

/// Runs synchronous work where waiting for it holds up nothing else.
pub(crate) async fn on_blocking_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StoreError> + Send + 'static,
) -> Result<T, StoreError> {
    ended(tokio::task::spawn_blocking(work).await)
}

/// The result of work on another thread; its panic goes on here.
pub(crate) fn ended<T>(joined: Result<Result<T, StoreError>, tokio::task::JoinError>) -> Result<T, StoreError> {
    match joined {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(StoreError::Interrupted),
        },
    }
}
