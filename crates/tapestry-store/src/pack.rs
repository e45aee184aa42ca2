//! Weights that are one file each, whose stretches are chunks.
//!
//! A trainer reads and writes safetensors files; a store keeps chunks. A pack is both: the file `packs/D.safetensors` of a store's folder,
//! where D is the digest of the weights' manifest. Chunk `i` is what its data have from `i` x 8 MiB on. So what a trainer wrote becomes chunks by
//! getting a second name, and what was fetched becomes a trainer's base in the same way: nothing is written twice.
//!
//! # Durability
//! First the manifest is durable, then the pack's content, then the pack gets its name, then the folder is synced. Whatever a name in `packs`
//! shows is whole; a pack whose manifest is not here is not looked at.
//!
//! # What could change a pack
//! Its content may have a second name in a folder that a trainer can write to, so it is made read-only, and where the file system can
//! give out a copy that costs nothing, it is such a copy and no second name. A pack that somebody wrote into nevertheless (its time of
//! change tells) is trusted no more: each chunk is hashed before it counts as here, and one that is damaged is missing, and will be fetched again.
//! As in the whole store, what is used is checked against its digest.

use crate::blob::BlobStore;
use crate::filling::OpenPack;
use crate::folder;
use crate::objects::sync_folder;
use crate::verified::hash_range;
use crate::{StoreError, models};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs::{self, File, Metadata, Permissions};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tapestry_core::{CHUNK_BYTES, Digest, WeightsManifest};

/// The folder of packs in a folder of blobs.
const FOLDER: &str = "packs";
const EXTENSION: &str = "safetensors";
/// How long it holds that a whole pack was checked: longer ago, and it is checked again before a trainer gets it.
const HOLDS_FOR: Duration = Duration::from_secs(300);

/// A blob that can be read: a file, or a stretch of one.
#[derive(Debug)]
pub(crate) struct OpenBlob {
    pub(crate) file: File,
    pub(crate) path: PathBuf,
    pub(crate) start: u64,
    pub(crate) size: u64,
}

/// The packs of a folder of blobs.
#[derive(Debug)]
pub(crate) struct Packs {
    folder: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The folder when it was looked at last.
    looked_at: Option<Facts>,
    /// Names that have been looked at.
    seen: HashSet<OsString>,
    packs: HashMap<Digest, Arc<Pack>>,
    places: HashMap<Digest, Place>,
    /// The pack that is being fetched.
    open: Option<Arc<OpenPack>>,
}

#[derive(Debug, Clone)]
struct Place {
    pack: Arc<Pack>,
    start: u64,
    size: u64,
}

#[derive(Debug)]
struct Pack {
    path: PathBuf,
    /// When it was taken up. Other facts later mean that somebody wrote into it.
    facts: Facts,
    checked: Mutex<Option<Instant>>,
}

/// What tells that a file or folder was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Facts(u64, i64, i64);

impl Facts {
    fn of(metadata: &Metadata) -> Self {
        Self(metadata.len(), metadata.mtime(), metadata.mtime_nsec())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Packs {
    pub(crate) fn new(blobs: &Path) -> Self {
        Self { folder: blobs.join(FOLDER), state: Mutex::default() }
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the pack of these weights is, or will be.
    pub(crate) fn path(&self, weights: Digest) -> PathBuf {
        self.folder.join(format!("{weights}.{EXTENSION}"))
    }

    pub(crate) fn set_open(&self, open: Option<Arc<OpenPack>>) {
        locked(&self.state).open = open;
    }

    pub(crate) fn open_pack(&self) -> Option<Arc<OpenPack>> {
        locked(&self.state).open.clone()
    }

    fn place(&self, store: &BlobStore, digest: Digest) -> Result<Option<Place>, StoreError> {
        if let Some(place) = locked(&self.state).places.get(&digest) {
            return Ok(Some(place.clone()));
        }
        self.look(store)?;
        Ok(locked(&self.state).places.get(&digest).cloned())
    }

    /// Takes up the packs that have come since the last look, whoever made them.
    fn look(&self, store: &BlobStore) -> Result<(), StoreError> {
        let failed = |error| StoreError::file("read", &self.folder, error);
        let facts = match fs::metadata(&self.folder) {
            Ok(metadata) => Facts::of(&metadata),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(failed(error)),
        };
        let mut state = locked(&self.state);
        if state.looked_at == Some(facts) {
            return Ok(());
        }
        for entry in fs::read_dir(&self.folder).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            if state.seen.contains(&name) {
                continue;
            }
            let digest = name.to_str().and_then(|name| name.strip_suffix(&format!(".{EXTENSION}"))?.parse().ok());
            if let Some(weights) = digest
                && let Some(manifest) = models::stored_manifest(store, weights)
            {
                state.take_up(weights, &manifest, &self.folder.join(&name)).map_err(failed)?;
            }
            state.seen.insert(name);
        }
        state.looked_at = Some(facts);
        Ok(())
    }

    /// A file that has just got its name and was checked just now.
    pub(crate) fn take_up(&self, weights: Digest, manifest: &WeightsManifest) -> Result<(), StoreError> {
        let path = self.path(weights);
        let mut state = locked(&self.state);
        let taken_up = state.take_up(weights, manifest, &path);
        let pack = taken_up.map_err(|error| StoreError::file("read", &path, error))?;
        if let Some(pack) = pack {
            *locked(&pack.checked) = Some(Instant::now());
        }
        state.seen.extend(path.file_name().map(ToOwned::to_owned));
        Ok(())
    }

    /// Opens a chunk that lies in a pack.
    pub(crate) fn open(&self, store: &BlobStore, digest: Digest) -> Result<Option<OpenBlob>, StoreError> {
        if let Some(open) = self.open_pack()
            && let Some(blob) = open.open(digest)?
        {
            return Ok(Some(blob));
        }
        let Some(Place { pack, start, size }) = self.place(store, digest)? else { return Ok(None) };
        let failed = |error| StoreError::file("read", &pack.path, error);
        let file = match File::open(&pack.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(self.forget(digest)),
            Err(error) => return Err(failed(error)),
        };
        if Facts::of(&file.metadata().map_err(failed)?) != pack.facts
            && hash_range(&file, start, size).ok() != Some(digest)
        {
            return Ok(self.forget(digest));
        }
        Ok(Some(OpenBlob { file, path: pack.path.clone(), start, size }))
    }

    /// A chunk is damaged or gone. It is missing from now on, so that it will be fetched; then it has a file of its own.
    fn forget(&self, digest: Digest) -> Option<OpenBlob> {
        locked(&self.state).places.remove(&digest);
        None
    }

    /// Gives the weights' file another name, if there is a pack of them; or, better, a copy that shares what nobody writes to. Checks them
    /// before, unless that was done just now.
    pub(crate) fn share(&self, store: &BlobStore, weights: &WeightsManifest, path: &Path) -> Result<bool, StoreError> {
        let digest = Digest::of_json(weights)?;
        self.look(store)?;
        let Some(pack) = locked(&self.state).packs.get(&digest).cloned() else { return Ok(false) };
        if !self.is_sound(&pack, weights) {
            return Ok(false);
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(StoreError::file("replace", path, error));
            }
            _ => {}
        }
        Ok(clone_file(&pack.path, path) || fs::hard_link(&pack.path, path).is_ok())
    }

    /// Whether all of a pack is what its manifest says. What is not is forgotten.
    fn is_sound(&self, pack: &Pack, weights: &WeightsManifest) -> bool {
        let Ok(file) = File::open(&pack.path) else { return false };
        let is_same = file.metadata().is_ok_and(|metadata| Facts::of(&metadata) == pack.facts);
        let mut checked = locked(&pack.checked);
        if is_same && checked.is_some_and(|since| since.elapsed() < HOLDS_FOR) {
            return true;
        }
        let Ok(size) = file.metadata().map(|metadata| metadata.len()) else { return false };
        let Some(data_start) = size.checked_sub(weights.data.size_bytes) else { return false };
        let is_good = |index: u64| {
            let at = usize::try_from(index).expect("chunks of a manifest in memory");
            let start = data_start + index * CHUNK_BYTES;
            Ok(hash_range(&file, start, weights.data.chunk_size(at)).ok() == Some(weights.data.chunks[at]))
        };
        let good = models::in_parallel(weights.data.chunks.len() as u64, is_good, Ok).unwrap_or_default();
        for (digest, _) in weights.data.chunks.iter().zip(&good).filter(|(_, is_good)| !**is_good) {
            self.forget(*digest);
        }
        let is_sound = good.len() == weights.data.chunks.len() && good.iter().all(|is_good| *is_good);
        *checked = (is_sound && is_same).then(Instant::now);
        is_sound
    }

    /// Makes the folder of packs, durably.
    pub(crate) fn make_folder(&self) -> Result<(), StoreError> {
        let make = || -> io::Result<()> {
            match fs::create_dir(&self.folder) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                made => made.and_then(|()| sync_folder(self.folder.parent().unwrap_or(&self.folder))),
            }
        };
        make().map_err(|error| StoreError::file("make", &self.folder, error))
    }

    /// Takes the file of these weights, whose content is durable and checked, as their pack: by a copy that shares its content, or by a
    /// second name. `false` where the file system can do neither.
    pub(crate) fn adopt(&self, weights: Digest, manifest: &WeightsManifest, file: &Path) -> Result<bool, StoreError> {
        self.make_folder()?;
        let path = self.path(weights);
        // Under another name first: what has its name is durable. The names are those that are cleaned up after a crash.
        let partial = self.folder.join(format!("{weights}#1"));
        let _ = fs::remove_file(&partial);
        if !clone_file(file, &partial) && fs::hard_link(file, &partial).is_err() {
            return Ok(false);
        }
        publish(&partial, &path)?;
        self.take_up(weights, manifest)?;
        Ok(true)
    }
}

impl State {
    fn take_up(&mut self, weights: Digest, manifest: &WeightsManifest, path: &Path) -> io::Result<Option<Arc<Pack>>> {
        let metadata = fs::metadata(path)?;
        let Some(data_start) = metadata.len().checked_sub(manifest.data.size_bytes) else { return Ok(None) };
        let pack = Arc::new(Pack { path: path.to_path_buf(), facts: Facts::of(&metadata), checked: Mutex::default() });
        for (index, digest) in manifest.data.chunks.iter().enumerate() {
            let place = Place {
                pack: Arc::clone(&pack),
                start: data_start + index as u64 * CHUNK_BYTES,
                size: manifest.data.chunk_size(index),
            };
            self.places.insert(*digest, place);
        }
        self.packs.insert(weights, Arc::clone(&pack));
        Ok(Some(pack))
    }
}

/// Syncs a pack's file, makes it read-only, and gives it its name.
pub(crate) fn publish(partial: &Path, path: &Path) -> Result<(), StoreError> {
    let publish = || -> io::Result<()> {
        let file = File::open(partial)?;
        file.set_permissions(Permissions::from_mode(0o444))?;
        file.sync_all()?;
        fs::rename(partial, path)?;
        sync_folder(path.parent().unwrap_or(path))
    };
    publish().map_err(|error| StoreError::file("write", path, error))
}

/// A copy that takes no space and no time, where the file system can make one.
fn clone_file(from: &Path, to: &Path) -> bool {
    #[cfg(target_os = "linux")]
    {
        let Ok(source) = File::open(from) else { return false };
        let Ok(copy) = File::options().write(true).create_new(true).open(to) else { return false };
        if rustix::fs::ioctl_ficlone(&copy, &source).is_ok() {
            return true;
        }
        let _ = fs::remove_file(to);
    }
    let _ = (from, to);
    false
}

impl BlobStore {
    /// Opens a blob that is a file, or a stretch of a pack; `None` where it is neither.
    pub(crate) fn open_blob(&self, digest: Digest) -> Result<Option<OpenBlob>, StoreError> {
        // A file of its own comes first: where a chunk of a pack was damaged, it is what was fetched again.
        if let Some(path) = self.file(digest)
            && let Some((file, size)) = folder::open(&path, CHUNK_BYTES)?
        {
            return Ok(Some(OpenBlob { file, path, start: 0, size }));
        }
        self.packs().map_or(Ok(None), |packs| packs.open(self, digest))
    }

    /// Whether a blob is a file, or a stretch of a pack.
    pub(crate) fn holds(&self, digest: Digest) -> bool {
        self.file(digest).is_some_and(|file| file.is_file())
            || self.packs().is_some_and(|packs| packs.open(self, digest).is_ok_and(|found| found.is_some()))
    }
}

impl OpenBlob {
    pub(crate) fn read_exact_at(&self, buffer: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, self.start + at)
    }
}
