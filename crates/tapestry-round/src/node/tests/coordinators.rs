//! Whom a node follows when the coordinator's role changes hands.

use super::*;
use crate::{Blame, HandOver, Tenure};

/// Key `n` takes the role for the `number`th time that it is held.
fn tenure(n: u8, number: u64) -> Signed<Tenure> {
    let charter = charter(&[]).digest().expect("canonical");
    let address = Some("standby.example:7443".into());
    Signed::by(Tenure { charter, number, coordinator: key(n).public(), address }, &key(n)).expect("signs")
}

fn hand_over(signer: u8, number: u64, to: u8) -> Signed<HandOver> {
    let charter = charter(&[]).digest().expect("canonical");
    let address = Some("other.example:7443".into());
    Signed::by(HandOver { charter, number, to: key(to).public(), address }, &key(signer)).expect("signs")
}

/// News that `signer` signs in a tenure, with an open round.
fn news_in(signer: u8, tenure: Option<Signed<Tenure>>, hand_over: Option<Signed<HandOver>>, round: u32) -> NodeInput {
    let NodeInput::News(news) = news(signer, Some(announcement(round, "base")), None) else { unreachable!() };
    NodeInput::News(News { tenure, hand_over, ..news })
}

#[test]
fn a_node_follows_a_standby_that_took_the_role_and_no_longer_who_had_it() {
    let mut run = Run::joined();
    run.input(news_in(STANDBY, Some(tenure(STANDBY, 2)), None, 1)).expect("a standby may take the role");
    assert_eq!(run.state.coordinator(), Some(key(STANDBY).public()));
    assert_eq!(run.state.round().expect("its round is taken").announcement.round, 1);
    let told: Vec<_> = run.state.coordinator_addresses().values().cloned().collect();
    assert_eq!(told, ["standby.example:7443"]);
    // What the deposed coordinator says is not taken, and nobody is blamed: it may not know yet.
    let error = run.refuses(news(COORDINATOR, None, Some(outcome(1, "one"))));
    assert!(matches!(error, RoundError::Deposed { known: 2, found: 1, .. }), "{error}");
    assert_eq!(error.blame(), Blame::Timing);
    // It may take the role back.
    run.input(news_in(COORDINATOR, Some(tenure(COORDINATOR, 3)), None, 1)).expect("takes it back");
    assert_eq!(run.state.coordinator(), Some(key(COORDINATOR).public()));
    assert!(matches!(run.refuses(news_in(STANDBY, Some(tenure(STANDBY, 2)), None, 1)), RoundError::Deposed { .. }));
}

#[test]
fn nobody_takes_the_role_whom_the_charter_does_not_name() {
    let mut run = Run::joined();
    let error = run.refuses(news_in(STRANGER, Some(tenure(STRANGER, 2)), None, 1));
    assert!(matches!(error, RoundError::Charter(CharterError::NotAStandby { .. })), "{error}");
    // A member is not a standby either.
    assert!(matches!(run.refuses(news_in(2, Some(tenure(2, 2)), None, 1)), RoundError::Charter(_)));
    // A standby's tenure that somebody else signed, and one of another charter.
    let mut forged = tenure(STANDBY, 2);
    forged.signatures = tenure(STRANGER, 2).signatures;
    assert!(matches!(run.refuses(news_in(STANDBY, Some(forged), None, 1)), RoundError::Signature(_)));
    let other = Tenure { charter: digest("other"), ..tenure(STANDBY, 2).document };
    let other = Signed::by(other, &key(STANDBY)).expect("signs");
    assert!(matches!(run.refuses(news_in(STANDBY, Some(other), None, 1)), RoundError::OtherCharter { .. }));
}

#[test]
fn a_standby_that_has_not_taken_the_role_announces_nothing() {
    let mut run = Run::joined();
    assert!(matches!(run.refuses(news_in(STANDBY, None, None, 1)), RoundError::Signature(_)));
    // And with another's tenure it announces nothing either.
    run.input(news_in(STANDBY, Some(tenure(STANDBY, 2)), None, 1)).expect("takes it");
    let error = run.refuses(news_in(COORDINATOR, Some(tenure(STANDBY, 2)), None, 2));
    assert!(matches!(error, RoundError::Signature(_)), "{error}");
}

#[test]
fn of_two_that_claim_one_tenure_the_second_is_blamed() {
    let mut run = Run::joined();
    run.input(news_in(STANDBY, Some(tenure(STANDBY, 2)), None, 1)).expect("takes it");
    let error = run.refuses(news_in(COORDINATOR, Some(tenure(COORDINATOR, 2)), None, 1));
    assert!(matches!(error, RoundError::Role { .. }), "{error}");
    assert_eq!(error.blame(), Blame::Coordinator);
}

#[test]
fn a_hand_over_says_where_to_ask_next() {
    let mut run = Run::joined();
    run.input(news_in(COORDINATOR, None, Some(hand_over(COORDINATOR, 1, STANDBY)), 1)).expect("hands over");
    assert_eq!(run.state.coordinator(), Some(key(COORDINATOR).public()), "nobody has taken it yet");
    assert_eq!(run.state.coordinator_addresses()[&key(STANDBY).public()], "other.example:7443");
    let num_events = run.log.len();
    run.input(news_in(COORDINATOR, None, Some(hand_over(COORDINATOR, 1, STANDBY)), 1)).expect("twice");
    assert_eq!(run.log.len(), num_events, "the same is not written twice");
    for (signer, to) in [(STANDBY, STANDBY), (COORDINATOR, STRANGER)] {
        run.refuses(news_in(COORDINATOR, None, Some(hand_over(signer, 1, to)), 1));
    }
    let mut wild = hand_over(COORDINATOR, 1, STANDBY).document;
    wild.address = Some("no port".into());
    let wild = Signed::by(wild, &key(COORDINATOR)).expect("signs");
    assert!(matches!(run.refuses(news_in(COORDINATOR, None, Some(wild), 1)), RoundError::Role { .. }));
}
