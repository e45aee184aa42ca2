//! The command line of the charter and of what members decide.

use super::{parse_duration, parse_member};
use crate::policy::PolicyArgs;
use clap::{Args, Subcommand, ValueEnum};
use std::path::PathBuf;
use std::time::Duration;
use tapestry_core::{MemberName, PublicKey};

#[derive(Debug, Subcommand)]
pub(crate) enum CharterCommand {
    /// Write a charter for the members to read and sign. Makes the coordinator's key and takes in the base.
    Draft(Box<DraftArgs>),
    /// Show a charter and add a member's signature.
    Sign {
        /// The charter.
        file: PathBuf,
        /// The home of the member's node, which holds its key.
        #[arg(long)]
        home: PathBuf,
        /// Sign without being asked.
        #[arg(long)]
        yes: bool,
    },
    /// Put a signed charter in force at the coordinator.
    Publish {
        /// The charter; several files of the same charter are combined, each with the signatures it has.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The coordinator's home.
        #[arg(long)]
        home: PathBuf,
    },
    /// Show a charter in words: a file and who has signed it, or the one in force at a role.
    Show {
        /// The charter.
        #[arg(required_unless_present = "home", conflicts_with = "home")]
        file: Option<PathBuf>,
        /// The home of a node or coordinator: show the charter in force there, and the proposals that it knows.
        #[arg(long)]
        home: Option<PathBuf>,
    },
    /// Propose a decision to the members: a change of the charter, or credits.
    ///
    /// Shows what would change, term by term, and how many votes that needs under the charter in force, and sends it to the
    /// coordinator under this member's signature. Members vote with `tapestry charter vote`.
    Propose(Box<ProposeArgs>),
    /// Vote on a proposal. The first vote of a member stands; a vote against is on record as dissent, with its reason.
    Vote {
        /// The proposal: the first digits of its digest, as `tapestry charter proposals` shows it.
        proposal: String,
        /// For, against, or neither.
        #[arg(value_enum)]
        choice: ChoiceArg,
        /// The home of the member's node.
        #[arg(long)]
        home: PathBuf,
        /// Why, for all members and for good.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// List the proposals that are open, with the votes so far, as the coordinator knows them.
    Proposals {
        /// The home of a node or coordinator.
        #[arg(long)]
        home: PathBuf,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Tell how the charter in force came about: each version, what was decided, by which votes. Checks all of it.
    History {
        /// The home of a node or coordinator.
        #[arg(long)]
        home: PathBuf,
        /// Also write it as a file that `--history` takes, with every signature.
        #[arg(long)]
        out: Option<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Publish what members have decided, out of the coordinator's log: a static site and Markdown, one page a decision, with rationale,
    /// parties consulted, votes, dissent, outcome, and the proof that the log holds it.
    Records {
        /// The coordinator's home, or a copy of it.
        #[arg(long)]
        home: PathBuf,
        /// The key that founded the log; without it, whoever the log says.
        #[arg(long)]
        key: Option<PublicKey>,
        /// The folder to make.
        #[arg(long)]
        out: PathBuf,
    },
    /// Show what differs between two charters, term by term.
    Diff {
        /// A version number (with --home), or a file.
        from: String,
        /// A version number (with --home), or a file.
        to: String,
        /// The home of a node or coordinator.
        #[arg(long)]
        home: Option<PathBuf>,
    },
}

/// A member's choice.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum ChoiceArg {
    /// For.
    Yes,
    /// Against.
    No,
    /// Neither; counts as not for.
    Abstain,
}

#[derive(Debug, Args)]
pub(crate) struct ProposeArgs {
    /// The home of the member's node.
    #[arg(long)]
    pub(crate) home: PathBuf,
    /// Why, in words that every member and later reader understands.
    #[arg(long)]
    pub(crate) rationale: String,
    /// A party that was consulted, inside or outside the consortium. Once for each.
    #[arg(long = "consulted", value_name = "PARTY")]
    pub(crate) consulted: Vec<String>,
    /// How long members can vote, such as `36h` or `7d`; without it, as long as the charter asks at least. The vote ends earlier
    /// when all have voted.
    #[arg(long, value_parser = parse_duration)]
    pub(crate) open_for: Option<Duration>,
    /// Admit a member.
    #[arg(long = "admit", value_name = "NAME=KEY", value_parser = parse_member)]
    pub(crate) admit: Vec<(MemberName, PublicKey)>,
    /// Exclude a member.
    #[arg(long = "eject", value_name = "NAME")]
    pub(crate) eject: Vec<MemberName>,
    /// Give a member another key, where its own is lost or known to others: the old one is never valid again.
    #[arg(long = "recover", value_name = "NAME=KEY", value_parser = parse_member)]
    pub(crate) recover: Vec<(MemberName, PublicKey)>,
    /// Choose another coordinator.
    #[arg(long, value_name = "KEY")]
    pub(crate) coordinator: Option<PublicKey>,
    /// Replace the agreement in words by this file's.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// Change a term, by its path in the charter's JSON: `--set merge.influence_cap=0.4`, `--set rounds.window_ms=172800000`.
    /// Members and keys have options of their own.
    #[arg(long = "set", value_name = "TERM=VALUE")]
    pub(crate) set: Vec<String>,
    /// Enter a credit in a member's account: `NAME:engineering|data|compute|evaluation:AMOUNT:UNIT:WHAT FOR`. Alone, without
    /// changes of the charter. It never changes what the member weighs.
    #[arg(long = "credit", value_name = "CREDIT")]
    pub(crate) credits: Vec<String>,
    /// Show what would be proposed, and send nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
pub(crate) struct DraftArgs {
    /// The coordinator's home; made if it does not exist.
    #[arg(long)]
    pub(crate) home: PathBuf,
    /// Where to write the charter.
    #[arg(long, default_value = "charter.json")]
    pub(crate) out: PathBuf,
    /// The name of the consortium.
    #[arg(long)]
    pub(crate) consortium: String,
    /// A member and the key that its `tapestry node init` printed; once for each member.
    #[arg(long = "member", value_name = "NAME=KEY", required = true, value_parser = parse_member)]
    pub(crate) members: Vec<(MemberName, PublicKey)>,
    /// The model to start from, in Hugging Face layout.
    #[arg(long)]
    pub(crate) base: PathBuf,
    /// The open held-out text: known to all members, trained on by none.
    #[arg(long)]
    pub(crate) open_text: PathBuf,
    /// How many tokens of it are scored.
    #[arg(long, default_value_t = 20_000)]
    pub(crate) open_text_max_tokens: u32,
    /// The key of a standby, as `tapestry coordinator init` prints it: it may take the coordinator's role when the coordinator
    /// has vanished, or hands the role over. Once for each; without any, the role stays where it is.
    #[arg(long = "standby", value_name = "KEY")]
    pub(crate) standbys: Vec<PublicKey>,
    /// How many members must sign; without it, all of them.
    #[arg(long)]
    pub(crate) quorum: Option<u32>,
    /// How many rounds the charter covers.
    #[arg(long, default_value_t = 2)]
    pub(crate) rounds: u32,
    /// How long a round waits for members, such as `30m`, `36h`, `2d`.
    #[arg(long, default_value = "36h", value_parser = parse_duration)]
    pub(crate) window: Duration,
    /// A round with fewer accepted contributions is abandoned, and the base stays.
    #[arg(long, default_value_t = 2)]
    pub(crate) min_contributions: u32,
    /// By how many rounds a contribution may be late and still count, in a later round and with the discount of
    /// `--staleness-exponent`. 0: each round takes what was trained for it, and nothing else.
    #[arg(long, default_value_t = 0)]
    pub(crate) late_rounds: u32,
    /// The largest weight of one member in a merge, in (0, 1]. It must leave the smallest merge possible:
    /// 1 / min-contributions or more.
    #[arg(long, default_value_t = 0.5)]
    pub(crate) influence_cap: f64,
    #[command(flatten)]
    pub(crate) policy: PolicyArgs,
    /// The largest change that a contribution may make, as a share of the base's L2 norm.
    #[arg(long, default_value_t = 0.1)]
    pub(crate) max_relative_change: f64,
    /// The quality floor: a contribution's bits per byte on the open text may exceed the base's by at most this share.
    #[arg(long, default_value_t = 0.10)]
    pub(crate) max_contribution_rise: f64,
    /// The gate: a merged base's bits per byte on the open text may exceed the adopted base's by at most this share.
    #[arg(long, default_value_t = 0.03)]
    pub(crate) max_merged_rise: f64,
    /// The agreement in words, a text that members read and sign with the terms.
    #[arg(long, value_name = "FILE")]
    pub(crate) text: Option<PathBuf>,
    /// How many members must have witnessed the coordinator's log before a round opens; without it, more than half of them.
    /// With 0, nobody would notice that the coordinator shows different histories to different members.
    #[arg(long)]
    pub(crate) witnesses: Option<u32>,
    /// A decision needs the votes of more than so many percent of the members: for each kind (`50`), or for one
    /// (`eject=66`). Without it, 50, and 66 to exclude a member or to change the coordinator, the text, or these rules.
    #[arg(long = "decide-by", value_name = "[KIND=]PERCENT")]
    pub(crate) decide_by: Vec<String>,
    /// How long a proposal is open for votes at least, unless all have voted.
    #[arg(long, default_value = "7d", value_parser = parse_duration)]
    pub(crate) min_vote: Duration,
    /// What a member that leaves has contributed to the open round is withdrawn; otherwise it counts.
    #[arg(long)]
    pub(crate) leaving_withdraws: bool,
    /// How long the charter holds, from now.
    #[arg(long, default_value = "365d", value_parser = parse_duration)]
    pub(crate) valid_for: Duration,
}
