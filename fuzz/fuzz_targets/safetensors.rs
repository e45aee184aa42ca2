//! A whole safetensors file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;
use tapestry_weights::{SafetensorsFile, SafetensorsModel, WeightSource as _, WeightsError};

static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));

fuzz_target!(|content: &[u8]| {
    let path = DIR.path().join("model.safetensors");
    // Kept open: some file systems flush a file that was emptied and written again to the disk when it is closed.
    static FILE: LazyLock<File> = LazyLock::new(|| File::create(DIR.path().join("model.safetensors")).expect("makes"));
    FILE.set_len(content.len() as u64).expect("resizes");
    FILE.write_all_at(content, 0).expect("writes");
    let file = match SafetensorsFile::open_with_others(&path) {
        Ok(file) => file,
        Err(WeightsError::Malformed { what, .. }) => {
            assert!(!what.is_empty() && what.len() < 4000, "{what}");
            assert!(SafetensorsModel::open(&path).is_err());
            return;
        }
        Err(other) => panic!("{other}"),
    };
    assert_eq!(SafetensorsModel::open(&path).is_ok(), file.others().is_empty());
    let theirs = SafeTensors::deserialize(content).expect("what opens here is a safetensors file");
    assert_eq!(theirs.len(), file.tensors().len() + file.others().len());
    for (index, spec) in file.tensors().iter().enumerate() {
        let view = theirs.tensor(&spec.name).expect("it is there too");
        let mut bytes = vec![0; view.data().len()];
        file.read_into(index, 0, &mut bytes).expect("a checked tensor is read");
        assert!(bytes == view.data());
        file.read_named(&spec.name).expect("a checked tensor is read");
    }
    for (index, other) in file.others().iter().enumerate() {
        let view = theirs.tensor(&other.name).expect("it is there too");
        let mut bytes = vec![0; view.data().len()];
        file.read_other_into(index, 0, &mut bytes).expect("a checked tensor is read");
        assert!(bytes == view.data());
    }
});
