//! Training on a CPU: a job in, a model in Hugging Face layout out. Continued pre-training (CPT), instruction tuning (SFT) and alignment are
//! one engine with different data and losses.
//!
//! A job is a file ([`TrainJob`] as JSON), so that it can run in a process of its own and be repeated: the same job with the
//! same number of threads gives the same bytes. An interrupted job goes on from its last checkpoint, to the same bytes.
//!
//! What is *not* here: whose data it is and where the result may go. The node decides that.

mod chart;
mod checkpoint;
mod contract;
mod conversations;
mod corpus;
mod error;
mod job;
mod memory;
mod metrics;
mod objective;
mod optimizer;
mod preference_loss;
mod preferences;
mod process;
mod random;
mod reference;
mod run;
mod sample;
mod schedule;
mod split;
#[cfg(test)]
mod tests;

pub use contract::{EXIT_INTERRUPTED, EXIT_UNUSABLE, METRICS_FILE, TRAINER_CONTRACT, TrainingRecord, read_metrics};
pub use error::TrainError;
pub use job::{AdamWSettings, Part, Preference, PreferenceMethod, Rehearsal, Stage, TrainJob, Validation};
pub use memory::{MemoryEstimate, estimate_memory};
pub use metrics::{TrainProgress, TrainReport, ValidationMetrics};
pub use preference_loss::{Answers, PreferenceLoss, preference_loss};
pub use run::run_job;
pub use schedule::Schedule;
