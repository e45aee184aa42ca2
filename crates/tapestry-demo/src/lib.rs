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
//!     // The tiny base is trained on `texts.pretraining_mix` with the tokenizer `texts.tokenizer`.
//!     let texts = generate_quick_texts(folder, &members, 1)?;
//!     texts.corpora
//! } else {
//!     let inputs = InputCache::from_environment()?.ready(&members, &mut |step| eprintln!("{step:?}"))?;
//!     println!("adopt {}", inputs.base_gguf().display());
//!     prepare_corpora(&inputs, folder, &members)?
//! };
//! for texts in &corpora.members {
//!     println!("{} trains on {}", texts.name, texts.contributed.display());
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
pub use corpora::{Corpora, CorporaError, MemberTexts, prepare_corpora};
pub use inputs::{InputCache, InputError, InputProgress, ReadyInputs};
pub use members::{DemoMember, demo_members};
pub use quick::{BYTE_TOKENIZER_VOCAB_SIZE, QuickTexts, generate_quick_texts};
pub use report::{html_report, save_html_report, terminal_report};
pub use results::{Results, ResultsError};
