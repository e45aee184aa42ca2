//! `tapestry generate` and `tapestry chat`.

use clap::Args;
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct DrawArgs {
    /// The most tokens of an answer.
    #[arg(long, default_value_t = 256)]
    pub(crate) max_tokens: usize,
    /// How freely tokens are drawn: 0 takes the most probable one each time, 1 draws as the model has it.
    #[arg(long, default_value_t = 0.0)]
    pub(crate) temperature: f32,
    /// Draw only from the most probable tokens that together have this probability.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) top_p: f32,
    /// Decides every draw: the same seed gives the same answer.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// End an answer where this text would begin. May be given several times.
    #[arg(long = "stop", value_name = "TEXT")]
    pub(crate) stops: Vec<String>,
    /// The most tokens of prompt and answer together, where the model can hold more: longer ones take more memory.
    #[arg(long, default_value_t = 8192)]
    pub(crate) context: usize,
}

#[derive(Debug, Args)]
pub(crate) struct GenerateArgs {
    /// A model in Hugging Face layout.
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// What the model goes on from. Given several times, all are answered beside each other, and what they share at their beginnings is read
    /// once.
    #[arg(long = "prompt", value_name = "TEXT", required_unless_present = "prompts")]
    pub(crate) given: Vec<String>,
    /// A file of prompts, a JSON string or an object with `prompt` on each line.
    #[arg(long, conflicts_with = "given")]
    pub(crate) prompts: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) draw: DrawArgs,
    /// Print one JSON object for each prompt: text, why it ends, and the log-probability of every token of prompt and answer.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct ChatArgs {
    /// A model in Hugging Face layout that was trained on conversations: its folder has a chat template.
    #[arg(long)]
    pub(crate) model: PathBuf,
    /// What the model is told before the conversation.
    #[arg(long, value_name = "TEXT")]
    pub(crate) system: Option<String>,
    #[command(flatten)]
    pub(crate) draw: DrawArgs,
}
