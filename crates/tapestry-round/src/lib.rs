//! The Shared-Base Loop as two state machines without input or output: one for the coordinator, one for a node.
//!
//! Both have the same form. `handle(state, now, input)` decides and returns events; the driver writes the events to the
//! role's log, synced, and only then applies them. `pending()` tells what the state is waiting to have done: pull a base,
//! train, screen, merge. A driver that was killed folds its log, asks `pending()` and carries on: recovery is the normal
//! path, there is no other. Effects are done at least once, and each is harmless when done twice.
//!
//! ```text
//! Collecting -> Merging -> Gating -> Published
//!      |           |          |
//!      +-----------+----------+----> Abandoned (with the reason; the base stays)
//! ```
//!
//! What is *not* here: clocks, files, sockets, keys. Signatures are checked here, and made by the driver.

pub mod coordinator;
mod documents;
mod error;
pub mod node;

pub use documents::{
    Announcement, Attendance, Contribution, Decline, HandOver, LogView, MAX_ADDRESS_BYTES, NewSteps, News, Outcome,
    RefusalReason, RoundResult, Screening, Tenure, TrainingMetrics, Verdict,
};
pub use error::{Blame, RoundError};
