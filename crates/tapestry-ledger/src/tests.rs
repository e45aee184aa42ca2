use super::*;
use crate::export::{Bundle, ExportCheck};
use crate::tile::{Tile, TileKind, bundle};
use serde_json::Value;
use std::collections::BTreeSet;
use tapestry_core::{PublicKey, SecretKey, Timestamp};

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32].into())
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(ms)
}

/// A log by key 1: one commit for each of the numbers, of as many entries.
fn log(commits: &[usize]) -> Vec<Vec<u8>> {
    let mut chain = Chain::new(key(1).public());
    let mut sealed = vec![];
    for (i, count) in commits.iter().enumerate() {
        let events = (0..*count).map(|n| (format!("event {i}.{n}"), None)).collect();
        let content = chain.seal(at(i as u64 * 10), events, &key(1)).expect("seals");
        assert_eq!(chain.accept::<Value>(&content).expect("is the next").entries.len(), *count);
        sealed.push(content);
    }
    sealed
}

fn verify(commits: &[Vec<u8>]) -> Result<Chain, ChainError> {
    let mut chain = Chain::new(key(1).public());
    for content in commits {
        chain.accept::<Value>(content)?;
    }
    Ok(chain)
}

#[test]
fn an_honest_log_verifies_even_by_a_reader_who_does_not_know_its_events() {
    let chain = verify(&log(&[1, 3, 1])).expect("verifies");
    assert_eq!(chain.num_entries(), 5);
    let sealed = chain.sealed().expect("has a checkpoint");
    assert_eq!((sealed.checkpoint().size, sealed.checkpoint().root), (5, chain.root()));
}

#[test]
fn how_entries_were_committed_does_not_change_the_tree() {
    let events = |chain: &Chain, names: &[&str]| {
        chain.seal(at(1), names.iter().map(|name| ((*name).to_owned(), None)).collect(), &key(1)).expect("seals")
    };
    let (mut one_by_one, mut at_once) = (Chain::new(key(1).public()), Chain::new(key(1).public()));
    for name in ["a", "b", "c"] {
        let content = events(&one_by_one, &[name]);
        one_by_one.accept::<Value>(&content).expect("accepts");
    }
    let content = events(&at_once, &["a", "b", "c"]);
    at_once.accept::<Value>(&content).expect("accepts");
    assert_eq!(one_by_one, at_once);
}

#[test]
fn any_single_changed_byte_is_found() {
    let commits = log(&[1, 2, 1]);
    let honest = verify(&commits).expect("verifies").root();
    for (i, commit) in commits.iter().enumerate() {
        for at in 0..commit.len() {
            for bit in [1, 32] {
                let mut changed = commits.clone();
                changed[i][at] ^= bit;
                let verdict = verify(&changed);
                assert!(verdict.is_err() || verdict.is_ok_and(|c| c.root() != honest), "commit {i} byte {at}");
            }
        }
    }
}

#[test]
fn dropped_swapped_and_repeated_commits_are_found() {
    let commits = log(&[1, 1, 1, 1]);
    let pick = |order: &[usize]| verify(&order.iter().map(|i| commits[*i].clone()).collect::<Vec<_>>());
    assert!(matches!(pick(&[0, 2, 3]), Err(ChainError::Number { expected: 2, found: 3 })));
    assert!(pick(&[0, 2, 1, 3]).is_err());
    assert!(pick(&[0, 0, 1]).is_err());
}

#[test]
fn a_truncated_log_has_another_root() {
    let commits = log(&[1, 1, 1, 1]);
    assert_ne!(verify(&commits[..3]).expect("a prefix verifies").root(), verify(&commits).expect("verifies").root());
}

#[test]
fn a_log_of_another_key_is_refused() {
    let mut other = Chain::new(key(2).public());
    assert!(matches!(other.accept::<Value>(&log(&[1])[0]), Err(ChainError::Writer { seq: 1, .. })));
}

#[test]
fn a_clock_that_steps_back_does_not_break_the_log() {
    let mut chain = Chain::new(key(1).public());
    for ms in [100, 50] {
        let content = chain.seal(at(ms), vec![("tick", None)], &key(1)).expect("seals");
        chain.accept::<Value>(&content).expect("is the next");
    }
    assert_eq!(chain.last_at(), at(100));
}

#[test]
fn what_no_reader_would_take_is_not_sealed() {
    let chain = Chain::new(key(1).public());
    let long = "x".repeat(MAX_ENTRY_BYTES);
    assert!(matches!(chain.seal(at(1), vec![(long, None)], &key(1)), Err(ChainError::TooLong { seq: 1, .. })));
    let mut empty = chain.clone();
    let none = chain.seal::<String>(at(1), vec![], &key(1)).expect("nothing to refuse yet");
    assert!(empty.accept::<Value>(&none).is_err(), "a commit without entries is none");
}

fn named(keys: &[u8]) -> Option<BTreeSet<PublicKey>> {
    Some(keys.iter().map(|n| key(*n).public()).collect())
}

/// Appends an entry by key `n` that names successors, and gives what the chain says.
fn write(chain: &mut Chain, n: u8, successors: Option<&[u8]>) -> Result<(), ChainError> {
    let content = chain.seal(at(1), vec![("event", successors.and_then(named))], &key(n)).expect("seals");
    chain.accept::<Value>(&content).map(drop)
}

#[test]
fn a_successor_takes_the_log_over_and_the_one_before_it_is_deposed() {
    let mut chain = Chain::new(key(1).public());
    assert!(matches!(write(&mut chain, 2, None), Err(ChainError::Writer { seq: 1, .. })), "nobody is named yet");
    write(&mut chain, 1, Some(&[2, 3])).expect("the founder writes");
    write(&mut chain, 1, None).expect("naming successors gives nothing up");
    assert!(write(&mut chain, 4, None).is_err(), "a key that was not named");
    write(&mut chain, 2, None).expect("a successor takes it over");
    assert_eq!((chain.founder(), chain.writer()), (key(1).public(), key(2).public()));
    assert!(matches!(write(&mut chain, 1, None), Err(ChainError::Writer { seq: 4, .. })), "deposed");
    write(&mut chain, 3, Some(&[1])).expect("the other successor is still named");
    assert!(write(&mut chain, 2, None).is_err(), "and now it is not");
    write(&mut chain, 1, None).expect("the founder is named again");
}

/// Entries as a successor could write them that wants to hide what was before.
fn taken(after: Option<String>) -> Entry<&'static str> {
    Entry { seq: 2, writer: Some(key(2).public()), after, successors: None, was: None, at: at(2), event: "mine" }
}

#[test]
fn a_successor_must_show_what_its_predecessor_signed() {
    let mut chain = Chain::new(key(1).public());
    write(&mut chain, 1, Some(&[2])).expect("the founder writes");
    let honest = chain.sealed().expect("signed").to_string();
    let other = {
        let mut fork = Chain::new(key(1).public());
        write(&mut fork, 1, None).expect("another history");
        fork.sealed().expect("signed").to_string()
    };
    let by_itself = SignedCheckpoint::by(chain.sealed().expect("signed").checkpoint().clone(), &key(2)).to_string();
    for wrong in [None, Some(other), Some(by_itself), Some("no note".into())] {
        let content = chain.seal_entries([taken(wrong)], &key(2)).expect("seals");
        assert!(chain.clone().accept::<Value>(&content).is_err());
    }
    let content = chain.seal_entries([taken(Some(honest))], &key(2)).expect("seals");
    chain.accept::<Value>(&content).expect("the honest one");
}

#[test]
fn the_checkpoint_of_a_commit_is_by_its_writer_alone() {
    let chain = Chain::new(key(1).public());
    let content = chain.seal(at(1), vec![("event", None)], &key(1)).expect("seals");
    let text = String::from_utf8(content).expect("text");
    let (entries, note) = text.split_once("\n\n").expect("two parts");
    let mut note: SignedCheckpoint = note.parse().expect("a note");
    note.add(&note.cosign(&"france".parse().expect("a name"), &key(2), at(1)));
    let changed = format!("{entries}\n\n{note}");
    assert!(chain.clone().accept::<Value>(changed.as_bytes()).is_err());
}

/// All bundles of a log, with their tiles.
fn bundles(commits: &[Vec<u8>]) -> Vec<(Tile, Vec<u8>)> {
    let entries: Vec<Vec<u8>> = commits
        .iter()
        .flat_map(|content| {
            let text = std::str::from_utf8(content).expect("text");
            text.split_once("\n\n").expect("two parts").0.lines().map(|line| line.as_bytes().to_vec())
        })
        .collect();
    let tiles = Tile::all(entries.len() as u64).into_iter().filter(|tile| tile.kind == TileKind::Entries);
    tiles
        .map(|tile| {
            let range = tile.range();
            let own = entries.iter().zip(0_u64..).filter(|(_, index)| range.contains(index));
            (tile, bundle(own.map(|(entry, _)| entry.as_slice())))
        })
        .collect()
}

#[test]
fn an_export_is_checked_bundle_by_bundle() {
    let commits = log(&[300, 300, 7]);
    let chain = verify(&commits).expect("verifies");
    let sealed = chain.sealed().expect("signed");
    let mut check = ExportCheck::new(key(1).public());
    let bundles = bundles(&commits);
    for (tile, content) in &bundles {
        let bundle = Bundle::read(tile, content).expect("reads");
        check.follow(&bundle).expect("follows");
    }
    let end = check.finish(sealed).expect("holds");
    assert_eq!((end.num_entries(), end.root()), (607, chain.root()));

    let (tile, content) = &bundles[1];
    assert!(ExportCheck::new(key(1).public()).follow(&Bundle::read(tile, content).expect("reads")).is_err(), "a gap");
    let mut changed = content.clone();
    changed[100] ^= 1;
    let is_found = Bundle::read(tile, &changed)
        .map_or(true, |bundle| bundle.root() != Bundle::read(tile, content).expect("reads").root());
    assert!(is_found);
    let other = SignedCheckpoint::by(sealed.checkpoint().clone(), &key(2));
    let mut check = ExportCheck::new(key(1).public());
    for (tile, content) in &bundles {
        check.follow(&Bundle::read(tile, content).expect("reads")).expect("follows");
    }
    assert!(check.finish(&other).is_err(), "signed by another");
}

#[test]
fn entries_are_named_up_to_the_last_number_there_is() {
    let error = Commit::<u32>::read(u64::MAX, b"1\nno number\n\nnote").expect_err("no number");
    assert!(matches!(error, ChainError::Unreadable { seq: u64::MAX, .. }), "{error}");
}
