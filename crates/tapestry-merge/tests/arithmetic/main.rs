//! The arithmetic of merging against properties, a naive oracle and golden values made by Python.
#![expect(clippy::unwrap_used, reason = "tests")]

mod golden;
mod mergekit;
mod outer;
mod poison;
mod properties;
mod pruning;
mod robust;
mod robust_golden;
mod run;
