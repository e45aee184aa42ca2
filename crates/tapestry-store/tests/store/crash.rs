//! A process that is killed while it writes, by the operating system, again and again.

use crate::blobs::{content, files_in};
use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};
use tapestry_core::{Digest, SecretKey, Timestamp};
use tapestry_store::{BlobStore, RoleLog};
use zeroize::Zeroizing;

/// Names the folder to the process that will be killed.
const FOLDER: &str = "TAPESTRY_STORE_CRASH_TEST";

fn key() -> SecretKey {
    SecretKey::from_seed(&Zeroizing::new([1; 32]))
}

/// Not a test of its own: what the other one starts and kills.
#[tokio::test]
async fn writes_until_killed() {
    let Some(folder) = env::var_os(FOLDER) else { return };
    let folder = Path::new(&folder);
    let blobs = BlobStore::open_folder(&folder.join("blobs")).await.unwrap();
    let (mut log, entries) = RoleLog::<Digest>::open(&folder.join("log"), key()).await.unwrap();
    for seed in entries.len() as u64.. {
        // The blob first: an entry never names what is not there.
        let digest = blobs.put(content(300_000, seed).into()).await.unwrap();
        log.append(Timestamp::from_ms(seed), digest).await.unwrap();
    }
}

#[tokio::test]
async fn whatever_is_killed_the_log_verifies_and_names_only_whole_blobs() {
    let dir = tempfile::tempdir().unwrap();
    let mut num_entries = 0;
    for kill in 0..5 {
        let mut writer = Command::new(env::current_exe().unwrap())
            .args(["--exact", "crash::writes_until_killed"])
            .env(FOLDER, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let enough = dir.path().join("log").join(format!("{:020}.commit", num_entries + 3));
        let start = Instant::now();
        while !enough.exists() {
            assert!(start.elapsed() < Duration::from_secs(60), "the writer does not get on");
            thread::sleep(Duration::from_millis(1));
        }
        // Another moment of the writer's work each time.
        thread::sleep(Duration::from_micros(700 * kill));
        writer.kill().unwrap();
        writer.wait().unwrap();

        let (_, entries) = RoleLog::<Digest>::open(&dir.path().join("log"), key()).await.unwrap();
        let blobs = BlobStore::open_folder(&dir.path().join("blobs")).await.unwrap();
        assert!(entries.len() as u64 >= num_entries + 3, "confirmed entries are kept");
        for (seed, entry) in entries.iter().enumerate() {
            assert!(blobs.get(entry.event).await.unwrap() == content(300_000, seed as u64));
        }
        let is_partial = |path: &std::path::PathBuf| path.to_string_lossy().contains('#');
        assert!(!files_in(dir.path()).iter().any(is_partial));
        num_entries = entries.len() as u64;
    }
}
