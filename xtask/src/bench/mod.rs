//! `cargo xtask bench NAME`: what we take for a piece of work, what the peers take for the same on the same machine in the
//! same run, and what the machine allows at most.
//!
//! Every measured thing runs in a process of its own, ours and the peers' in turn, several times; the median counts.

mod limits;
mod log;
mod machine;
mod measure;
mod merge;
mod models;
mod report;
mod round;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::run::{cargo, output, step};

/// What was typed after the name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Options {
    /// Print one JSON object a row instead of tables.
    json: bool,
    /// Tiny models, seconds instead of minutes: shows that the bench works, not what is fast.
    quick: bool,
    /// Also the rows that take long or much disk.
    full: bool,
    /// Only works whose name contains one of these.
    rows: Vec<String>,
    /// Where models and outputs lie.
    dir: Option<PathBuf>,
    /// Where the peers were set up.
    peers: Option<PathBuf>,
    /// Runs of each program.
    repeat: Option<usize>,
    /// Our program, where it is not to be built.
    binary: Option<PathBuf>,
    /// Leave homes and logs of consortia behind.
    keep: bool,
}

impl Options {
    fn parse(words: &[&str]) -> Result<Self> {
        let mut options = Self::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().with_context(|| format!("`{word}` needs a value")).copied();
            match *word {
                "--json" => options.json = true,
                "--quick" => options.quick = true,
                "--full" => options.full = true,
                "--keep" => options.keep = true,
                "--rows" => options.rows.extend(value()?.split(',').map(str::to_string)),
                "--dir" => options.dir = Some(value()?.into()),
                "--peers" => options.peers = Some(value()?.into()),
                "--binary" => options.binary = Some(value()?.into()),
                "--repeat" => {
                    let num = value()?;
                    let num = num.parse().ok().filter(|num| (1..=100).contains(num));
                    options.repeat = Some(num.context("`--repeat` is a number from 1 to 100")?);
                }
                other => bail!("there is no option `{other}` of `cargo xtask bench`"),
            }
        }
        Ok(options)
    }

    /// Whether a work is asked for. `on_demand` is one that runs only when it is named, or with `--full`.
    fn wants(&self, work: &str, on_demand: bool) -> bool {
        let named = self.rows.iter().any(|filter| work.contains(filter.as_str()));
        named || (self.rows.is_empty() && (!on_demand || self.full))
    }
}

/// Runs the bench that is named.
///
/// # Errors
/// When there is no such bench, or ours could not do all of the work.
pub(crate) fn bench(words: &[&str]) -> Result<()> {
    let Some((name, options)) = words.split_first() else {
        bail!("name a bench: `cargo xtask bench log`, `cargo xtask bench merge`, `cargo xtask bench round`")
    };
    match *name {
        "log" => log::run(&Options::parse(options)?),
        "merge" => merge::run(&Options::parse(options)?),
        "round" => round::run(&Options::parse(options)?),
        other => bail!("there is no bench `{other}`; there are `log`, `merge` and `round`"),
    }
}

/// What this program does when a bench starts it again, in a process of its own.
///
/// # Errors
/// When the words are not those of a bench, or what it does fails.
pub(crate) fn child(words: &[&str]) -> Result<()> {
    match words {
        ["measure", log, program @ ..] => measure::child(Path::new(log), program),
        ["limit", name, folder, size] => limits::child(name, Path::new(folder), size.parse()?),
        ["train", member, job] => round::train(member.parse()?, Path::new(job)),
        ["touch", bytes] => {
            machine::child(bytes.parse()?);
            Ok(())
        }
        _ => bail!("`bench-child` is for `cargo xtask bench` alone"),
    }
}

/// Our program: the one that was named, or built now.
fn our_binary(options: &Options) -> Result<PathBuf> {
    if let Some(binary) = &options.binary {
        return binary.canonicalize().with_context(|| format!("there is no {}", binary.display()));
    }
    step(cargo().args(["build", "--release", "--quiet", "-p", "tapestry"]))?;
    Ok(target_folder()?.join("release").join(format!("tapestry{}", std::env::consts::EXE_SUFFIX)))
}

/// Where cargo builds.
fn target_folder() -> Result<PathBuf> {
    let text = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata is no JSON")?;
    let folder = metadata["target_directory"].as_str().context("cargo metadata names no target_directory")?;
    Ok(PathBuf::from(folder))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_what_is_none_is_refused() {
        let options =
            Options::parse(&["--json", "--rows", "ties,median", "--rows", "7b", "--repeat", "5", "--dir", "x"]);
        let expected = Options {
            json: true,
            rows: ["ties", "median", "7b"].map(String::from).to_vec(),
            repeat: Some(5),
            dir: Some("x".into()),
            ..Options::default()
        };
        assert_eq!(options.expect("good"), expected);
        let refused = |words: &[&str], expected: &str| {
            let message = Options::parse(words).expect_err(expected).to_string();
            assert!(message.contains(expected), "{message}");
        };
        refused(&["--repeat", "0"], "from 1 to 100");
        refused(&["--repeat"], "needs a value");
        refused(&["--rwos"], "no option `--rwos`");
    }

    #[test]
    fn a_filter_names_works_and_what_takes_long_waits_to_be_named() {
        let wants = |rows: &[&str], full, work, on_demand| {
            let rows = rows.iter().map(ToString::to_string).collect();
            Options { rows, full, ..Options::default() }.wants(work, on_demand)
        };
        assert!(wants(&[], false, "ties-3", false));
        assert!(!wants(&[], false, "7b", true));
        assert!(wants(&[], true, "7b", true));
        assert!(wants(&["7b"], false, "flat-7b-2", true));
        assert!(!wants(&["7b"], true, "ties-3", false));
        assert!(wants(&["x", "ties"], false, "dare-ties-3", false));
    }
}
