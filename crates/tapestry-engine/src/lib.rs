//! The merge engine: models of any size in, a merged model out, in memory that does not depend on the size of the model.
//!
//! What a method does to the values is `tapestry-merge`'s business; this crate brings the values to it and carries the
//! results away.
//!
//! * [`Merge`]: one merge, checked and ready: every name, shape and type agrees, the survey is done. It can give any range
//!   of the result's bytes at any time, from any thread; everything else is a matter of who asks for which range.
//! * [`TensorSource`]: where values come from: files in Hugging Face layout, or a content-addressed store.
//! * [`write_file`]: the result as a safetensors file, hashed while it is written, resumed where it was interrupted.
//! * [`Recipe`], [`merge_folders`]: merges of local models, described in a file.
//!
//! # Reproducibility
//! The bytes of the result are a function of the method, its parameters, and the names, shares and values of the
//! contributions. They do not depend on threads, on the order in which contributions were listed (they are sorted by name),
//! on where blocks begin or on the width of vector registers: every rule computes each element by itself in a stated
//! sequence of `f64` operations, and what is summed over elements is summed in an order that is part of the definition
//! ([`tapestry_merge::Gram`]).

mod companion;
mod error;
mod file;
mod folder;
mod layout;
mod merge;
mod others;
mod recipe;
mod sample;
mod source;
mod store;
mod survey;
mod threads;
mod tree_hash;

pub use error::EngineError;
pub use file::{FileReport, Progress, Writing, write_file};
pub use folder::{ContributionReport, FolderReport, Plan, Running, Stage, merge_folders, plan};
pub use merge::{Input, Merge, Output, Request, Scratch};
pub use recipe::{Recipe, RecipeContribution, RecipeError};
pub use source::TensorSource;
pub use store::write_store;
pub use threads::on_threads;
