//! Development tasks: `cargo xtask test` runs everything that CI runs.

use anyhow::{Context, bail};
use std::process::Command;

fn main() -> anyhow::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("test") => test(),
        other => bail!("unknown task {other:?}; there is: cargo xtask test"),
    }
}

fn test() -> anyhow::Result<()> {
    run("cargo", &["test", "--release", "--workspace", "--exclude", "xtask"])
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let status = Command::new(program).args(arguments).status().with_context(|| format!("cannot start {program}"))?;
    if status.success() { Ok(()) } else { bail!("{program} {} ended with {status}", arguments.join(" ")) }
}
