//! The numbers of one run of `cargo demo`: what `results.json` holds and what the report shows.
//!
//! A [`Results`] holds what was measured and recorded, each fact once. What follows from those facts (retention, whether
//! the run shows an effect) is computed when it is asked for and written beside them, so the two cannot disagree.
//! `docs/results.md` describes the file for its readers.

use crate::atomic::{self, AtomicError};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use tapestry_core::{Digest, MemberName, Timestamp};
use tapestry_ledger::TreeHash;
use tapestry_round::Outcome;

/// The version of the file's shape. It changes when a field is renamed, removed or changes its meaning.
pub const SCHEMA: u32 = 2;

/// Own CPT gains below this many bits per byte are noise: no retention is computed over them.
const SMALLEST_GAIN_BPB: f64 = 1e-6;

/// How much worse general English may become, as a share of the adopted base's bits per byte.
const GENERAL_ENGLISH_TOLERANCE: f64 = 0.03;

/// Which demonstration was run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// The real base and the real texts.
    Full,
    /// A tiny base, and texts that the project generates: no download.
    Quick,
}

/// A member as the report introduces it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemberRecord {
    /// Its name in the charter.
    pub name: MemberName,
    /// Its name for people, such as `France`.
    pub title: String,
    /// What its texts are, such as `labour code (fr)`.
    pub texts: String,
    /// Whether the demonstration makes it send poisoned weights.
    pub is_faulty: bool,
}

/// A model that the run made or adopted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum ModelName {
    /// The base with which the consortium begins.
    AdoptedBase,
    /// A member's own Contributed CPT in a round: the weights that it sent.
    OwnCpt {
        /// The member.
        member: MemberName,
        /// The round, from 1.
        round: u32,
    },
    /// The Shared Base after a round.
    SharedBase {
        /// The round, from 1.
        round: u32,
    },
    /// A member's Sovereign Model.
    Sovereign {
        /// The member.
        member: MemberName,
    },
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AdoptedBase => write!(f, "adopted base"),
            Self::OwnCpt { member, round } => write!(f, "own CPT of {member}, round {round}"),
            Self::SharedBase { round } => write!(f, "Shared Base after round {round}"),
            Self::Sovereign { member } => write!(f, "Sovereign Model of {member}"),
        }
    }
}

/// A held-out text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum TextName {
    /// A member's held-out text: never trained on by anybody.
    HeldOut {
        /// The member.
        member: MemberName,
    },
    /// The charter's open held-out text: general English.
    GeneralEnglish,
}

impl fmt::Display for TextName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::HeldOut { member } => write!(f, "{member}"),
            Self::GeneralEnglish => write!(f, "general English"),
        }
    }
}

/// Bits per byte of one text under one model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measurement {
    /// The model.
    pub model: ModelName,
    /// The text.
    pub text: TextName,
    /// Bits per byte; lower is better.
    pub bpb: f64,
}

/// A process of the run, or a log that one of them keeps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// `cargo demo` itself: adopts the base, measures, writes the report.
    Demo,
    /// The coordinator.
    Coordinator,
    /// A member's node.
    Node(MemberName),
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demo => f.pad("demo"),
            Self::Coordinator => f.pad("coordinator"),
            Self::Node(member) => f.pad(member.as_str()),
        }
    }
}

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Fetching inputs, cutting texts.
    Prepare,
    /// Adopting the base; in quick mode, making it.
    Adopt,
    /// A node takes the chunks of the round's base.
    Pull,
    /// Contributed CPT.
    Train,
    /// A node sends the chunks of its weights.
    Push,
    /// The coordinator screens a contribution.
    Screen,
    /// The merge.
    Merge,
    /// The gate over the merged base.
    Gate,
    /// Private CPT.
    Sovereign,
    /// Measuring for the table.
    Measure,
}

impl Phase {
    /// All phases, in the order in which a run meets them.
    pub const ALL: [Self; 10] = [
        Self::Prepare,
        Self::Adopt,
        Self::Pull,
        Self::Train,
        Self::Push,
        Self::Screen,
        Self::Merge,
        Self::Gate,
        Self::Sovereign,
        Self::Measure,
    ];
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Prepare => "prepare",
            Self::Adopt => "adopt",
            Self::Pull => "pull",
            Self::Train => "train",
            Self::Push => "push",
            Self::Screen => "screen",
            Self::Merge => "merge",
            Self::Gate => "gate",
            Self::Sovereign => "sovereign",
            Self::Measure => "measure",
        })
    }
}

/// One stretch of work of one role.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PhaseRecord {
    /// Who worked.
    pub role: Role,
    /// At what.
    pub phase: Phase,
    /// In which round; none outside the rounds.
    pub round: Option<u32>,
    /// When it began.
    pub started_at: Timestamp,
    /// How long it took, in seconds.
    pub seconds: f64,
    /// Bytes of chunks that came over the network.
    pub bytes_received: u64,
    /// Bytes of chunks that were sent over the network.
    pub bytes_sent: u64,
}

/// How one round ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundRecord {
    /// When the round was opened.
    pub opened_at: Timestamp,
    /// When its outcome was published.
    pub ended_at: Timestamp,
    /// What the coordinator published: verdicts with reasons, weights with score, floor and cap, the base.
    pub outcome: Outcome,
}

/// A model that the run leaves behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelRecord {
    /// Which model.
    pub model: ModelName,
    /// The digest of its manifest: its name everywhere.
    pub digest: Digest,
    /// Where its Hugging Face folder is, relative to the folder of the run; none where it is in a role's store only.
    pub path: Option<String>,
    /// Bytes of its weights and files.
    pub size_bytes: u64,
}

/// What one process used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessRecord {
    /// Which process.
    pub role: Role,
    /// When it was started.
    pub started_at: Timestamp,
    /// How long it ran, in seconds.
    pub wall_seconds: f64,
    /// Processor time, user and system, in seconds.
    pub cpu_seconds: f64,
    /// The largest resident memory, in bytes.
    pub peak_memory_bytes: u64,
}

/// A role's log as it was verified at the end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRecord {
    /// Whose log.
    pub role: Role,
    /// How many entries it has.
    pub num_entries: u64,
    /// The root of the Merkle tree of its entries; none where the log is empty or could not be read.
    pub root: Option<TreeHash>,
    /// What is wrong with it; none where its entries follow from each other and lead to the root that its writer signed.
    pub problem: Option<String>,
}

/// Everything that a run measured and recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// [`SCHEMA`].
    pub schema: u32,
    /// The version of the program.
    pub version: String,
    /// Which demonstration.
    pub mode: Mode,
    /// When the run began. A resumed run keeps the time of its first start.
    pub started_at: Timestamp,
    /// When it ended.
    pub finished_at: Timestamp,
    /// The seed from which everything random in the run follows.
    pub seed: u64,
    /// What the run was set to (steps, learning rate, cores...), by name.
    pub settings: BTreeMap<String, String>,
    /// The charter under which it ran.
    pub charter: Digest,
    /// The members, in the order in which tables show them.
    pub members: Vec<MemberRecord>,
    /// Bits per byte, in no particular order, one per model and text.
    pub measurements: Vec<Measurement>,
    /// The rounds, in order.
    pub rounds: Vec<RoundRecord>,
    /// The models of the run.
    pub models: Vec<ModelRecord>,
    /// Time and bytes.
    pub phases: Vec<PhaseRecord>,
    /// What each process used.
    pub processes: Vec<ProcessRecord>,
    /// The largest resident memory of all processes together, as sampled, in bytes.
    pub peak_memory_together_bytes: u64,
    /// The logs of all roles.
    pub logs: Vec<LogRecord>,
}

/// The share of a member's own CPT gain that the merged base keeps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// The member, on whose held-out text all three models are measured.
    pub member: MemberName,
    /// The round.
    pub round: u32,
    /// (adopted base - Shared Base after the round) / (adopted base - own CPT in the round), in bits per byte. 1 keeps
    /// all, 0 keeps nothing, below 0 the merge made this text worse. None where the member's own CPT gained nothing, or
    /// something was not measured.
    pub retention: Option<f64>,
}

/// Whether the run shows what it is meant to show.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Effect {
    /// For each member that is not faulty: the last Shared Base's bits per byte on its text over the adopted base's,
    /// less one. Below 0 is better. None where it was not measured.
    pub member_changes: BTreeMap<MemberName, Option<f64>>,
    /// The same for general English.
    pub general_english_change: Option<f64>,
    /// Every member's text became better, and general English at most 3% worse.
    pub is_shown: bool,
}

/// Why a file is not the results of a run.
#[derive(Debug, thiserror::Error)]
pub enum ResultsError {
    /// The file cannot be read or written.
    #[error(transparent)]
    File(#[from] AtomicError),
    /// The file is not JSON of this shape.
    #[error("{path} does not hold the results of a run: {source}. `cargo demo -- --fresh` makes new ones")]
    Shape {
        /// The file.
        path: String,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// The file was written by another version of the program.
    #[error(
        "{path} has schema {found}, this program reads schema {SCHEMA}. `cargo demo -- --fresh` makes new results with this program"
    )]
    Schema {
        /// The file.
        path: String,
        /// The schema found.
        found: u32,
    },
}

/// What follows from the facts; written into the file beside them, ignored when it is read.
#[derive(Serialize)]
struct File<'a> {
    #[serde(flatten)]
    facts: &'a Results,
    retention: Vec<Retention>,
    effect: Effect,
    logs_verified: bool,
}

impl Results {
    /// Bits per byte of `text` under `model`, where it was measured.
    #[must_use]
    pub fn bpb(&self, model: &ModelName, text: &TextName) -> Option<f64> {
        self.measurements.iter().find(|m| m.model == *model && m.text == *text).map(|m| m.bpb)
    }

    /// The numbers of the rounds, in order.
    pub fn round_numbers(&self) -> impl Iterator<Item = u32> + '_ {
        self.rounds.iter().map(|r| r.outcome.round)
    }

    /// The members that are not faulty, in order.
    pub fn honest_members(&self) -> impl Iterator<Item = &MemberRecord> {
        self.members.iter().filter(|m| !m.is_faulty)
    }

    /// The last Shared Base: the adopted base where no round was held.
    #[must_use]
    pub fn last_shared_base(&self) -> ModelName {
        self.round_numbers().last().map_or(ModelName::AdoptedBase, |round| ModelName::SharedBase { round })
    }

    /// Retention of every honest member in every round.
    #[must_use]
    pub fn retention(&self) -> Vec<Retention> {
        let rounds: Vec<u32> = self.round_numbers().collect();
        let of = |m: &MemberRecord, round| {
            let (member, text) = (m.name.clone(), TextName::HeldOut { member: m.name.clone() });
            let base = self.bpb(&ModelName::AdoptedBase, &text);
            let own = self.bpb(&ModelName::OwnCpt { member: member.clone(), round }, &text);
            let shared = self.bpb(&ModelName::SharedBase { round }, &text);
            let retention = match (base, own, shared) {
                (Some(base), Some(own), Some(shared)) if base - own >= SMALLEST_GAIN_BPB => {
                    Some((base - shared) / (base - own))
                }
                _ => None,
            };
            Retention { member, round, retention }
        };
        self.honest_members().flat_map(|m| rounds.iter().map(move |round| of(m, *round))).collect()
    }

    /// Whether the last Shared Base is better than the adopted base for every member, without harm to general English.
    #[must_use]
    pub fn effect(&self) -> Effect {
        let last = self.last_shared_base();
        let change = |text: &TextName| Some(self.bpb(&last, text)? / self.bpb(&ModelName::AdoptedBase, text)? - 1.0);
        let member_changes: BTreeMap<_, _> = self
            .honest_members()
            .map(|m| (m.name.clone(), change(&TextName::HeldOut { member: m.name.clone() })))
            .collect();
        let general_english_change = change(&TextName::GeneralEnglish);
        let is_shown = !member_changes.is_empty()
            && member_changes.values().all(|c| c.is_some_and(|c| c < 0.0))
            && general_english_change.is_some_and(|c| c <= GENERAL_ENGLISH_TOLERANCE);
        Effect { member_changes, general_english_change, is_shown }
    }

    /// Whether every role's log was read to its end and holds together. False where there is no log at all.
    #[must_use]
    pub fn logs_verified(&self) -> bool {
        !self.logs.is_empty() && self.logs.iter().all(|log| log.problem.is_none())
    }

    /// The text of `results.json`: the facts, and what follows from them.
    #[must_use]
    pub fn to_json(&self) -> String {
        let file = File {
            facts: self,
            retention: self.retention(),
            effect: self.effect(),
            logs_verified: self.logs_verified(),
        };
        let mut text =
            serde_json::to_string_pretty(&file).expect("keys are strings; a number that is not finite is null");
        text.push('\n');
        text
    }

    /// Writes `results.json`; a crash leaves the old file or the new one, never half of it.
    ///
    /// # Errors
    /// [`ResultsError::File`].
    pub fn write(&self, path: &Path) -> Result<(), ResultsError> {
        Ok(atomic::write(path, self.to_json().as_bytes())?)
    }

    /// Reads `results.json`.
    ///
    /// # Errors
    /// [`ResultsError`].
    pub fn read(path: &Path) -> Result<Self, ResultsError> {
        #[derive(Deserialize)]
        struct Head {
            schema: u32,
        }
        let text = atomic::read(path, MAX_FILE_BYTES)?;
        let shape = |source| ResultsError::Shape { path: path.display().to_string(), source };
        // The schema first: a file of another version should not be reported as a missing field.
        let head: Head = serde_json::from_slice(&text).map_err(shape)?;
        if head.schema != SCHEMA {
            return Err(ResultsError::Schema { path: path.display().to_string(), found: head.schema });
        }
        serde_json::from_slice(&text).map_err(shape)
    }
}

/// A results file is refused when it is larger: a run of 50 members and many rounds stays far below.
const MAX_FILE_BYTES: u64 = 64 << 20;
