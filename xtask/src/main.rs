//! Development tasks, run as `cargo xtask NAME`. `test` is what CI runs; there is nothing that only CI does.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::process::ExitCode;

use anyhow::{Result, bail};

mod run;
mod test;

const USAGE: &str = "\
cargo xtask TASK

  test    everything that CI runs";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(arguments: &[String]) -> Result<()> {
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["test"] => test::test(),
        [] | ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            Ok(())
        }
        other => bail!("there is no task `{}`\n\n{USAGE}", other.join(" ")),
    }
}
