//! `tapestry eval`.

use crate::cli::EvalCommand;
use crate::files;
use crate::progress::{Form, Reporter};
use anyhow::Result;
use tapestry_model::measure_bpb_of_dir;

pub(crate) fn run(command: EvalCommand) -> Result<()> {
    let EvalCommand::Bpb { model, text, max_tokens, json } = command;
    let content = files::read_long_text(&text)?;
    let mut working = Reporter::new(Form::People).start("measure", text.display().to_string(), "tokens");
    let mut progress = |p: tapestry_eval::BpbProgress| working.update(p.tokens_scored, p.tokens_total);
    let result = measure_bpb_of_dir(&model, &content, max_tokens, &mut progress)?;
    working.end();
    if json {
        let object = serde_json::json!({
            "bpb": result.bpb(), "bits": result.bits, "bytes": result.bytes,
            "tokens_scored": result.tokens_scored, "windows": result.windows,
        });
        println!("{object}");
    } else {
        println!(
            "{:.4} bits per byte ({} tokens in {} windows, standing for {} bytes)",
            result.bpb(),
            result.tokens_scored,
            result.windows,
            result.bytes
        );
    }
    Ok(())
}
