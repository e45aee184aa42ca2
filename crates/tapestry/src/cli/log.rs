//! The command line of logs and of checking what was done.

use clap::{Args, Subcommand};
use std::path::PathBuf;
use tapestry_core::{MemberName, PublicKey};

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// Check a log: that its entries lead to the root that its writer signed, and that its events can follow from one another.
    ///
    /// Of a role's home, or of an export, with nothing running. Any single changed byte is found.
    Verify(VerifyLogArgs),
    /// Print a log: when, who, what, under which charter.
    Show(ShowArgs),
    /// Write a log as a folder in the layout of C2SP tlog-tiles, for an auditor or another member.
    Export(ExportArgs),
    /// Prove that an entry is in a log, or that one checkpoint continues another. Prints the proof as JSON.
    Prove(ProveArgs),
    /// Print the newest checkpoint of a log; at a node, the newest of the coordinator's log that it has seen and cosigned.
    Checkpoint(LogArgs),
    /// Compare what two members were shown: the checkpoint of another member with what this node has seen.
    ///
    /// Members exchange checkpoints (`tapestry log checkpoint`) by any way that does not lead through the coordinator. Where the
    /// two do not belong to one history, this says so with the proof, keeps it in this node's log, and the node takes no part any
    /// more. Ends with code 3 then.
    Compare(CompareArgs),
    /// Take a log over from the form of an older version. The old files stay; entries, times and events are the same.
    Migrate(LogArgs),
}

#[derive(Debug, Args)]
pub(crate) struct LogArgs {
    /// The home of the role.
    #[arg(long)]
    pub(crate) home: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct VerifyLogArgs {
    /// The export.
    #[arg(required_unless_present = "home", conflicts_with = "home")]
    pub(crate) export: Option<PathBuf>,
    /// The home of the role.
    #[arg(long)]
    pub(crate) home: Option<PathBuf>,
    /// The key that founded the log: the coordinator's in the first charter, or the node's. Without it, whoever the log says.
    #[arg(long)]
    pub(crate) key: Option<PublicKey>,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ShowArgs {
    /// The home of the role.
    #[arg(long, required_unless_present = "export")]
    pub(crate) home: Option<PathBuf>,
    /// An export of its log.
    #[arg(long, conflicts_with = "home")]
    pub(crate) export: Option<PathBuf>,
    /// The key that founded the log; without it, whoever the log says.
    #[arg(long)]
    pub(crate) key: Option<PublicKey>,
    /// Only events of this kind, such as `voted` or `contribution_screened`. Once for each.
    #[arg(long = "event", value_name = "KIND")]
    pub(crate) events: Vec<String>,
    /// Only what is about this member.
    #[arg(long)]
    pub(crate) member: Option<MemberName>,
    /// Only what is about this round.
    #[arg(long)]
    pub(crate) round: Option<u32>,
    /// Only entries from this number on.
    #[arg(long, default_value_t = 1)]
    pub(crate) from: u64,
    /// Only so many, the last ones.
    #[arg(long)]
    pub(crate) last: Option<usize>,
    /// Print JSON: one object a line, with all that an entry holds.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ExportArgs {
    /// The home of the role; of a node, together with --from-coordinator, the coordinator's log is fetched over the network.
    #[arg(long)]
    pub(crate) home: PathBuf,
    /// Fetch the coordinator's log, with this node's key.
    #[arg(long)]
    pub(crate) from_coordinator: bool,
    /// The folder to make.
    #[arg(long)]
    pub(crate) out: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct ProveArgs {
    /// The number of the entry.
    #[arg(required_unless_present = "from")]
    pub(crate) entry: Option<u64>,
    /// Prove that the log continues its first so many entries.
    #[arg(long, conflicts_with = "entry")]
    pub(crate) from: Option<u64>,
    /// The home of the role; a node's, to ask the coordinator about its log.
    #[arg(long, required_unless_present = "export")]
    pub(crate) home: Option<PathBuf>,
    /// An export of the log.
    #[arg(long, conflicts_with = "home")]
    pub(crate) export: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct CompareArgs {
    /// The checkpoint of another member.
    pub(crate) checkpoint: PathBuf,
    /// The home of this member's node.
    #[arg(long)]
    pub(crate) home: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VerifyCommand {
    /// Merge a round again from the log and the blobs, and compare the result with what was published.
    ///
    /// Needs the coordinator's home or a copy of its `log` and `blobs`; changes nothing there, and may run while the coordinator does.
    Round {
        /// The number of the round.
        round: u32,
        /// The coordinator's home, or a copy of it.
        #[arg(long)]
        home: PathBuf,
        /// The coordinator's public key, from the charter; without it, the key that lies in the home.
        #[arg(long)]
        key: Option<PublicKey>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Verify the whole history: every step of governance, verdict, weight and cap, every merge of every round, what was witnessed.
    All {
        /// The coordinator's home, or a copy of it.
        #[arg(long)]
        home: PathBuf,
        /// The coordinator's public key, from the first charter; without it, whoever the log says.
        #[arg(long)]
        key: Option<PublicKey>,
        /// Leave the merges out: everything that the log alone proves, in seconds.
        #[arg(long)]
        without_merges: bool,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}
