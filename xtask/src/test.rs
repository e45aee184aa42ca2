//! `cargo xtask test`: everything that CI runs, cheapest first, so that a slip shows before the long builds.

use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

use crate::run::{cargo, step, timed};

/// A step and what runs it.
type Step = (&'static str, fn() -> Result<()>);

/// Clippy comes after the cheap steps and before the tests: it compiles the dependencies once more, in check mode.
/// Builds share the one release profile, so that heavy dependencies compile once.
const STEPS: [Step; 7] = [
    ("tidy", crate::tidy::tidy),
    ("deny", crate::deny::deny),
    ("fmt", || step(cargo().args(["fmt", "--all", "--check"]))),
    ("clippy", || {
        let arguments = ["clippy", "--release", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
        step(cargo().args(arguments))
    }),
    ("tests", || step(cargo().args(["test", "--release", "--workspace", "--locked"]))),
    ("base", real_base),
    ("demo", crate::demo::demo),
];

/// The file of the real base, as `cargo demo` keeps it in its cache of inputs.
const BASE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";

/// The adopted base against the golden values of an independent reference. Needs the real base: where no `cargo demo` has
/// fetched it, the step says so and is left out.
fn real_base() -> Result<()> {
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache/tapestry/inputs"));
    let cache = std::env::var_os("TAPESTRY_CACHE").map(PathBuf::from).or(home);
    let Some(gguf) = cache.and_then(|cache| find(&cache.join("contents"))) else {
        println!("xtask: base: left out, because {BASE} is not in the cache; `cargo demo` fetches it");
        return Ok(());
    };
    // The whole workspace's features, although one crate has this test: with its own alone, Burn would be compiled anew.
    let arguments = ["test", "--release", "--locked", "--workspace", "--test", "model", "--", "--ignored"];
    step(cargo().args(arguments).env("TAPESTRY_BASE_GGUF", gguf))
}

fn find(contents: &Path) -> Option<PathBuf> {
    let folders = std::fs::read_dir(contents).ok()?.flatten();
    folders.map(|folder| folder.path().join(BASE)).find(|file| file.is_file())
}

/// Runs every step but those named in `--without STEP`.
///
/// # Errors
/// The first step that fails; a step that does not exist.
pub(crate) fn test(options: &[&str]) -> Result<()> {
    let without = parse(options)?;
    timed("everything", || {
        for (name, run) in STEPS {
            if without.contains(&name) {
                println!("xtask: {name}: left out");
            } else {
                timed(name, run)?;
            }
        }
        Ok(())
    })
}

/// The steps to leave out.
fn parse<'a>(options: &[&'a str]) -> Result<Vec<&'a str>> {
    let mut without = vec![];
    let mut words = options.iter();
    while let Some(word) = words.next() {
        if *word != "--without" {
            bail!("`cargo xtask test` knows the option `--without STEP`; found `{word}`");
        }
        let name = words.next().context("`--without` needs the name of a step")?;
        if !STEPS.iter().any(|(known, _)| known == name) {
            let known: Vec<_> = STEPS.iter().map(|(known, _)| *known).collect();
            bail!("there is no step `{name}`; there are {}", known.join(", "));
        }
        without.push(*name);
    }
    Ok(without)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_step_is_an_error_and_leaves_nothing_out() {
        assert_eq!(parse(&["--without", "fmt", "--without", "demo"]).expect("parses"), ["fmt", "demo"]);
        assert!(parse(&["--without", "format"]).is_err());
        assert!(parse(&["--without"]).is_err());
        assert!(parse(&["fmt"]).is_err());
    }
}
