//! `cargo xtask sim`: lives through many worlds, each from a seed, on all processors, and tells the story of the first that breaks a promise.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a command-line tool")]

mod scaling;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tapestry_sim::governed::run_governed;
use tapestry_sim::{Failure, Summary, run};

const USAGE: &str = "\
cargo xtask sim [OPTION]...

  --seeds NUM       lives through so many worlds (10000)
  --from SEED       the first of them (0)
  --seed SEED       this one alone, and what came of it
  --threads NUM     how many at a time (one a processor)
  --governed SEED   instead: one world of votes, witnesses and coordinators that cheat, and what happened in it
  --scaling FILE    instead: what a round costs with 2 to 50 members, as a table and as an SVG in FILE";

/// What was typed.
#[derive(Debug)]
struct Options {
    num_seeds: u64,
    first: u64,
    num_threads: usize,
    scaling: Option<String>,
    governed: Option<u64>,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let options = match parse(&words) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("{error}\n\n{USAGE}");
            return ExitCode::FAILURE;
        }
    };
    let done = match (&options.scaling, options.governed) {
        (Some(file), _) => scaling::measure(file),
        (None, Some(seed)) => governed(seed),
        (None, None) => live(&options).map_err(|failure| failure.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("{error}");
            ExitCode::FAILURE
        }
    }
}

/// One governed world, with its whole story where a promise is broken.
fn governed(seed: u64) -> Result<(), String> {
    let summary = run_governed(seed, None)
        .map_err(|failure| format!("seed {seed}: {}\n  {}", failure.violation, failure.story.join("\n  ")))?;
    println!("{summary:?}");
    Ok(())
}

fn parse(words: &[String]) -> Result<Options, String> {
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut options = Options { num_seeds: 10_000, first: 0, num_threads, scaling: None, governed: None };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = words.next().ok_or_else(|| format!("`{word}` needs a value, or is unknown"))?;
        let number = || value.parse::<u64>().map_err(|_| format!("`{word}` needs a number; found `{value}`"));
        match word.as_str() {
            "--seeds" => options.num_seeds = number()?,
            "--from" => options.first = number()?,
            "--seed" => (options.first, options.num_seeds) = (number()?, 1),
            "--threads" => options.num_threads = usize::try_from(number()?.max(1)).map_err(|e| e.to_string())?,
            "--scaling" => options.scaling = Some(value.clone()),
            "--governed" => options.governed = Some(number()?),
            other => return Err(format!("there is no option `{other}`")),
        }
    }
    Ok(options)
}

/// The worlds of all seeds. Stops soon after the first failure; of several the one with the smallest seed is told.
fn live(options: &Options) -> Result<(), Box<Failure>> {
    let (next, num_done) = (AtomicU64::new(options.first), AtomicU64::new(0));
    let end = options.first.saturating_add(options.num_seeds);
    let start = Instant::now();
    let work = || {
        let mut summaries = vec![];
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return Ok(summaries);
            }
            match run(seed, None) {
                Ok(summary) => summaries.push(summary),
                Err(failure) => {
                    next.store(end, Ordering::Relaxed);
                    return Err(failure);
                }
            }
            num_done.fetch_add(1, Ordering::Relaxed);
        }
    };
    let results: Vec<Result<Vec<Summary>, Box<Failure>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..options.num_threads).map(|_| scope.spawn(work)).collect();
        let mut told = Instant::now();
        while threads.iter().any(|thread| !thread.is_finished()) {
            std::thread::sleep(Duration::from_millis(20));
            if told.elapsed() >= Duration::from_secs(10) {
                told = Instant::now();
                let done = num_done.load(Ordering::Relaxed);
                eprintln!("{done} of {} worlds in {:.0} s", options.num_seeds, start.elapsed().as_secs_f64());
            }
        }
        threads.into_iter().map(|thread| thread.join().expect("a world does not panic")).collect()
    });
    let (mut summaries, mut failures) = (vec![], vec![]);
    for result in results {
        match result {
            Ok(some) => summaries.extend(some),
            Err(failure) => failures.push(failure),
        }
    }
    if let Some(failure) = failures.into_iter().min_by_key(|failure| failure.seed) {
        return Err(failure);
    }
    tell(&summaries, start.elapsed());
    Ok(())
}

fn tell(summaries: &[Summary], took: Duration) {
    let sum = |of: fn(&Summary) -> u64| summaries.iter().map(of).sum::<u64>();
    println!(
        "{} worlds in {:.1} s: every promise is kept. {} of {} rounds published; {} messages, {} late contributions, {} crashes, {} of them \
         power losses; at most {} members",
        summaries.len(),
        took.as_secs_f64(),
        sum(|s| s.num_published as u64),
        sum(|s| s.num_rounds as u64),
        sum(|s| s.num_messages),
        sum(|s| s.num_late),
        sum(|s| s.num_crashes),
        sum(|s| s.num_power_losses),
        summaries.iter().map(|s| s.num_members).max().unwrap_or(0),
    );
    if let [summary] = summaries {
        println!("trace {}, {} s of simulated time", summary.trace, summary.simulated_ms / 1000);
    }
}
