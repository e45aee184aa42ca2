//! Damaged indices of models in shards.

use crate::memory::peak_of;
use crate::mutation::{Random, damage, damage_json};
use crate::{Scratch, for_seeds};
use std::fs;
use std::path::Path;
use tapestry_core::{Dtype, TensorSpec};
use tapestry_weights::{SafetensorsModel, WeightSource as _, WeightsError, save_safetensors};

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 3] =
    ["model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors", "model-00003-of-00003.safetensors"];

/// Tensors `t0` to `t8`, three in each shard; each of two values, its number and its shard.
fn write_shards(dir: &Path) {
    for (shard, name) in SHARDS.iter().enumerate() {
        let spec = |n: usize| TensorSpec { name: format!("t{}", 3 * n + shard), dtype: Dtype::F32, shape: vec![2] };
        let tensors: Vec<TensorSpec> = (0..3).map(spec).collect();
        let values = |spec: &TensorSpec| -> Result<Vec<f32>, WeightsError> {
            let number = spec.name[1..].parse().expect("a number");
            Ok(vec![number, f32::from(u8::try_from(shard).expect("few"))])
        };
        save_safetensors(&dir.join(name), tensors, values).expect("saves");
    }
}

fn index() -> String {
    let entries: Vec<String> = (0..9).map(|n| format!("\"t{n}\": \"{}\"", SHARDS[n % 3])).collect();
    format!("{{\"metadata\": {{\"total_size\": 72}}, \"weight_map\": {{{}}}}}", entries.join(", "))
}

/// Every index that is taken says the same as the true one.
fn check(num_seeds: u64, make: impl Fn(&mut Random) -> Vec<u8>) {
    let dir = tempfile::tempdir().expect("a folder");
    // A file that a path out of the folder could lead to.
    let model_dir = dir.path().join("model");
    fs::create_dir(&model_dir).expect("makes");
    write_shards(dir.path());
    write_shards(&model_dir);
    let file = Scratch::create(&model_dir.join(INDEX));
    let mut num_opened = 0;
    for_seeds(num_seeds, |random| {
        let content = make(random);
        file.hold(&content);
        let (model, peak) = peak_of(|| SafetensorsModel::open(&model_dir));
        let explained = (8 << 10) + 8 * content.len();
        assert!(peak <= explained, "{peak} bytes were taken for an index of {}", content.len());
        match model {
            Ok(model) => {
                num_opened += 1;
                assert_eq!(model.tensors().len(), 9);
                assert!(model.files().eq(SHARDS.map(|shard| model_dir.join(shard))));
                for (n, expected) in (0..9u8).enumerate() {
                    let values = model.read_f32(n, 0, 2).expect("a checked tensor is read");
                    assert_eq!(values, [f32::from(expected), f32::from(expected % 3)]);
                    assert!(model.path_of(n).ends_with(SHARDS[n % 3]));
                }
            }
            Err(WeightsError::Malformed { path, what, .. }) => {
                assert!(path.starts_with(&model_dir) && !what.is_empty() && what.len() < 4000, "{what}");
            }
            Err(other) => panic!("{other}"),
        }
    });
    // Almost every byte of an index matters.
    assert!((5..num_seeds * 9 / 10).contains(&num_opened), "{num_opened} of {num_seeds} indices were taken");
}

#[test]
fn indices_with_damaged_bytes_are_read_or_refused() {
    check(8000, |random| {
        let mut content = index().into_bytes();
        damage(&mut content, random);
        content
    });
}

#[test]
fn indices_with_damaged_tokens_are_read_or_refused() {
    check(8000, |random| {
        let mut content = index();
        damage_json(&mut content, random);
        content.into_bytes()
    });
}

#[test]
fn indices_with_other_names_are_read_or_refused() {
    let names =
        ["../model-00001-of-00003.safetensors", "model", "t1", "..", "", "metadata", "weight_map", "x.safetensors"];
    check(8000, |random| {
        let mut content = index();
        for _ in 0..=random.below(2) {
            let n = random.below(9);
            let old = if random.one_in(2) { format!("t{n}") } else { SHARDS[n % 3].to_owned() };
            let new = match random.below(3) {
                0 => (*random.pick(&SHARDS)).to_owned(),
                1 => format!("t{}", random.below(11)),
                _ => (*random.pick(&names)).to_owned(),
            };
            content = content.replacen(&format!("\"{old}\""), &format!("\"{new}\""), 1 + random.below(3));
        }
        content.into_bytes()
    });
}
