//! A GGUF file: refused, or every tensor that it lists is read or refused, in memory in proportion to the file.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::LazyLock;
use tapestry_weights::adopt_gguf;

static DIR: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a folder"));
static FILE: LazyLock<File> = LazyLock::new(|| File::create(DIR.path().join("model.gguf")).expect("makes"));

fuzz_target!(|content: &[u8]| {
    FILE.set_len(content.len() as u64).expect("resizes");
    FILE.write_all_at(content, 0).expect("writes");
    let out = DIR.path().join("out");
    let _ = std::fs::remove_dir_all(&out);
    let _ = adopt_gguf(&DIR.path().join("model.gguf"), &out, &mut |_, _| {});
});
