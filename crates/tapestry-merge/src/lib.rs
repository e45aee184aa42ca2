//! Weight-vector arithmetic: how accepted contributions become the next Shared Base.
//!
//! Pure: slices in, slices out. What is read from and written to disk is the caller's business. Every result is defined
//! to the last bit by a stated order of arithmetic, so that any member can repeat a merge and get the same digest,
//! whatever its number of threads.
//!
//! * [`weights`]: how much each contribution counts, and why.
//! * [`Method`]: the ways of merging, one file each, and the [`Rule`] that each becomes.
//! * [`Gram`], [`Selection`]: what some of them must know of all values first.
//! * [`decode_row`], [`encode_row`]: from the bytes of a file to values and back.
//! * [`DeltaNorm`], [`first_non_finite`]: what screening asks of a contribution's values.

mod block;
mod change;
mod element;
mod gram;
pub mod method;
mod philox;
mod rows;
mod select;
mod simd;
mod survey;
pub mod weights;

pub use block::{Block, Contributor, Rule, Setting};
pub use change::{ChangePart, DeltaNorm, first_non_finite};
pub use gram::{GRAM_BLOCK_ELEMENTS, Gram};
pub use method::{Demands, Method, MethodError};
pub use rows::{all_finite, decode_row, encode_row};
pub use select::{Counts, Selection, select_in_memory};
pub use survey::{Survey, SurveyKind};
