//! The public API of `tapestry-demo`, without network.
#![expect(clippy::unwrap_used, reason = "tests")]

mod fixture;
mod quick;
mod report;
mod results;
