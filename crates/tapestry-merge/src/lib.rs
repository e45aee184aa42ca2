//! Weight-vector arithmetic: how accepted contributions become the next Shared Base.
//!
//! Pure: slices in, slices out. What is read from and written to disk is the caller's business.

pub mod weights;
