use super::*;
use crate::SafetensorsWriter;
use std::fs;
use tapestry_core::Dtype;

const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

fn spec(name: &str, len: u64) -> TensorSpec {
    TensorSpec { name: name.into(), dtype: Dtype::F32, shape: vec![len] }
}

/// A file whose tensors hold the values `first`, `first + 1`, ...
fn write_file(path: &Path, tensors: &[TensorSpec], first: u16) {
    let mut writer = SafetensorsWriter::create(path, tensors.to_vec()).expect("begins");
    let count: u64 = tensors.iter().map(|spec| spec.shape[0]).sum();
    for n in 0..count {
        let value = f32::from(first) + f32::from(u16::try_from(n).expect("few"));
        writer.write(&value.to_le_bytes()).expect("writes");
    }
    writer.finish().expect("finishes");
}

fn write_index(dir: &Path, entries: &[(&str, &str)]) {
    let entries: Vec<_> = entries.iter().map(|(tensor, shard)| format!("{tensor:?}:{shard:?}")).collect();
    let content = format!(r#"{{"metadata":{{"total_size":20}},"weight_map":{{{}}}}}"#, entries.join(","));
    fs::write(dir.join(INDEX), content).expect("writes");
}

const HONEST: [(&str, &str); 3] = [("a", SHARDS[1]), ("b", SHARDS[0]), ("c", SHARDS[1])];

/// `b` in the first shard, `a` and `c` in the second.
fn sharded() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    write_file(&dir.path().join(SHARDS[0]), &[spec("b", 2)], 100);
    write_file(&dir.path().join(SHARDS[1]), &[spec("a", 2), spec("c", 1)], 200);
    write_index(dir.path(), &HONEST);
    dir
}

fn refused(dir: &Path, expected: &[&str]) {
    let message = SafetensorsModel::open(dir).expect_err("refused").to_string();
    assert!(expected.iter().all(|part| message.contains(part)), "{message}");
}

#[test]
fn shards_are_one_model() {
    let dir = sharded();
    for path in [dir.path().to_path_buf(), dir.path().join(INDEX)] {
        let model = SafetensorsModel::open(&path).expect("opens");
        assert_eq!(model.tensors(), [spec("a", 2), spec("b", 2), spec("c", 1)]);
        assert_eq!(model.read_named("a").expect("reads"), [200.0, 201.0]);
        assert_eq!(model.read_named("b").expect("reads"), [100.0, 101.0]);
        assert_eq!(model.read_named("c").expect("reads"), [202.0]);
        let mut bytes = [0; 4];
        model.read_into(1, 4, &mut bytes).expect("reads");
        assert_eq!(bytes, 101f32.to_le_bytes());
        assert_eq!(model.path_of(0), dir.path().join(SHARDS[1]));
        assert_eq!(model.path_of(1), dir.path().join(SHARDS[0]));
        assert_eq!(model.path(), dir.path().join(INDEX));
        assert_eq!(model.files().count(), 2);
        let error = model.read_into(1, 5, &mut bytes).expect_err("beyond").to_string();
        assert!(error.contains(SHARDS[0]) && error.contains("5..5+4") && error.contains("of 8 bytes"), "{error}");
        assert!(model.read_into(1, u64::MAX, &mut bytes).is_err());
        assert!(model.read_into(3, 0, &mut bytes).is_err() && model.read_f32(3, 0, 0).is_err());
        assert!(model.read_other_into(0, 0, &mut bytes).is_err());
    }
}

#[test]
fn one_file_is_a_model_by_its_name_and_by_its_folder() {
    let dir = tempfile::tempdir().expect("a folder");
    write_file(&dir.path().join(SINGLE), &[spec("a", 2)], 7);
    for path in [dir.path().to_path_buf(), dir.path().join(SINGLE)] {
        let model = SafetensorsModel::open(&path).expect("opens");
        assert_eq!(model.read_named("a").expect("reads"), [7.0, 8.0]);
        assert_eq!(model.path(), dir.path().join(SINGLE));
    }
}

#[test]
fn the_facts_notice_another_file() {
    let dir = sharded();
    let model = SafetensorsModel::open(dir.path()).expect("opens");
    let facts: Vec<FileFacts> = model.file_facts().cloned().collect();
    assert_eq!(facts.iter().map(|facts| facts.path.clone()).collect::<Vec<_>>(), SHARDS.map(|s| dir.path().join(s)));
    assert!(facts.iter().all(|facts| facts.modified_ns > 0 && facts.size_bytes > 8));
    model.check_unchanged().expect("unchanged");

    // The same tensors with other values: the header cannot tell, the time can.
    let shard = dir.path().join(SHARDS[0]);
    let content = fs::read(&shard).expect("reads");
    let file = File::options().write(true).open(&shard).expect("opens");
    std::os::unix::fs::FileExt::write_all_at(&file, &[9; 4], content.len() as u64 - 4).expect("writes");
    let later = std::time::SystemTime::now() + std::time::Duration::from_secs(10);
    file.set_modified(later).expect("sets");
    let error = model.check_unchanged().expect_err("changed");
    assert!(matches!(&error, WeightsError::Changed { expected, .. } if expected.path == shard), "{error}");
    let again = SafetensorsModel::open(dir.path()).expect("opens");
    assert_eq!(again.header_digest(), model.header_digest());
    assert!(again.file_facts().zip(&facts).any(|(now, before)| now != before));

    write_file(&shard, &[spec("b", 3)], 100);
    let other = SafetensorsModel::open(dir.path()).expect("opens");
    assert_ne!(other.header_digest(), model.header_digest());
}

#[test]
fn a_file_that_is_cut_off_while_it_is_read_is_an_error() {
    let dir = sharded();
    let model = SafetensorsModel::open(dir.path()).expect("opens");
    let shard = dir.path().join(SHARDS[0]);
    let file = File::options().write(true).open(&shard).expect("opens");
    file.set_len(fs::metadata(&shard).expect("there").len() - 4).expect("cuts");
    assert_eq!(model.read_f32(1, 0, 1).expect("still there"), [100.0]);
    let message = model.read_f32(1, 1, 1).expect_err("gone").to_string();
    assert!(message.contains(SHARDS[0]) && message.contains("\"b\"") && message.contains("cut it off"), "{message}");
}

#[test]
fn what_index_and_shards_disagree_on_is_named() {
    let dir = sharded();
    let path = dir.path();
    write_index(path, &[("a", SHARDS[1]), ("b", SHARDS[0])]);
    refused(path, &[INDEX, SHARDS[1], "holds tensor \"c\"", "does not list"]);
    write_index(path, &[("a", SHARDS[1]), ("b", SHARDS[0]), ("c", SHARDS[1]), ("d", SHARDS[0])]);
    refused(path, &[INDEX, "lists tensor \"d\"", SHARDS[0], "does not hold it"]);
    write_index(path, &[("a", SHARDS[1]), ("b", SHARDS[1]), ("c", SHARDS[0])]);
    refused(path, &["lists tensor \"b\"", &format!("it is in {:?}", SHARDS[0])]);
    write_index(path, &[("a", SHARDS[1]), ("c", SHARDS[1])]);
    refused(path, &[INDEX, SHARDS[0], "promise 2"]);

    write_index(path, &HONEST);
    write_file(&path.join(SHARDS[0]), &[spec("a", 2), spec("b", 2)], 0);
    refused(path, &["tensor \"a\" is in two shards", SHARDS[0], SHARDS[1]]);
    fs::remove_file(path.join(SHARDS[0])).expect("removes");
    refused(path, &[INDEX, SHARDS[0], "not beside it"]);
    fs::write(path.join(SHARDS[0]), b"short").expect("writes");
    refused(path, &[SHARDS[0], "too few for a header"]);
}

#[test]
fn folders_that_are_no_model_are_refused() {
    let dir = sharded();
    let path = dir.path();
    write_file(&path.join(SINGLE), &[spec("a", 2)], 7);
    refused(path, &[SINGLE, INDEX, "remove the one"]);
    fs::remove_file(path.join(SINGLE)).expect("removes");
    fs::write(path.join(INDEX), "{").expect("writes");
    refused(path, &[INDEX, "cannot be read"]);
    let outside = tempfile::tempdir().expect("a folder");
    let shard = outside.path().join("x.safetensors");
    write_file(&shard, &[spec("a", 2)], 7);
    let relative = format!("../{}/x.safetensors", outside.path().file_name().expect("a name").to_string_lossy());
    for name in [shard.to_str().expect("UTF-8"), &relative] {
        write_index(path, &[("a", name)]);
        refused(path, &[INDEX, "plain name", "x.safetensors"]);
    }
    File::create(path.join(INDEX)).and_then(|file| file.set_len(1 << 40)).expect("makes");
    refused(path, &[INDEX, "longer than 33554432 bytes"]);
    fs::remove_file(path.join(INDEX)).expect("removes");
    refused(path, &["neither"]);
    refused(&path.join("nowhere"), &["nowhere"]);
    fs::create_dir(path.join(SINGLE)).expect("makes");
    refused(path, &["not a regular file"]);
    fs::remove_dir(path.join(SINGLE)).expect("removes");
    fs::create_dir(path.join(INDEX)).expect("makes");
    refused(path, &["not a regular file"]);
}

/// A shard may hold tensors that are only carried; who does not ask for them refuses the file.
#[test]
fn other_types_are_read_by_those_who_ask() {
    let dir = sharded();
    let header = r#"{"c":{"dtype":"F32","shape":[1],"data_offsets":[4,8]},"ids":{"dtype":"I16","shape":[2],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}"#;
    let mut content = (header.len() as u64).to_le_bytes().to_vec();
    content.extend(header.as_bytes());
    content.extend([1, 0, 2, 0]);
    content.extend([3.0f32, 1.0, 2.0].iter().flat_map(|value| value.to_le_bytes()));
    fs::write(dir.path().join(SHARDS[1]), content).expect("writes");
    refused(dir.path(), &[SHARDS[1], "\"ids\" has dtype \"I16\"", "F32, F16 and BF16"]);
    let entries = [("a", SHARDS[1]), ("b", SHARDS[0]), ("c", SHARDS[1]), ("ids", SHARDS[1])];
    let error = SafetensorsModel::open_with_others(dir.path()).expect_err("not listed").to_string();
    assert!(error.contains("holds tensor \"ids\""), "{error}");
    write_index(dir.path(), &entries);
    let model = SafetensorsModel::open_with_others(dir.path()).expect("opens");
    assert_eq!(model.tensors(), [spec("a", 2), spec("b", 2), spec("c", 1)]);
    assert_eq!(model.read_named("a").expect("reads"), [1.0, 2.0]);
    let [ids] = model.others() else { panic!("{:?}", model.others()) };
    assert_eq!((ids.name.as_str(), ids.dtype.name(), ids.size_bytes()), ("ids", "I16", Some(4)));
    assert_eq!(model.path_of_other(0), dir.path().join(SHARDS[1]));
    let mut bytes = [0; 3];
    model.read_other_into(0, 1, &mut bytes).expect("reads");
    assert_eq!(bytes, [0, 2, 0]);
    assert!(model.read_other_into(0, 2, &mut bytes).is_err());
}
