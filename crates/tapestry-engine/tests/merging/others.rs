//! Shards, and tensors that are not merged.

use crate::fixture::{Fixture, merge, tensors};
use std::path::Path;
use tapestry_weights::{
    OtherDtype, OtherTensor, SafetensorsFile, SafetensorsModel, WeightSource as _, safetensors_header_with_others,
};

/// Adds a tensor of positions and a mask behind the tensors of a model.
fn add_others(folder: &Path, positions: &[i64]) {
    let path = folder.join("model.safetensors");
    let file = SafetensorsFile::open(&path).unwrap();
    let content = std::fs::read(&path).unwrap();
    let dtype = |name| OtherDtype::from_name(name).unwrap();
    let others = [
        OtherTensor { name: "a.mask".into(), dtype: dtype("BOOL"), shape: vec![3] },
        OtherTensor { name: "g.positions".into(), dtype: dtype("I64"), shape: vec![positions.len() as u64] },
    ];
    let mut new = safetensors_header_with_others(&tensors(), &others);
    new.extend_from_slice(&content[usize::try_from(file.data_offset()).unwrap()..]);
    new.extend_from_slice(&[1, 0, 1]);
    positions.iter().for_each(|position| new.extend_from_slice(&position.to_le_bytes()));
    std::fs::write(&path, new).unwrap();
}

#[test]
fn tensors_of_other_types_are_copied_where_all_agree() {
    let fixture = Fixture::new();
    fixture.consortium(2);
    let plain = merge(&fixture.recipe("method: fedavg\nbase: base", &[0, 1], true, "plain"), 2).unwrap();
    for model in ["base", "a", "b"] {
        add_others(&fixture.path(model), &[5, 6, 7]);
    }
    let report = merge(&fixture.recipe("method: fedavg\nbase: base", &[0, 1], true, "out"), 2).unwrap();
    let merged = SafetensorsModel::open_with_others(&fixture.path("out")).unwrap();
    assert_eq!(merged.others().len(), 2);
    let mut positions = [0; 24];
    merged.read_other_into(1, 0, &mut positions).unwrap();
    assert_eq!(positions, [5i64, 6, 7].map(i64::to_le_bytes).concat()[..]);
    let (floats, plain_file) = (merged.tensors().len(), SafetensorsModel::open(&fixture.path("plain")).unwrap());
    assert_eq!(floats, plain_file.tensors().len());
    for (tensor, spec) in tensors().iter().enumerate() {
        let count = spec.num_elements().unwrap();
        assert_eq!(merged.read_f32(tensor, 0, count).unwrap(), plain_file.read_f32(tensor, 0, count).unwrap());
    }
    assert_eq!(
        report.weights.size_bytes - plain.weights.size_bytes,
        27 + 144,
        "the data, and two entries of the header"
    );
}

#[test]
fn tensors_of_other_types_that_differ_are_refused() {
    let fixture = Fixture::new();
    fixture.consortium(2);
    for (model, positions) in [("base", [5, 6, 7]), ("a", [5, 6, 7]), ("b", [5, 6, 8])] {
        add_others(&fixture.path(model), &positions);
    }
    let recipe = fixture.recipe("method: fedavg\nbase: base", &[0, 1], true, "out");
    let message = merge(&recipe, 2).unwrap_err().to_string();
    for part in ["`g.positions`", "b/model.safetensors", "byte 16", "copied, not merged"] {
        assert!(message.contains(part), "{message}");
    }
    std::fs::remove_dir_all(fixture.path("b")).unwrap();
    fixture.model("b", &tensors(), 2, 0.05);
    let message = merge(&recipe, 2).unwrap_err().to_string();
    assert!(message.contains("`a.mask` is in") && message.contains("not in"), "{message}");
    assert!(!fixture.path("out").exists() && !fixture.path("out.partial").exists());
}

#[test]
fn shards_merge_like_one_file() {
    let fixture = Fixture::new();
    fixture.consortium(2);
    let one = merge(&fixture.recipe("method: fedavg", &[0, 1], true, "one"), 2).unwrap();
    // Member `a` in two shards.
    let (all, folder) = (tensors(), fixture.path("a"));
    let file = SafetensorsFile::open(&folder.join("model.safetensors")).unwrap();
    let mut map = serde_json::Map::new();
    for (shard, range) in [("x-1.safetensors", 0..3), ("x-2.safetensors", 3..6)] {
        let mut writer =
            tapestry_weights::SafetensorsWriter::create(&folder.join(shard), all[range.clone()].to_vec()).unwrap();
        for tensor in range {
            let mut bytes = vec![0; usize::try_from(all[tensor].size_bytes().unwrap()).unwrap()];
            file.read_into(tensor, 0, &mut bytes).unwrap();
            writer.write(&bytes).unwrap();
            map.insert(all[tensor].name.clone(), shard.into());
        }
        writer.finish().unwrap();
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map });
    std::fs::write(folder.join("model.safetensors.index.json"), index.to_string()).unwrap();
    std::fs::remove_file(folder.join("model.safetensors")).unwrap();
    let shards = merge(&fixture.recipe("method: fedavg", &[0, 1], true, "shards"), 2).unwrap();
    assert_eq!(one.weights, shards.weights);
}
