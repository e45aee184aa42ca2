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

/// Runs `task` and says how long it took.
///
/// # Errors
/// Those of the task, with its name.
pub(crate) fn timed<T>(name: &str, task: impl FnOnce() -> Result<T>) -> Result<T> {
    println!("xtask: {name} ...");
    let start = Instant::now();
    let value = task().with_context(|| format!("{name} failed"))?;
    println!("xtask: {name}: ok in {:.1} s", start.elapsed().as_secs_f64());
    Ok(value)
}

/// Runs a program with its output on the terminal.
///
/// # Errors
/// When the program cannot be started or exits with anything but 0.
pub(crate) fn step(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", display(command)))?;
    if !status.success() {
        bail!("{status}; repeat it alone with `{}`", display(command));
    }
    Ok(())
}

/// What a program writes to its standard output.
///
/// # Errors
/// When the program cannot be started, exits with anything but 0, or writes something other than UTF-8.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start `{}`", display(command)))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", display(command), output.status, message.trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("`{}` wrote something other than UTF-8", display(command)))
}

/// A command as one would type it.
fn display(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words: Vec<_> = std::iter::once(program).chain(command.get_args()).map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}
