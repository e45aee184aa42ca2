//! What roles logged, and where the time of a round went.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// An entry of a role's log, unchecked: the bench trusts the processes that it started.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    pub(super) at_ms: u64,
    pub(super) event: Value,
}

impl Entry {
    /// All entries in a folder, in order.
    ///
    /// # Errors
    /// When one is no entry.
    pub(super) fn read_all(folder: &Path) -> Result<Vec<Self>> {
        let Ok(files) = fs::read_dir(folder) else { return Ok(vec![]) };
        let mut paths: Vec<_> = files.flatten().map(|file| file.path()).collect();
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "commit"));
        paths.sort();
        let mut entries = vec![];
        for path in &paths {
            let commit = fs::read_to_string(path)?;
            let lines = commit.lines().take_while(|line| !line.is_empty());
            for line in lines {
                entries.push(Self::parse(line.as_bytes()).with_context(|| path.display().to_string())?);
            }
        }
        Ok(entries)
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        let entry: Value = serde_json::from_slice(bytes)?;
        let at_ms = entry["at"].as_u64().context("an entry without a time")?;
        Ok(Self { at_ms, event: entry["event"].clone() })
    }

    pub(super) fn is(&self, kind: &str) -> bool {
        self.event["type"] == kind
    }

    /// The round that it is about; some documents lie deeper in their events.
    pub(super) fn round(&self) -> Option<u64> {
        [
            "/round",
            "/announcement/round",
            "/announcement/document/round",
            "/contribution/document/round",
            "/outcome/round",
            "/outcome/document/round",
        ]
        .into_iter()
        .find_map(|path| self.event.pointer(path)?.as_u64())
    }
}

/// A round as the logs of the coordinator and of the nodes tell it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct RoundTimes {
    /// Seconds from the announcement to the outcome being durable.
    pub(super) wall_s: f64,
    /// Name and seconds of each stretch: until the last member is through with it.
    pub(super) stretches: Vec<(&'static str, f64)>,
    /// Seconds from the announcement until all nodes hold the new base.
    pub(super) held_s: Option<f64>,
}

impl RoundTimes {
    /// Reads one round out of the logs.
    ///
    /// # Errors
    /// When the round has not ended.
    pub(super) fn of(round: u64, coordinator: &[Entry], nodes: &[Vec<Entry>]) -> Result<Self> {
        let of_round = |entry: &&Entry| entry.round() == Some(round);
        let at = |kind: &str| {
            let found =
                coordinator.iter().filter(of_round).filter(|entry| entry.is(kind)).map(|entry| entry.at_ms).max();
            found.with_context(|| format!("the coordinator has no `{kind}` of round {round}"))
        };
        let start = at("round_announced")?;
        // The first base that a node holds after it accepted the round, and its other events of the round.
        let last_of = |kind: &str| -> Option<u64> {
            let of_node = |log: &Vec<Entry>| {
                let mut after =
                    log.iter().skip_while(|entry| !(entry.is("round_accepted") && entry.round() == Some(round)));
                after.find(|entry| entry.is(kind)).map(|entry| entry.at_ms)
            };
            nodes.iter().map(of_node).collect::<Option<Vec<_>>>()?.into_iter().max()
        };
        let held_after = |log: &Vec<Entry>| {
            let mut after =
                log.iter().skip_while(|entry| !(entry.is("outcome_accepted") && entry.round() == Some(round)));
            after.find(|entry| entry.is("base_held")).map(|entry| entry.at_ms)
        };
        let ended = at("ended")?;
        let marks = [
            ("news, pull", last_of("base_held")),
            ("export, train, import", last_of("trained")),
            ("push", at("contribution_received").ok()),
            ("screen", at("contribution_screened").ok()),
            ("merge", at("merged").ok()),
            ("gate, publish", Some(ended)),
        ];
        let mut before = start;
        let mut stretches = vec![];
        for (name, mark) in marks {
            let Some(mark) = mark else { continue };
            let mark = mark.max(before);
            stretches.push((name, seconds(mark - before)));
            before = mark;
        }
        let held = nodes.iter().map(held_after).collect::<Option<Vec<_>>>().and_then(|held| held.into_iter().max());
        Ok(Self {
            wall_s: seconds(ended - start),
            stretches,
            held_s: held.map(|held| seconds(held.saturating_sub(start))),
        })
    }
}

/// A model that a node pulled or sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Transfer {
    /// `base_held` or `contribution_sent`.
    pub(super) kind: &'static str,
    pub(super) size_bytes: u64,
    pub(super) wall_s: f64,
}

impl Transfer {
    /// What a node's log says about one, where an entry is about one.
    pub(super) fn of(entry: &Entry) -> Option<Self> {
        let kind = ["base_held", "contribution_sent"].into_iter().find(|kind| entry.is(kind))?;
        let transfer = &entry.event["transfer"];
        Some(Self { kind, size_bytes: transfer["size_bytes"].as_u64()?, wall_s: transfer["wall_seconds"].as_f64()? })
    }

    /// In 10^6 bytes a second.
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    pub(super) fn mb_per_second(&self) -> f64 {
        self.size_bytes as f64 / 1e6 / self.wall_s
    }
}

/// From milliseconds.
#[expect(clippy::cast_precision_loss, reason = "a bench lasts minutes")]
pub(super) fn seconds(ms: u64) -> f64 {
    ms as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(at_ms: u64, event: Value) -> Entry {
        Entry { at_ms, event }
    }

    #[test]
    fn stretches_end_with_the_last_member_and_add_up_to_the_round() {
        let coordinator = [
            entry(900, json!({ "type": "round_announced", "announcement": { "round": 1 } })),
            entry(1000, json!({ "type": "round_announced", "announcement": { "round": 2 } })),
            entry(4000, json!({ "type": "contribution_received", "contribution": { "document": { "round": 2 } } })),
            entry(4500, json!({ "type": "contribution_received", "contribution": { "document": { "round": 2 } } })),
            entry(4800, json!({ "type": "contribution_screened", "round": 2 })),
            entry(5000, json!({ "type": "merged", "round": 2 })),
            entry(5250, json!({ "type": "ended", "outcome": { "round": 2 } })),
        ];
        let node = |late: u64| {
            vec![
                entry(500, json!({ "type": "base_held" })),
                entry(1010, json!({ "type": "round_accepted", "announcement": { "document": { "round": 2 } } })),
                entry(2000 + late, json!({ "type": "base_held" })),
                entry(3000 + late, json!({ "type": "trained", "round": 2 })),
                entry(5300, json!({ "type": "outcome_accepted", "outcome": { "document": { "round": 2 } } })),
                entry(6000 + late, json!({ "type": "base_held" })),
            ]
        };
        let times = RoundTimes::of(2, &coordinator, &[node(0), node(100)]).expect("whole");
        let expected = [
            ("news, pull", 1.1),
            ("export, train, import", 1.0),
            ("push", 1.4),
            ("screen", 0.3),
            ("merge", 0.2),
            ("gate, publish", 0.25),
        ];
        assert_eq!(times, RoundTimes { wall_s: 4.25, stretches: expected.to_vec(), held_s: Some(5.1) });
        assert!(RoundTimes::of(1, &coordinator, &[]).is_err(), "round 1 has not ended");
    }
}
