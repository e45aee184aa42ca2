//! Blobs as files of a folder: written past the page cache, and made durable several at a time.
//!
//! A chunk that is not needed again at once costs more as a copy in the page cache than to be hashed. So whole chunks are
//! written directly where the system allows that, and read directly where the page cache does not have them. Whoever reads what arrives
//! several times and has memory for it says so ([`BlobStore::with_much_read`](crate::BlobStore::with_much_read)); then reading it
//! from the disk again would cost more.
//!
//! # Durability
//! A blob is staged (written under another name) and then committed. Blobs that are staged at about the same time share a commit: first
//! the contents are synced, then all get their names, then the folders are synced, and only then does any of them count. So a name never
//! shows half a blob, and what is confirmed is on stable storage, for two syncs of the disk a group instead of two a blob.

use crate::StoreError;
use crate::buffer::{ALIGNMENT, ChunkBuffer};
use crate::disk::{self, sync_folder};
use crate::pack::OpenBlob;
use bytes::Bytes;
use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Content of at least so many bytes is written directly; the rest is not worth it.
const DIRECT_BYTES: usize = 64 << 10;

/// The folder's writers meet here.
#[derive(Default)]
pub(crate) struct Commits {
    waiting: Mutex<Vec<Arc<Pending>>>,
    turn: Mutex<()>,
    last_partial: AtomicU64,
}

impl fmt::Debug for Commits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Commits")
    }
}

/// A file that has all of its content and not yet its name.
struct Pending {
    file: File,
    /// The same file, past the page cache; none where that is not possible or not worth it.
    direct: Option<File>,
    partial: PathBuf,
    name: PathBuf,
    /// What came of its commit.
    outcome: Mutex<Option<io::Result<()>>>,
}

/// A blob that is written and waits to be committed. Dropped before that, it is gone.
pub(crate) struct StagedFile {
    pending: Arc<Pending>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Commits {
    /// Writes `content` under another name beside `name`.
    pub(crate) fn stage(&self, name: &Path, content: &Bytes, is_read_soon: bool) -> Result<StagedFile, StoreError> {
        let staged = self.begin(name, content.len(), is_read_soon)?;
        let is_aligned = content.as_ptr().align_offset(ALIGNMENT) == 0 && content.len().is_multiple_of(ALIGNMENT);
        if staged.pending.direct.is_none() || is_aligned {
            staged.write_as_is(content, 0)?;
        } else {
            let mut aligned = ChunkBuffer::new(content.len());
            aligned.fill_from(content);
            staged.write(&aligned, 0)?;
        }
        Ok(staged)
    }

    /// An empty file beside `name`, for content of about `len` bytes, which is written through the page cache where it is read soon.
    pub(crate) fn begin(&self, name: &Path, len: usize, is_read_soon: bool) -> Result<StagedFile, StoreError> {
        let failed = |error| StoreError::file("write", name, error);
        let folder = name.parent().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
        let (partial, file) = self.create_partial(folder, name).map_err(failed)?;
        let is_direct = len >= DIRECT_BYTES && !is_read_soon;
        let direct = if is_direct { open_directly(&partial, OpenOptions::new().write(true)) } else { None };
        let pending = Pending { file, direct, partial, name: name.to_path_buf(), outcome: Mutex::default() };
        Ok(StagedFile { pending: Arc::new(pending) })
    }

    fn create_partial(&self, folder: &Path, name: &Path) -> io::Result<(PathBuf, File)> {
        let stem = name.file_name().unwrap_or_default().to_string_lossy();
        loop {
            let number = self.last_partial.fetch_add(1, Ordering::Relaxed) + 1;
            let partial = folder.join(format!("{stem}#{number}"));
            match OpenOptions::new().write(true).create_new(true).open(&partial) {
                Ok(file) => return Ok((partial, file)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    fs::create_dir(folder).or_else(|error| match error.kind() {
                        io::ErrorKind::AlreadyExists => Ok(()),
                        _ => Err(error),
                    })?;
                    sync_folder(folder.parent().unwrap_or(folder))?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits until every name that can be seen now is durable.
    pub(crate) fn settle(&self) {
        drop(locked(&self.turn));
    }
}

impl StagedFile {
    /// Writes the next piece, which begins at `at`; all but the last are whole pages.
    pub(crate) fn write(&self, piece: &ChunkBuffer, at: u64) -> Result<(), StoreError> {
        let is_whole = piece.len().is_multiple_of(ALIGNMENT);
        if is_whole || self.pending.direct.is_none() {
            return self.write_as_is(piece.as_slice(), at);
        }
        // The file becomes longer than the content, by less than a page, and is cut.
        self.write_as_is(piece.padded(), at)?;
        let cut = self.pending.file.set_len(at + piece.len() as u64);
        cut.map_err(|error| StoreError::file("write", &self.pending.name, error))
    }

    fn write_as_is(&self, content: &[u8], at: u64) -> Result<(), StoreError> {
        let Pending { file, direct, name, .. } = &*self.pending;
        let written = match direct.as_ref().map(|direct| direct.write_all_at(content, at)) {
            // A file system that takes the flag and not the write.
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => file.write_all_at(content, at),
            Some(result) => result,
            None => file.write_all_at(content, at),
        };
        written.map_err(|error| StoreError::file("write", name, error))
    }
}

impl Commits {
    /// Gives blobs of one folder their names, durably, together with all others that wait for theirs.
    pub(crate) fn commit(&self, staged: &[StagedFile]) -> Result<(), StoreError> {
        locked(&self.waiting).extend(staged.iter().map(|staged| Arc::clone(&staged.pending)));
        let _turn = locked(&self.turn);
        // What waited in somebody else's turn is done; all of one call went in together.
        if staged.iter().any(|staged| locked(&staged.pending.outcome).is_none()) {
            publish(&std::mem::take(&mut *locked(&self.waiting)));
        }
        for StagedFile { pending } in staged {
            let outcome = locked(&pending.outcome).take();
            // Whoever had the turn before this one was cut off.
            let outcome = outcome.unwrap_or_else(|| Err(io::ErrorKind::Interrupted.into()));
            outcome.map_err(|error| StoreError::file("write", &pending.name, error))?;
        }
        Ok(())
    }
}

impl Drop for StagedFile {
    fn drop(&mut self) {
        // After a commit there is no such file any more; otherwise it is of no use to anybody.
        let _ = fs::remove_file(&self.pending.partial);
    }
}

/// Commits a group: contents, names, folders, in this order.
fn publish(group: &[Arc<Pending>]) {
    let keep_good = |pending: &&Arc<Pending>, result: io::Result<()>| match result {
        Ok(()) => true,
        Err(error) => {
            *locked(&pending.outcome) = Some(Err(error));
            false
        }
    };
    let sync = |pending: &Pending| disk::sync_content(&pending.file, &pending.partial);
    let whole: Vec<_> = group.iter().filter(|pending| keep_good(pending, sync(pending))).collect();
    let rename = |pending: &Pending| disk::rename(&pending.partial, &pending.name);
    let named: Vec<_> = whole.into_iter().filter(|pending| keep_good(pending, rename(pending))).collect();
    let folders: BTreeSet<&Path> = named.iter().filter_map(|pending| pending.name.parent()).collect();
    let synced = folders.into_iter().try_for_each(sync_folder);
    for pending in named {
        let outcome = synced.as_ref().map_err(|error| io::Error::new(error.kind(), error.to_string()));
        *locked(&pending.outcome) = Some(outcome.copied());
    }
}

/// Opens a file of at most `limit` bytes, and says how many it has; `None` where there is none.
pub(crate) fn open(name: &Path, limit: u64) -> Result<Option<(File, u64)>, StoreError> {
    let failed = |error| StoreError::file("read", name, error);
    let file = match File::open(name) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let size = file.metadata().map_err(failed)?.len();
    if size > limit {
        return Err(StoreError::Oversized { object: name.display().to_string(), found: size, limit });
    }
    Ok(Some((file, size)))
}

/// Reads a blob into memory that is kept for the next.
pub(crate) fn read(blob: &OpenBlob) -> Result<Bytes, StoreError> {
    let OpenBlob { file, path, start, size } = blob;
    let len = usize::try_from(*size).map_err(|_| StoreError::TooLarge { found: *size })?;
    let mut buffer = ChunkBuffer::new(len);
    let cached = if len >= DIRECT_BYTES { read_cached(file, *start, &mut buffer.room()[..len]) } else { 0 };
    let filled = fill(file, path, *start, cached, &mut buffer, len);
    filled.map_err(|error| StoreError::file("read", path, error))?;
    Ok(buffer.into_bytes())
}

/// `len` bytes of a file from `start` on, of which the first `at` are in the buffer already: directly as far as that goes, and whatever
/// is left in the ordinary way.
pub(crate) fn fill(
    file: &File,
    name: &Path,
    start: u64,
    mut at: usize,
    buffer: &mut ChunkBuffer,
    len: usize,
) -> io::Result<()> {
    if at < len
        && len >= DIRECT_BYTES
        && start.is_multiple_of(ALIGNMENT as u64)
        && let Some(direct) = open_directly(name, OpenOptions::new().read(true))
    {
        while at < len {
            // Only the end of the file is not the end of a page.
            at -= at % ALIGNMENT;
            match direct.read_at(&mut buffer.room()[at..], start + at as u64) {
                Ok(0) | Err(_) => break,
                Ok(read) => at = (at + read).min(len),
            }
        }
    }
    file.read_exact_at(&mut buffer.room()[at..len], start + at as u64)?;
    buffer.filled(len);
    Ok(())
}

/// Fills as much of `room`, from its start, as the page cache has, and waits for no disk.
#[cfg(target_os = "linux")]
pub(crate) fn read_cached(file: &File, start: u64, room: &mut [u8]) -> usize {
    use rustix::io::{ReadWriteFlags, preadv2};
    let mut at = 0;
    while at < room.len() {
        let rest = io::IoSliceMut::new(&mut room[at..]);
        match preadv2(file, &mut [rest], start + at as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) | Err(_) => break,
            Ok(read) => at += read,
        }
    }
    at
}

/// Other systems do not say what their page cache has.
#[cfg(not(target_os = "linux"))]
pub(crate) fn read_cached(_: &File, _: u64, _: &mut [u8]) -> usize {
    0
}

/// Bytes that may still be written to the file system that has `path`.
pub(crate) fn free_bytes(path: &Path) -> Result<u64, StoreError> {
    let stat =
        rustix::fs::statvfs(path).map_err(|error| StoreError::file("measure the space of", path, error.into()))?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes of memory of this machine, where the system says so.
pub(crate) fn memory_bytes() -> Option<u64> {
    let text = fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The file, past the page cache, where the system and the file system can do that.
pub(crate) fn open_directly(path: &Path, options: &mut OpenOptions) -> Option<File> {
    #[cfg(target_os = "linux")]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        let flags = i32::try_from(rustix::fs::OFlags::DIRECT.bits()).ok()?;
        options.custom_flags(flags).open(path).ok()
    }
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (path, options);
        None
    }
}
