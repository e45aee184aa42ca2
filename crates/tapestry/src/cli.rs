//! The command line.

mod charter;
mod generate;
mod log;

pub(crate) use charter::{CharterCommand, ChoiceArg, DraftArgs, ProposeArgs};
pub(crate) use generate::{ChatArgs, DrawArgs, GenerateArgs};
pub(crate) use log::{CompareArgs, ExportArgs, LogCommand, ProveArgs, ShowArgs, VerifyCommand, VerifyLogArgs};

use crate::logs::LogFormat;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use tapestry_core::{Digest, MemberName, PublicKey};

/// Train one language model together, and keep your own.
///
/// A consortium of members trains one Shared Base: the coordinator distributes it, every member continues its
/// pre-training on data that never leaves its node, only the weights come back, and they are merged under a charter that
/// the members have signed. Every member then builds its own Sovereign Model on it, alone.
///
/// See it at work on this machine: `tapestry demo --quick`. On several machines: docs/quickstart.md.
#[derive(Debug, Parser)]
#[command(name = "tapestry", version, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// How messages on standard error are written: `json` is one object a line, for programs that collect logs.
    #[arg(
        long,
        global = true,
        env = "TAPESTRY_LOG_FORMAT",
        value_enum,
        default_value = "text",
        hide_default_value = true
    )]
    pub(crate) log_format: LogFormat,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a whole consortium on this machine: real processes, real sockets, real weights.
    Demo(DemoArgs),
    /// The model that a consortium starts from.
    #[command(subcommand)]
    Base(BaseCommand),
    /// Measure a model.
    #[command(subcommand)]
    Eval(EvalCommand),
    /// The document that binds the consortium: draft, sign, publish, read.
    #[command(subcommand)]
    Charter(CharterCommand),
    /// The role that distributes, collects and merges.
    #[command(subcommand)]
    Coordinator(CoordinatorCommand),
    /// A member's side: its data, its training, its Sovereign Model.
    #[command(subcommand)]
    Node(NodeCommand),
    /// Where the Shared-Base Loop stands: the round, who has answered, who is awaited until when.
    Status(StatusArgs),
    /// What rounds cost: bytes, tokens, processor or GPU time and wall time, by round, member and kind of work.
    ///
    /// Of a coordinator's home: what each member moved and states of its training, and the coordinator's own work. Of a node's home: what
    /// that node did. docs/operations.md says where each number comes from.
    Account(AccountArgs),
    /// Serve the newest published base from a home, or from a copy of one, to the members of its charter, so that they need not all fetch it
    /// from the coordinator. Nothing else in the home is served, and nothing there is changed.
    Mirror {
        /// The home of a node or of a coordinator, which may be running, or a copy of one.
        #[arg(long)]
        home: PathBuf,
        /// The address to listen on. Members name it, with the home's key, under `[[transfer.mirrors]]` of their node.toml.
        #[arg(long, default_value = "0.0.0.0:7444")]
        listen: SocketAddr,
    },
    /// The append-only log of a role: check it, read it.
    #[command(subcommand)]
    Log(LogCommand),
    /// Merge local models as a recipe says, in memory that does not depend on their size.
    ///
    /// A recipe is a YAML file: `method`, `base` (where the method asks for one), `contributions` (each with `path` and, where they
    /// differ, `weight` and `name`), `parameters`, `dtype`, `output`. Its paths are relative to its own folder. examples/merge has one
    /// for each method, docs/merge.md explains them.
    ///
    /// The result does not depend on threads, on the processor or on the order of the contributions. An interrupted merge goes on
    /// where it was when the same command runs again; nothing appears under the output's name before all of it is on the disk.
    Merge(MergeArgs),
    /// Check what was published by doing it again.
    #[command(subcommand)]
    Verify(VerifyCommand),
    /// The models that a role holds.
    #[command(subcommand)]
    Model(ModelCommand),
    /// Let a model go on from prompts.
    ///
    /// Prompts are given as they are: `tapestry chat` is for models that were trained on conversations.
    Generate(GenerateArgs),
    /// Talk with a model.
    ///
    /// Each line of standard input is a message; the whole conversation so far is what the model answers to.
    Chat(ChatArgs),
    /// Train a model without a consortium.
    #[command(subcommand)]
    Train(TrainCommand),
    /// Stand in for a member's trainer and give back poisoned weights (the demo's faulty member uses it).
    #[command(hide = true)]
    DemoPoison {
        /// The job.
        job: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Where everything lands.
    #[arg(long, default_value = "tapestry-demo")]
    pub(crate) dir: PathBuf,
    /// A tiny base, trained on the spot from text that the project generates: no download, under a minute.
    #[arg(long)]
    pub(crate) quick: bool,
    /// How many members: 3 (France, China, Iran), 4 (India as well) or 5 (USA as well).
    #[arg(long, default_value_t = 3)]
    pub(crate) members: usize,
    /// Add a member whose weights are poisoned, to see it refused.
    #[arg(long)]
    pub(crate) with_faulty_member: bool,
    /// Delete what an earlier demo left in the folder, and start over.
    #[arg(long)]
    pub(crate) fresh: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum BaseCommand {
    /// Turn a GGUF file (architectures llama, qwen2, qwen3, olmo2) into a model in Hugging Face layout, in 32-bit floats.
    Adopt {
        /// The GGUF file.
        file: PathBuf,
        /// The folder to make. It must not exist.
        #[arg(long)]
        out: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// Bits per byte of a text under a model: lower is better, and models with different tokenizers compare.
    ///
    /// The text is tokenised whole and cut into consecutive windows of 256 tokens without context before them; the first
    /// token of each window is not scored.
    Bpb {
        /// A model in Hugging Face layout.
        #[arg(long)]
        model: PathBuf,
        /// A UTF-8 text.
        #[arg(long)]
        text: PathBuf,
        /// Look only at the first so many tokens.
        #[arg(long)]
        max_tokens: Option<usize>,
        /// Print one JSON object.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum CoordinatorCommand {
    /// Make the home of a standby: its key, which a charter can name with `charter draft --standby KEY`. Prints the key. (The
    /// coordinator's own home is made by `charter draft`.)
    Init {
        /// The folder to make.
        #[arg(long)]
        home: PathBuf,
    },
    /// Give the coordinator's role to a standby that the charter names: this home decides nothing any more. Stop the
    /// coordinator first, and start it again afterwards: it then gives its state to whom it names, and tells members where
    /// to go. docs/take-over.md has the steps.
    HandOver {
        /// The home of the coordinator that has the role.
        #[arg(long)]
        home: PathBuf,
        /// The standby's key.
        #[arg(long)]
        to: PublicKey,
        /// Where members will find it (HOST:PORT), if their settings do not say so already.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
    },
    /// Run the Shared-Base Loop. May be stopped and started at any time; nothing is lost.
    Run {
        /// The coordinator's home.
        #[arg(long)]
        home: PathBuf,
        /// The address to listen on. Only keys of the charter get further than the handshake.
        #[arg(long, default_value = "0.0.0.0:7443")]
        listen: SocketAddr,
        /// Where another has the role: wait until it gives no sign of life for the idle time, or hands the role over, and go on in
        /// its place. Both need one store (`[store]` in coordinator.toml).
        #[arg(long)]
        standby: bool,
        /// Copy the log and all blobs from the coordinator that has the role, until it hands the role over to this one. For
        /// a hand-over between machines that share no store.
        #[arg(long, value_name = "https://HOST:PORT#KEY")]
        from: Option<String>,
        /// Where members find this coordinator, should it take the role and their settings not say so: HOST:PORT.
        #[arg(long, value_name = "HOST:PORT")]
        address: Option<String>,
        /// Serve metrics for Prometheus at `http://ADDRESS/metrics`, such as 127.0.0.1:9464. Off unless asked for, and open to whoever
        /// reaches the address.
        #[arg(long, value_name = "ADDRESS")]
        metrics: Option<SocketAddr>,
        /// Print one JSON object a line on standard output for each step (the demo reads it).
        #[arg(long, hide = true)]
        json_progress: bool,
    },
}

/// See [`NodeCommand::Participate`].
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(crate) enum ParticipationMode {
    Contribute,
    Private,
    Decline,
    Away,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// Make a node: its key, and its settings with the texts that it trains on. Prints the key to give to the consortium.
    Init {
        /// The folder to make.
        #[arg(long)]
        home: PathBuf,
        /// Text for Contributed CPT: only weights trained on this reach the Shared Base.
        #[arg(long, required = true)]
        contributed: Vec<PathBuf>,
        /// Text for Private CPT: shapes only the member's own Sovereign Model.
        #[arg(long, required = true)]
        private: Vec<PathBuf>,
        /// Text that is never trained on: measures what was gained.
        #[arg(long)]
        held_out: PathBuf,
    },
    /// Join a consortium: fetch its charter, check who signed it, and follow it.
    Join {
        /// The coordinator's address with its key, as `tapestry coordinator run` prints it: `https://HOST:PORT#KEY`.
        url: String,
        /// The node's home.
        #[arg(long)]
        home: PathBuf,
        /// A standby's address with its key, in the same form: asked when the coordinator does not answer. Once for each.
        #[arg(long = "standby", value_name = "URL")]
        standbys: Vec<String>,
        /// Accept the charter with this digest although this node's key has not signed it.
        #[arg(long)]
        accept: Option<Digest>,
    },
    /// Say how this member takes part from now on. Needs nobody's permission and may be changed at any time, also while
    /// the node runs. What the coordinator has received already is not taken back.
    Participate {
        /// contribute: train in each round and send the weights. private: train, and keep the weights of each round.
        /// decline: neither train nor send. away: leave for a while; rounds do not wait for this member until it says
        /// `contribute` again.
        #[arg(value_enum)]
        mode: ParticipationMode,
        /// What the other members are told.
        #[arg(long, default_value = "")]
        reason: String,
        /// The node's home.
        #[arg(long)]
        home: PathBuf,
    },
    /// Leave the consortium for good, at once. Needs nobody's permission, and this member keeps everything that it has: the node
    /// goes on to its Sovereign Build on the last base that it holds. To be away for a while: `participate away`.
    Leave {
        /// The node's home.
        #[arg(long)]
        home: PathBuf,
        /// What the other members are told.
        #[arg(long, default_value = "")]
        reason: String,
        /// Leave without being asked.
        #[arg(long)]
        yes: bool,
    },
    /// Take another key. The old one signs for it, and is never valid again once the open round has ended; the node changes over by
    /// itself. Where the old key is lost, members give another by vote: `tapestry charter propose --recover`.
    RotateKey {
        /// The node's home.
        #[arg(long)]
        home: PathBuf,
    },
    /// Take part: pull the base, train, send weights, take the new base; at the end, build the Sovereign Model. May be
    /// stopped and started at any time; nothing is lost.
    Run {
        /// The node's home.
        #[arg(long)]
        home: PathBuf,
        /// Serve metrics for Prometheus at `http://ADDRESS/metrics`, such as 127.0.0.1:9465. Off unless asked for, and open to whoever
        /// reaches the address.
        #[arg(long, value_name = "ADDRESS")]
        metrics: Option<SocketAddr>,
        /// Print one JSON object a line on standard output for each step (the demo reads it).
        #[arg(long, hide = true)]
        json_progress: bool,
    },
}

#[derive(Debug, Args)]
pub(crate) struct AccountArgs {
    /// The home of a node or of the coordinator, which may be running, or a copy of one.
    #[arg(long)]
    pub(crate) home: PathBuf,
    /// Only this round.
    #[arg(long)]
    pub(crate) round: Option<u32>,
    /// The role's public key, from the charter; without it, the key that lies in the home.
    #[arg(long)]
    pub(crate) key: Option<PublicKey>,
    /// Print one JSON object a line.
    #[arg(long, conflicts_with = "csv")]
    pub(crate) json: bool,
    /// Print comma-separated values under a line of names.
    #[arg(long)]
    pub(crate) csv: bool,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The home of a node or of the coordinator.
    #[arg(long)]
    pub(crate) home: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
    /// Keep watching until all rounds are over, or until Ctrl-C: on a terminal a view that is drawn anew each second, elsewhere
    /// a line for each change (with --json, an object). A coordinator that is away is waited for.
    #[arg(long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub(crate) struct MergeArgs {
    #[command(subcommand)]
    pub(crate) command: Option<MergeCommand>,
    /// The recipe.
    #[arg(required = true)]
    pub(crate) recipe: Option<PathBuf>,
    /// Make every check, merge a sample, and print what the merge would read, write, hold and take. Leaves nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// How many threads work; without it, two for each processor. Never changes the result.
    #[arg(long)]
    pub(crate) threads: Option<usize>,
    /// Print the record of the merge, or the plan, as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum MergeCommand {
    /// Print the weights table: how much each contribution counts, and why.
    Explain(ExplainArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ExplainArgs {
    /// A recipe, or the record (`merge.json`) of a merge that was made.
    #[arg(required_unless_present = "home", conflicts_with = "home")]
    pub(crate) file: Option<PathBuf>,
    /// Explain rounds of the Shared-Base Loop: the coordinator's home, or a copy of it.
    #[arg(long)]
    pub(crate) home: Option<PathBuf>,
    /// Only this round.
    #[arg(long, requires = "home")]
    pub(crate) round: Option<u32>,
    /// The coordinator's public key, from the charter; without it, the key that lies in the home.
    #[arg(long, requires = "home")]
    pub(crate) key: Option<PublicKey>,
    /// Print one JSON object a weight.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ModelCommand {
    /// List the models that a role holds.
    List {
        /// The home of the role.
        #[arg(long)]
        home: PathBuf,
    },
    /// Write a model in Hugging Face layout, loadable by any tool.
    Export {
        /// `shared-base`, `sovereign`, or a digest.
        model: String,
        /// The home of the role.
        #[arg(long)]
        home: PathBuf,
        /// The folder to make.
        #[arg(long)]
        out: PathBuf,
    },
    /// Write a model as one GGUF file, which llama.cpp and what is built on it run.
    Gguf {
        /// A model in Hugging Face layout.
        #[arg(long)]
        model: PathBuf,
        /// How matrices are stored: 8 bits lose a little, 16 hardly anything, f32 nothing.
        #[arg(long = "type", value_enum, default_value_t = GgufTypeArg::Q8_0)]
        storage: GgufTypeArg,
        /// The file to make. It must not exist.
        #[arg(long)]
        out: PathBuf,
    },
}

/// How a GGUF file stores matrices.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum GgufTypeArg {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// Blocks of 32 bytes with a scale.
    #[value(name = "q8_0")]
    Q8_0,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TrainCommand {
    /// Continue the pre-training of a model (CPT), as a JSON file of the job says. An interrupted job goes on where it was.
    ///
    /// This is the trainer that a node starts when its `node.toml` names no other; docs/trainer-contract.md says what a job is, what
    /// comes back, and with which codes a trainer ends. docs/training.md has examples.
    Cpt {
        /// The job: it names `texts`, or a `mixture`.
        job: PathBuf,
        /// Started by a node: print no progress, and stop, keeping a checkpoint, when the node is gone.
        #[arg(long, hide = true)]
        child: bool,
    },
    /// Tune a model on instructions (SFT): it learns its answers in conversations, written with its own chat template.
    Sft {
        /// The job: it names `conversations`.
        job: PathBuf,
    },
    /// Align a model with preferences: DPO, IPO, SimPO or KTO.
    Preference {
        /// The job: it names `preferences`, and the method under `preference`.
        job: PathBuf,
    },
}

pub(crate) fn parse_member(text: &str) -> Result<(MemberName, PublicKey), String> {
    let (name, key) = text.split_once('=').ok_or("expected NAME=KEY")?;
    let name = name.parse().map_err(|e: tapestry_core::NameError| e.to_string())?;
    let key = key.parse().map_err(|e: tapestry_core::KeyError| e.to_string())?;
    Ok((name, key))
}

/// A whole number with a unit: `s`, `m`, `h` or `d`.
pub(crate) fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("expected a whole number with a unit, such as 90s, 30m, 36h or 2d; found {text:?}");
    let unit_at = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(unit_at);
    let seconds_per_unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(wrong()),
    };
    let number: u64 = number.parse().map_err(|_| wrong())?;
    number.checked_mul(seconds_per_unit).map(Duration::from_secs).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(parse_duration("36h"), Ok(Duration::from_secs(129_600)));
        assert_eq!(parse_duration("90s"), Ok(Duration::from_secs(90)));
        for wrong in ["", "h", "36", "1w", "-1s", "99999999999999999999d"] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
