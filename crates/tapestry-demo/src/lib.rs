//! What `cargo demo` is made of, apart from starting processes: its inputs, its texts, its results and its report.
//!
//! - [`results`]: the numbers of a run, and what follows from them. They are the file `results.json`.
//!
//! The binary makes keys and a charter, starts coordinator and nodes, reads their logs and fills a
//! [`results::Results`]. Nothing here starts a role, trains a model or knows a key.

mod atomic;
pub mod results;

pub use atomic::AtomicError;
