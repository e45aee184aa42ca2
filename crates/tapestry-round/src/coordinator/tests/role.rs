//! How the coordinator's role changes hands.

use super::*;

fn take(run: &Run, n: u8) -> Result<CoordinatorInput, RoundError> {
    let tenure = run.state.next_tenure(key(n).public(), None)?;
    Ok(CoordinatorInput::TakeRole { tenure: Signed::by(tenure, &key(n)).expect("signs") })
}

#[test]
fn a_standby_takes_the_role_in_the_middle_of_a_round_and_the_round_goes_on() {
    let mut run = Run::new(|_| {});
    run.contribute(1, "france", 1).expect("arrives");
    run.contribute(2, "china", 2).expect("arrives");
    let (before, pending) = (run.state.round().cloned(), run.state.pending());
    run.input(3, take(&run, 8).expect("a standby may")).expect("takes it");
    assert_eq!(run.state.holder(), key(8).public());
    assert_eq!(run.state.tenure_number(), 2);
    assert_eq!((run.state.round().cloned(), run.state.pending()), (before, pending));
    // What was confirmed before is known after: sent again, it is taken as the same.
    run.contribute(4, "france", 1).expect("the same");
    run.contribute(5, "iran", 3).expect("arrives");
    for name in ["france", "china", "iran"] {
        run.screened(6, name, 0.01, Some(0.9)).expect("screened");
    }
    assert!(matches!(run.state.round().expect("open").phase, Phase::Merging { .. }));
}

#[test]
fn only_those_whom_the_charter_names_take_the_role_each_at_its_turn() {
    let mut run = Run::new(|_| {});
    for n in [1, 6] {
        assert!(matches!(take(&run, n), Err(RoundError::Charter(_))), "{n}");
    }
    assert!(matches!(take(&run, 9), Err(RoundError::Role { .. })), "it has the role");
    let (of_8, of_7) = (take(&run, 8).expect("may"), take(&run, 7).expect("may"));
    run.input(1, of_8.clone()).expect("the first");
    for late in [of_7, of_8] {
        assert!(matches!(run.input(2, late), Err(RoundError::Role { .. })), "its turn is over");
    }
    let tenure = run.state.next_tenure(key(9).public(), None).expect("the founder may take it back");
    let forged = CoordinatorInput::TakeRole { tenure: Signed::by(tenure, &key(7)).expect("signs") };
    assert!(matches!(run.input(3, forged), Err(RoundError::Signature(_))));
    run.input(3, take(&run, 9).expect("may")).expect("takes it back");
    assert_eq!((run.state.holder(), run.state.tenure_number()), (key(9).public(), 3));
}

#[test]
fn after_a_hand_over_nothing_is_decided_until_the_named_one_takes_the_role() {
    let mut run = Run::new(|_| {});
    run.contribute(1, "france", 1).expect("arrives");
    let give =
        |to: u8, address: &str| CoordinatorInput::HandOver { to: key(to).public(), address: Some(address.into()) };
    assert!(matches!(run.input(2, give(1, "a:1")), Err(RoundError::Charter(_))), "not to a member");
    for (to, address) in [(9, "a:1"), (8, "no port"), (8, "a:0"), (8, ":1")] {
        assert!(matches!(run.input(2, give(to, address)), Err(RoundError::Role { .. })), "{to} {address}");
    }
    run.input(2, give(8, "example.org:7443")).expect("hands over");
    assert!(run.state.pending().is_empty() && run.state.next_deadline().is_none());
    run.input(WINDOW * 2, CoordinatorInput::Tick).expect("time passes");
    assert!(matches!(run.log.last(), Some(CoordinatorEvent::RoleHandedOver { .. })), "and nothing follows from it");
    assert!(matches!(run.contribute(3, "china", 2), Err(RoundError::HandedOver { .. })));
    assert!(matches!(
        run.state.takes_weights_of(&"china".parse().expect("a name"), at(3)),
        Err(RoundError::HandedOver { .. })
    ));
    assert!(matches!(run.input(3, give(7, "a:1")), Err(RoundError::HandedOver { .. })), "it is given already");
    assert!(take(&run, 7).is_err(), "to nobody else");
    run.input(4, take(&run, 8).expect("it was given to it")).expect("takes it");
    assert!(run.state.hand_over().is_none());
    run.contribute(5, "china", 2).expect("the round goes on");
}

#[test]
fn the_log_names_who_may_take_it_over() {
    let run = Run::new(|_| {});
    let keys = |ns: &[u8]| Some(ns.iter().map(|n| key(*n).public()).collect());
    let named = |run: &Run, event: &CoordinatorEvent| run.state.successors(event);
    assert_eq!(named(&run, &run.log[0]), keys(&[7, 8, 9]));
    assert_eq!(named(&run, &run.log[1]), None);
    let give = CoordinatorInput::HandOver { to: key(7).public(), address: None };
    let events = run.state.handle(at(1), give).expect("gives");
    assert_eq!(named(&run, &events[0]), keys(&[7]));
    let events = run.state.handle(at(1), take(&run, 8).expect("may")).expect("takes");
    assert_eq!(named(&run, &events[0]), keys(&[7, 8, 9]));
}
