//! A node that is late, keeps its weights, declines, or is away.

use super::*;
use crate::Verdict;

/// A charter under which a contribution may be late by `late_rounds`, and what France hears under it.
struct Terms(Signed<Charter>);

impl Terms {
    fn new(late_rounds: u32) -> Self {
        let mut terms = CharterTerms::from(charter(&[]).document);
        terms.rounds.late_rounds = late_rounds;
        let mut signed = Signed::unsigned(Charter::try_from(terms).expect("sound terms"));
        for n in 1..=2 {
            signed.sign(&key(n)).expect("signs");
        }
        Self(signed)
    }

    fn joined(&self) -> Run {
        let mut run = Run::new(FRANCE);
        run.input(NodeInput::join(self.0.clone())).expect("joins");
        run
    }

    fn news(&self, open: Option<(u32, &str)>, ended: Option<(u32, &str, Verdict)>) -> NodeInput {
        let charter = self.0.digest().expect("canonical");
        let open = open.map(|(round, base)| Announcement { charter, ..announcement(round, base) });
        let ended = ended.map(|(round, base, verdict)| {
            let verdicts = BTreeMap::from([("france".parse().expect("a name"), verdict)]);
            Outcome { charter, verdicts, ..outcome(round, base) }
        });
        news(COORDINATOR, open, ended)
    }

    /// A node that has begun to train for round 1.
    fn training(&self) -> Run {
        let mut run = self.joined();
        run.input(self.news(Some((1, "base")), None)).expect("taken");
        run.input(NodeInput::BasePulled { base: digest("base"), transfer: TRANSFER }).expect("pulled");
        run
    }
}

fn contributed() -> ContributedCpt {
    ContributedCpt::from_training(digest("weights"), METRICS)
}

fn first(run: &Run) -> NodeEffect {
    run.state.pending().into_iter().next().expect("something to do")
}

#[test]
fn what_was_begun_is_finished_and_sent_late_where_the_charter_lets_it() {
    let terms = Terms::new(1);
    let mut run = terms.training();
    run.input(terms.news(Some((2, "one")), Some((1, "one", Verdict::Missing)))).expect("taken");
    assert_eq!(first(&run), NodeEffect::Train { round: 1, base: digest("base") });
    run.input(NodeInput::Trained { round: 1, contributed: contributed() }).expect("trained");
    let NodeEffect::SendContribution { contribution } = first(&run) else { panic!("{:?}", first(&run)) };
    assert_eq!((contribution.round, contribution.base), (1, digest("base")));
    run.input(NodeInput::ContributionSent { round: 1, transfer: TRANSFER }).expect("sent");
    assert_eq!(first(&run), NodeEffect::PullBase { base: digest("one") }, "and on with the open round");
}

#[test]
fn a_late_contribution_that_is_refused_is_given_up() {
    let terms = Terms::new(1);
    let mut run = terms.training();
    run.input(NodeInput::Trained { round: 1, contributed: contributed() }).expect("trained");
    assert!(matches!(run.refuses(NodeInput::LateRefused { round: 1 }), RoundError::Unexpected { .. }), "not late yet");
    run.input(terms.news(Some((2, "one")), Some((1, "one", Verdict::Missing)))).expect("taken");
    assert!(matches!(first(&run), NodeEffect::SendContribution { .. }));
    run.input(NodeInput::LateRefused { round: 1 }).expect("taken");
    assert_eq!(first(&run), NodeEffect::PullBase { base: digest("one") });
}

#[test]
fn nothing_is_sent_late_that_cannot_count() {
    let accepted = Verdict::Accepted { bpb: 1.0, relative_change: 0.1, community_bpb: None, staleness: 0 };
    // The charter takes nothing late; the coordinator has it already; no round follows.
    for (late_rounds, ended) in
        [(0, (1, "one", Verdict::Missing)), (1, (1, "one", accepted)), (1, (2, "two", Verdict::Missing))]
    {
        let terms = Terms::new(late_rounds);
        let mut run = terms.training();
        run.input(NodeInput::Trained { round: 1, contributed: contributed() }).expect("trained");
        run.input(terms.news(None, Some(ended.clone()))).expect("taken");
        assert_eq!(run.state.late_round(), None, "{ended:?}");
        assert_eq!(first(&run), NodeEffect::PullBase { base: digest(ended.1) });
    }
}

#[test]
fn weights_that_are_kept_private_are_trained_measured_and_not_sent() {
    let terms = Terms::new(0);
    let mut run = terms.joined();
    let reason = "elections".to_owned();
    run.input(NodeInput::Participate(Participation::KeepPrivate { reason })).expect("taken");
    run.input(terms.news(Some((1, "base")), None)).expect("taken");
    run.input(NodeInput::BasePulled { base: digest("base"), transfer: TRANSFER }).expect("pulled");
    assert!(matches!(first(&run), NodeEffect::Train { round: 1, .. }));
    run.input(NodeInput::Trained { round: 1, contributed: contributed() }).expect("trained");
    let NodeEffect::SendDecline { decline } = first(&run) else { panic!("{:?}", first(&run)) };
    assert_eq!(decline.reason, "the weights of this round stay private: elections");
    run.input(NodeInput::DeclineSent { round: 1 }).expect("sent");
    let own = Subject::OwnCpt { round: 1 };
    let measures = |effect: &NodeEffect| matches!(effect, NodeEffect::Measure { subject, .. } if *subject == own);
    assert!(run.state.pending().iter().any(measures));
    let sends = |effect: &NodeEffect| matches!(effect, NodeEffect::SendContribution { .. });
    assert!(!run.state.pending().iter().any(sends));
}

#[test]
fn a_change_of_mind_holds_back_what_was_not_sent_yet_and_nothing_else() {
    let terms = Terms::new(0);
    for participation in [
        Participation::KeepPrivate { reason: String::new() },
        Participation::Decline { reason: String::new() },
        Participation::Away { reason: String::new() },
    ] {
        let mut run = terms.training();
        run.input(NodeInput::Trained { round: 1, contributed: contributed() }).expect("trained");
        run.input(NodeInput::Participate(participation.clone())).expect("taken");
        run.input(NodeInput::Participate(participation.clone())).expect("the same again changes nothing");
        let sends = |effect: &NodeEffect| matches!(effect, NodeEffect::SendContribution { .. });
        assert!(!run.state.pending().iter().any(sends), "{:?}", run.state.pending());
        let mut sent = terms.training();
        sent.input(NodeInput::Trained { round: 1, contributed: contributed() }).expect("trained");
        sent.input(NodeInput::ContributionSent { round: 1, transfer: TRANSFER }).expect("sent");
        sent.input(NodeInput::Participate(participation)).expect("taken");
        assert!(matches!(sent.state.round().expect("a round").progress, Progress::Sent(_)));
    }
}

#[test]
fn a_member_that_declines_does_not_train() {
    let terms = Terms::new(0);
    let mut run = terms.joined();
    run.input(NodeInput::Participate(Participation::Decline { reason: "harvest".into() })).expect("taken");
    run.input(terms.news(Some((1, "base")), None)).expect("taken");
    let NodeEffect::SendDecline { decline } = first(&run) else { panic!("{:?}", first(&run)) };
    assert_eq!(decline.reason, "harvest");
}

#[test]
fn who_is_back_says_so_even_if_nobody_has_confirmed_that_it_left() {
    // Found by the simulator: the coordinator had heard the first, and the member did not know.
    let mut run = Terms::new(0).joined();
    run.input(NodeInput::Participate(Participation::Away { reason: "war".into() })).expect("taken");
    run.input(NodeInput::Participate(Participation::Contribute)).expect("taken");
    let NodeEffect::SendAttendance { attendance } = first(&run) else { panic!("{:?}", first(&run)) };
    assert_eq!((attendance.number, attendance.is_present), (2, true));
    let late = run.refuses(NodeInput::AttendanceSent { number: 1 });
    assert!(matches!(late, RoundError::Unexpected { .. }), "{late}");
    run.input(NodeInput::AttendanceSent { number: 2 }).expect("sent");
    assert_eq!(run.state.pending(), vec![]);
}

#[test]
fn a_member_leaves_says_so_and_comes_back() {
    let terms = Terms::new(1);
    let mut run = terms.joined();
    run.input(NodeInput::Participate(Participation::Away { reason: "war".into() })).expect("taken");
    let NodeEffect::SendAttendance { attendance } = first(&run) else { panic!("{:?}", first(&run)) };
    assert_eq!((attendance.number, attendance.is_present, attendance.reason.as_str()), (1, false, "war"));
    assert!(matches!(run.refuses(NodeInput::AttendanceSent { number: 2 }), RoundError::Unexpected { .. }));
    run.input(NodeInput::AttendanceSent { number: 1 }).expect("sent");
    run.input(terms.news(Some((1, "base")), None)).expect("taken");
    assert_eq!((run.state.round(), run.state.pending()), (None, vec![]), "neither trains nor fetches");
    run.input(NodeInput::Participate(Participation::Contribute)).expect("taken");
    let NodeEffect::SendAttendance { attendance } = first(&run) else { panic!("{:?}", first(&run)) };
    assert_eq!((attendance.number, attendance.is_present), (2, true));
    run.input(NodeInput::AttendanceSent { number: 2 }).expect("sent");
    run.input(terms.news(Some((1, "base")), None)).expect("taken");
    assert_eq!(first(&run), NodeEffect::PullBase { base: digest("base") });
}
