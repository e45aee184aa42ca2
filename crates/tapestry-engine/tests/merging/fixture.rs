//! Small models on disk.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use tapestry_core::{Dtype, TensorSpec};
use tapestry_engine::{EngineError, FolderReport, Progress, Recipe, Running, Stage, merge_folders, on_threads};
use tapestry_weights::SafetensorsWriter;

/// A folder for one test, with a base and members beside it.
pub(crate) struct Fixture {
    pub(crate) dir: tempfile::TempDir,
}

/// Numbers that are the same on every machine.
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// In [-1, 1).
    pub(crate) fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        #[expect(clippy::cast_precision_loss, reason = "24 bits are exact")]
        let unit = (self.0 >> 40) as f32 / (1u32 << 23) as f32;
        unit - 1.0
    }
}

pub(crate) fn spec(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
}

/// The tensors of most tests: several sizes and types, more than one part of a file, an odd number of 2-byte elements before
/// 4-byte ones so that elements lie across borders, and one that is empty.
pub(crate) fn tensors() -> Vec<TensorSpec> {
    vec![
        spec("a.odd", Dtype::BF16, &[7, 11]),
        spec("b.empty", Dtype::F32, &[0, 4]),
        spec("c.large", Dtype::F32, &[300, 1201]),
        spec("d.half", Dtype::F16, &[513]),
        spec("e.scalar", Dtype::F32, &[]),
        spec("f.wide", Dtype::BF16, &[3, 70_001]),
    ]
}

fn encode(dtype: Dtype, values: &[f32]) -> Vec<u8> {
    let row: Vec<f64> = values.iter().map(|value| f64::from(*value)).collect();
    let mut bytes = vec![0; values.len() * usize::try_from(dtype.size_bytes()).unwrap()];
    let _ = tapestry_merge::encode_row(dtype, &row, &mut bytes);
    bytes
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A model whose values are `scale` times numbers from `seed`, plus the base's (seed 0, scale 1) where `is_change`.
    pub(crate) fn model(&self, name: &str, tensors: &[TensorSpec], seed: u64, scale: f32) {
        self.model_with(name, tensors, seed, scale, |_, _| None);
    }

    /// The same with some values replaced.
    pub(crate) fn model_with(
        &self,
        name: &str,
        tensors: &[TensorSpec],
        seed: u64,
        scale: f32,
        replace: impl Fn(&str, usize) -> Option<f32>,
    ) {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("config.json"), r#"{"model_type":"llama","hidden_size":8,"torch_dtype":"float32"}"#)
            .unwrap();
        std::fs::write(folder.join("tokenizer.json"), r#"{"model":{}}"#).unwrap();
        let mut writer = SafetensorsWriter::create(&folder.join("model.safetensors"), tensors.to_vec()).unwrap();
        let (mut base, mut change) = (Numbers::new(1), Numbers::new(seed + 2));
        for tensor in tensors {
            let count = usize::try_from(tensor.num_elements().unwrap()).unwrap();
            let value = |index| {
                let own = base.next() + if seed == 0 { 0.0 } else { scale * change.next() };
                replace(&tensor.name, index).unwrap_or(own)
            };
            let values: Vec<f32> = (0..count).map(value).collect();
            writer.write(&encode(tensor.dtype, &values)).unwrap();
        }
        writer.finish().unwrap();
    }

    /// A base and members `a`, `b`, ... that were trained from it.
    pub(crate) fn consortium(&self, num_members: u64) {
        self.model("base", &tensors(), 0, 0.0);
        for member in 0..num_members {
            self.model(&member_name(member), &tensors(), member + 1, 0.05);
        }
    }

    /// A recipe over all members with weights 1, 2, 3, ... where `weighted`, written in the order of `order`.
    pub(crate) fn recipe(&self, head: &str, order: &[u64], weighted: bool, output: &str) -> Recipe {
        let mut text = format!("{head}\ncontributions:\n");
        for member in order {
            text.push_str(&format!("  - path: {}\n", member_name(*member)));
            if weighted {
                text.push_str(&format!("    weight: {}\n", member + 1));
            }
        }
        text.push_str(&format!("output: {output}\n"));
        Recipe::parse(&text, &self.path("recipe.yaml")).unwrap()
    }

    pub(crate) fn merged(&self, output: &str) -> Vec<u8> {
        std::fs::read(self.path(output).join("model.safetensors")).unwrap()
    }
}

pub(crate) fn member_name(member: u64) -> String {
    char::from(b'a' + u8::try_from(member).unwrap()).to_string()
}

/// Merges with so many threads.
pub(crate) fn merge(recipe: &Recipe, num_threads: usize) -> Result<FolderReport, EngineError> {
    merge_until(recipe, num_threads, u64::MAX, &AtomicBool::new(false), &|_, _| {})
}

pub(crate) fn merge_until(
    recipe: &Recipe,
    num_threads: usize,
    sync_every: u64,
    stop: &AtomicBool,
    progress: &(dyn Fn(Stage, Progress) + Sync),
) -> Result<FolderReport, EngineError> {
    on_threads(Some(num_threads), || merge_folders(recipe, &Running { stop, sync_every, progress })).unwrap()
}

/// What lies in a folder, by name.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
