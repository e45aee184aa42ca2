use super::*;
use crate::{WeightSource as _, WeightsError};
use std::fs::{self, File};
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

fn with_header(header: impl AsRef<[u8]>, data: &[u8]) -> Vec<u8> {
    let header = header.as_ref();
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

fn entry(name: &str, dtype: &str, shape: &str, start: u64, end: u64) -> String {
    format!(r#""{name}":{{"dtype":"{dtype}","shape":[{shape}],"data_offsets":[{start},{end}]}}"#)
}

/// A file of these entries and of so many bytes of data.
fn with_entries(entries: &[String], data_bytes: usize) -> Vec<u8> {
    with_header(format!("{{{}}}", entries.join(",")), &vec![0; data_bytes])
}

fn opened(content: &[u8]) -> (tempfile::TempDir, Result<SafetensorsFile, WeightsError>) {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("hostile.safetensors");
    fs::write(&path, content).expect("writes");
    let file = SafetensorsFile::open_with_others(&path);
    (dir, file)
}

/// The file is refused; the message names it and holds each of these parts.
fn refused(content: &[u8], expected: &[&str]) {
    let message = opened(content).1.expect_err("refused").to_string();
    assert!(message.contains("hostile.safetensors"), "{message}");
    assert!(expected.iter().all(|part| message.contains(part)), "{expected:?} in {message}");
    assert!(message.len() < 3000, "{} bytes of message", message.len());
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
    assert!(matches!(file.read_f32(1, u64::MAX, 2), Err(WeightsError::Range { .. })));
    let mut bytes = [0; 6];
    file.read_into(1, 2, &mut bytes).expect("reads");
    assert_eq!(bytes[2..], 8f32.to_le_bytes());
    let error = file.read_into(1, 11, &mut bytes).expect_err("beyond the tensor").to_string();
    assert!(error.contains("11..11+6") && error.contains("\"b\" of 16 bytes"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).expect("lists").count(), 1);
}

/// Longer than what is read at once, in each type, from an odd place on.
#[test]
fn values_are_read_in_pieces_that_fit_together() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.safetensors");
    for dtype in [Dtype::F32, Dtype::BF16, Dtype::F16] {
        let count = 300_001u64;
        let long = TensorSpec { dtype, ..spec("b", &[count]) };
        let mut writer = SafetensorsWriter::create(&path, vec![spec("a", &[1]), long]).expect("begins");
        writer.write(&[0; 4]).expect("writes");
        let size = dtype.size_bytes();
        let bytes: Vec<u8> = (0..count * size).map(|at| (at % 113).to_le_bytes()[0]).collect();
        writer.write(&bytes).expect("writes");
        writer.finish().expect("finishes");
        let file = SafetensorsFile::open(&path).expect("opens");
        let from = usize::try_from(3 * size).expect("small");
        assert!(file.read_f32(1, 3, count - 3).expect("reads") == crate::bytes_to_f32(dtype, &bytes[from..]));
        assert_eq!(file.first_non_finite().expect("reads"), None);
    }
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

#[test]
fn a_file_that_was_cut_off_is_refused_wherever_it_was() {
    let dir = tempfile::tempdir().expect("a folder");
    let good = sample(&dir.path().join("model.safetensors"));
    for len in 0..good.len() {
        assert!(opened(&good[..len]).1.is_err(), "{len} bytes of {}", good.len());
    }
    refused(&[], &["0 bytes are too few"]);
    refused(&good[..7], &["7 bytes are too few"]);
    refused(&good[..100], &["the header claims", "in a file of 100"]);
    refused(&good[..good.len() - 4], &["tensor \"b\" claims bytes 24..40", "which has 36", "cut off"]);
}

#[test]
fn bytes_that_no_tensor_owns_are_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    let good = sample(&dir.path().join("model.safetensors"));
    refused(&[&good[..], &[0]].concat(), &["end at byte 40", "has 41"]);
    refused(&with_entries(&[], 1), &["end at byte 0", "has 1"]);
    let gap = [entry("a", "F32", "1", 0, 4), entry("b", "F32", "1", 8, 12)];
    refused(&with_entries(&gap, 12), &["bytes 4..8", "between tensor \"a\" and tensor \"b\"", "gap"]);
    refused(&with_entries(&gap[1..], 12), &["bytes 0..8", "between the start and tensor \"b\"", "gap"]);
}

#[test]
fn bytes_that_two_tensors_own_are_refused() {
    let same = [entry("a", "F32", "1", 0, 4), entry("b", "F32", "1", 0, 4)];
    refused(&with_entries(&same, 4), &["tensor \"b\" begins at byte 0", "inside tensor \"a\"", "overlap"]);
    let half = [entry("a", "F32", "2", 0, 8), entry("b", "F32", "2", 4, 12)];
    refused(&with_entries(&half, 12), &["tensor \"b\" begins at byte 4", "inside tensor \"a\"", "overlap"]);
    let none_inside = [entry("a", "F32", "2", 0, 8), entry("b", "F32", "0", 4, 4)];
    refused(&with_entries(&none_inside, 8), &["tensor \"b\" begins at byte 4", "overlap"]);
}

#[test]
fn bytes_outside_of_the_data_are_refused() {
    refused(&with_entries(&[entry("a", "F32", "1", 0, 8)], 8), &["needs 4 whole bytes; it claims 8"]);
    refused(&with_entries(&[entry("a", "F32", "3", 0, 12)], 8), &["\"a\" claims bytes 0..12", "which has 8"]);
    refused(&with_entries(&[entry("a", "F32", "1", 8, 4)], 8), &["\"a\" claims bytes 8..4", "end before they begin"]);
    let huge = entry("a", "F32", "1", 3, u64::MAX);
    refused(&with_entries(&[huge], 8), &["3..18446744073709551615", "which has 8"]);
}

#[test]
fn a_header_longer_than_its_file_or_than_all_headers_is_refused_before_memory_is_taken() {
    let dir = tempfile::tempdir().expect("a folder");
    let mut bomb = sample(&dir.path().join("model.safetensors"));
    for claim in [u64::MAX, u64::MAX - 7, u64::MAX - 8, 1 << 63, bomb.len() as u64 - 7] {
        bomb[..8].copy_from_slice(&claim.to_le_bytes());
        refused(&bomb, &[&format!("claims {claim} bytes in a file of {}", bomb.len())]);
    }
    // A file of a terabyte, of which the disk holds nothing.
    let path = dir.path().join("sparse.safetensors");
    fs::write(&path, (16u64 << 20 | 1).to_le_bytes()).expect("writes");
    File::options().write(true).open(&path).and_then(|file| file.set_len(1 << 40)).expect("grows");
    let message = SafetensorsFile::open(&path).expect_err("refused").to_string();
    assert!(message.contains("claims 16777217 bytes") && message.contains("at most 16777216"), "{message}");
}

#[test]
fn headers_that_are_not_this_json_are_refused() {
    let bytes = |header: &str| with_header(header, &[]);
    refused(&bytes(""), &["does not begin with '{'"]);
    refused(&bytes(" {}"), &["does not begin with '{'"]);
    refused(&bytes("[]"), &["does not begin with '{'"]);
    refused(&bytes("{"), &["cannot be read", "EOF"]);
    refused(&bytes("{}}"), &["cannot be read", "trailing"]);
    refused(&bytes("{\"a\":1}"), &["tensor \"a\"", "invalid type"]);
    refused(&bytes("{\"a\":{}}"), &["tensor \"a\"", "missing field `dtype`"]);
    refused(&bytes(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0]}}"#), &["tensor \"a\"", "tuple of size 2"]);
    refused(&bytes(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4,8]}}"#), &["cannot be read"]);
    refused(&bytes(r#"{"a":{"dtype":"F32","shape":[],"data_offsets":[0,4],"x":1}}"#), &["unknown field `x`"]);
    refused(&bytes(r#"{"a":{"dtype":"F32","dtype":"F32","shape":[],"data_offsets":[0,4]}}"#), &["duplicate field"]);
    for shape in ["-1", "1.0", "1e3", "null", "\"1\"", "[1]", "18446744073709551616"] {
        refused(&with_entries(&[entry("a", "F32", shape, 0, 4)], 4), &["tensor \"a\"", "invalid"]);
    }
    refused(&with_header(b"{\"\xff\":{}}", &[]), &["not UTF-8 at its byte 2"]);
    refused(&with_header(b"{}\0", &[]), &["cannot be read"]);
    refused(&bytes(r#"{"\ud800":{}}"#), &["cannot be read"]);
}

#[test]
fn nesting_does_not_use_up_the_stack() {
    for open in ["[", "{\"a\":"] {
        let deep = open.repeat(1 << 20);
        refused(&with_header(&deep, &[]), &[]);
        for before in
            ["{\"a\":", r#"{"a":{"shape":"#, r#"{"a":{"x":"#, r#"{"__metadata__":"#, r#"{"__metadata__":{"a":"#]
        {
            refused(&with_header(format!("{before}{deep}"), &[]), &["cannot be read"]);
        }
    }
}

#[test]
fn a_name_that_is_there_twice_is_refused_in_whatever_spelling() {
    let twice = [entry("a", "F32", "1", 0, 4), entry("a", "F32", "1", 4, 8)];
    refused(&with_entries(&twice, 8), &["tensor \"a\" is there twice"]);
    let escaped = [entry("a", "F32", "1", 0, 4), entry("\\u0061", "I32", "1", 4, 8)];
    refused(&with_entries(&escaped, 8), &["tensor \"a\" is there twice"]);
    refused(&with_header(r#"{"__metadata__":{},"__metadata__":{}}"#, &[]), &["__metadata__ is there twice"]);
}

#[test]
fn shapes_that_overflow_are_refused() {
    for shape in [
        "18446744073709551615,2",
        "9223372036854775808",
        "4611686018427387904",
        "4294967296,4294967296",
        "0,18446744073709551615,18446744073709551615",
    ] {
        // The last has no element, but who multiplies it from the right overflows.
        let is_zero = shape.starts_with('0');
        let (_dir, file) = opened(&with_entries(&[entry("a", "F32", shape, 0, 0)], 0));
        match file {
            Ok(file) => assert!(is_zero && file.tensors()[0].num_elements() == Some(0), "{shape}"),
            Err(error) => assert!(!is_zero && error.to_string().contains("overflows"), "{shape}: {error}"),
        }
    }
    let many = ["1"; 33].join(",");
    refused(&with_entries(&[entry("a", "F32", &many, 0, 4)], 4), &["\"a\"", "more than 32 dimensions"]);
}

#[test]
fn a_shape_that_is_not_its_bytes_is_refused() {
    refused(
        &with_entries(&[entry("a", "F32", "3", 0, 8)], 8),
        &["tensor \"a\" of dtype F32 and shape [3] needs 12 whole bytes; it claims 8, 0..8"],
    );
    refused(&with_entries(&[entry("a", "BF16", "3", 0, 12)], 12), &["needs 6 whole bytes; it claims 12"]);
    refused(&with_entries(&[entry("a", "F32", "", 0, 0)], 0), &["shape [] needs 4 whole bytes; it claims 0"]);
    refused(&with_entries(&[entry("a", "F4", "3", 0, 1)], 1), &["F4", "needs 2 whole bytes; it claims 1"]);
    refused(&with_entries(&[entry("a", "F4", "3", 0, 2)], 2), &["F4", "needs 2 whole bytes"]);
}

#[test]
fn types_that_nobody_knows_are_refused() {
    for dtype in ["f32", "F128", "", "float32", "U128"] {
        refused(
            &with_entries(&[entry("a", dtype, "1", 0, 4)], 4),
            &[&format!("\"a\" has dtype {dtype:?}"), "not know"],
        );
    }
    refused(&with_entries(&[entry("a", &"F".repeat(1 << 20), "1", 0, 4)], 4), &["FFF…"]);
}

#[test]
fn long_names_and_metadata_that_is_no_metadata_are_refused() {
    let name = "n".repeat(1025);
    refused(&with_entries(&[entry(&name, "F32", "1", 0, 4)], 4), &["name of 1025 bytes; at most 1024"]);
    opened(&with_entries(&[entry(&name[1..], "F32", "1", 0, 4)], 4)).1.expect("just short enough");
    for metadata in ["1", "[]", "{\"a\":1}", "{\"a\":null}"] {
        refused(&with_header(format!("{{\"__metadata__\":{metadata}}}"), &[]), &["__metadata__"]);
    }
}

#[test]
fn what_is_no_file_is_refused() {
    let dir = tempfile::tempdir().expect("a folder");
    // Reading the device would never end.
    for path in [dir.path(), Path::new("/dev/zero")] {
        let message = SafetensorsFile::open(path).expect_err("refused").to_string();
        assert!(message.contains("not a regular file") && message.contains(path.to_str().expect("UTF-8")), "{message}");
    }
    let message = SafetensorsFile::open(&dir.path().join("nowhere")).expect_err("refused").to_string();
    assert!(message.contains("cannot open") && message.contains("nowhere"), "{message}");
}

#[test]
fn tensors_without_elements_and_files_without_tensors_are_fine() {
    let entries = [entry("a", "F32", "0", 0, 0), entry("b", "F16", "2", 0, 4), entry("c", "F32", "4,0", 4, 4)];
    let (_dir, file) = opened(&with_entries(&entries, 4));
    let file = file.expect("opens");
    assert_eq!(file.tensors().len(), 3);
    assert_eq!(file.read_f32(0, 0, 0).expect("reads"), [0.0f32; 0]);
    assert_eq!(file.read_named("c").expect("reads"), [0.0f32; 0]);
    file.read_into(2, 0, &mut []).expect("reads nothing");
    assert!(file.read_into(2, 0, &mut [0]).is_err());
    assert_eq!(opened(&with_header("{}", &[])).1.expect("opens").tensors(), []);
    opened(&with_header("{}   ", &[])).1.expect("a padded header opens");
}

#[test]
fn a_file_in_another_order_is_not_canonical() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.safetensors");
    let entries = [entry("b", "F32", "1", 0, 4), entry("a", "F32", "1", 4, 8)];
    fs::write(&path, with_entries(&entries, 8)).expect("writes");
    let message = SafetensorsFile::open(&path).expect_err("refused").to_string();
    assert!(message.contains("order of their names"), "{message}");
    SafetensorsFile::open_any_order(&path).expect("opens");
}

#[test]
fn types_that_are_only_carried_are_read_by_those_who_ask() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("model.safetensors");
    let other = |name: &str, dtype: &str, shape: &[u64]| {
        let dtype = OtherDtype::from_name(dtype).expect("known");
        OtherTensor { name: name.into(), dtype, shape: shape.to_vec() }
    };
    let floats = [spec("b", &[1]), spec("d", &[1])];
    let others = [other("a", "I64", &[1]), other("c", "BOOL", &[3]), other("e", "F4", &[2]), other("f", "F64", &[0])];
    let mut content = safetensors_header_with_others(&floats, &others);
    content.extend((0..20u8).map(|n| 20 + n));
    fs::write(&path, &content).expect("writes");

    let message = SafetensorsFile::open(&path).expect_err("refused").to_string();
    assert!(message.contains("tensor \"a\" has dtype \"I64\"; F32, F16 and BF16 are read"), "{message}");
    let file = SafetensorsFile::open_with_others(&path).expect("opens");
    assert_eq!(file.tensors(), floats);
    assert_eq!(file.others(), others);
    let mut bytes = [0; 3];
    file.read_other_into(1, 0, &mut bytes).expect("reads");
    assert_eq!(bytes, [36, 37, 38]);
    file.read_into(1, 1, &mut bytes).expect("reads");
    assert_eq!(bytes, [25, 26, 27]);
    let message = file.read_other_into(2, 0, &mut bytes).expect_err("beyond").to_string();
    assert!(message.contains("\"e\" of 1 bytes"), "{message}");
    assert!(file.read_other_into(4, 0, &mut bytes).is_err());
    assert!(others.iter().filter(|other| other.dtype.is_float()).map(|other| other.dtype.name()).eq(["F4", "F64"]));
}
