//! Thousands of consortia, each from a seed. A failure prints its seed, which `cargo run -p tapestry-sim -- SEED` runs again.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests; figures are printed with --nocapture")]

use std::sync::atomic::{AtomicU64, Ordering};

use tapestry_sim::{Failure, Sabotage, Summary, run};

/// Runs `num_seeds` seeds on all processors; the first failure by seed, or what was lived through.
fn run_all(num_seeds: u64, sabotage: Option<Sabotage>) -> Result<Vec<Summary>, Box<Failure>> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut results = vec![];
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= num_seeds {
                return results;
            }
            let result = run(seed, sabotage);
            if result.is_err() {
                next.store(num_seeds, Ordering::Relaxed);
            }
            results.push((seed, result));
        }
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut results: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..num_threads).map(|_| scope.spawn(work)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    results.sort_by_key(|(seed, _)| *seed);
    results.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn every_promise_is_kept_in_every_world() {
    let summaries = run_all(10_000, None).unwrap_or_else(|failure| panic!("{failure}"));
    let sum = |of: fn(&Summary) -> u64| summaries.iter().map(of).sum::<u64>();
    let (published, rounds) = (sum(|s| s.num_published as u64), sum(|s| s.num_rounds as u64));
    let (crashes, messages) = (sum(|s| s.num_crashes), sum(|s| s.num_messages));
    eprintln!(
        "{} worlds: {published} of {rounds} rounds published, {crashes} crashes, {messages} messages",
        summaries.len()
    );
    // Worlds so harsh that nothing is published, or so mild that nothing breaks, would prove nothing.
    assert!(published * 3 > rounds && published < rounds, "{published} of {rounds}");
    assert!(crashes > 10_000 && messages > 500_000);
}

#[test]
fn equal_seeds_give_equal_runs() {
    let first: Vec<_> = (0..20).map(|seed| run(seed, None).unwrap()).collect();
    let second: Vec<_> = (0..20).map(|seed| run(seed, None).unwrap()).collect();
    assert_eq!(first, second);
    assert!(first.windows(2).all(|pair| pair[0].trace != pair[1].trace), "different seeds give different runs");
}

#[test]
fn acting_before_the_log_is_durable_is_noticed() {
    for sabotage in [Sabotage::CoordinatorSkipsSync, Sabotage::NodeSkipsSync] {
        let failure = run_all(500, Some(sabotage)).unwrap_err();
        assert!(!failure.story.is_empty(), "{failure}");
    }
}

#[test]
fn a_merge_that_is_not_the_recorded_one_is_noticed() {
    let failure = run_all(500, Some(Sabotage::MergesSomethingElse)).unwrap_err();
    assert!(failure.violation.contains("not the merge of the accepted"), "{failure}");
}
