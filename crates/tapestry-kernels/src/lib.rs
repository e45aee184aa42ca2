//! Fast operations of decoder-only transformers on a CPU.
//!
//! Three layers:
//!
//! * [`forward`]: whole half-blocks on plain slices, without gradients. The streaming scorer uses them.
//! * [`ops`]: the same half-blocks as operations of Burn's `Flex` backend with hand-written gradients, through Burn's
//!   backend extension. Training uses them. Half-blocks and not single operations, because a framework's overhead and the
//!   passes over memory between small operations cost most of the time on a CPU.
//! * [`decode`]: the half-blocks over sequences that grow, with a cache of keys and values. Generation uses them.
//!
//! Everything here is deterministic: the same inputs on the same kind of processor with the same number of threads give the
//! same bits. No sum's order depends on which thread is first, and this crate's own sums do not depend on the number of
//! threads; the blocks of a matrix product do in principle (`gemm` cuts very small ones differently). Processors differ:
//! `gemm` chooses its kernel by what a processor offers. All matrices are stored as Hugging Face stores them, `[out, in]`.
//! Arithmetic is in `f32`.
//!
//! # Speed
//! `cargo run --release -p tapestry-kernels --example throughput` prints tokens per second, next to the same model composed
//! of plain Burn operations. The operations allocate their results, so a program should have an allocator that keeps its
//! pages (mimalloc with `MIMALLOC_PURGE_DELAY=-1`, for one): otherwise a fifth of the time goes into pages.
//!
//! Shape letters: b batch, t time, n = b*t, d width, f feed-forward width, h query heads, k key/value heads, e head width,
//! v vocabulary.
//!
//! # What is missing
//! The operations exist for `Flex` and for `Autodiff` over it; a GPU backend has no form of them yet. `tapestry-model` keeps
//! the same model composed of plain Burn operations, which any backend runs.

pub mod adamw;
mod attention;
mod backward;
mod cross_entropy;
pub mod decode;
mod elementwise;
pub mod forward;
mod linear;
mod norm;
pub mod ops;
mod plan;
#[cfg(test)]
mod tests;

pub use plan::{AttentionPlan, MlpPlan, NormOrder, RopeTables};
