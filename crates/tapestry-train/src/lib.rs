//! Continued pre-training (CPT) on a CPU: a job in, a model in Hugging Face layout out.
//!
//! A job is a file ([`CptJob`] as JSON), so that it can run in a process of its own and be repeated: the same job with the
//! same number of threads gives the same bytes. An interrupted job goes on from its last checkpoint, to the same bytes.
//!
//! What is *not* here: whose data it is and where the result may go. The node decides that.

mod checkpoint;
mod contract;
mod corpus;
mod error;
mod job;
mod metrics;
mod optimizer;
mod process;
mod run;
mod schedule;
#[cfg(test)]
mod tests;

pub use contract::{EXIT_INTERRUPTED, EXIT_UNUSABLE, METRICS_FILE, TRAINER_CONTRACT, TrainingRecord, read_metrics};
pub use error::TrainError;
pub use job::CptJob;
pub use metrics::{CptReport, TrainProgress};
pub use run::run_cpt;
