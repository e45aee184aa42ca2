//! A short fuzzer of the safetensors readers: damaged files are read or refused, without a panic and without more memory than
//! the file's own size explains.
//!
//! It is deterministic: the same seeds make the same files every time. `fuzz/` at the root searches further, with coverage.

mod memory;
mod mutation;
mod safetensors_file;
mod safetensors_index;

use mutation::Random;

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
