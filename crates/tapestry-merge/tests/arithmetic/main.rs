//! The arithmetic of merging against properties, a naive oracle and golden values made by Python.
#![expect(clippy::unwrap_used, reason = "tests")]

mod golden;
mod poison;
mod properties;
mod robust;
mod robust_golden;
