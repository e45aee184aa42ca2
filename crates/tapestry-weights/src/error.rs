//! Why weights cannot be read or written.

use crate::FileFacts;
use std::io;
use std::path::{Path, PathBuf};
use tapestry_core::{Dtype, ManifestError};

/// Why weights cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not what its format demands.
    #[error("{path} is not a usable {format} file: {what}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The format.
        format: &'static str,
        /// What is wrong, and where.
        what: String,
    },
    /// A configuration that no supported model has.
    #[error("{path}: {what}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The tensors are not those of the model.
    #[error("{path} does not fit its config.json: {source}")]
    Mismatch {
        /// The weights.
        path: PathBuf,
        /// The first difference.
        source: ManifestError,
    },
    /// There is no tensor of that name.
    #[error("there is no tensor {name:?}")]
    Missing {
        /// The name.
        name: String,
    },
    /// A range outside a tensor.
    #[error("elements {first}..{first}+{count} are not inside tensor {name:?} of {num_elements} elements")]
    Range {
        /// The tensor.
        name: String,
        /// First element asked for.
        first: u64,
        /// How many.
        count: u64,
        /// How many there are.
        num_elements: u64,
    },
    /// A range of bytes outside a tensor.
    #[error("{path}: bytes {start}..{start}+{len} are not inside tensor {name:?} of {size_bytes} bytes")]
    ByteRange {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// First byte asked for, from the start of the tensor.
        start: u64,
        /// How many.
        len: u64,
        /// How many there are.
        size_bytes: u64,
    },
    /// Somebody wrote into a file that is being read.
    #[error(
        "{} was changed while it was read: it had {} bytes, written at {} ns, and has {}, written at {} ns; begin again",
        .expected.path.display(), .expected.size_bytes, .expected.modified_ns, .found.size_bytes, .found.modified_ns
    )]
    Changed {
        /// What the system said when it was opened.
        expected: FileFacts,
        /// What it says now.
        found: FileFacts,
    },
    /// More or fewer bytes than the tensors need.
    #[error("{path}: the tensors take {expected} bytes, {found} were written")]
    WrittenSize {
        /// The file.
        path: PathBuf,
        /// Bytes of the tensors.
        expected: u64,
        /// Bytes written.
        found: u64,
    },
    /// A number that is NaN or infinite.
    #[error("tensor {name:?} holds a value that is NaN or infinite at element {index}")]
    NotFinite {
        /// The tensor.
        name: String,
        /// Row-major index of the first such element.
        index: u64,
    },
    /// A type that cannot be used here.
    #[error("tensor {name:?} has dtype {found:?}, which cannot be used here")]
    Dtype {
        /// The tensor.
        name: String,
        /// Its type.
        found: Dtype,
    },
    /// Another source of weights failed.
    #[error("{0}")]
    Source(String),
    /// A folder that should not be there.
    #[error("{path} exists; give another folder, or remove it")]
    Exists {
        /// The folder.
        path: PathBuf,
    },
}

impl WeightsError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { action, path, source }
    }

    /// There is no tensor of that number.
    pub(crate) fn no_number(tensor: usize) -> Self {
        Self::Missing { name: format!("number {tensor}") }
    }

    pub(crate) fn malformed(format: &'static str, path: &Path, what: impl Into<String>) -> Self {
        Self::Malformed { path: path.to_path_buf(), format, what: what.into() }
    }
}
