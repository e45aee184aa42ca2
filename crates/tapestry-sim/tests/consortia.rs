//! Thousands of consortia, each from a seed. A failure prints its seed, which `cargo xtask sim --seed SEED` runs again.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "tests; figures are printed with --nocapture")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tapestry_sim::{Failure, Sabotage, Summary, calm_round, run};

/// Runs `num_seeds` seeds on all processors; the first failure by seed, or what was lived through.
fn run_all(num_seeds: u64) -> Result<Vec<Summary>, Box<Failure>> {
    let next = AtomicU64::new(0);
    let work = || {
        let mut results = vec![];
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= num_seeds {
                return results;
            }
            let result = run(seed, None);
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
    let summaries = run_all(10_000).unwrap_or_else(|failure| panic!("{failure}"));
    let sum = |of: fn(&Summary) -> u64| summaries.iter().map(of).sum::<u64>();
    let (published, rounds) = (sum(|s| s.num_published as u64), sum(|s| s.num_rounds as u64));
    let (crashes, messages) = (sum(|s| s.num_crashes), sum(|s| s.num_messages));
    eprintln!(
        "{} worlds: {published} of {rounds} rounds published, {crashes} crashes, {messages} messages",
        summaries.len()
    );
    // Worlds so harsh that nothing is published, or so mild that nothing breaks, would prove nothing.
    assert!(published * 4 > rounds && published < rounds, "{published} of {rounds}");
    assert!(crashes > 10_000 && messages > 500_000);
    assert!(sum(|s| s.num_power_losses) > 1_000 && sum(|s| s.num_late) > 500);
    assert!(sum(|s| s.num_tenures) > 5_000);
    assert!(summaries.iter().any(|s| s.num_members > 40));
}

#[test]
fn equal_seeds_give_equal_runs() {
    let first: Vec<_> = (0..20).map(|seed| run(seed, None).unwrap()).collect();
    let second: Vec<_> = (0..20).map(|seed| run(seed, None).unwrap()).collect();
    assert_eq!(first, second);
    assert!(first.windows(2).all(|pair| pair[0].trace != pair[1].trace), "different seeds give different runs");
}

/// A promise that is broken once the driver has this fault, where `is_it` says that it is this one.
fn broken_by(sabotage: Sabotage, is_it: impl Fn(&Failure) -> bool + Sync) -> Failure {
    // What else it breaks in other worlds is not what is asked about.
    let (others, found) = (Mutex::new(None), Mutex::new(None));
    let next = AtomicU64::new(0);
    let work = || {
        while found.lock().unwrap().is_none() {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= 2_000 {
                return;
            }
            if let Err(failure) = run(seed, Some(sabotage)) {
                let kept = if is_it(&failure) { &found } else { &others };
                *kept.lock().unwrap() = Some(failure);
            }
        }
    };
    let num_threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..num_threads).for_each(|_| drop(scope.spawn(work))));
    let Some(failure) = found.into_inner().unwrap() else {
        panic!("{sabotage:?} is not noticed, but for {:?}", others.into_inner().unwrap())
    };
    assert!(!failure.story.is_empty(), "{failure}");
    *failure
}

fn check(sabotage: Sabotage, violation: &str) {
    broken_by(sabotage, |failure| failure.violation.contains(violation));
}

#[test]
fn acting_before_the_log_is_durable_is_noticed() {
    broken_by(Sabotage::CoordinatorSkipsSync, |_| true);
    broken_by(Sabotage::NodeSkipsSync, |_| true);
}

#[test]
fn acting_on_what_an_earlier_process_did_not_sync_is_noticed() {
    check(Sabotage::TrustsUnsyncedLog, "an entry of the log that was acted on is gone");
}

#[test]
fn confirming_chunks_that_are_not_synced_is_noticed() {
    check(Sabotage::ConfirmsUnsyncedChunks, "lacks a blob");
}

#[test]
fn a_deposed_coordinator_that_confirms_what_it_cannot_write_is_noticed() {
    check(Sabotage::DeposedConfirms, "confirmed");
}

#[test]
fn sending_again_what_has_arrived_is_noticed() {
    check(Sabotage::SendsAllChunksAgain, "resends more than one chunk a stream");
}

#[test]
fn believing_a_lying_mirror_is_noticed() {
    check(Sabotage::BelievesMirrors, "works on wrong bytes");
}

#[test]
fn accepting_without_screening_is_noticed() {
    check(Sabotage::ScreensNothing, "were accepted");
}

#[test]
fn publishing_without_the_gate_is_noticed() {
    check(Sabotage::OpensTheGate, "the gate let a base pass");
}

#[test]
fn a_merge_that_is_not_the_recorded_one_is_noticed() {
    check(Sabotage::MergesSomethingElse, "not the merge of the accepted");
}

#[test]
fn a_log_that_was_changed_is_noticed() {
    check(Sabotage::ChangesAnEntry, "the log does not verify");
}

#[test]
fn judging_the_window_by_another_time_is_noticed() {
    check(Sabotage::JudgesByAnOldTime, "after the window closed");
}

#[test]
fn two_answers_to_a_round_are_noticed() {
    check(Sabotage::TakesSecondAnswers, "has two answers");
}

#[test]
fn two_mixed_rounds_are_noticed() {
    check(Sabotage::MixesRounds, "to another round");
}

#[test]
fn a_late_contribution_that_the_charter_does_not_take_is_noticed() {
    check(Sabotage::TakesTheLateForEver, "may not count in");
}

#[test]
fn a_replayed_attendance_is_noticed() {
    check(Sabotage::TakesOldAttendances, "is replayed");
}

#[test]
fn blame_of_an_honest_member_is_noticed() {
    check(Sabotage::BlamesBadTiming, "is blamed");
}

#[test]
fn a_coordinator_that_tells_two_ends_of_a_round_is_noticed() {
    check(Sabotage::TellsTwoEnds, "believes an outcome that never was");
}

#[test]
fn a_round_that_does_not_end_is_noticed() {
    check(Sabotage::ForgetsToMerge, "still not all is done");
}

#[test]
fn what_a_round_costs_grows_with_the_members_and_not_with_their_square() {
    let [ten, forty] = [10, 40].map(|num_members| calm_round(num_members, 2).unwrap());
    assert_eq!((ten.num_rounds, forty.num_rounds), (2, 2));
    // Four times the members: four times the work at most, with a fifth of slack for what is drawn.
    assert!(forty.num_messages * 10 <= ten.num_messages * 48, "{} and {}", ten.num_messages, forty.num_messages);
    assert!(forty.num_entries <= ten.num_entries * 4, "{} and {}", ten.num_entries, forty.num_entries);
}
