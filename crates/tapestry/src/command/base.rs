//! `tapestry base`.

use crate::cli::BaseCommand;
use crate::progress::{Form, Reporter};
use anyhow::Result;

pub(crate) fn run(command: BaseCommand) -> Result<()> {
    let BaseCommand::Adopt { file, out } = command;
    let mut working = Reporter::new(Form::People).start("adopt", file.display().to_string(), "bytes");
    tapestry_weights::adopt_gguf(&file, &out, &mut |done, total| working.update(done, total))?;
    working.end();
    println!("adopted into {}", out.display());
    Ok(())
}
