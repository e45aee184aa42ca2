//! Starting other programs and timing them.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

/// The root of the repository: the folder above this crate.
pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace root").to_path_buf()
}

/// The cargo that runs us, or the one on the path.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    command
}

/// Runs a step with its output on the terminal, and says how long it took.
///
/// # Errors
/// When the program cannot be started or exits with anything but 0.
pub(crate) fn step(name: &str, command: &mut Command) -> Result<()> {
    println!("xtask: {name} ...");
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start `{}`", display(command)))?;
    if !status.success() {
        bail!("{name} failed ({status}); repeat it alone with `{}`", display(command));
    }
    println!("xtask: {name}: ok in {:.1} s", start.elapsed().as_secs_f64());
    Ok(())
}

/// A command as one would type it.
fn display(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words: Vec<_> = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}
