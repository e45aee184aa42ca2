//! Merging folders: real files, through the public interface alone.
#![expect(clippy::unwrap_used, reason = "tests")]

mod examples;
mod fixture;
mod others;
mod refusals;
mod reproducible;
mod resume;
