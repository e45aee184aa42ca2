//! How fast the verifiable log is: durable appends with group commit, checking a whole export, one proof, and a restart.
//!
//!     cargo run --release -p tapestry-store --example log -- FOLDER [ENTRIES]
//!
//! Makes a log in FOLDER (a real disk, not memory), with events like those of a coordinator, and prints one JSON object a figure.
#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "an example that measures")]

use serde::{Deserialize, Serialize};
use std::path::Path;
use std::time::Instant;
use tapestry_core::{Digest, SecretKey, Timestamp};
use tapestry_ledger::{TreeHash, verify_inclusion};
use tapestry_store::{ExportedLog, LogStore, RoleLog, read_log, write_export};

/// As large as the events of a round are on average.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Event {
    ContributionScreened { round: u32, member: String, weights: Digest, bpb: f64, relative_change: f64 },
}

fn event(n: u64) -> Event {
    Event::ContributionScreened {
        round: u32::try_from(n / 50).unwrap(),
        member: format!("member-{}", n % 50),
        weights: Digest::of(&n.to_le_bytes()),
        bpb: 1.0625,
        relative_change: 0.03125,
    }
}

fn say(metric: &str, value: f64, unit: &str) {
    println!("{}", serde_json::json!({ "metric": metric, "value": value, "unit": unit }));
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
#[tokio::main]
async fn main() {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().expect("a folder");
    let num_entries: u64 = arguments.next().map_or(1_000_000, |text| text.parse().unwrap());
    let (folder, key) = (Path::new(&folder), SecretKey::from_seed(&[7; 32].into()));
    let (log, export) = (folder.join("log"), folder.join("export"));
    for old in [&log, &export] {
        let _ = std::fs::remove_dir_all(old);
    }
    let at = Timestamp::from_ms(1_795_500_000_000);

    // One at a time: what a lonely event costs.
    let (mut writer, _) = RoleLog::<Event>::open(&log, key.clone()).await.unwrap();
    let start = Instant::now();
    for n in 0..200 {
        writer.append(at, event(n)).await.unwrap();
    }
    say("durable appends, one a commit", 200.0 / start.elapsed().as_secs_f64(), "entries/s");

    // As many as come while the last commit is made: batches of 4096.
    let start = Instant::now();
    let mut written = 200;
    while written < num_entries {
        let batch = 4096.min(num_entries - written);
        let events = (written..written + batch).map(|n| (event(n), None)).collect();
        writer.append_all(at, events).await.unwrap();
        written += batch;
    }
    say("durable appends, group commit", (num_entries - 200) as f64 / start.elapsed().as_secs_f64(), "entries/s");

    let start = Instant::now();
    let (again, entries) = RoleLog::<Event>::open(&log, key.clone()).await.unwrap();
    say("restart, every entry read and checked", start.elapsed().as_secs_f64(), "s");
    assert_eq!(entries.len() as u64, num_entries);
    drop((entries, again));

    let content =
        read_log::<serde::de::IgnoredAny>(&LogStore::open_to_read(&log).unwrap(), key.public()).await.unwrap();
    let checkpoint = content.chain.sealed().unwrap().clone();
    write_export(&content.index, &checkpoint, &export).await.unwrap();
    let start = Instant::now();
    let exported = ExportedLog::read(&export, Some(key.public())).unwrap();
    say("whole log verified offline", start.elapsed().as_secs_f64(), "s");
    assert_eq!(exported.chain.num_entries(), num_entries);
    say("export, entries", exported.num_bytes() as f64 / num_entries as f64, "B/entry");
    say("export, hashes", 32.0 * (1.0 + 1.0 / 256.0), "B/entry");

    let (index, root) = (num_entries / 3, checkpoint.checkpoint().root);
    let proof = content.index.inclusion(index, num_entries).unwrap();
    let leaf = content.index.entries(index..index + 1).await.unwrap().unwrap().remove(0);
    let start = Instant::now();
    for _ in 0..1000 {
        verify_inclusion(TreeHash::of_leaf(&leaf), index, num_entries, &proof, root).unwrap();
    }
    say("inclusion proof checked", start.elapsed().as_secs_f64() * 1000.0, "us");
    say("inclusion proof", proof.len() as f64, "hashes");
}
