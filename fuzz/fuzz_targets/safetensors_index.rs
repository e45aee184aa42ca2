//! An index beside three fixed shards.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::LazyLock;
use tapestry_core::{Dtype, TensorSpec};
use tapestry_weights::{SafetensorsModel, WeightSource as _, WeightsError, save_safetensors};

const SHARDS: [&str; 3] =
    ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];

/// A folder inside of another, so that a path out of it leads to shards too.
static DIR: LazyLock<(tempfile::TempDir, PathBuf)> = LazyLock::new(|| {
    let outer = tempfile::tempdir().expect("a folder");
    let inner = outer.path().join("model");
    fs::create_dir(&inner).expect("makes");
    for dir in [outer.path(), &inner] {
        for (shard, name) in SHARDS.iter().enumerate() {
            let tensors = vec![TensorSpec { name: format!("t{shard}"), dtype: Dtype::F32, shape: vec![1] }];
            let value = f32::from(u8::try_from(shard).expect("few"));
            save_safetensors(&dir.join(name), tensors, |_| Ok::<_, WeightsError>(vec![value])).expect("saves");
        }
    }
    (outer, inner)
});

fuzz_target!(|content: &[u8]| {
    let dir = &DIR.1;
    // Kept open: some file systems flush a file that was emptied and written again to the disk when it is closed.
    static FILE: LazyLock<File> =
        LazyLock::new(|| File::create(DIR.1.join("model.safetensors.index.json")).expect("makes"));
    FILE.set_len(content.len() as u64).expect("resizes");
    FILE.write_all_at(content, 0).expect("writes");
    match SafetensorsModel::open(dir) {
        Ok(model) => {
            assert!(model.files().eq(SHARDS.map(|shard| dir.join(shard))));
            assert_eq!(model.tensors().len(), SHARDS.len());
            for index in 0..SHARDS.len() {
                let value = f32::from(u8::try_from(index).expect("few"));
                assert_eq!(model.read_f32(index, 0, 1).expect("a checked tensor is read"), [value]);
            }
        }
        Err(WeightsError::Malformed { what, .. }) => assert!(!what.is_empty() && what.len() < 4000, "{what}"),
        Err(other) => panic!("{other}"),
    }
});
