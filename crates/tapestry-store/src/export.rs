//! A log as a folder of files in the layout of C2SP tlog-tiles, for anybody who wants to check it with nothing running.

use crate::{LogError, LogIndex, StoreError, disk};
use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use tapestry_core::PublicKey;
use tapestry_ledger::export::{Bundle, ExportCheck, ExportError, check_hashes};
use tapestry_ledger::note::MAX_NOTE_BYTES;
use tapestry_ledger::tile::{MAX_ENTRY_BYTES, TILE_WIDTH, Tile, TileKind, unbundle};
use tapestry_ledger::{Chain, SignedCheckpoint, Tree, TreeHash};

/// The name of the checkpoint's file.
const CHECKPOINT: &str = "checkpoint";
/// Hashes of a tile.
const WIDTH: usize = 256;
/// The longest bundle.
const MAX_BUNDLE_BYTES: usize = WIDTH * (MAX_ENTRY_BYTES + 2);
const _: () = assert!(WIDTH as u64 == TILE_WIDTH);

/// Writes a log, with its checkpoint, into a folder that must not be there yet: all of it, or nothing.
///
/// # Panics
/// Where the checkpoint is of more entries than the log has.
///
/// # Errors
/// Where the folder is there, cannot be written, or the log cannot be read.
pub async fn write_export(index: &LogIndex, checkpoint: &SignedCheckpoint, folder: &Path) -> Result<(), LogError> {
    let failed = |path: &Path| {
        let path = path.to_path_buf();
        move |error: io::Error| StoreError::file("write", &path, error)
    };
    if folder.exists() {
        return Err(failed(folder)(io::ErrorKind::AlreadyExists.into()).into());
    }
    let mut name = folder.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let partial = folder.with_file_name(name);
    if partial.exists() {
        fs::remove_dir_all(&partial).map_err(failed(&partial))?;
    }
    fs::create_dir_all(&partial).map_err(failed(&partial))?;
    let write = |path: &str, content: &[u8]| -> Result<(), StoreError> {
        let path = partial.join(path);
        let parent = path.parent().unwrap_or(&partial);
        fs::create_dir_all(parent).map_err(failed(parent))?;
        fs::write(&path, content).map_err(failed(&path))?;
        fs::File::open(&path).and_then(|file| file.sync_all()).map_err(failed(&path))
    };
    let size = checkpoint.checkpoint().size;
    for tile in Tile::all(size) {
        let content = index.tile(&tile).await?.expect("the checkpoint is of this log, so that it has as many entries");
        write(&tile.path(), &content)?;
    }
    write(CHECKPOINT, checkpoint.to_string().as_bytes())?;
    fs::rename(&partial, folder).map_err(failed(folder))?;
    let parent = folder.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    disk::sync_folder(parent).map_err(failed(parent))?;
    Ok(())
}

/// An export that was read and checked: the entries lead to every hash and to the root, and the log's writer has signed it.
#[derive(Debug)]
pub struct ExportedLog {
    /// The end of the log.
    pub chain: Chain,
    /// The checkpoint with all its signatures. The writer's was checked; who else signed, whoever knows the members checks.
    pub checkpoint: SignedCheckpoint,
    bundles: Vec<(Tile, Vec<u8>)>,
}

/// Why an export is no log.
#[derive(Debug, thiserror::Error)]
pub enum ExportFault {
    /// What it holds does not verify.
    #[error(transparent)]
    Wrong(#[from] ExportError),
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ExportedLog {
    /// Reads and checks an export, on all threads. A file too many, or one too few, is found as well as a changed one.
    ///
    /// # Errors
    /// [`ExportFault`]: what does not hold, and where.
    pub fn read(folder: &Path, founder: Option<PublicKey>) -> Result<Self, ExportFault> {
        let wrong = |path: &str, reason: String| ExportError::File { path: path.to_owned(), reason };
        let note = read_file(folder, CHECKPOINT, MAX_NOTE_BYTES)?;
        let note = String::from_utf8(note).map_err(|_| wrong(CHECKPOINT, "it is no text".into()))?;
        let checkpoint: SignedCheckpoint = note.parse().map_err(|error| wrong(CHECKPOINT, format!("{error}")))?;
        let size = checkpoint.checkpoint().size;
        let found = files_below(folder)?;
        // Each tile has a file, so there cannot be more tiles than files; nothing is laid out for a size that is only claimed.
        if size.div_ceil(TILE_WIDTH) > found.len() as u64 {
            return Err(wrong(CHECKPOINT, format!("it is of {size} entries, and there are files for fewer")).into());
        }
        let tiles = Tile::all(size);
        let mut expected: BTreeSet<String> = tiles.iter().map(Tile::path).collect();
        expected.insert(CHECKPOINT.to_owned());
        if let Some(path) = expected.difference(&found).next() {
            return Err(wrong(path, "the file is missing".into()).into());
        }
        if let Some(path) = found.difference(&expected).next() {
            return Err(wrong(path, "there is no such file in the log".into()).into());
        }
        let entries: Vec<Tile> = tiles.iter().filter(|tile| tile.kind == TileKind::Entries).copied().collect();
        let read = in_parallel(&entries, |tile| {
            let content = read_file(folder, &tile.path(), MAX_BUNDLE_BYTES)?;
            let bundle = Bundle::read(tile, &content)?;
            let hashes = Tile { kind: TileKind::Hashes(0), ..*tile };
            check_hashes(&hashes, &read_file(folder, &hashes.path(), WIDTH * 32)?, bundle.leaves())?;
            Ok((bundle, content))
        })?;
        let Some((first, _)) = read.first() else {
            return Err(wrong(CHECKPOINT, "the log is empty".into()).into());
        };
        let founder = match founder {
            Some(founder) => founder,
            None => first.founder()?,
        };
        let mut check = ExportCheck::new(founder);
        for (bundle, _) in &read {
            check.follow(bundle)?;
        }
        check_upper_levels(folder, &tiles, read.iter().map(|(bundle, _)| bundle))?;
        let chain = check.finish(&checkpoint)?;
        let bundles = entries.into_iter().zip(read.into_iter().map(|(_, content)| content)).collect();
        Ok(Self { chain, checkpoint, bundles })
    }

    /// The entries as they are stored, in order.
    pub fn entries(&self) -> impl Iterator<Item = &[u8]> {
        self.bundles.iter().flat_map(|(tile, content)| unbundle(content, tile.width).unwrap_or_default())
    }

    /// All entries in one tree, for proofs.
    #[must_use]
    pub fn tree(&self) -> Tree {
        let mut tree = Tree::default();
        tree.extend(self.entries().map(TreeHash::of_leaf));
        tree
    }

    /// How many bytes the files of entries have.
    #[must_use]
    pub fn num_bytes(&self) -> u64 {
        self.bundles.iter().map(|(_, content)| content.len() as u64).sum()
    }
}

/// Checks the tiles above the leaves: the roots of the full tiles of the level below, level by level.
fn check_upper_levels<'a>(
    folder: &Path,
    tiles: &[Tile],
    bundles: impl Iterator<Item = &'a Bundle>,
) -> Result<(), ExportFault> {
    let mut roots: Vec<TreeHash> = bundles.filter(|bundle| bundle.leaves().len() == WIDTH).map(Bundle::root).collect();
    for level in 1.. {
        let mut of_level = tiles.iter().filter(|tile| tile.kind == TileKind::Hashes(level)).peekable();
        if of_level.peek().is_none() {
            return Ok(());
        }
        for (tile, expected) in of_level.zip(roots.chunks(WIDTH)) {
            check_hashes(tile, &read_file(folder, &tile.path(), WIDTH * 32)?, expected)?;
        }
        roots = roots.chunks_exact(WIDTH).map(tapestry_ledger::tile::root_of).collect();
    }
    Ok(())
}

/// Does some work for each item, on all threads; the results in order, or the first failure in order.
fn in_parallel<T: Sync, R: Send>(
    items: &[T],
    work: impl Fn(&T) -> Result<R, ExportFault> + Sync,
) -> Result<Vec<R>, ExportFault> {
    let num_threads = thread::available_parallelism().map_or(1, usize::from).min(items.len().max(1));
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::with_capacity(items.len())));
    thread::scope(|scope| {
        for _ in 0..num_threads {
            scope.spawn(|| {
                while let Some((i, item)) = {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    items.get(i).map(|item| (i, item))
                } {
                    let result = work(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((i, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_unstable_by_key(|(i, _)| *i);
    results.into_iter().map(|(_, result)| result).collect()
}

fn read_file(folder: &Path, path: &str, limit: usize) -> Result<Vec<u8>, StoreError> {
    let path = folder.join(path);
    let failed = |error| StoreError::file("read", &path, error);
    let size = fs::metadata(&path).map_err(failed)?.len();
    if size > limit as u64 {
        let object = path.display().to_string();
        return Err(StoreError::Oversized { object, found: size, limit: limit as u64 });
    }
    fs::read(&path).map_err(failed)
}

/// The paths of all files below a folder, relative to it.
fn files_below(folder: &Path) -> Result<BTreeSet<String>, StoreError> {
    let (mut folders, mut files) = (vec![PathBuf::new()], BTreeSet::new());
    while let Some(below) = folders.pop() {
        let path = folder.join(&below);
        let failed = |error| StoreError::file("read", &path, error);
        for entry in fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let relative = below.join(entry.file_name());
            if entry.file_type().map_err(failed)?.is_dir() {
                folders.push(relative);
            } else {
                files.insert(relative.to_string_lossy().into_owned());
            }
        }
    }
    Ok(files)
}
