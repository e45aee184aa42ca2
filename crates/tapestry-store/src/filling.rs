//! A pack that is being filled: weights that are fetched chunk by chunk, each to its place in one file.

use crate::blob::BlobStore;
use crate::folder::open_directly;
use crate::models::in_parallel;
use crate::pack::{OpenBlob, Packs, publish};
use crate::stream::on_blocking_thread;
use crate::verified::hash_range;
use crate::{ChunkBuffer, StoreError};
use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tapestry_core::{CHUNK_BYTES, Digest, WeightsManifest};
use tapestry_weights::safetensors_header;

/// Data begin at a page, so that chunks can be read past the page cache.
const PAGE: usize = 4096;
/// Weights up to this size are written through the page cache: a trainer reads them next.
const CACHED_BYTES: u64 = 4 << 30;

/// The file `packs/D.part`. It is kept when the process ends: what of it is right is found by hashing it.
pub(crate) struct OpenPack {
    weights: Digest,
    manifest: WeightsManifest,
    path: PathBuf,
    file: File,
    direct: Option<File>,
    data_start: u64,
    slots: Mutex<HashMap<Digest, Slot>>,
    waiting: Mutex<Vec<Digest>>,
    turn: Mutex<()>,
}

#[derive(Clone, Copy)]
struct Slot {
    index: usize,
    state: SlotState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum SlotState {
    Free,
    /// Somebody writes it.
    Taken,
    /// It is right, and durable.
    Done,
}

impl fmt::Debug for OpenPack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenPack").field("path", &self.path).finish_non_exhaustive()
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The place of one chunk, for one writer. Dropped before it is committed, it is free again.
pub(crate) struct PackSlot {
    pack: Arc<OpenPack>,
    digest: Digest,
    start: u64,
    size: u64,
}

impl BlobStore {
    /// Gets ready to fetch weights into one file, which a trainer can then have without a copy of them; see `pack.rs`. Chunks that come
    /// from now on go to their places there. What an earlier process fetched is checked and kept. Does nothing where the chunks are here
    /// already, or are no files.
    ///
    /// # Errors
    /// Where the manifest describes nothing possible, or the store fails.
    pub async fn begin_pack(&self, weights: &WeightsManifest) -> Result<(), StoreError> {
        weights.check()?;
        if !self.is_in_files() || self.missing(&weights.data.chunks).await?.is_empty() {
            return Ok(());
        }
        let digest = self.put_json(weights).await?;
        let (store, weights) = (self.clone(), weights.clone());
        on_blocking_thread(move || {
            let Some(packs) = store.packs() else { return Ok(()) };
            if packs.open_pack().is_none_or(|open| open.weights != digest) {
                packs.make_folder()?;
                packs.set_open(Some(Arc::new(OpenPack::begin(packs, digest, weights)?)));
            }
            Ok(())
        })
        .await
    }

    /// Ends what [`Self::begin_pack`] began, when all chunks are here: the file gets its name.
    ///
    /// # Errors
    /// [`StoreError::Missing`] where a chunk is not here; or where the store fails.
    pub async fn finish_pack(&self) -> Result<(), StoreError> {
        let store = self.clone();
        on_blocking_thread(move || {
            let Some((packs, open)) = store.packs().and_then(|packs| Some((packs, packs.open_pack()?))) else {
                return Ok(());
            };
            open.complete(&store)?;
            publish(&open.path, &packs.path(open.weights))?;
            packs.take_up(open.weights, &open.manifest)?;
            packs.set_open(None);
            Ok(())
        })
        .await
    }

    /// The place for a chunk in the pack that is being fetched, if it is for that and nobody else writes it.
    pub(crate) fn slot(&self, digest: Digest) -> Option<PackSlot> {
        let pack = self.packs()?.open_pack()?;
        let mut slots = locked(&pack.slots);
        let slot = slots.get_mut(&digest).filter(|slot| slot.state == SlotState::Free)?;
        slot.state = SlotState::Taken;
        let (start, size) = pack.place(slot.index);
        drop(slots);
        Some(PackSlot { pack, digest, start, size })
    }
}

impl OpenPack {
    fn begin(packs: &Packs, weights: Digest, manifest: WeightsManifest) -> Result<Self, StoreError> {
        let path = packs.folder().join(format!("{weights}.part"));
        remove_others(packs.folder(), &path)?;
        let failed = |error| StoreError::file("write", &path, error);
        let header = padded_header(&manifest);
        let file = File::options().read(true).write(true).create(true).truncate(false).open(&path).map_err(failed)?;
        let size = header.len() as u64 + manifest.data.size_bytes;
        let is_begun = file.metadata().map_err(failed)?.len() == size;
        if !is_begun {
            file.set_len(0).map_err(failed)?;
            file.set_len(size).map_err(failed)?;
        }
        file.write_all_at(&header, 0).map_err(failed)?;
        let is_large = manifest.data.size_bytes > CACHED_BYTES;
        let direct = if is_large { open_directly(&path, OpenOptions::new().write(true)) } else { None };
        let mut slots = HashMap::new();
        for (index, digest) in manifest.data.chunks.iter().enumerate() {
            slots.entry(*digest).or_insert(Slot { index, state: SlotState::Free });
        }
        let data_start = header.len() as u64;
        let (waiting, turn) = (Mutex::default(), Mutex::default());
        let pack = Self { weights, manifest, path, file, direct, data_start, slots: Mutex::new(slots), waiting, turn };
        if is_begun {
            pack.keep_what_is_right()?;
        }
        Ok(pack)
    }

    fn keep_what_is_right(&self) -> Result<(), StoreError> {
        let chunks = &self.manifest.data.chunks;
        let is_right = |index: u64| {
            let at = usize::try_from(index).expect("chunks of a manifest in memory");
            let (start, size) = self.place(at);
            Ok(hash_range(&self.file, start, size).ok() == Some(chunks[at]))
        };
        let right = in_parallel(chunks.len() as u64, is_right, Ok)?;
        // It may have been in the page cache only.
        self.file.sync_data().map_err(|error| StoreError::file("write", &self.path, error))?;
        let mut slots = locked(&self.slots);
        for (index, digest) in chunks.iter().enumerate().filter(|(index, _)| right[*index]) {
            // Of several places for one chunk the first counts; the others are filled from it in the end.
            if let Some(slot) = slots.get_mut(digest).filter(|slot| slot.index == index) {
                slot.state = SlotState::Done;
            }
        }
        Ok(())
    }

    /// Start in the file, and size.
    fn place(&self, index: usize) -> (u64, u64) {
        (self.data_start + index as u64 * CHUNK_BYTES, self.manifest.data.chunk_size(index))
    }

    /// Opens a chunk that has come.
    pub(crate) fn open(&self, digest: Digest) -> Result<Option<OpenBlob>, StoreError> {
        let slot = locked(&self.slots).get(&digest).copied().filter(|slot| slot.state == SlotState::Done);
        let Some(slot) = slot else { return Ok(None) };
        let (start, size) = self.place(slot.index);
        let file = self.file.try_clone().map_err(|error| StoreError::file("read", &self.path, error))?;
        Ok(Some(OpenBlob { file, path: self.path.clone(), start, size }))
    }

    /// Fills the places of chunks that were in the store before, or that occur more than once.
    fn complete(&self, store: &BlobStore) -> Result<(), StoreError> {
        for (index, digest) in self.manifest.data.chunks.iter().enumerate() {
            let slot = locked(&self.slots).get(digest).copied();
            if slot.is_some_and(|slot| slot.index == index && slot.state == SlotState::Done) {
                continue;
            }
            let content = store.chunk_blocking(&self.manifest.data, index)?;
            let written = self.file.write_all_at(&content, self.place(index).0);
            written.map_err(|error| StoreError::file("write", &self.path, error))?;
        }
        Ok(())
    }

    /// Makes a chunk durable, together with all others that wait for that.
    fn commit(&self, digest: Digest) -> Result<(), StoreError> {
        locked(&self.waiting).push(digest);
        let _turn = locked(&self.turn);
        let group = std::mem::take(&mut *locked(&self.waiting));
        if !group.is_empty() {
            let synced = self.file.sync_data();
            let mut slots = locked(&self.slots);
            for digest in &group {
                if let Some(slot) = slots.get_mut(digest)
                    && synced.is_ok()
                {
                    slot.state = SlotState::Done;
                }
            }
            drop(slots);
            synced.map_err(|error| StoreError::file("write", &self.path, error))?;
        }
        let is_done = locked(&self.slots).get(&digest).is_some_and(|slot| slot.state == SlotState::Done);
        // Whoever had the turn before this one failed, and said why to its own caller.
        is_done.then_some(()).ok_or_else(|| StoreError::file("write", &self.path, io::ErrorKind::Interrupted.into()))
    }
}

impl PackSlot {
    /// Writes the next piece, which begins at `at` of the chunk. What is more than the chunk has is left out; its digest will tell.
    pub(crate) fn write(&self, piece: &ChunkBuffer, at: u64) -> Result<(), StoreError> {
        self.write_bytes(piece.as_slice(), at)
    }

    pub(crate) fn write_bytes(&self, content: &[u8], at: u64) -> Result<(), StoreError> {
        let room = usize::try_from(self.size.saturating_sub(at)).unwrap_or(usize::MAX);
        let content = &content[..content.len().min(room)];
        let is_whole = content.len().is_multiple_of(PAGE) && content.as_ptr().align_offset(PAGE) == 0;
        let OpenPack { file, direct, path, .. } = &*self.pack;
        let written = match direct.as_ref().filter(|_| is_whole).map(|d| d.write_all_at(content, self.start + at)) {
            Some(Err(error)) if error.kind() == io::ErrorKind::InvalidInput => None,
            other => other,
        };
        let written = written.unwrap_or_else(|| file.write_all_at(content, self.start + at));
        written.map_err(|error| StoreError::file("write", path, error))
    }

    /// Makes the chunk, which was written and checked, durable.
    pub(crate) fn commit(&self) -> Result<(), StoreError> {
        self.pack.commit(self.digest)
    }
}

impl Drop for PackSlot {
    fn drop(&mut self) {
        let mut slots = locked(&self.pack.slots);
        if let Some(slot) = slots.get_mut(&self.digest).filter(|slot| slot.state == SlotState::Taken) {
            slot.state = SlotState::Free;
        }
    }
}

/// Removes what was begun for other weights, which nobody will ask for again.
fn remove_others(folder: &Path, path: &Path) -> Result<(), StoreError> {
    let remove = || -> io::Result<()> {
        for entry in fs::read_dir(folder)? {
            let found = entry?.path();
            if found != path && found.extension().is_some_and(|extension| extension == "part") {
                fs::remove_file(found)?;
            }
        }
        Ok(())
    };
    remove().map_err(|error| StoreError::file("clean up in", folder, error))
}

/// The canonical header with more spaces behind it, so that the data begin at a page.
fn padded_header(manifest: &WeightsManifest) -> Vec<u8> {
    let mut header = safetensors_header(&manifest.tensors);
    header.resize(header.len().next_multiple_of(PAGE), b' ');
    let json_len = header.len() as u64 - 8;
    header[..8].copy_from_slice(&json_len.to_le_bytes());
    header
}
