//! Governed worlds: every promise is kept in each, each kind of world happens, and each sabotage is noticed.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use tapestry_sim::governed::{GovernedSabotage, GovernedSummary, run_governed};

const NUM_SEEDS: u64 = 300;

fn live(num_seeds: u64) -> Vec<GovernedSummary> {
    let (next, summaries) = (AtomicU64::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= num_seeds {
                        return;
                    }
                    let summary = run_governed(seed, None).unwrap();
                    summaries.lock().unwrap_or_else(PoisonError::into_inner).push(summary);
                }
            });
        }
    });
    summaries.into_inner().unwrap()
}

#[test]
fn every_promise_is_kept_in_every_governed_world() {
    let summaries = live(NUM_SEEDS);
    let count = |what: fn(&GovernedSummary) -> usize| summaries.iter().filter(|summary| what(summary) > 0).count();
    let many = summaries.len() / 20;
    assert!(count(|s| s.num_rounds) > summaries.len() / 2, "rounds: {}", count(|s| s.num_rounds));
    assert!(count(|s| s.num_adopted) > summaries.len() / 3, "decisions: {}", count(|s| s.num_adopted));
    // Most coordinators that rewind only get no further: their members ask for what they have seen.
    assert!(count(|s| s.num_alarms) > many / 3, "two histories: {}", count(|s| s.num_alarms));
    assert!(count(|s| s.num_changes) > many, "new keys: {}", count(|s| s.num_changes));
    assert!(count(|s| s.num_witnessed) > summaries.len() / 3, "witnessed: {}", count(|s| s.num_witnessed));
}

#[test]
fn equal_seeds_give_equal_governed_worlds() {
    for seed in 0..5 {
        assert_eq!(run_governed(seed, None).unwrap(), run_governed(seed, None).unwrap());
    }
}

fn is_noticed(sabotage: GovernedSabotage) {
    let noticed = (0..200).find_map(|seed| run_governed(seed, Some(sabotage)).err());
    assert!(noticed.is_some(), "{sabotage:?} goes unnoticed");
}

#[test]
fn a_node_that_skips_the_proof_is_noticed() {
    is_noticed(GovernedSabotage::SkipsTheProof);
}

#[test]
fn members_that_cosign_unseen_are_noticed() {
    is_noticed(GovernedSabotage::CosignsUnseen);
}

#[test]
fn a_coordinator_that_opens_unwitnessed_rounds_is_noticed() {
    is_noticed(GovernedSabotage::OpensUnwitnessed);
}

#[test]
fn a_coordinator_that_confirms_cosignatures_too_early_is_noticed() {
    is_noticed(GovernedSabotage::ConfirmsTooEarly);
}

#[test]
fn a_coordinator_that_turns_votes_is_noticed() {
    is_noticed(GovernedSabotage::TurnsVotes);
}

#[test]
fn a_node_that_cries_wolf_is_noticed() {
    is_noticed(GovernedSabotage::CriesWolf);
}
