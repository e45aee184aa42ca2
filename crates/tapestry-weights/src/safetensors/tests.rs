use super::*;
use crate::{WeightSource as _, WeightsError};
use std::fs;
use std::path::Path;
use tapestry_core::{Dtype, TensorSpec};

fn spec(name: &str, shape: &[u64]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec() }
}

fn sample(path: &Path) -> Vec<u8> {
    let tensors = vec![spec("a", &[2, 3]), spec("b", &[4])];
    let mut values = 0.0;
    let next = |tensor: &TensorSpec| -> Result<Vec<f32>, WeightsError> {
        let count = tensor.num_elements().expect("small");
        Ok((0..count)
            .map(|_| {
                values += 1.0;
                values
            })
            .collect())
    };
    save_safetensors(path, tensors, next).expect("saves");
    fs::read(path).expect("reads")
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.safetensors");
    sample(&path);
    let file = SafetensorsFile::open(&path).expect("opens");
    assert_eq!(file.read_named("b").expect("reads"), [7.0, 8.0, 9.0, 10.0]);
    assert_eq!(file.read_f32(0, 2, 2).expect("reads"), [3.0, 4.0]);
    assert_eq!(file.data_len(), 40);
    assert_eq!(file.data_offset() % 8, 0);
    assert!(matches!(file.read_f32(1, 3, 2), Err(WeightsError::Range { .. })));
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
}

#[test]
fn an_unfinished_file_leaves_nothing() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.safetensors");
    let mut writer = SafetensorsWriter::create(&path, vec![spec("a", &[2])]).expect("begins");
    writer.write(&[0; 4]).expect("writes");
    assert!(matches!(writer.finish(), Err(WeightsError::WrittenSize { expected: 8, found: 4, .. })));
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 0);
}

fn refused(content: &[u8], expected: &str) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.safetensors");
    fs::write(&path, content).expect("writes");
    let message = SafetensorsFile::open(&path).expect_err("refused").to_string();
    assert!(message.contains(expected), "{message}");
}

fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

#[test]
fn files_that_lie_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let good = sample(&dir.path().join("model.safetensors"));
    refused(&good[..5], "too few for a header");
    refused(&good[..good.len() - 4], "claims bytes");
    refused(&[&good[..], &[0; 4]].concat(), "the tensors end at byte 40");
    let mut huge = good.clone();
    huge[..8].copy_from_slice(&u64::MAX.to_le_bytes());
    refused(&huge, "the header claims");
    let entry = |name: &str, shape: &str, start: u32, end: u32| {
        format!(r#""{name}":{{"dtype":"F32","shape":[{shape}],"data_offsets":[{start},{end}]}}"#)
    };
    refused(&with_header(&format!("{{{}}}", entry("a", "3", 0, 8)), &[0; 8]), "needs 12 whole bytes; it claims 8");
    refused(&with_header(&format!("{{{},{}}}", entry("a", "2", 0, 8), entry("b", "2", 4, 12)), &[0; 12]), "overlap");
    refused(&with_header(&format!("{{{},{}}}", entry("a", "1", 0, 4), entry("a", "1", 4, 8)), &[0; 8]), "there twice");
    refused(
        &with_header(&format!("{{{},{}}}", entry("b", "1", 0, 4), entry("a", "1", 4, 8)), &[0; 8]),
        "order of their names",
    );
    refused(&with_header(&format!("{{{}}}", entry("a", "18446744073709551615,2", 0, 8)), &[0; 8]), "overflows");
    refused(&with_header(r#"{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}"#, &[0; 8]), "has dtype \"I64\"");
    refused(&with_header("{\"a\":", &[]), "cannot be read");
}

#[test]
fn values_that_are_not_finite_are_found() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.safetensors");
    let mut content = sample(&path);
    let at = content.len() - 8;
    content[at..at + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    fs::write(&path, &content).expect("writes");
    let file = SafetensorsFile::open(&path).expect("opens");
    let (spec, index) = file.first_non_finite().expect("reads").expect("found");
    assert_eq!((spec.name.as_str(), index), ("b", 2));
}

/// Thousands of damaged files: each is read or refused, none panics.
#[test]
fn damaged_files_never_panic() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.safetensors");
    let good = sample(&path);
    let mut state = 1u64;
    let mut random = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).expect("31 bits") % bound
    };
    for _ in 0..3000 {
        let mut bad = good.clone();
        for _ in 0..=random(3) {
            let at = random(bad.len());
            bad[at] = u8::try_from(random(256)).expect("a byte");
        }
        if random(4) == 0 {
            bad.truncate(random(bad.len()));
        }
        fs::write(&path, &bad).expect("writes");
        if let Ok(file) = SafetensorsFile::open(&path) {
            for tensor in 0..file.tensors().len() {
                let count = file.tensors()[tensor].num_elements().expect("checked");
                file.read_f32(tensor, 0, count).expect("a checked tensor is read");
            }
        }
    }
}
