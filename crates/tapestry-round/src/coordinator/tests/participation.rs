//! Members that are late, away, or back again.

use super::*;

/// A consortium that takes what is late by up to `late_rounds`, of `num_rounds` rounds.
fn asynchronous(late_rounds: u32, num_rounds: u32) -> Run {
    Run::new(|terms| {
        terms.rounds.late_rounds = late_rounds;
        terms.rounds.num_rounds = num_rounds;
    })
}

fn good(run: &mut Run, ms: u64, names: &[(&str, u8)]) {
    for (name, n) in names {
        run.contribute(ms, name, *n).expect("taken");
        run.screened(ms, name, 0.01, Some(1.0)).expect("taken");
    }
}

fn name(name: &str) -> MemberName {
    name.parse().expect("a name")
}

/// What Iran trains for the open round, to be sent later.
fn trained(run: &Run) -> CoordinatorInput {
    let contribution = Signed::by(run.contribution("iran"), &key(3)).expect("signs");
    CoordinatorInput::Contribute { sender: key(3).public(), contribution }
}

/// Round 1 has ended without Iran, and round 2 is open at `WINDOW + 1`.
fn round_one_without_iran(run: &mut Run) -> CoordinatorInput {
    let late = trained(run);
    good(run, 10, &[("france", 1), ("china", 2)]);
    run.input(WINDOW, CoordinatorInput::Tick).expect("ticks");
    run.merge(WINDOW + 1, 1.0);
    assert_eq!(run.last().verdicts[&name("iran")], Verdict::Missing);
    late
}

fn attend(run: &mut Run, ms: u64, number: u64, is_present: bool) -> Result<(), RoundError> {
    let charter = run.state.governance().expect("a charter").digest();
    let attendance = Attendance { charter, member: name("iran"), number, is_present, reason: "harvest".into() };
    let attendance = Signed::by(attendance, &key(3)).expect("signs");
    run.input(ms, CoordinatorInput::Attend { sender: key(3).public(), attendance })
}

#[test]
fn a_late_contribution_counts_in_the_next_round_with_the_charters_discount() {
    let mut run = asynchronous(1, 3);
    let late = round_one_without_iran(&mut run);
    run.input(WINDOW + 10, late.clone()).expect("taken late");
    let CoordinatorEvent::Late { round: 1, taken: Some(taken), reason, .. } = run.log.last().expect("an event") else {
        panic!("{:?}", run.log.last());
    };
    assert_eq!(taken.into, 2);
    assert!(reason.contains("rounds.late_rounds"), "{reason}");
    // It is held against the base that it was trained from.
    let CoordinatorEffect::Screen { round: 2, base, .. } = &run.state.pending()[0] else { panic!("not screened") };
    assert_eq!(*base, Digest::of(b"base"));
    run.input(WINDOW + 11, late).expect("the same again is confirmed again");
    run.screened(WINDOW + 12, "iran", 0.01, Some(1.0)).expect("taken");
    good(&mut run, WINDOW + 13, &[("france", 1), ("china", 2)]);
    run.merge(WINDOW + 14, 1.0);
    let Verdict::Accepted { staleness: 1, .. } = run.last().verdicts[&name("iran")] else { panic!("not accepted") };
    let weight =
        |member: &str| run.last().weights.iter().find(|record| record.member == name(member)).expect("a weight").weight;
    // (1 + 1) to the power of 0.5, the charter's exponent.
    assert!((weight("france") / weight("iran") - 2f64.sqrt()).abs() < 1e-12);
}

#[test]
fn what_comes_while_the_round_merges_waits_for_the_next() {
    let mut run = asynchronous(1, 2);
    let late = trained(&run);
    good(&mut run, 10, &[("france", 1), ("china", 2)]);
    run.input(WINDOW, CoordinatorInput::Tick).expect("ticks");
    assert!(matches!(run.state.round().expect("a round").phase, Phase::Merging { .. }));
    assert_eq!(run.state.takes_weights_of(&name("iran"), at(WINDOW)).expect("takes"), 1);
    assert!(run.state.takes_weights_of(&name("france"), at(WINDOW)).is_err(), "has answered");
    run.input(WINDOW, late).expect("taken late");
    assert!(run.state.late().contains_key(&name("iran")));
    run.merge(WINDOW + 1, 1.0);
    assert!(run.state.late().is_empty());
    assert!(matches!(run.state.pending()[..], [CoordinatorEffect::Screen { round: 2, .. }]));
}

#[test]
fn one_in_time_takes_the_place_of_a_late_one_and_never_the_other_way_round() {
    let mut run = asynchronous(1, 2);
    let late = round_one_without_iran(&mut run);
    run.input(WINDOW + 10, late.clone()).expect("taken late");
    let stale = run.received("iran");
    run.contribute(WINDOW + 11, "iran", 3).expect("the one for this round");
    let (round, member, weights) = stale;
    let screening = Screening::Measured { relative_change: 0.01, bpb: Some(1.0), community_bpb: None };
    let result = run.input(WINDOW + 12, CoordinatorInput::Screened { round, member, weights, screening });
    assert!(matches!(result, Err(RoundError::Unexpected { .. })), "a result of what was replaced is not taken");
    run.screened(WINDOW + 12, "iran", 0.01, Some(1.0)).expect("taken");
    let before = run.log.len();
    assert!(matches!(run.input(WINDOW + 13, late), Err(RoundError::OtherRound { .. })));
    assert_eq!(run.log.len(), before);
    good(&mut run, WINDOW + 14, &[("france", 1), ("china", 2)]);
    run.merge(WINDOW + 15, 1.0);
    let Verdict::Accepted { staleness: 0, .. } = run.last().verdicts[&name("iran")] else { panic!("not in time") };
}

#[test]
fn what_is_too_late_is_recorded_with_the_charters_term() {
    // The charter takes nothing late; it is the last round; it is two rounds late and one is allowed.
    for (late_rounds, num_rounds, skipped, term) in
        [(0, 3, 1, "rounds.late_rounds"), (1, 1, 1, "rounds.num_rounds"), (1, 3, 2, "rounds.late_rounds")]
    {
        let mut run = asynchronous(late_rounds, num_rounds);
        let late = round_one_without_iran(&mut run);
        for round in 1u32..skipped {
            let ms = u64::from(round) * (WINDOW + 100);
            good(&mut run, ms, &[("france", 1), ("china", 2)]);
            run.input(ms + WINDOW, CoordinatorInput::Tick).expect("ticks");
            run.merge(ms + WINDOW, 1.0);
        }
        let ms = 4 * WINDOW;
        let error = run.input(ms, late).expect_err("too late");
        assert!(matches!(&error, RoundError::Late { round: 1, reason } if reason.contains(term)), "{error}");
        let event = run.state.refusal(&name("iran"), &error).expect("recorded");
        assert!(
            matches!(&event, CoordinatorEvent::Late { round: 1, taken: None, reason, .. } if reason.contains(term))
        );
    }
}

#[test]
fn who_has_answered_a_round_cannot_be_late_for_it() {
    let mut run = asynchronous(1, 2);
    let mut other = run.contribution("iran");
    other.weights = Digest::of(b"another");
    let contribution = Signed::by(other, &key(3)).expect("signs");
    run.all_contribute(10);
    run.merge(20, 1.0);
    let result = run.input(30, CoordinatorInput::Contribute { sender: key(3).public(), contribution });
    assert!(matches!(result, Err(RoundError::OtherRound { .. })), "{result:?}");
}

#[test]
fn rounds_do_not_wait_for_a_member_that_is_away_and_do_again_when_it_is_back() {
    let mut run = asynchronous(0, 3);
    good(&mut run, 10, &[("france", 1), ("china", 2)]);
    attend(&mut run, 11, 1, false).expect("leaves");
    run.merge(12, 1.0);
    assert_eq!(run.last().verdicts[&name("iran")], Verdict::Away { reason: "harvest".into() });
    // In the next round it is away from the start, comes back in the middle, and is awaited.
    assert!(run.state.round().expect("a round").answers.contains_key(&name("iran")));
    attend(&mut run, 13, 2, true).expect("comes back");
    good(&mut run, 14, &[("france", 1), ("china", 2)]);
    assert!(matches!(run.state.round().expect("a round").phase, Phase::Collecting));
    good(&mut run, 15, &[("iran", 3)]);
    run.merge(16, 1.0);
}

#[test]
fn an_attendance_is_taken_once_in_its_order_and_from_its_member() {
    let mut run = asynchronous(0, 2);
    attend(&mut run, 1, 1, false).expect("leaves");
    let before = run.log.len();
    attend(&mut run, 2, 1, false).expect("the same again is confirmed again");
    assert_eq!(run.log.len(), before);
    for (number, is_present) in [(1, true), (0, true)] {
        let error = attend(&mut run, 3, number, is_present).expect_err("not taken");
        assert!(matches!(error, RoundError::OldAttendance { last: 1, .. }), "{error}");
    }
    attend(&mut run, 4, 2, true).expect("comes back");
    assert!(attend(&mut run, 5, 1, false).is_err(), "a replayed leave does not send it away again");
    let charter = run.state.governance().expect("a charter").digest();
    let foreign = Attendance { charter, member: name("iran"), number: 3, is_present: false, reason: String::new() };
    let attendance = Signed::by(foreign, &key(1)).expect("signs");
    let result = run.input(6, CoordinatorInput::Attend { sender: key(1).public(), attendance });
    assert!(matches!(result, Err(RoundError::OtherMember { .. })), "{result:?}");
}

#[test]
fn the_silent_are_given_up_by_a_term_of_the_charter() {
    let mut run = asynchronous(0, 2);
    run.input(WINDOW, CoordinatorInput::Tick).expect("ticks");
    let reasons: Vec<_> = run
        .log
        .iter()
        .filter_map(|event| match event {
            CoordinatorEvent::Missing { reason, .. } => Some(reason.contains("rounds.window_ms")),
            _ => None,
        })
        .collect();
    assert_eq!(reasons, [true; 3]);
}

/// Found by the simulator: a member whose late contribution was its answer to round 2 could not be late again for round 2 itself.
#[test]
fn a_slow_member_is_late_in_every_round_and_counts_in_every_round() {
    let mut run = asynchronous(1, 3);
    let mut late = round_one_without_iran(&mut run);
    let mut ms = WINDOW + 10;
    for round in 2..=3 {
        let next = trained(&run);
        run.input(ms, late).expect("taken late");
        run.screened(ms, "iran", 0.01, Some(1.0)).expect("taken");
        good(&mut run, ms, &[("france", 1), ("china", 2)]);
        run.merge(ms, 1.0);
        let verdict = &run.last().verdicts[&name("iran")];
        assert!(matches!(verdict, Verdict::Accepted { staleness: 1, .. }), "round {round}: {verdict:?}");
        (late, ms) = (next, ms + 10);
    }
}

/// Found by the simulator: messages that cross on the way are nobody's misbehaviour.
#[test]
fn an_operator_who_changes_his_mind_is_not_blamed() {
    let decline = |run: &Run| {
        let Contribution { charter, round, member, .. } = run.contribution("iran");
        let decline = Decline { charter, round, member, reason: String::new() };
        let decline = Signed::by(decline, &key(3)).expect("signs");
        CoordinatorInput::Decline { sender: key(3).public(), decline }
    };
    let mut run = asynchronous(0, 2);
    run.contribute(10, "iran", 3).expect("taken");
    let error = run.input(11, decline(&run)).expect_err("the first answer stands");
    assert_eq!(error.blame(), crate::Blame::Timing, "{error}");
    let mut run = asynchronous(0, 2);
    run.input(10, decline(&run)).expect("taken");
    let error = run.contribute(11, "iran", 3).expect_err("the first answer stands");
    assert_eq!(error.blame(), crate::Blame::Timing, "{error}");
    // Away, and then its contribution after all: it is back, whichever message comes first.
    let mut run = asynchronous(0, 2);
    attend(&mut run, 10, 1, false).expect("leaves");
    run.contribute(11, "iran", 3).expect("taken");
    // A decline that was sent before, while the round merges without its member.
    let mut run = asynchronous(0, 2);
    attend(&mut run, 10, 1, false).expect("leaves");
    good(&mut run, 11, &[("france", 1), ("china", 2)]);
    run.input(12, decline(&run)).expect("confirmed; nothing follows");
}
