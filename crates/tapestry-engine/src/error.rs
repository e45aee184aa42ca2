//! Why a merge was refused or could not be finished.

use std::io;
use std::path::{Path, PathBuf};
use tapestry_core::Dtype;
use tapestry_merge::MethodError;
use tapestry_weights::WeightsError;

/// Why there is no merged model. Whatever the reason, nothing is left under the output's name.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The method cannot merge these contributions.
    #[error(transparent)]
    Method(#[from] MethodError),
    /// A file of weights is not what it claims to be.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// A blob is missing or damaged.
    #[error(transparent)]
    Store(#[from] tapestry_store::StoreError),
    /// No contribution at all.
    #[error("there is nothing to merge; name at least one contribution")]
    Empty,
    /// Two contributions under one name.
    #[error(
        "two contributions are named `{name}`; a member counts once. Give each a `name` of its own, or remove one."
    )]
    DuplicateName {
        /// The name.
        name: String,
    },
    /// A weight that is none.
    #[error(
        "the weight of `{name}` must be a finite number above zero; found {found}. To leave a member out, remove it."
    )]
    Weight {
        /// The contribution.
        name: String,
        /// What was found.
        found: f64,
    },
    /// A tensor that one model has and another lacks.
    #[error("tensor `{tensor}` is in {has} and not in {lacks}; all models must come from the same base")]
    MissingTensor {
        /// The tensor.
        tensor: String,
        /// Where it is.
        has: String,
        /// Where it is not.
        lacks: String,
    },
    /// A tensor of two shapes.
    #[error("tensor `{tensor}` has shape {expected:?} in {first} and {found:?} in {second}")]
    Shape {
        /// The tensor.
        tensor: String,
        /// One place.
        first: String,
        /// Its shape there.
        expected: Vec<u64>,
        /// Another place.
        second: String,
        /// Its shape there.
        found: Vec<u64>,
    },
    /// A tensor of two types.
    #[error(
        "tensor `{tensor}` is {expected:?} in {first} and {found:?} in {second}; convert one of the models first, so that it is \
         you who decides where precision is lost"
    )]
    ElementType {
        /// The tensor.
        tensor: String,
        /// One place.
        first: String,
        /// Its type there.
        expected: Dtype,
        /// Another place.
        second: String,
        /// Its type there.
        found: Dtype,
    },
    /// A tensor that is copied and not merged, and is not the same everywhere.
    #[error(
        "tensor `{tensor}` is not the same in {first} and {second}: {detail}. Tensors of this type are copied, not merged, so all models \
         must agree on them; convert what should be merged to f32, bf16 or f16"
    )]
    OtherTensor {
        /// The tensor.
        tensor: String,
        /// One place.
        first: String,
        /// Another.
        second: String,
        /// How.
        detail: String,
    },
    /// A value that is no number.
    #[error("tensor `{tensor}`, element {index} (row-major) is {found} in {place}; a merge takes finite values only")]
    NotFinite {
        /// The tensor.
        tensor: String,
        /// Row-major index in the tensor.
        index: u64,
        /// `NaN`, `inf` or `-inf`.
        found: f32,
        /// Where.
        place: String,
    },
    /// A merged value that the output's type cannot hold.
    #[error(
        "tensor `{tensor}`, element {index}: the merged value {value:e} does not fit {dtype:?}; choose a wider `dtype` or smaller \
         parameters"
    )]
    Overflow {
        /// The tensor.
        tensor: String,
        /// Row-major index in the tensor.
        index: u64,
        /// The value.
        value: f64,
        /// The type.
        dtype: Dtype,
    },
    /// Something that is called a contribution and was not trained from the base.
    #[error(
        "`{name}` was not trained from this base: it differs from it by {found:.3} times the base's own length, over a sample of \
         every tensor; at most {limit} is taken. A model that was trained from a base stays far below 1."
    )]
    NotFromBase {
        /// The contribution.
        name: String,
        /// Its distance from the base over the base's length.
        found: f64,
        /// The most that is taken.
        limit: f64,
    },
    /// Companion files that contradict each other.
    #[error("{what} of {second} is not that of {first}: {detail}; models of different kinds cannot be merged")]
    Companion {
        /// What differs.
        what: String,
        /// One folder.
        first: String,
        /// Another.
        second: String,
        /// How.
        detail: String,
    },
    /// The output is there already.
    #[error("{path} exists; a merge never replaces anything. Remove it, or choose another `output`.")]
    OutputExists {
        /// The folder.
        path: PathBuf,
    },
    /// No room.
    #[error("the disk is full: {path} needs {needed} bytes more; free some space and run the same command again")]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// Bytes.
        needed: u64,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody asked to stop. What was written is kept.
    #[error("stopped after {done} of {total} bytes; the same command continues from there")]
    Stopped {
        /// Bytes that are safe.
        done: u64,
        /// Bytes in all.
        total: u64,
    },
}

impl EngineError {
    /// For `map_err`: what was attempted, and on which path.
    pub(crate) fn io<'a>(action: &'static str, path: &'a Path) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| {
            if source.kind() == io::ErrorKind::StorageFull {
                return Self::DiskFull { path: path.to_path_buf(), needed: 0 };
            }
            Self::Io { action, path: path.to_path_buf(), source }
        }
    }
}
