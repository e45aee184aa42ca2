//! Weight-vector arithmetic: how accepted contributions become the next Shared Base.
//!
//! Pure: slices in, slices out. What is read from and written to disk is the caller's business. Every result is defined
//! to the last bit by a stated order of arithmetic, so that any member can repeat a merge and get the same digest,
//! whatever its number of threads.
//!
//! * [`weights`]: how much each contribution counts, and why.
//! * [`merge_chunk`]: the weighted mean of a piece of a tensor.
//! * [`DeltaNorm`], [`first_non_finite`]: what screening asks of a contribution's values.

mod block;
mod change;
mod element;
mod gram;
mod mean;
pub mod method;
mod philox;
mod rows;
mod select;
mod simd;
mod survey;
pub mod weights;

pub use block::{Block, Contributor, Rule, Setting};
pub use change::{DeltaNorm, first_non_finite};
pub use gram::{GRAM_BLOCK_ELEMENTS, Gram};
pub use mean::{MergeError, merge_chunk};
pub use method::{Demands, Method, MethodError};
pub use rows::{all_finite, decode_row, encode_row};
pub use select::{Counts, Selection, select_in_memory};
pub use survey::{Survey, SurveyKind};
