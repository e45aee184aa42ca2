//! What members decide, as the coordinator counts it; and what its operator cannot do.

use super::*;
use std::collections::BTreeSet;
use tapestry_governance::{
    Change, Choice, DecisionKind, DecisionTerms, Departure, GovernanceError, GovernanceTerms, KeyRotation, Leaving,
    Proposal, Vote,
};
use tapestry_ledger::{Checkpoint, SignedCheckpoint, TreeHash};

const NAMES: [&str; 3] = ["france", "china", "iran"];

fn rules(witnesses: u32, leaving: Leaving) -> GovernanceTerms {
    let decisions = DecisionTerms { min_open_ms: 1000, percent: DecisionKind::ALL.map(|kind| (kind, 50)).into() };
    GovernanceTerms { text: String::new(), decisions, witnesses, leaving }
}

fn governed(witnesses: u32) -> Run {
    Run::new(|terms| {
        terms.merge.influence_cap = 1.0;
        terms.rounds.min_contributions = 1;
        terms.governance = Some(rules(witnesses, Leaving::Counts));
    })
}

fn name(n: u8) -> MemberName {
    NAMES[usize::from(n) - 1].parse().expect("a name")
}

impl Run {
    fn change(&self, change: impl FnOnce(&mut CharterTerms)) -> Change {
        let mut terms = self.state.governance().expect("governed").next_terms();
        change(&mut terms);
        Change::Charter(Box::new(terms))
    }

    fn proposal(&self, ms: u64, by: u8, change: Change) -> Proposal {
        Proposal {
            charter: self.state.governance().expect("governed").digest(),
            member: name(by),
            change,
            rationale: "Because.".into(),
            consulted: vec![],
            made_at: at(ms),
            closes_at: at(ms + 5000),
        }
    }

    fn propose(&mut self, ms: u64, by: u8, change: Change) -> Result<Digest, RoundError> {
        let proposal = Signed::by(self.proposal(ms, by, change), &key(by)).expect("signs");
        let digest = proposal.digest().expect("canonical");
        self.input(ms, CoordinatorInput::Propose { sender: key(by).public(), proposal: Box::new(proposal) })?;
        Ok(digest)
    }

    fn vote(&mut self, ms: u64, proposal: Digest, by: u8, choice: Choice) -> Result<(), RoundError> {
        let charter = self.state.governance().expect("governed").digest();
        let vote = Vote { charter, proposal, member: name(by), choice, reason: String::new() };
        let vote = Signed::by(vote, &key(by)).expect("signs");
        self.input(ms, CoordinatorInput::Vote { sender: key(by).public(), vote })
    }

    fn version(&self) -> u32 {
        self.state.charter().expect("a charter").document.version
    }

    /// A checkpoint of so many entries, cosigned by members.
    fn witnessed(&self, size: u64, by: &[u8], writer: u8) -> String {
        let root = TreeHash::of_leaf(&size.to_be_bytes());
        let checkpoint = Checkpoint { origin: tapestry_ledger::origin(key(9).public()), size, root };
        let mut note = SignedCheckpoint::by(checkpoint, &key(writer));
        for n in by {
            note.add(&note.cosign(&name(*n), &key(*n), at(0)));
        }
        note.to_string()
    }
}

#[test]
fn a_decision_waits_for_the_end_of_the_round_and_the_next_runs_by_it() {
    let mut run = governed(0);
    let change = run.change(|terms| terms.rounds.window_ms = 90_000);
    let proposal = run.propose(10, 1, change).expect("taken");
    for (n, choice) in [(1, Choice::Yes), (2, Choice::Yes), (3, Choice::No)] {
        run.vote(20, proposal, n, choice).expect("taken");
    }
    run.input(10_000, CoordinatorInput::Tick).expect("ticks");
    assert_eq!((run.version(), run.number()), (1, 1), "the open round ends under its own charter");
    run.all_contribute(10_100);
    run.merge(10_200, 1.0);
    assert_eq!((run.version(), run.number()), (2, 2));
    let round = run.state.round().expect("a round");
    let window = round.announcement.closes_at.since(round.announcement.opened_at);
    assert_eq!(window, std::time::Duration::from_secs(90));
    assert_eq!(round.announcement.charter, run.state.governance().expect("governed").digest());
    let order: Vec<_> = run
        .log
        .iter()
        .map(CoordinatorEvent::name)
        .filter(|n| ["ended", "decided", "round_announced"].contains(n))
        .collect();
    assert_eq!(order, ["round_announced", "ended", "decided", "round_announced"]);
    // A contribution for round 1, made under the charter of then, is still known as what it is: too late.
    assert!(run.contribute(10_300, "france", 1).is_ok(), "and the next is taken");
}

#[test]
fn a_proposal_that_too_few_carry_or_that_another_overtook_changes_nothing() {
    let mut run = governed(0);
    run.all_contribute(100);
    let gate = |rise: f64| move |terms: &mut CharterTerms| terms.gate.max_bpb_rise = rise;
    let (first, second) = (run.change(gate(0.9)), run.change(gate(0.8)));
    let first = run.propose(110, 1, first).expect("taken");
    let second = run.propose(120, 2, second).expect("taken");
    run.vote(130, second, 2, Choice::Yes).expect("taken");
    run.vote(130, second, 3, Choice::Yes).expect("taken");
    run.vote(140, first, 1, Choice::Yes).expect("taken");
    assert!(matches!(run.vote(140, first, 1, Choice::No), Err(RoundError::NotNow { .. })), "the first vote stands");
    run.vote(140, first, 1, Choice::Yes).expect("the same again is harmless");
    assert!(run.vote(5110, first, 2, Choice::Yes).is_err(), "the vote is closed");
    run.merge(6000, 1.0);
    assert_eq!(run.version(), 2);
    let decided: Vec<_> = run
        .log
        .iter()
        .filter_map(|event| match event {
            CoordinatorEvent::Decided { proposal, adopted, .. } => Some((*proposal, *adopted)),
            _ => None,
        })
        .collect();
    assert_eq!(decided, [(first, false), (second, true)]);
    assert!(matches!(run.vote(6100, first, 3, Choice::Yes), Err(RoundError::NotNow { .. })), "it is decided");
}

#[test]
fn the_operator_can_neither_propose_nor_vote_nor_admit_nor_eject_nor_weigh() {
    let mut run = governed(0);
    let admit = |terms: &mut CharterTerms| {
        terms.members.insert("mallory".parse().expect("a name"), key(66).public());
        terms.quorum = 3;
    };
    let change = run.change(admit);
    // With its own key, in a member's name.
    let proposal = Signed::by(run.proposal(10, 1, change.clone()), &key(9)).expect("signs");
    let input = CoordinatorInput::Propose { sender: key(9).public(), proposal: Box::new(proposal.clone()) };
    assert!(run.input(10, input).is_err());
    // As if it had come over a member's connection: the signature is not the member's.
    let input = CoordinatorInput::Propose { sender: key(1).public(), proposal: Box::new(proposal) };
    assert!(matches!(run.input(10, input), Err(RoundError::Governance(GovernanceError::Signature(_)))));
    let digest = run.propose(10, 1, change).expect("a member proposes");
    let charter = run.state.governance().expect("governed").digest();
    for member in [1, 2] {
        let vote = Vote { charter, proposal: digest, member: name(member), choice: Choice::Yes, reason: String::new() };
        let vote = Signed::by(vote, &key(9)).expect("signs");
        for sender in [9, member] {
            assert!(
                run.input(20, CoordinatorInput::Vote { sender: key(sender).public(), vote: vote.clone() }).is_err()
            );
        }
    }
    // It writes into its log what was not decided: the log cannot be folded.
    let mut lie = run.state.clone();
    let decided = CoordinatorEvent::Decided { proposal: digest, adopted: true, required: 2, reason: "I say so".into() };
    assert!(matches!(lie.apply(&decided), Err(RoundError::Governance(GovernanceError::Votes { found: 0, .. }))));
    // It publishes a charter of its own, even one that a quorum signed outside of the vote.
    let next = CharterTerms::from(match run.change(admit) {
        Change::Charter(terms) => Charter::try_from(*terms).expect("sound"),
        Change::Credits(_) => unreachable!("a charter was asked for"),
    });
    let mut signed = Signed::unsigned(Charter::try_from(next).expect("sound"));
    signed.sign(&key(9)).expect("signs");
    assert!(run.input(30, CoordinatorInput::AdoptCharter(signed.clone())).is_err());
    [1, 2, 3].iter().for_each(|n| signed.sign(&key(*n)).expect("signs"));
    assert!(matches!(run.input(30, CoordinatorInput::AdoptCharter(signed)), Err(RoundError::OtherCharter { .. })));
    assert!(run.state.governance().expect("governed").member_of(&key(66).public()).is_none());
}

#[test]
fn no_round_opens_before_enough_members_have_witnessed_what_it_rests_on() {
    let mut run = governed(2);
    assert!(run.state.round().is_none() && run.state.wants_witnesses());
    let due = run.state.witness_due();
    assert_eq!(due, 2, "the charter and the base");
    for (checkpoint, why) in [
        (run.witnessed(due, &[], 9), "nobody"),
        (run.witnessed(due - 1, &[1, 2], 9), "of too little"),
        (run.witnessed(due + 1, &[1, 2], 9), "of what is not there"),
        (run.witnessed(due, &[1, 2], 5), "not by the writer"),
        (run.witnessed(due, &[1, 2], 9).replace("/china ", "/iran "), "in another's name"),
        ("nothing".into(), "no checkpoint"),
    ] {
        assert!(run.input(10, CoordinatorInput::Witnessed { checkpoint }).is_err(), "{why}");
        assert!(run.state.round().is_none(), "{why}");
    }
    // One of two: that is in the log, once, so that a coordinator that starts again still has it.
    let checkpoint = run.witnessed(due, &[1], 9);
    let cosigned = run.state.num_events() + 1;
    for _ in 0..2 {
        run.input(10, CoordinatorInput::Witnessed { checkpoint: checkpoint.clone() }).expect("a member's");
        assert_eq!(run.state.num_events(), cosigned);
        assert!(run.state.round().is_none() && run.state.wants_witnesses());
        assert_eq!(run.state.checkpoint_on_record().map(|record| &record.checkpoint), Some(&checkpoint));
    }
    let checkpoint = run.witnessed(due, &[1, 3], 9);
    run.input(10, CoordinatorInput::Witnessed { checkpoint }).expect("enough");
    assert_eq!(run.number(), 1);
    run.all_contribute(20);
    run.merge(30, 1.0);
    assert!(run.state.round().is_none() && run.state.wants_witnesses(), "and the next rests on the end of this one");
    let old = run.witnessed(due, &[1, 2, 3], 9);
    assert!(run.input(40, CoordinatorInput::Witnessed { checkpoint: old }).is_err());
}

fn leave(run: &mut Run, ms: u64, by: u8) -> Result<(), RoundError> {
    let charter = run.state.governance().expect("governed").digest();
    let departure = Departure { charter, member: name(by), reason: "Our own way.".into() };
    let departure = Signed::by(departure, &key(by)).expect("signs");
    run.input(ms, CoordinatorInput::Leave { sender: key(by).public(), departure })
}

#[test]
fn a_member_leaves_at_once_and_nobody_waits_for_it() {
    for (leaving, num_merged) in [(Leaving::Counts, 3), (Leaving::Withdrawn, 2)] {
        let mut run = Run::new(|terms| {
            terms.merge.influence_cap = 1.0;
            terms.rounds.min_contributions = 1;
            terms.governance = Some(rules(0, leaving));
        });
        run.contribute(10, "iran", 3).expect("taken");
        run.screened(10, "iran", 0.01, Some(1.0)).expect("taken");
        leave(&mut run, 20, 3).expect("at once");
        leave(&mut run, 21, 3).expect("the same again is harmless");
        assert!(matches!(run.contribute(22, "iran", 3), Err(RoundError::NotAMember { .. })));
        for (name, n) in [("france", 1), ("china", 2)] {
            run.contribute(30, name, n).expect("taken");
            run.screened(30, name, 0.01, Some(1.0)).expect("taken");
        }
        let Some(CoordinatorEffect::Merge(work)) = run.state.pending().into_iter().next() else { panic!("no merge") };
        assert_eq!(work.inputs.len(), num_merged, "{leaving:?}");
        run.merge(40, 1.0);
        assert_eq!(run.number(), 2);
        for (name, n) in [("france", 1), ("china", 2)] {
            run.contribute(50, name, n).expect("taken");
            run.screened(50, name, 0.01, Some(1.0)).expect("taken");
        }
        run.merge(60, 1.0);
        assert!(!run.last().verdicts.contains_key(&name(3)), "it is not waited for, and not blamed");
    }
}

#[test]
fn a_new_key_is_in_force_when_no_round_is_open() {
    let mut run = governed(0);
    let charter = run.state.governance().expect("governed").digest();
    let rotation = KeyRotation { charter, member: name(1), from: key(1).public(), to: key(50).public() };
    let mut signed = Signed::by(rotation, &key(1)).expect("signs");
    let input = |signed: &Signed<KeyRotation>, n: u8| CoordinatorInput::Rotate {
        sender: key(n).public(),
        rotation: signed.clone(),
    };
    assert!(run.input(10, input(&signed, 1)).is_err(), "the new key has not signed");
    signed.sign(&key(50)).expect("signs");
    assert!(run.input(10, input(&signed, 2)).is_err(), "another's");
    run.input(10, input(&signed, 1)).expect("taken");
    run.input(11, input(&signed, 1)).expect("the same again is harmless");
    run.contribute(20, "france", 1).expect("the old key holds until the round ends");
    run.screened(20, "france", 0.01, Some(1.0)).expect("taken");
    for (name, n) in [("china", 2), ("iran", 3)] {
        run.contribute(30, name, n).expect("taken");
        run.screened(30, name, 0.01, Some(1.0)).expect("taken");
    }
    run.merge(40, 1.0);
    assert_eq!((run.version(), run.number()), (2, 2));
    assert!(run.contribute(50, "france", 1).is_err(), "the old key is nobody's");
    run.contribute(50, "france", 50).expect("the new one is");
}

#[test]
fn a_coordinator_that_members_have_replaced_decides_nothing_more() {
    let mut run = governed(0);
    run.all_contribute(10);
    let change = run.change(|terms| {
        terms.coordinator = key(60).public();
        terms.standbys = BTreeSet::new();
    });
    let proposal = run.propose(20, 1, change).expect("taken");
    for n in 1..=3 {
        run.vote(30, proposal, n, Choice::Yes).expect("taken");
    }
    run.merge(40, 1.0);
    let given = run.state.hand_over().expect("the role is given away");
    assert_eq!(given.to, key(60).public());
    assert!(run.state.round().is_none() && run.state.pending().is_empty());
    assert!(matches!(run.contribute_unannounced(50), Err(RoundError::HandedOver { .. })));
    let decided = run.log.iter().rfind(|event| matches!(event, CoordinatorEvent::Decided { .. })).expect("decided");
    assert_eq!(run.state.successors(decided), Some([key(60).public()].into()), "and only the new one may take the log");
    let tenure = run.state.next_tenure(key(60).public(), None).expect("it may");
    let tenure = Signed::by(tenure, &key(60)).expect("signs");
    run.input(60, CoordinatorInput::TakeRole { tenure }).expect("takes it");
    run.input(61, CoordinatorInput::Tick).expect("ticks");
    assert_eq!(run.number(), 2, "the loop goes on");
}

impl Run {
    fn contribute_unannounced(&mut self, ms: u64) -> Result<(), RoundError> {
        leave(self, ms, 1)
    }
}
