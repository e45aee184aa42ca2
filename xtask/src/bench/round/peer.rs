//! The peer: Flower's deployment, a SuperLink and two SuperNodes on loopback without TLS, with the same model and trivial
//! training. `bench/peers/flower_round` is its side.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::run::{output, root};

/// What the peer took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Flower {
    /// Median over its rounds but the first: from a round's start to the end of its aggregation.
    pub(super) wall_s: f64,
    /// Peak memory of the process that aggregates, 10^6 bytes.
    pub(super) rss_mb: f64,
}

/// Where the peers' environment is, if anywhere.
pub(super) fn find(folder: Option<&Path>) -> Option<PathBuf> {
    let named = std::env::var_os("PEERS_HOME").map(PathBuf::from);
    let folder = std::path::absolute(folder.map(Path::to_path_buf).or(named)?).ok()?;
    folder.join("a/bin/flower-superlink").is_file().then_some(folder)
}

/// Runs `num_rounds` rounds; the events of the peer's server go to a file in `work`.
///
/// # Errors
/// When it does not run to its end.
pub(super) fn run(peers: &Path, work: &Path, num_rounds: usize) -> Result<Flower> {
    let script = root().join("bench/peers/flower_round/run.sh");
    let mut command = Command::new("bash");
    command.arg(script).arg(peers.join("a")).arg(work).arg(num_rounds.to_string());
    parse(&output(&mut command)?)
}

fn parse(events: &str) -> Result<Flower> {
    let events: Vec<Value> =
        events.lines().map(serde_json::from_str).collect::<Result<_, _>>().context("its events")?;
    let times = |kind: &str| -> Vec<f64> {
        events.iter().filter(|event| event["ev"] == kind).filter_map(|event| event["t"].as_f64()).collect()
    };
    let (starts, ends) = (times("round_start"), times("agg_end"));
    ensure!(starts.len() == ends.len() && starts.len() > 1, "Flower did not finish its rounds: {events:?}");
    let mut walls: Vec<f64> = starts.iter().zip(&ends).skip(1).map(|(start, end)| end - start).collect();
    walls.sort_by(f64::total_cmp);
    let rss = events.iter().find_map(|event| event["peak_rss_mb"].as_f64()).context("no peak memory")?;
    Ok(Flower { wall_s: walls[walls.len() / 2], rss_mb: rss })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_round_does_not_count_and_memory_is_the_servers() {
        let events = "{\"t\": 10.0, \"ev\": \"round_start\"}\n{\"t\": 60.0, \"ev\": \"agg_end\"}\n\
                      {\"t\": 61.0, \"ev\": \"round_start\"}\n{\"t\": 100.0, \"ev\": \"agg_end\"}\n";
        let end = "{\"t\": 101.0, \"ev\": \"main_end\", \"peak_rss_mb\": 4294.5}\n";
        let found = parse(&format!("{events}{end}")).expect("whole");
        assert_eq!(found, Flower { wall_s: 39.0, rss_mb: 4294.5 });
        assert!(parse(events).is_err() && parse(end).is_err());
    }
}
