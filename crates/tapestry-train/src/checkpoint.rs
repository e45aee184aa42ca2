//! The state of a job on disk: a folder that is there whole or not at all.
//!
//! A new checkpoint is written beside the old one, synced, and takes its place by renames; between the two renames the old
//! one is found under its other name.

use crate::metrics::{StepMetrics, ValidationMetrics};
use crate::optimizer::Moments;
use crate::{TrainError, TrainJob};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use tapestry_core::{Dtype, TensorSpec};
use tapestry_model::Decoder;
use tapestry_weights::{SafetensorsFile, WeightSource as _, save_safetensors};

/// Everything about a job besides weights and moments.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) job: TrainJob,
    /// Updates done, with their metrics.
    pub(crate) steps: Vec<StepMetrics>,
    /// Measurements done.
    #[serde(default)]
    pub(crate) validation: Vec<ValidationMetrics>,
    pub(crate) wall_seconds: f64,
    pub(crate) cpu_seconds: f64,
    pub(crate) peak_memory_bytes: u64,
}

impl State {
    /// Before the first update.
    pub(crate) fn new(job: &TrainJob) -> Self {
        let (steps, validation) = (vec![], vec![]);
        Self { job: job.clone(), steps, validation, wall_seconds: 0.0, cpu_seconds: 0.0, peak_memory_bytes: 0 }
    }
}

fn names(out_dir: &Path) -> [PathBuf; 3] {
    ["checkpoint", "checkpoint.old", "checkpoint.new"].map(|name| out_dir.join(name))
}

/// Where the newest checkpoint is, if there is one.
pub(crate) fn find(out_dir: &Path) -> Option<PathBuf> {
    let [current, old, _] = names(out_dir);
    [current, old].into_iter().find(|path| path.join("state.json").exists())
}

/// Where checkpoints go.
pub(crate) fn place(out_dir: &Path) -> PathBuf {
    let [current, ..] = names(out_dir);
    current
}

/// Removes all checkpoints of a job that is done.
pub(crate) fn remove(out_dir: &Path) {
    for path in names(out_dir) {
        // Only space is lost when this fails.
        let _ = fs::remove_dir_all(path);
    }
}

pub(crate) fn save(
    out_dir: &Path,
    base_dir: &Path,
    model: &Decoder,
    moments: &Moments,
    state: &State,
) -> Result<(), TrainError> {
    let [current, old, new] = names(out_dir);
    let _ = fs::remove_dir_all(&new);
    fs::create_dir_all(&new).map_err(TrainError::io("make", &new))?;
    model.save(base_dir, &new)?;
    save_moments(&new.join("moments.safetensors"), moments)?;
    let path = new.join("state.json");
    let text = serde_json::to_vec(state).map_err(|e| TrainError::io("write", &path)(e.into()))?;
    let write = || {
        fs::write(&path, text).and_then(|()| File::open(&path)?.sync_all()).and_then(|()| File::open(&new)?.sync_all())
    };
    write().map_err(TrainError::io("write", &path))?;
    let _ = fs::remove_dir_all(&old);
    if current.exists() {
        fs::rename(&current, &old).map_err(TrainError::io("rename to", &old))?;
    }
    fs::rename(&new, &current).map_err(TrainError::io("rename to", &current))?;
    File::open(out_dir).and_then(|dir| dir.sync_all()).map_err(TrainError::io("sync", out_dir))?;
    let _ = fs::remove_dir_all(&old);
    Ok(())
}

pub(crate) fn read_state(path: &Path) -> Result<State, TrainError> {
    let file = path.join("state.json");
    let text = fs::read(&file).map_err(TrainError::io("read", &file))?;
    serde_json::from_slice(&text)
        .map_err(|e| TrainError::Checkpoint { path: path.to_path_buf(), reason: format!("state.json: {e}") })
}

fn save_moments(path: &Path, Moments(moments): &Moments) -> Result<(), TrainError> {
    let spec = |kind: char, index: usize, size: usize| TensorSpec {
        name: format!("{kind}.{index:06}"),
        dtype: Dtype::F32,
        shape: vec![size as u64],
    };
    let all = |kind| moments.iter().enumerate().map(move |(index, (m, _))| spec(kind, index, m.len()));
    let mut values = moments.iter().map(|(m, _)| m).chain(moments.iter().map(|(_, v)| v));
    save_safetensors(path, all('m').chain(all('v')).collect(), |_| -> Result<Vec<f32>, TrainError> {
        Ok(values.next().cloned().unwrap_or_default())
    })
}

pub(crate) fn read_moments(path: &Path) -> Result<Moments, TrainError> {
    let file = SafetensorsFile::open(&path.join("moments.safetensors"))?;
    let num_tensors = file.tensors().len();
    let read = |index: usize| file.read_f32(index, 0, file.tensors()[index].num_elements().unwrap_or(0));
    let half = num_tensors / 2;
    let pairs = (0..half).map(|index| Ok((read(index)?, read(half + index)?)));
    pairs.collect::<Result<_, TrainError>>().map(Moments)
}
