//! What `cargo demo` is made of, apart from starting processes: its inputs, its texts, its results and its report.
//!
//! - [`members`]: who takes part, and with which texts.
//! - [`inputs`]: the real base and texts, fetched once into a cache.
//! - [`corpora`]: the texts as files, split into contributed, private and held-out parts.
//! - [`quick`]: texts and a tokenizer that are generated, for a demonstration without any download.
//! - [`results`]: the numbers of a run, and what follows from them. They are the file `results.json`.
//! - [`report`]: the results as a text for the terminal and as a page.
//!
//! The binary makes keys and a charter, starts coordinator and nodes, reads their logs and fills a [`Results`]. Nothing
//! here starts a role, trains a model or knows a key.
//!
//! ```no_run
//! use std::path::Path;
//! use tapestry_demo::{InputCache, demo_members, generate_quick_texts, prepare_corpora};
//!
//! # fn run(quick: bool) -> Result<(), Box<dyn std::error::Error>> {
//! let members = demo_members(3, false)?;
//! let folder = Path::new("tapestry-demo/texts");
//! let corpora = if quick {
//!     generate_quick_texts(folder, &members, 1)?
//! } else {
//!     let cache = InputCache::open_default()?;
//!     let mut progress = |p: tapestry_demo::InputProgress| eprintln!("{} {}/{}", p.file, p.bytes, p.total_bytes);
//!     println!("adopt {}", cache.base_gguf(&mut progress)?.display());
//!     prepare_corpora(&cache, folder, &members, &mut progress)?
//! };
//! for member in &members {
//!     println!("{} trains on {}", member.name, corpora.members[&member.name].contributed.display());
//! }
//! # Ok(()) }
//! ```

mod atomic;
pub mod corpora;
pub mod inputs;
pub mod members;
pub mod quick;
pub mod report;
pub mod results;

pub use atomic::AtomicError;
pub use corpora::{Corpora, CorporaError, MemberTexts, QuickBase, prepare_corpora};
pub use inputs::{InputCache, InputError, InputProgress, InputStep};
pub use members::{DemoMember, demo_members};
pub use quick::generate_quick_texts;
pub use report::{html_report, terminal_report, write_html_report};
pub use results::{Results, ResultsError};
