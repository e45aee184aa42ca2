//! A short fuzzer of the safetensors readers: damaged files are read or refused, without a panic and without more memory than
//! the file's own size explains.
//!
//! It is deterministic: the same seeds make the same files every time. `fuzz/` at the root searches further, with coverage.

mod memory;
mod mutation;
mod safetensors_file;
mod safetensors_index;

use mutation::Random;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

/// A file that gets one content after the other. It stays open: some file systems flush a file to the disk whenever one that
/// was emptied and written again is closed.
struct Scratch {
    path: PathBuf,
    file: File,
}

impl Scratch {
    fn create(path: &Path) -> Self {
        Self { path: path.to_path_buf(), file: File::create(path).expect("makes") }
    }

    fn hold(&self, content: &[u8]) -> &Path {
        self.file.set_len(content.len() as u64).expect("resizes");
        self.file.write_all_at(content, 0).expect("writes");
        &self.path
    }
}

/// Runs `one` with each seed; a failure says with which.
fn for_seeds(num_seeds: u64, mut one: impl FnMut(&mut Random)) {
    for seed in 0..num_seeds {
        let run = std::panic::AssertUnwindSafe(|| one(&mut Random::new(seed)));
        if let Err(panic) = std::panic::catch_unwind(run) {
            let what = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
            panic!("seed {seed}: {}", what.unwrap_or("no message"));
        }
    }
}
