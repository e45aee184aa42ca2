//! Running a program in a process of its own and learning what it took: wall time, CPU seconds, peak memory.
//!
//! Between the bench and the program stands a second, tiny process of ours (`bench-child measure`) that starts the program
//! and nothing else. The kernel keeps the peak memory of all waited-for children as one maximum, and lets a new program
//! start with the peak of the process it came from; the one in between makes both those of this program alone (its own
//! few megabytes are the least that can be seen).

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use serde_json::{Value, json};

/// What a program took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Usage {
    /// From start to end.
    pub(super) wall_s: f64,
    /// User and system time of all its threads and waited-for children.
    pub(super) cpu_s: f64,
    /// Peak resident memory, 10^6 bytes. Mapped files count while they are resident.
    pub(super) rss_mb: f64,
    /// Of a peer's script: how long interpreter and imports took, which is not in `wall_s`.
    pub(super) start_s: f64,
}

/// A program that is measured.
#[derive(Debug, Clone)]
pub(super) struct Program {
    /// What to run.
    pub(super) words: Vec<PathBuf>,
    /// Where what it prints goes.
    pub(super) log: PathBuf,
    /// Environment variables on top of ours.
    pub(super) env: Vec<(&'static str, String)>,
}

/// The variable that tells a peer's script when its process was asked for, in seconds since 1970.
const STARTED: &str = "BENCH_STARTED";
/// How a peer's script begins the line that says what starting up (interpreter and imports) took.
const READY: &str = "bench-ready ";

/// Runs a program once. What a peer's script says it took to start up is taken off its wall time and CPU seconds.
///
/// # Errors
/// When it cannot be started or fails: with the end of what it printed.
pub(super) fn measure(program: &Program) -> Result<Usage> {
    let exe = std::env::current_exe().context("cannot find this program")?;
    let mut command = Command::new(exe);
    command.args(["bench-child", "measure"]).arg(&program.log).args(&program.words);
    command.envs(program.env.iter().map(|(name, value)| (*name, value)));
    let output = command.output().context("cannot start this program again")?;
    let log = std::fs::read(&program.log).unwrap_or_default();
    let log = String::from_utf8_lossy(&log);
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        bail!("{} {}", message.trim(), last_lines(&log, 8));
    }
    let usage: Value = serde_json::from_slice(&output.stdout).context("the measuring process printed no figures")?;
    without_start(parse(&usage)?, &log)
}

fn last_lines(text: &str, num: usize) -> String {
    let lines: Vec<&str> = text.trim_end().lines().collect();
    lines[lines.len().saturating_sub(num)..].join("\n")
}

fn parse(value: &Value) -> Result<Usage> {
    let number = |name: &str| value[name].as_f64().with_context(|| format!("`{name}` is missing in {value}"));
    Ok(Usage { wall_s: number("wall_s")?, cpu_s: number("cpu_s")?, rss_mb: number("rss_mb")?, start_s: 0.0 })
}

/// The usage less what the log says about starting up.
fn without_start(usage: Usage, log: &str) -> Result<Usage> {
    let Some(ready) = log.lines().find_map(|line| line.strip_prefix(READY)) else { return Ok(usage) };
    let ready: Value = serde_json::from_str(ready).with_context(|| format!("`{READY}` without JSON"))?;
    let number = |name: &str| ready[name].as_f64().with_context(|| format!("`{READY}` without `{name}`"));
    let start_s = number("wall_s")?;
    let (wall_s, cpu_s) = (usage.wall_s - start_s, usage.cpu_s - number("cpu_s")?);
    ensure!(wall_s > 0.0 && cpu_s >= 0.0, "starting up took longer than the whole: {ready} of {usage:?}");
    Ok(Usage { wall_s, cpu_s, start_s, ..usage })
}

/// The process in between: runs the program, prints its usage as JSON.
///
/// # Errors
/// When the program cannot be started or fails.
pub(super) fn child(log: &Path, words: &[&str]) -> Result<()> {
    let (program, arguments) = words.split_first().context("no program to measure")?;
    let out = File::create(log).with_context(|| format!("cannot write {}", log.display()))?;
    let mut command = Command::new(program);
    command.args(arguments).stderr(out.try_clone()?).stdout(out);
    let since = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    command.env(STARTED, since.as_secs_f64().to_string());
    let start = Instant::now();
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    let wall_s = start.elapsed().as_secs_f64();
    ensure!(status.success(), "{program}: {status};");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).context("the system does not say what a child took")?;
    #[expect(clippy::cast_precision_loss, reason = "seconds and megabytes of one process are far below 2^53 units")]
    let (cpu_s, rss_mb) = {
        let unit = if cfg!(target_os = "macos") { 1.0 } else { 1024.0 };
        let cpu_us = (usage.user_time() + usage.system_time()).num_microseconds();
        (cpu_us as f64 / 1e6, usage.max_rss() as f64 * unit / 1e6)
    };
    println!("{}", json!({ "wall_s": wall_s, "cpu_s": cpu_s, "rss_mb": rss_mb }));
    Ok(())
}

/// What several runs of one program took.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Samples(Vec<Usage>);

impl Samples {
    pub(super) fn push(&mut self, usage: Usage) {
        self.0.push(usage);
    }

    /// The median of each figure by itself; nothing where there is no run.
    pub(super) fn median(&self) -> Option<Usage> {
        self.each(median)
    }

    /// The smallest of each figure by itself.
    pub(super) fn min(&self) -> Option<Usage> {
        self.each(|values| values.into_iter().min_by(f64::total_cmp))
    }

    fn each(&self, choose: fn(Vec<f64>) -> Option<f64>) -> Option<Usage> {
        let of = |figure: fn(&Usage) -> f64| choose(self.0.iter().map(figure).collect());
        Some(Usage {
            wall_s: of(|u| u.wall_s)?,
            cpu_s: of(|u| u.cpu_s)?,
            rss_mb: of(|u| u.rss_mb)?,
            start_s: of(|u| u.start_s)?,
        })
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        num if num % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USAGE: Usage = Usage { wall_s: 5.0, cpu_s: 4.0, rss_mb: 100.0, start_s: 0.0 };

    #[test]
    fn the_median_is_taken_of_each_figure_by_itself_and_one_slow_run_does_not_move_it() {
        let mut samples = Samples::default();
        assert_eq!(samples.median(), None);
        for (wall_s, cpu_s) in [(1.0, 9.0), (90.0, 2.0), (3.0, 8.0)] {
            samples.push(Usage { wall_s, cpu_s, ..USAGE });
        }
        assert_eq!(samples.median(), Some(Usage { wall_s: 3.0, cpu_s: 8.0, ..USAGE }));
        assert_eq!(samples.min(), Some(Usage { wall_s: 1.0, cpu_s: 2.0, ..USAGE }));
        samples.push(Usage { wall_s: 5.0, cpu_s: 8.0, ..USAGE });
        assert_eq!(samples.median().map(|u| u.wall_s), Some(4.0));
    }

    #[test]
    fn the_start_of_an_interpreter_is_taken_off_and_its_memory_stays() {
        let log = "warning\nbench-ready {\"wall_s\": 2, \"cpu_s\": 1.5}\ndone\n";
        let expected = Usage { wall_s: 3.0, cpu_s: 2.5, start_s: 2.0, ..USAGE };
        assert_eq!(without_start(USAGE, log).expect("a good log"), expected);
        assert_eq!(without_start(USAGE, "nothing").expect("no start"), USAGE);
        let error = without_start(USAGE, "bench-ready {\"wall_s\": 6, \"cpu_s\": 1}").expect_err("too long");
        assert!(error.to_string().contains("longer than the whole"), "{error}");
        without_start(USAGE, "bench-ready {}").expect_err("nothing in it");
    }
}
