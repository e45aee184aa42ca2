//! Fast operations of the Llama family on a CPU.
//!
//! Two layers:
//!
//! * [`forward`]: whole half-blocks on plain slices, without gradients. The streaming scorer uses them.
//! * [`ops`]: the same half-blocks as operations of Burn's `Flex` backend with hand-written gradients, through Burn's
//!   backend extension. Training uses them. Half-blocks and not single operations, because a framework's overhead and the
//!   passes over memory between small operations cost most of the time on a CPU.
//!
//! Everything here is deterministic: the order of every sum is fixed by the shapes, not by the number of threads. All
//! matrices are stored as Hugging Face stores them, `[out, in]`. Arithmetic is in `f32`.
//!
//! Shape letters: b batch, t time, n = b*t, d width, f feed-forward width, h query heads, k key/value heads, e head width,
//! v vocabulary.
//!
//! # What is missing
//! The operations exist for `Flex` and for `Autodiff` over it; a GPU backend has no form of them yet. `tapestry-model` keeps
//! the same model composed of plain Burn operations, which any backend runs.

pub mod adamw;
mod attention;
mod cross_entropy;
mod elementwise;
pub mod forward;
mod linear;
mod norm;
pub mod ops;
mod plan;
#[cfg(test)]
mod tests;

pub use plan::{AttentionPlan, RopeTables};
