//! A result as a safetensors file: written by all threads at once, hashed on the way, resumed where it was interrupted.
//!
//! The file is cut into parts of one mebibyte. A thread fills a part, hashes it while it is in its cache, and writes it past the
//! page cache where the file system allows that: the kernel then copies nothing, and "written" means that the disk has it.
//!
//! # Interruption
//! After every few hundred parts the file is synced, and then the journal beside it says how far it is complete and what the
//! hash of that much is (temporary file, sync, rename). A later run with the same inputs reads that much again, compares the
//! hash, and goes on. Anything else begins anew.

use crate::EngineError;
use crate::merge::{Merge, Output, Scratch, check_stop};
use crate::tree_hash::{PartHash, whole};
use rayon::prelude::*;
use rustix::fs::{FallocateFlags, OFlags, fallocate};
use serde::{Deserialize, Serialize};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tapestry_core::Digest;
use tapestry_weights::safetensors_header_with_others;

/// Bytes of a part. A power of two, so that its hash is a subtree of the file's.
const PART: usize = 1 << 20;
/// Where buffers for direct writing must begin, in memory and in the file.
const ALIGNMENT: usize = 4096;
/// A journal longer than this is not read.
const MAX_JOURNAL_BYTES: u64 = 4096;

/// How far the writing of a file has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of the file that are written.
    pub done: u64,
    /// Bytes of the whole file.
    pub total: u64,
}

/// How to write a file.
pub struct Writing<'a> {
    /// The file. It may only be there from an interrupted run.
    pub path: &'a Path,
    /// What the result follows from: method, parameters, inputs. A journal with another value is not continued.
    pub identity: Digest,
    /// Set it to stop at the next safe place.
    pub stop: &'a AtomicBool,
    /// How many bytes are written between two safe places.
    pub sync_every: u64,
    /// Told after every part.
    pub progress: &'a (dyn Fn(Progress) + Sync),
}

/// A file that is written and durable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FileReport {
    /// BLAKE3 of the file, as `b3sum` prints it.
    pub blake3: Digest,
    /// Its size.
    pub size_bytes: u64,
    /// Bytes that an earlier run had written.
    pub resumed_bytes: u64,
}

/// How far a file is complete.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Journal {
    identity: Digest,
    /// Parts from the start of the file that are complete and synced.
    num_parts: usize,
    /// The digest of their hashes.
    parts: Digest,
}

/// Writes a result of `merge` as a safetensors file and makes it durable. Its journal stays, so that a run that is repeated takes the
/// file as it is; whoever gives the file its final name removes it.
///
/// # Errors
/// [`EngineError`]. After [`EngineError::Stopped`] the file and its journal are there to go on from; after any other error they
/// are for the caller to remove.
pub fn write_file(merge: &Merge<'_>, output: Output, writing: &Writing<'_>) -> Result<FileReport, EngineError> {
    let header = safetensors_header_with_others(merge.tensors(output), merge.other_tensors(output));
    let merged_end = header.len() as u64 + merge.size_bytes(output);
    let total = merged_end + merge.other_bytes(output);
    let num_parts = usize::try_from(total.div_ceil(PART as u64)).expect("parts of a file that fits a disk");
    let target = Target::open(writing.path, total)?;
    let mut hashes = target.resume(writing, total, num_parts)?;
    let resumed = (hashes.len() as u64 * PART as u64).min(total);
    let done = AtomicU64::new(resumed);
    (writing.progress)(Progress { done: resumed, total });
    let fill = |part: usize, scratch: &mut PartScratch| -> Result<PartHash, EngineError> {
        let start = part as u64 * PART as u64;
        let len = usize::try_from((total - start).min(PART as u64)).expect("a part");
        let bytes = scratch.buffer.bytes(len);
        // A part may hold the end of the header, merged tensors, and the first of those that are copied.
        let cut = |end: u64| usize::try_from(end.saturating_sub(start)).unwrap_or(usize::MAX).min(len);
        let (header_end, copied_start) = (cut(header.len() as u64), cut(merged_end));
        if header_end > 0 {
            bytes[..header_end].copy_from_slice(&header[part * PART..part * PART + header_end]);
        }
        if copied_start > header_end {
            let from = start + header_end as u64 - header.len() as u64;
            merge.fill(output, from, &mut bytes[header_end..copied_start], &mut scratch.merge)?;
        }
        if len > copied_start {
            merge.fill_others(start + copied_start as u64 - merged_end, &mut bytes[copied_start..])?;
        }
        let hash = PartHash::new(start, bytes);
        target.write(bytes, start)?;
        let done = done.fetch_add(len as u64, Ordering::Relaxed) + len as u64;
        (writing.progress)(Progress { done, total });
        Ok(hash)
    };
    let parts_at_once = usize::try_from(writing.sync_every / PART as u64).unwrap_or(usize::MAX).max(1);
    while hashes.len() < num_parts {
        let safe = (hashes.len() as u64 * PART as u64).min(total);
        check_stop(writing.stop, safe, total)?;
        let end = num_parts.min(hashes.len() + parts_at_once);
        let next = hashes.len()..end;
        let new: Vec<PartHash> =
            next.into_par_iter().map_init(PartScratch::default, |s, part| fill(part, s)).collect::<Result<_, _>>()?;
        hashes.extend(new);
        target.note(writing, &hashes)?;
    }
    let blake3 = if let [_] = hashes[..] { digest_of_file(writing.path)? } else { whole(&hashes) };
    Ok(FileReport { blake3, size_bytes: total, resumed_bytes: resumed })
}

#[derive(Default)]
struct PartScratch {
    merge: Scratch,
    buffer: Buffer,
}

/// Memory for one part that begins where direct writing wants it.
struct Buffer(Vec<u8>);

impl Default for Buffer {
    fn default() -> Self {
        Self(vec![0; PART + ALIGNMENT])
    }
}

impl Buffer {
    fn bytes(&mut self, len: usize) -> &mut [u8] {
        let skip = self.0.as_ptr().align_offset(ALIGNMENT);
        &mut self.0[skip..skip + len]
    }
}

/// The file that is being written, twice open: past the page cache where possible, and through it for the rest.
struct Target {
    path: PathBuf,
    file: File,
    direct: Option<File>,
}

impl Target {
    fn open(path: &Path, size: u64) -> Result<Self, EngineError> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let file = file.map_err(EngineError::io("create", path))?;
        match fallocate(&file, FallocateFlags::empty(), 0, size) {
            Ok(()) => {}
            // Not every file system can promise room; then a full disk shows while writing.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {}
            Err(error) => {
                let error = io::Error::from(error);
                if error.kind() == io::ErrorKind::StorageFull {
                    return Err(EngineError::DiskFull { path: path.to_path_buf(), needed: size });
                }
                return Err(EngineError::io("make room for", path)(error));
            }
        }
        file.set_len(size).map_err(EngineError::io("resize", path))?;
        let flags = i32::try_from(OFlags::DIRECT.bits()).expect("a flag of the system");
        let direct = OpenOptions::new().write(true).custom_flags(flags).open(path).ok();
        Ok(Self { path: path.to_path_buf(), file, direct })
    }

    fn write(&self, bytes: &[u8], start: u64) -> Result<(), EngineError> {
        let direct = self.direct.as_ref().filter(|_| bytes.len().is_multiple_of(ALIGNMENT));
        if let Some(direct) = direct {
            match direct.write_all_at(bytes, start) {
                // A file system that takes the flag and not the write.
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
                result => return result.map_err(|e| self.failed(e, bytes)),
            }
        }
        self.file.write_all_at(bytes, start).map_err(|e| self.failed(e, bytes))
    }

    fn failed(&self, error: io::Error, bytes: &[u8]) -> EngineError {
        if error.kind() == io::ErrorKind::StorageFull {
            return EngineError::DiskFull { path: self.path.clone(), needed: bytes.len() as u64 };
        }
        EngineError::io("write", &self.path)(error)
    }

    fn journal_path(&self) -> PathBuf {
        self.path.with_extension("journal")
    }

    /// The hashes of the parts that an earlier run completed, read again and compared.
    fn resume(&self, writing: &Writing<'_>, total: u64, num_parts: usize) -> Result<Vec<PartHash>, EngineError> {
        let Some(journal) = self.read_journal().filter(|j| j.identity == writing.identity && j.num_parts <= num_parts)
        else {
            return Ok(vec![]);
        };
        let read = |part: usize, buffer: &mut Vec<u8>| {
            let start = part as u64 * PART as u64;
            buffer.resize(usize::try_from((total - start).min(PART as u64)).expect("a part"), 0);
            self.file.read_exact_at(buffer, start).map_err(EngineError::io("read", &self.path))?;
            Ok(PartHash::new(start, buffer))
        };
        let hashes: Vec<_> = (0..journal.num_parts)
            .into_par_iter()
            .map_init(Vec::new, |buffer, part| read(part, buffer))
            .collect::<Result<_, EngineError>>()?;
        Ok(if digest_of_parts(&hashes) == journal.parts { hashes } else { vec![] })
    }

    fn read_journal(&self) -> Option<Journal> {
        let path = self.journal_path();
        let size = fs::metadata(&path).ok()?.len();
        if size > MAX_JOURNAL_BYTES {
            return None;
        }
        serde_json::from_slice(&fs::read(&path).ok()?).ok()
    }

    /// Makes what is written durable, and then says so.
    fn note(&self, writing: &Writing<'_>, hashes: &[PartHash]) -> Result<(), EngineError> {
        self.file.sync_data().map_err(EngineError::io("sync", &self.path))?;
        let journal = Journal { identity: writing.identity, num_parts: hashes.len(), parts: digest_of_parts(hashes) };
        let content = serde_json::to_vec(&journal).expect("a journal is plain data");
        replace_file(&self.journal_path(), &content)
    }
}

/// Writes a small file: temporary file, sync, rename.
pub(crate) fn replace_file(path: &Path, content: &[u8]) -> Result<(), EngineError> {
    let temporary = path.with_extension("tmp");
    let write = || {
        let mut file = File::create(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(EngineError::io("write", path))
}

fn digest_of_parts(hashes: &[PartHash]) -> Digest {
    let bytes: Vec<u8> = hashes.iter().flat_map(|hash| hash.subtree).collect();
    Digest::of(&bytes)
}

/// BLAKE3 of a file of at most one part.
fn digest_of_file(path: &Path) -> Result<Digest, EngineError> {
    Ok(Digest::of(&fs::read(path).map_err(EngineError::io("read", path))?))
}
