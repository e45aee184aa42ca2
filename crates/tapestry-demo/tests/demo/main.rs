//! The public API of `tapestry-demo`, without network.
#![expect(clippy::unwrap_used, reason = "tests")]

mod fixture;
mod inputs;
mod quick;
mod real;
mod report;
mod results;
