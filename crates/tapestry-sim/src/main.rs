//! `cargo run --release -p tapestry-sim -- FIRST [COUNT]`: lives through the worlds of COUNT seeds (one, unless told
//! otherwise) from FIRST on, and tells the story of the first that breaks a promise.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

use std::process::ExitCode;

fn main() -> ExitCode {
    let numbers: Option<Vec<u64>> = std::env::args().skip(1).map(|word| word.parse().ok()).collect();
    let (first, count) = match numbers.as_deref() {
        Some([first]) => (*first, 1),
        Some([first, count]) => (*first, *count),
        _ => {
            eprintln!("usage: tapestry-sim FIRST_SEED [NUMBER_OF_SEEDS]");
            return ExitCode::FAILURE;
        }
    };
    for seed in first..first.saturating_add(count) {
        match tapestry_sim::run(seed, None) {
            Ok(summary) if count == 1 => println!("seed {seed}: every promise is kept: {summary:?}"),
            Ok(_) => {}
            Err(failure) => {
                println!("{failure}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{count} worlds: every promise is kept");
    ExitCode::SUCCESS
}
