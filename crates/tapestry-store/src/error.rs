//! What can go wrong with blobs and logs. Messages say what, where, and what to do next.

use std::error::Error;
use std::io;
use std::path::PathBuf;
use tapestry_core::{CHUNK_BYTES, CanonicalError, Digest, ManifestError};
use tapestry_ledger::ChainError;
use tapestry_weights::WeightsError;

/// Why a blob or model could not be read, written, imported or exported.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The blob is not here. It can be had from whoever has it.
    #[error("blob {digest} is not in {place}; it has to be fetched from the peer that announced it")]
    Missing {
        /// The blob.
        digest: Digest,
        /// Where it was looked for.
        place: String,
    },
    /// What is stored under the blob's name is something else: the disk, or somebody, changed it.
    #[error(
        "blob {digest} is damaged: {object} holds {size_bytes} bytes whose digest is {found}. Delete {object} and start \
         again: it will be fetched again"
    )]
    Damaged {
        /// The blob that should be there.
        digest: Digest,
        /// The digest of what is there.
        found: Digest,
        /// Bytes that are there.
        size_bytes: u64,
        /// Where it is kept.
        object: String,
    },
    /// An object that is longer than anything of its kind. It is not read.
    #[error("{object} has {found} bytes, more than the {limit} that it may have. Delete it and start again")]
    Oversized {
        /// Where it is kept.
        object: String,
        /// Its size.
        found: u64,
        /// The bound.
        limit: u64,
    },
    /// The sender named one blob and sent another: the sender misbehaved, or the transfer was broken.
    #[error("expected blob {expected}, received content whose digest is {found}; ask for it again, or another peer")]
    WrongContent {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// Content too large for one blob: a mistake of the caller, or of a sender.
    #[error("{found} bytes are too many for one blob of at most {CHUNK_BYTES}; larger content is cut into chunks")]
    TooLarge {
        /// Bytes given.
        found: u64,
    },
    /// A manifest's list of chunks and the chunks themselves disagree.
    #[error(
        "chunk {index} ({digest}) has {found} bytes where the manifest's sizes ask for {expected}; the manifest is wrong"
    )]
    ChunkSize {
        /// The chunk's place in the list.
        index: usize,
        /// Its digest.
        digest: Digest,
        /// Bytes asked for.
        expected: u64,
        /// Bytes that it has.
        found: u64,
    },
    /// A store on another machine cannot be used as it is.
    #[error("the store {place} cannot be used: {reason}")]
    Unusable {
        /// Which store.
        place: String,
        /// Why, and what to look at.
        reason: String,
    },
    /// No space is left.
    #[error(
        "no space is left on the disk for {object}. Free some space and run the same command again: nothing half-written \
         was left behind, and what was stored before is kept"
    )]
    DiskFull {
        /// What was being written.
        object: String,
    },
    /// What is about to be stored does not fit; nothing of it was asked for yet.
    #[error(
        "{needed} bytes are needed in {place}, which has {free} free, of which {reserve} are not to be filled. Free some space and run the \
         same command again: what is stored already is kept"
    )]
    NoRoom {
        /// Bytes that would come.
        needed: u64,
        /// Bytes that the file system has left.
        free: u64,
        /// Bytes of these that are never filled.
        reserve: u64,
        /// Where they would go.
        place: String,
    },
    /// The blob holds no JSON document of the kind that was asked for, or not in canonical form.
    #[error("blob {digest} is not a {kind} in canonical JSON: {reason}")]
    NotJson {
        /// The blob.
        digest: Digest,
        /// What was asked for.
        kind: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A range outside of the content: a mistake of the caller.
    #[error("bytes {start} to {start}+{len} were asked of content of {size_bytes} bytes")]
    Range {
        /// Where the range starts.
        start: u64,
        /// Its length.
        len: u64,
        /// Bytes of the content.
        size_bytes: u64,
    },
    /// More or fewer bytes were written than the tensors have: a mistake of the caller.
    #[error("the tensors have {expected} bytes, but {found} were written")]
    WrittenSize {
        /// Sum over the tensors.
        expected: u64,
        /// Bytes written.
        found: u64,
    },
    /// A file or folder that the environment does not let us use.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that is no part of a model's layout, or a model without a file that every model has.
    #[error("{}: {reason}", path.display())]
    Layout {
        /// The file or folder.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The underlying store failed.
    #[error("cannot {action} {object}: {source}")]
    Backend {
        /// What was tried.
        action: &'static str,
        /// The object.
        object: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// The work was cut off because the process is ending.
    #[error("the store was interrupted while the process was ending; run the same command again")]
    Interrupted,
    /// A file of weights is not what it should be.
    #[error(transparent)]
    Weights(WeightsError),
    /// The manifest describes nothing possible.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The value has no canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

impl StoreError {
    /// The error for a failure of the underlying store; a full disk is told apart, whatever it is wrapped in.
    pub(crate) fn backend(action: &'static str, object: String, source: object_store::Error) -> Self {
        if is_disk_full(&source) { Self::DiskFull { object } } else { Self::Backend { action, object, source } }
    }

    /// The error for a failure of the file system.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        if is_disk_full(&source) {
            return Self::DiskFull { object: path.display().to_string() };
        }
        Self::File { action, path, source }
    }

    /// Whether the same call can succeed later without any change to its arguments.
    #[must_use]
    pub const fn is_retryable(&self) -> bool {
        match self {
            Self::Missing { .. }
            | Self::DiskFull { .. }
            | Self::NoRoom { .. }
            | Self::File { .. }
            | Self::Backend { .. }
            | Self::Interrupted
            | Self::WrongContent { .. } => true,
            Self::Unusable { .. }
            | Self::Damaged { .. }
            | Self::Oversized { .. }
            | Self::TooLarge { .. }
            | Self::ChunkSize { .. }
            | Self::NotJson { .. }
            | Self::Range { .. }
            | Self::WrittenSize { .. }
            | Self::Layout { .. }
            | Self::Weights(_)
            | Self::Manifest(_)
            | Self::Canonical(_) => false,
        }
    }
}

impl From<WeightsError> for StoreError {
    fn from(error: WeightsError) -> Self {
        match error {
            WeightsError::Io { path, source, .. } if is_disk_full(&source) => {
                Self::DiskFull { object: path.display().to_string() }
            }
            other => Self::Weights(other),
        }
    }
}

/// Whether `error` or anything that caused it says that no space, or none of the user's quota, is left.
fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        next = error.source();
        if let Some(io) = error.downcast_ref::<io::Error>() {
            if matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
                return true;
            }
            // `source` skips the error that an `io::Error` wraps.
            next = io.get_ref().map(|inner| inner as _);
        }
    }
    false
}

/// Why a log could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// An entry is missing in the middle.
    #[error(
        "the log in {place} goes on with entry {next}, and entry {missing} is missing: an entry was deleted. The log cannot be used; \
         restore the folder from a backup"
    )]
    Gap {
        /// The log.
        place: String,
        /// The first number that is missing.
        missing: u64,
        /// The number found after it.
        next: u64,
    },
    /// Something that is not an entry lies in the log's folder.
    #[error("{object} is not an entry of a log; a log's folder holds nothing else, so move it away")]
    Foreign {
        /// What was found.
        object: String,
    },
    /// Somebody else wrote the entry first.
    #[error(
        "entry {seq} of the log in {place} is there already: another process writes this log, or an earlier write of it \
         was cut off before it was confirmed. Stop the other process, if there is one, and start this one again: it \
         will read the log anew"
    )]
    Taken {
        /// The log.
        place: String,
        /// The number.
        seq: u64,
    },
    /// The log was written by an older version of this software.
    #[error(
        "the log in {place} is of an older form, one signed file an entry, and {num_left} of its entries are not in the present form yet. Keep a \
         copy of it, then: tapestry log migrate --home HOME"
    )]
    OlderForm {
        /// The log.
        place: String,
        /// How many entries are to be taken over.
        num_left: u64,
    },
    /// A log of an older form cannot be taken over.
    #[error("the log in {place} cannot be taken over from its older form: {reason}")]
    CannotMigrate {
        /// The log.
        place: String,
        /// Why.
        reason: String,
    },
    /// The entries do not follow from each other, or are not by the role's key.
    #[error("the log in {place} does not verify: {source}. Restore the folder from a backup")]
    Chain {
        /// The log.
        place: String,
        /// What is wrong.
        source: ChainError,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}
