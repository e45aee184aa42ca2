use super::*;
use serde_json::Value;
use tapestry_core::SecretKey;

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32].into())
}

/// A log of `n` entries by key 1, as stored bytes.
fn log(n: u64) -> Vec<Vec<u8>> {
    let mut chain = Chain::new(key(1).public());
    (1..=n)
        .map(|i| {
            let signed = chain.seal(Timestamp::from_ms(i * 10), format!("event {i}"), &key(1)).expect("seals");
            chain.accept(&signed).expect("is the next");
            serde_json::to_vec(&signed).expect("serialises")
        })
        .collect()
}

fn verify(entries: &[Vec<u8>]) -> Result<Chain, ChainError> {
    let mut chain = Chain::new(key(1).public());
    for bytes in entries {
        chain.accept_bytes::<Value>(bytes)?;
    }
    Ok(chain)
}

#[test]
fn an_honest_log_verifies_even_by_a_reader_who_does_not_know_its_events() {
    assert_eq!(verify(&log(5)).expect("verifies").num_entries(), 5);
}

#[test]
fn any_single_changed_byte_is_found() {
    let entries = log(3);
    let honest = verify(&entries).expect("verifies").head();
    for (i, entry) in entries.iter().enumerate() {
        for at in 0..entry.len() {
            let mut changed = entries.clone();
            changed[i][at] ^= 1;
            let verdict = verify(&changed);
            assert!(verdict.is_err() || verdict.is_ok_and(|c| c.head() != honest), "entry {i} byte {at}");
        }
    }
}

#[test]
fn dropped_swapped_and_repeated_entries_are_found() {
    let entries = log(4);
    let pick = |order: &[usize]| verify(&order.iter().map(|i| entries[*i].clone()).collect::<Vec<_>>());
    assert!(matches!(pick(&[0, 2, 3]), Err(ChainError::Number { expected: 2, found: 3 })));
    assert!(pick(&[0, 2, 1, 3]).is_err());
    assert!(pick(&[0, 0, 1]).is_err());
}

#[test]
fn a_truncated_log_has_another_head() {
    let entries = log(4);
    assert_ne!(verify(&entries[..3]).expect("a prefix verifies").head(), verify(&entries).expect("verifies").head());
}

#[test]
fn a_log_of_another_key_is_refused() {
    let mut other = Chain::new(key(2).public());
    assert!(matches!(other.accept_bytes::<Value>(&log(1)[0]), Err(ChainError::Broken { .. })));
}

#[test]
fn a_clock_that_steps_back_does_not_break_the_log() {
    let mut chain = Chain::new(key(1).public());
    for ms in [100, 50] {
        let signed = chain.seal(Timestamp::from_ms(ms), "tick", &key(1)).expect("seals");
        chain.accept(&signed).expect("is the next");
    }
    assert_eq!(chain.last_at(), Timestamp::from_ms(100));
}

/// Appends an entry by key `n` that names successors, and gives what the chain says.
fn write(chain: &mut Chain, n: u8, successors: Option<&[u8]>) -> Result<(), ChainError> {
    let named = successors.map(|named| named.iter().map(|n| key(*n).public()).collect());
    let signed = chain.seal_naming(Timestamp::from_ms(1), "event", named, &key(n)).expect("seals");
    chain.accept(&signed)
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

#[test]
fn the_writer_that_an_entry_names_is_the_one_that_signed_it() {
    let mut chain = Chain::new(key(1).public());
    let mut signed = chain.seal(Timestamp::from_ms(1), "event", &key(2)).expect("seals");
    signed.document.writer = key(1).public();
    assert!(matches!(chain.accept(&signed), Err(ChainError::Signature { seq: 1, .. })));
}
