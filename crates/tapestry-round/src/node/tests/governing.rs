//! How a node follows what members decide and what the coordinator's log says, and what it does not follow.

use super::*;
use crate::{LogView, NewSteps};
use tapestry_governance::{
    Change, CharterHistory, Choice, DecisionKind, DecisionTerms, GovernanceTerms, Leaving, Proposal, Step, Vote,
};
use tapestry_ledger::{Checkpoint, SignedCheckpoint, Tree, TreeHash};

const NAMES: [&str; 3] = ["france", "china", "iran"];

fn governed(witnesses: u32) -> Signed<Charter> {
    let mut terms = CharterTerms::from(charter(&[]).document);
    let decisions = DecisionTerms { min_open_ms: 1000, percent: DecisionKind::ALL.map(|kind| (kind, 50)).into() };
    terms.governance = Some(GovernanceTerms { text: String::new(), decisions, witnesses, leaving: Leaving::Counts });
    let mut signed = Signed::unsigned(Charter::try_from(terms).expect("sound terms"));
    (1..=3).for_each(|n| signed.sign(&key(n)).expect("signs"));
    signed
}

fn name(n: u8) -> MemberName {
    NAMES[usize::from(n) - 1].parse().expect("a name")
}

/// The coordinator's log, or what it shows of one.
#[derive(Clone)]
struct Shown(Tree);

impl Shown {
    fn of(story: &str, size: u64) -> Self {
        let mut tree = Tree::default();
        tree.extend((0..size).map(|n| TreeHash::of_leaf(format!("{story} {n}").as_bytes())));
        Self(tree)
    }

    /// This log, and then another story.
    fn then(&self, story: &str, count: u64) -> Self {
        let mut longer = self.clone();
        longer.0.extend((0..count).map(|n| TreeHash::of_leaf(format!("{story} {n}").as_bytes())));
        longer
    }

    fn view(&self, from: u64, cosigners: &[u8]) -> LogView {
        let size = self.0.size();
        let (origin, root) = (tapestry_ledger::origin(key(COORDINATOR).public()), self.0.root(size).expect("there"));
        let mut note = SignedCheckpoint::by(Checkpoint { origin, size, root }, &key(COORDINATOR));
        for n in cosigners {
            note.add(&note.cosign(&name(*n), &key(*n), at(1_100)));
        }
        let consistency = self.0.consistency(from.min(size), size).expect("there");
        LogView { checkpoint: note.to_string(), from, consistency }
    }
}

impl Run {
    fn governed(witnesses: u32) -> Self {
        let mut run = Self::new(FRANCE);
        run.input(NodeInput::join(governed(witnesses))).expect("joins");
        run
    }

    fn governance(&self) -> &Governance {
        self.state.governance().expect("joined")
    }

    fn shown(&mut self, log: &Shown, from: u64) -> Result<(), RoundError> {
        self.input(NodeInput::News(News { log: Some(log.view(from, &[])), ..News::default() }))
    }

    fn announced(
        &mut self,
        log: &Shown,
        from: u64,
        cosigners: &[u8],
        round: u32,
        base: &str,
    ) -> Result<(), RoundError> {
        let mut announcement = announcement(round, base);
        announcement.charter = self.governance().digest();
        let announcement = Some(Signed::by(announcement, &key(COORDINATOR)).expect("signs"));
        self.input(NodeInput::News(News { announcement, log: Some(log.view(from, cosigners)), ..News::default() }))
    }

    fn steps(&mut self, after: u64, steps: Vec<Step>) -> Result<(), RoundError> {
        self.input(NodeInput::News(News { governance: Some(NewSteps { after, steps }), ..News::default() }))
    }
}

fn step(governance: &Governance, change: impl FnOnce(&mut CharterTerms), votes: &[(u8, Choice)]) -> Step {
    let mut terms = governance.next_terms();
    change(&mut terms);
    let proposal = Proposal {
        charter: governance.digest(),
        member: name(1),
        change: Change::Charter(Box::new(terms)),
        rationale: "Because.".into(),
        consulted: vec![],
        made_at: at(0),
        closes_at: at(5000),
    };
    let proposal = Signed::by(proposal, &key(1)).expect("signs");
    let digest = proposal.digest().expect("canonical");
    let vote = |(n, choice): &(u8, Choice)| {
        let vote = Vote {
            charter: governance.digest(),
            proposal: digest,
            member: name(*n),
            choice: *choice,
            reason: String::new(),
        };
        Signed::by(vote, &key(*n)).expect("signs")
    };
    Step::Adopted { proposal: Box::new(proposal), votes: votes.iter().map(vote).collect() }
}

#[test]
fn a_node_follows_what_was_decided_in_order_and_only_once() {
    let mut run = Run::governed(0);
    let first = step(
        run.governance(),
        |terms| terms.gate.max_bpb_rise = 0.5,
        &[(1, Choice::Yes), (3, Choice::Yes), (2, Choice::No)],
    );
    let mut after = run.governance().clone();
    after.follow(&first).expect("binds");
    let second = step(&after, |terms| terms.gate.max_bpb_rise = 0.6, &[(1, Choice::Yes), (2, Choice::Yes)]);

    run.steps(1, vec![second.clone()]).expect("what comes too early is left for later");
    assert_eq!(run.governance().steps().len(), 0, "nothing is left out");
    run.steps(0, vec![first.clone(), second.clone()]).expect("both");
    assert_eq!(run.governance().charter().document.version, 3);
    run.steps(0, vec![first.clone()]).expect("an old one again is nothing new");
    assert_eq!(run.governance().steps().len(), 2);
    assert!(matches!(run.steps(2, vec![first]), Err(RoundError::FalseStep(_))), "nor is it a new one");
    // Who joins later reads the same.
    let mut later = Run::new(2);
    later.input(NodeInput::Join { history: Box::new(run.governance().history()) }).expect("joins");
    assert_eq!(later.governance(), run.governance());
    let folded = later.log.iter().fold(Node::new(key(2).public()), |mut node, event| {
        node.apply(event).expect("follows");
        node
    });
    assert_eq!(folded, later.state);
}

#[test]
fn a_charter_that_too_few_voted_for_is_not_followed_whoever_passes_it_on() {
    let mut run = Run::governed(0);
    for votes in [&[(1, Choice::Yes)][..], &[(1, Choice::Yes), (2, Choice::No), (3, Choice::Abstain)], &[]] {
        let admit = |terms: &mut CharterTerms| {
            terms.members.insert("mallory".parse().expect("a name"), key(66).public());
            terms.quorum = 3;
        };
        let false_step = step(run.governance(), admit, votes);
        let error = run.steps(0, vec![false_step]).expect_err("too few");
        assert_eq!(error.blame(), crate::Blame::Coordinator);
        assert_eq!(run.governance().charter().document.version, 1);
    }
    // A charter by itself, as if a new consortium had been founded, does not replace this one.
    let other = Run::new(FRANCE).input(NodeInput::Join {
        history: Box::new(CharterHistory { founding: governed(0), steps: vec![Step::Founded(Box::new(governed(1)))] }),
    });
    assert!(other.is_err());
}

#[test]
fn an_excluded_member_is_told_by_the_votes_themselves_and_keeps_what_it_has() {
    let mut run = Run::governed(0);
    let log = Shown::of("log", 3);
    run.announced(&log, 0, &[], 1, "base").expect("a round");
    run.input(NodeInput::BasePulled { base: digest("base"), transfer: TRANSFER }).expect("held");
    let eject = step(
        run.governance(),
        |terms| {
            terms.members.remove(&name(1));
        },
        &[(2, Choice::Yes), (3, Choice::Yes), (1, Choice::No)],
    );
    run.steps(0, vec![eject]).expect("it was decided");
    assert!(!run.state.is_member() && run.state.round().is_none());
    assert_eq!(
        run.state.pending(),
        [NodeEffect::BuildSovereign { base: digest("base") }],
        "its own model, from what it has"
    );
}

#[test]
fn a_node_witnesses_what_continues_what_it_saw() {
    let mut run = Run::governed(2);
    let log = Shown::of("log", 3);
    run.shown(&log, 0).expect("the first that it sees");
    let [NodeEffect::Cosign { checkpoint }] = &run.state.pending()[..] else { panic!("{:?}", run.state.pending()) };
    assert_eq!(*checkpoint, log.view(0, &[]).checkpoint);
    run.input(NodeInput::CosignatureSent { size: 3 }).expect("confirmed");
    let longer = log.then("more", 4);
    run.shown(&longer, 3).expect("continues");
    assert_eq!(run.state.seen().map(|seen| seen.size), Some(7));
    run.shown(&longer, 3).expect("the same again is nothing new");
    run.shown(&log, 0).expect("an old view, delayed on its way, is no lie");
    run.shown(&longer.then("even more", 1), 3).expect("nor is one that starts where this node was before");
    assert_eq!(run.state.seen().map(|seen| seen.size), Some(7), "but nothing of it is taken");
    assert!(!run.state.has_seen_two_histories());
}

#[test]
fn another_history_is_kept_with_its_proof_and_ends_the_participation() {
    let honest = Shown::of("log", 3).then("a", 4);
    let fork = Shown::of("log", 3).then("b", 6);
    let same_size = Shown::of("another", 7);
    let mut proof_of_another = fork.view(7, &[]);
    proof_of_another.consistency = honest.then("c", 2).view(7, &[]).consistency;
    for view in [fork.view(7, &[]), same_size.view(7, &[]), proof_of_another] {
        let mut run = Run::governed(2);
        run.shown(&honest, 0).expect("seen");
        run.input(NodeInput::News(News { log: Some(view.clone()), ..News::default() })).expect("recorded");
        let Some(NodeEvent::HistoriesDiffer { seen, shown }) = run.log.last() else { panic!("{:?}", run.log.last()) };
        assert_eq!((seen, shown), (&honest.view(0, &[]).checkpoint, &view));
        assert!(run.state.has_seen_two_histories() && run.state.pending().is_empty());
        assert!(matches!(run.announced(&honest, 7, &[1, 2, 3], 1, "base"), Err(RoundError::TwoHistories)));
    }
}

#[test]
fn no_round_is_followed_that_rests_on_too_few_witnesses_or_on_what_was_not_seen() {
    let log = Shown::of("log", 3);
    let refused = |run: &mut Run, cosigners: &[u8]| {
        assert!(matches!(run.announced(&log, 0, cosigners, 1, "base"), Err(RoundError::Log { .. })), "{cosigners:?}");
        assert!(run.state.round().is_none());
    };
    let mut run = Run::governed(2);
    refused(&mut run, &[]);
    refused(&mut run, &[2]);
    run.announced(&log, 0, &[2, 3], 1, "base").expect("two members");
    assert_eq!(run.state.round().map(|round| round.announcement.round), Some(1));

    // The next round cannot rest on the same.
    let mut outcome = outcome(1, "merged");
    outcome.charter = run.governance().digest();
    let outcome = Some(Signed::by(outcome, &key(COORDINATOR)).expect("signs"));
    run.input(NodeInput::News(News { outcome, log: Some(log.view(3, &[2, 3])), ..News::default() })).expect("ended");
    assert!(matches!(run.announced(&log, 3, &[1, 2, 3], 2, "merged"), Err(RoundError::Log { .. })));
    run.announced(&log.then("round 1", 9), 3, &[1, 2], 2, "merged").expect("on what was witnessed since");

    // A checkpoint of another log, or by somebody else, is none.
    let mut run = Run::governed(2);
    for view in [
        LogView { checkpoint: log.view(0, &[2, 3]).checkpoint.replace("tapestry/", "tapestry-2/"), ..log.view(0, &[]) },
        LogView { checkpoint: "no checkpoint".into(), ..log.view(0, &[]) },
    ] {
        let news = News { log: Some(view), ..News::default() };
        assert!(matches!(run.input(NodeInput::News(news)), Err(RoundError::Log { .. })));
    }
}

#[test]
fn two_members_compare_what_they_were_shown() {
    let log = Shown::of("log", 5);
    let mut run = Run::governed(2);
    run.shown(&log, 0).expect("seen");
    let (shorter, longer) = (Shown::of("log", 3), log.then("more", 2));
    let mut of_shorter = shorter.view(0, &[]);
    of_shorter.consistency = log.0.consistency(3, 5).expect("there");
    for view in [log.view(5, &[]), longer.view(5, &[]), of_shorter] {
        run.input(NodeInput::Compare { view }).expect("one history");
        assert!(!run.state.has_seen_two_histories());
    }
    let mut run_2 = Run { state: run.state.clone(), log: run.log.clone() };
    run_2.input(NodeInput::Compare { view: Shown::of("log", 2).then("other", 3).view(5, &[]) }).expect("recorded");
    assert!(run_2.state.has_seen_two_histories());
    // A checkpoint that the coordinator has signed and cannot connect with what it showed here.
    let unproven = LogView { consistency: vec![], ..Shown::of("other", 9).view(5, &[]) };
    run.input(NodeInput::Compare { view: unproven }).expect("recorded");
    assert!(run.state.has_seen_two_histories());
}

#[test]
fn who_leaves_takes_part_no_more_and_goes_on_alone() {
    let mut run = Run::governed(0);
    run.announced(&Shown::of("log", 3), 0, &[], 1, "base").expect("a round");
    run.input(NodeInput::BasePulled { base: digest("base"), transfer: TRANSFER }).expect("held");
    let departure = run.state.departure("Our own way.".into()).expect("a member");
    let forged = Signed::by(departure.clone(), &key(2)).expect("signs");
    assert!(run.input(NodeInput::Leave { departure: forged }).is_err());
    let departure = Signed::by(departure, &key(FRANCE)).expect("signs");
    run.input(NodeInput::Leave { departure: departure.clone() }).expect("at once");
    assert_eq!(
        run.state.pending(),
        [NodeEffect::SendDeparture { departure }, NodeEffect::BuildSovereign { base: digest("base") }]
    );
    run.input(NodeInput::DepartureSent).expect("told");
    run.announced(&Shown::of("log", 9), 3, &[1, 2, 3], 2, "base").expect("not its business any more");
    assert!(run.state.round().is_none());
}
