//! Small files, written so that a crash leaves the old content or the new one, and read within a bound.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

/// A file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum AtomicError {
    /// The operating system refused.
    #[error("cannot {what} {path}: {source}")]
    Io {
        /// What was attempted.
        what: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is larger than anything that the project writes there.
    #[error("{path} has more than {limit} bytes, the most that is accepted there; move it away and run again")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The bound, in bytes.
        limit: u64,
    },
}

/// `map_err` for an operation on `path`.
pub(crate) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> AtomicError {
    move |source| AtomicError::Io { what, path: path.to_owned(), source }
}

/// Writes `content` to a temporary file beside `path`, syncs it and renames it over `path`. Makes missing folders.
pub(crate) fn write(path: &Path, content: &[u8]) -> Result<(), AtomicError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(io_error("make the folder", folder))?;
    }
    let temporary = temporary_beside(path);
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(content)?;
        file.sync_all()
    });
    written.map_err(io_error("write", &temporary))?;
    fs::rename(&temporary, path).map_err(io_error("write", path))
}

/// The name under which a file is written before it is whole.
pub(crate) fn temporary_beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.part", std::process::id()));
    path.with_file_name(name)
}

/// Reads a whole file of at most `limit` bytes.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Vec<u8>, AtomicError> {
    let mut content = Vec::new();
    let file = File::open(path).map_err(io_error("read", path))?;
    file.take(limit + 1).read_to_end(&mut content).map_err(io_error("read", path))?;
    if content.len() as u64 > limit {
        return Err(AtomicError::TooLarge { path: path.to_owned(), limit });
    }
    Ok(content)
}
