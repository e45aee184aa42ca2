//! What `cargo demo` is made of, apart from starting processes: its inputs, its texts, its results and its report.
//!
//! - [`members`]: who takes part, and with which texts.
//! - [`inputs`]: the real base and texts, fetched once into a cache.
//! - [`corpora`]: the texts as files, split into contributed, private and held-out parts.
//! - [`quick`]: texts and a tokenizer that are generated, for a demonstration without any download.
//! - [`results`]: the numbers of a run, and what follows from them. They are the file `results.json`.
//! - [`report`]: the results as a text for the terminal and as a page.
//!
//! The binary makes keys and a charter, starts coordinator and nodes, reads their logs and fills a
//! [`results::Results`]. Nothing here starts a role, trains a model or knows a key.

mod atomic;
pub mod corpora;
pub mod inputs;
pub mod members;
pub mod quick;
pub mod report;
pub mod results;

pub use atomic::AtomicError;
