//! The demo's faulty member: a trainer that keeps the contract and gives back poisoned weights.

use crate::files;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::Path;
use tapestry_train::{METRICS_FILE, TrainJob};
use tapestry_weights::{SafetensorsFile, SafetensorsWriter, WeightSource as _};

/// Weights that look plausible at a glance and ruin a merge: in the first round every value is shuffled in sign and scaled,
/// in later rounds a few are NaN.
pub(crate) fn run(job: &Path) -> Result<()> {
    let job: TrainJob = serde_json::from_str(&files::read_text(job)?).context("the job")?;
    fs::create_dir_all(&job.out_dir)?;
    for entry in fs::read_dir(&job.base_dir)? {
        let entry = entry?;
        if entry.file_name() != "model.safetensors" {
            fs::copy(entry.path(), job.out_dir.join(entry.file_name()))?;
        }
    }
    let is_first_round = job.seed.is_multiple_of(2);
    let base = SafetensorsFile::open(&job.base_dir.join("model.safetensors"))?;
    let tensors = base.tensors().to_vec();
    let mut writer = SafetensorsWriter::create(&job.out_dir.join("model.safetensors"), tensors.clone())?;
    let mut state = job.seed | 1;
    for (index, tensor) in tensors.iter().enumerate() {
        let count = tensor.num_elements().context("a tensor's size overflows")?;
        let mut values = base.read_f32(index, 0, count)?;
        for (position, value) in values.iter_mut().enumerate() {
            // Xorshift: poison needs no good randomness.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            if is_first_round {
                *value *= if state & 1 == 0 { 1.5 } else { -1.5 };
            } else if index == 0 && position % 1000 == 7 {
                *value = f32::NAN;
            }
        }
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.write(&bytes)?;
    }
    writer.finish()?;
    let tokens = job.num_steps * (job.batch_windows * job.window) as u64;
    let step = serde_json::json!({ "step": 1, "loss": 3.0, "tokens": tokens, "seconds": 1.0, "cpu_seconds": 1.0 });
    files::write_atomic(&job.out_dir.join(METRICS_FILE), format!("{step}\n").as_bytes())
}
