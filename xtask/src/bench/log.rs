//! `cargo xtask bench log`: the verifiable log beside SQLite, which keeps rows and proves nothing, and beside pymerkle's trees.
//!
//! Both sides print one JSON object a figure (`metric`, `value`, `unit`), ours from the example `log` of `tapestry-store`.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Options, machine};
use crate::run::{cargo, output, root, step};

/// What a figure should reach: at least it where more is better, at most it where less is.
const TARGETS: [(&str, f64); 4] = [
    ("durable appends, group commit", 20_000.0),
    ("whole log verified offline", 1.0),
    ("inclusion proof checked", 100.0),
    ("restart, every entry read and checked", 1.0),
];

/// Measures ours, then the peers where there is a Python.
///
/// # Errors
/// When ours cannot be measured.
pub(super) fn run(options: &Options) -> Result<()> {
    let folder = match &options.dir {
        Some(folder) => folder.clone(),
        None => super::target_folder()?.join("bench-log"),
    };
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    for fact in machine::facts(&folder) {
        eprintln!("{fact}");
    }
    let num_entries = if options.quick { "20000" } else { "1000000" };
    step(cargo().args(["build", "--release", "--quiet", "-p", "tapestry-store", "--example", "log"]))?;
    let ours = super::target_folder()?.join("release/examples/log");
    let ours = figures(Command::new(ours).arg(&folder).arg(num_entries))?;
    let peers =
        figures(Command::new(python(options)).arg(root().join("bench/peers/log.py")).arg(&folder).arg(num_entries));
    let peers = peers.unwrap_or_else(|error| {
        eprintln!("peers: absent, so nothing is compared: {error:#}");
        vec![]
    });
    for row in rows(&ours, &peers) {
        println!("{}", if options.json { row.to_string() } else { line(&row) });
    }
    Ok(())
}

/// The Python of the peers' environment, or else the system's, which has SQLite but not pymerkle.
fn python(options: &Options) -> PathBuf {
    let named = options.peers.clone().or_else(|| std::env::var_os("PEERS_HOME").map(PathBuf::from));
    let python = named.map(|peers| peers.join("a/bin/python")).filter(|python| python.is_file());
    python.unwrap_or_else(|| Path::new("python3").to_owned())
}

fn figures(command: &mut Command) -> Result<Vec<Value>> {
    output(command)?.lines().map(|line| serde_json::from_str(line).context("a figure is no JSON")).collect()
}

/// One row for each of our figures: beside the peer that does the same, where there is one. A ratio above 1 is better for us.
fn rows(ours: &[Value], peers: &[Value]) -> Vec<Value> {
    let row = |figure: &Value| {
        let peer = peers.iter().find(|peer| peer["metric"] == figure["metric"]);
        let is_rate = figure["unit"].as_str().is_some_and(|unit| unit.ends_with("/s"));
        let ratio = figure["value"].as_f64().zip(peer.and_then(|peer| peer["value"].as_f64()));
        let ratio = ratio.map(|(ours, peer)| if is_rate { ours / peer } else { peer / ours });
        let target = TARGETS.iter().find(|(metric, _)| figure["metric"] == *metric).map(|(_, target)| *target);
        json!({
            "work": figure["metric"], "metric": figure["unit"], "ours": figure["value"], "target": target,
            "peer": peer.map(|peer| &peer["value"]), "peer_name": peer.map(|peer| &peer["peer"]), "ratio": ratio,
        })
    };
    ours.iter().map(row).collect()
}

/// A row for people.
fn line(row: &Value) -> String {
    let number = |name: &str| row[name].as_f64().map_or_else(String::new, |value| format!("{value:.2}"));
    let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let (work, metric, peer) = (text("work"), text("metric"), text("peer_name"));
    let (ours, target, theirs, ratio) = (number("ours"), number("target"), number("peer"), number("ratio"));
    format!("{work:<38} {metric:<10} ours {ours:>12}  target {target:>9}  {peer:<14} {theirs:>12}  ratio {ratio}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_1_is_better_for_us_whatever_the_unit() {
        let ours = [
            json!({ "metric": "durable appends, group commit", "value": 400.0, "unit": "entries/s" }),
            json!({ "metric": "inclusion proof checked", "value": 2.0, "unit": "us" }),
            json!({ "metric": "export, entries", "value": 226.0, "unit": "B/entry" }),
        ];
        let peers = [
            json!({ "peer": "a", "metric": "durable appends, group commit", "value": 100.0, "unit": "entries/s" }),
            json!({ "peer": "b", "metric": "inclusion proof checked", "value": 20.0, "unit": "us" }),
        ];
        let rows = rows(&ours, &peers);
        assert_eq!(rows.iter().map(|row| row["ratio"].as_f64()).collect::<Vec<_>>(), [Some(4.0), Some(10.0), None]);
        assert_eq!(rows[0]["target"], 20_000.0);
        assert!(line(&rows[1]).contains("ratio 10.00"));
    }
}
