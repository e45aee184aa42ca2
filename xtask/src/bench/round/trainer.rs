//! The trivial trainer: by the contract of `docs/trainer-contract.md`, it adds a constant to every weight. The peers' clients do the
//! same, so that a round's time is everything but training.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::bench::models::WEIGHTS;

/// What member 1 adds to each weight; member 2 adds twice as much, and so on.
const STEP: f32 = 1e-4;
/// Bytes in memory at a time: they stay in the processor's own cache.
const BLOCK: usize = 256 << 10;

/// Does a job for the member of this number. The base is in 32-bit floats.
///
/// # Errors
/// When the job cannot be read, or a file cannot be read or written.
pub(in crate::bench) fn train(member: u8, job: &Path) -> Result<()> {
    let job: Value = serde_json::from_slice(&fs::read(job)?).context("the job is no JSON")?;
    let folder = |name: &str| job[name].as_str().map(Path::new).with_context(|| format!("the job has no `{name}`"));
    let (base, out) = (folder("base_dir")?.join(WEIGHTS), folder("out_dir")?);
    fs::create_dir_all(out)?;
    let weights = out.join(WEIGHTS);
    if weights.exists() {
        return Ok(());
    }
    let start = std::time::Instant::now();
    let temporary = out.join("model.safetensors.part");
    let (mut from, mut to) = (File::open(&base)?, File::create(&temporary)?);
    let mut length = [0; 8];
    from.read_exact(&mut length)?;
    let mut header = vec![0; usize::try_from(u64::from_le_bytes(length))?];
    from.read_exact(&mut header)?;
    to.write_all(&length)?;
    to.write_all(&header)?;
    let change = STEP * f32::from(member);
    let mut block = vec![0; BLOCK];
    let is_written = AtomicBool::new(false);
    // The disk begins before everything is written.
    std::thread::scope(|scope| -> Result<()> {
        let syncing = scope.spawn(|| -> Result<()> {
            let file = File::open(&temporary)?;
            while !is_written.load(Ordering::Acquire) {
                file.sync_data()?;
                std::thread::sleep(Duration::from_millis(10));
            }
            Ok(())
        });
        let written = (|| -> Result<()> {
            loop {
                let len = fill(&mut from, &mut block)?;
                if len == 0 {
                    return Ok(());
                }
                ensure!(len % 4 == 0, "{} is not in 32-bit floats", base.display());
                for bytes in block[..len].as_chunks_mut().0 {
                    *bytes = (f32::from_le_bytes(*bytes) + change).to_le_bytes();
                }
                to.write_all(&block[..len])?;
            }
        })();
        is_written.store(true, Ordering::Release);
        written.and(syncing.join().expect("the syncing thread does not panic"))
    })?;
    to.sync_all()?;
    let tokens = job["batch_windows"].as_u64().unwrap_or(1) * job["window"].as_u64().unwrap_or(1);
    let line = json!({ "step": 1, "loss": 1.0, "tokens": tokens, "seconds": start.elapsed().as_secs_f64() });
    fs::write(out.join("metrics.jsonl"), format!("{line}\n"))?;
    Ok(fs::rename(temporary, weights)?)
}

/// As much of `block` as there is.
fn fill(from: &mut File, block: &mut [u8]) -> Result<usize> {
    let mut len = 0;
    while len < block.len() {
        match from.read(&mut block[len..])? {
            0 => break,
            read => len += read,
        }
    }
    Ok(len)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::models::{TINY, make};

    #[test]
    fn every_weight_changes_by_the_same_and_the_header_stays() {
        let folder = std::env::temp_dir().join(format!("tapestry-bench-trainer-{}", std::process::id()));
        let base = make(&folder, &TINY, 1).expect("made").remove(0);
        let (job, out) = (folder.join("job.json"), folder.join("out"));
        let content = json!({ "base_dir": base, "out_dir": out, "batch_windows": 2, "window": 8 });
        fs::write(&job, content.to_string()).expect("writable");
        train(3, &job).expect("trains");
        let read = |folder: &Path| fs::read(folder.join(WEIGHTS)).expect("there");
        let (before, after) = (read(&base), read(&out));
        let data = before.len() - usize::try_from(TINY.size_bytes()).expect("tiny");
        assert_eq!(before[..data], after[..data]);
        let value = |bytes: &[u8], at: usize| f32::from_le_bytes(bytes[at..at + 4].try_into().expect("four"));
        for at in (data..before.len()).step_by(4) {
            assert_eq!((value(&before, at) + STEP * 3.0).to_bits(), value(&after, at).to_bits());
        }
        let metrics = fs::read_to_string(out.join("metrics.jsonl")).expect("there");
        assert!(metrics.starts_with("{\"loss\":1.0,\"seconds\":") && metrics.contains("\"tokens\":16"), "{metrics}");
        fs::remove_dir_all(folder).expect("removable");
    }
}
