mod coordinators;
mod governing;
mod participation;

use super::*;
use crate::{RoundResult, TrainingMetrics};
use std::collections::BTreeMap;
use tapestry_core::SecretKey;
use tapestry_governance::{
    CharterError, CharterTerms, GateTerms, HeldOutTerms, MergeTerms, RoundTerms, ScreeningTerms,
};

const FRANCE: u8 = 1;
const STRANGER: u8 = 7;
const STANDBY: u8 = 8;
const COORDINATOR: u8 = 9;
const WINDOW_MS: u64 = 60_000;
const TRANSFER: TransferMetrics = TransferMetrics { size_bytes: 1, wall_seconds: 1.0 };
const METRICS: TrainingMetrics = TrainingMetrics {
    num_tokens: 1,
    num_steps: 1,
    first_loss: 2.0,
    last_loss: 1.0,
    wall_seconds: 1.0,
    cpu_seconds: 1.0,
};

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32].into())
}

const fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(ms)
}

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

/// A charter that holds from 1,000 to 2,000 ms, signed by `signers`.
fn charter(signers: &[u8]) -> Signed<Charter> {
    let member = |name: &str, n| (name.parse().expect("a name"), key(n).public());
    let terms = CharterTerms {
        consortium: "Test".into(),
        version: 1,
        previous: None,
        members: BTreeMap::from([member("france", FRANCE), member("china", 2), member("iran", 3)]),
        coordinator: key(COORDINATOR).public(),
        standbys: BTreeSet::from([key(STANDBY).public()]),
        quorum: 2,
        base: digest("base"),
        open_held_out: HeldOutTerms { text: digest("text"), max_tokens: 2048 },
        rounds: RoundTerms { num_rounds: 2, window_ms: WINDOW_MS, min_contributions: 2, late_rounds: 0 },
        screening: ScreeningTerms { max_relative_change: 0.1, max_bpb_rise: 0.1 },
        merge: MergeTerms::plain(0.5),
        gate: GateTerms { max_bpb_rise: 0.03 },
        privacy_tier: 0,
        valid_from: at(1_000),
        valid_until: at(2_000),
        governance: None,
    };
    let mut signed = Signed::unsigned(Charter::try_from(terms).expect("sound terms"));
    for n in signers {
        signed.sign(&key(*n)).expect("signs");
    }
    signed
}

fn announcement(round: u32, base: &str) -> Announcement {
    let charter = charter(&[]).digest().expect("canonical");
    Announcement { charter, round, base: digest(base), opened_at: at(1_100), closes_at: at(1_100 + WINDOW_MS) }
}

fn outcome(round: u32, base: &str) -> Outcome {
    Outcome {
        charter: charter(&[]).digest().expect("canonical"),
        round,
        base: digest(base),
        result: RoundResult::Published { bpb: 1.0 },
        verdicts: BTreeMap::new(),
        weights: vec![],
        is_last: round == 2,
    }
}

fn news(signer: u8, announcement: Option<Announcement>, outcome: Option<Outcome>) -> NodeInput {
    NodeInput::News(News {
        version: 1,
        announcement: announcement.map(|document| Signed::by(document, &key(signer)).expect("signs")),
        outcome: outcome.map(|document| Signed::by(document, &key(signer)).expect("signs")),
        ..News::default()
    })
}

/// A node and its log, driven like the binary drives it.
struct Run {
    state: Node,
    log: Vec<NodeEvent>,
}

impl Run {
    fn new(n: u8) -> Self {
        Self { state: Node::new(key(n).public()), log: vec![] }
    }

    /// France, joined.
    fn joined() -> Self {
        let mut run = Self::new(FRANCE);
        run.input(NodeInput::join(charter(&[1, 2]))).expect("joins");
        run
    }

    fn input(&mut self, input: NodeInput) -> Result<(), RoundError> {
        self.input_at(1_500, input)
    }

    fn input_at(&mut self, ms: u64, input: NodeInput) -> Result<(), RoundError> {
        for event in self.state.handle(at(ms), input)? {
            self.state.apply(&event)?;
            let json = serde_json::to_string(&event).expect("serialises");
            assert_eq!(serde_json::from_str::<NodeEvent>(&json).expect("parses"), event);
            self.log.push(event);
        }
        // The fold of the log is the state after every input.
        let mut again = Node::new(self.state.key);
        self.log.iter().for_each(|event| again.apply(event).expect("follows"));
        assert_eq!(again, self.state);
        Ok(())
    }

    fn hears(&mut self, announcement: Option<Announcement>, outcome: Option<Outcome>) -> Result<(), RoundError> {
        self.input(news(COORDINATOR, announcement, outcome))
    }

    /// An input that the node must not take, nor be moved by.
    fn refuses(&mut self, input: NodeInput) -> RoundError {
        let before = (self.state.clone(), self.log.len());
        let error = self.input(input).expect_err("refused");
        assert_eq!((self.state.clone(), self.log.len()), before, "a refused input changes nothing");
        error
    }

    /// Pulls the base, measures it, trains and sends.
    fn takes_part(&mut self, round: u32, base: &str) {
        let base = digest(base);
        self.input(NodeInput::BasePulled { base, transfer: TRANSFER }).expect("pulled");
        let weights = Digest::of(&round.to_le_bytes());
        let contributed = ContributedCpt::from_training(weights, METRICS);
        self.input(NodeInput::Trained { round, contributed }).expect("trained");
        self.input(NodeInput::ContributionSent { round, transfer: TRANSFER }).expect("sent");
    }

    /// Through both rounds, to the point where only the Sovereign Build is left.
    fn after_the_loop() -> Self {
        let mut run = Self::joined();
        run.hears(Some(announcement(1, "base")), None).expect("taken");
        run.takes_part(1, "base");
        run.hears(Some(announcement(2, "one")), Some(outcome(1, "one"))).expect("taken");
        run.takes_part(2, "one");
        run.hears(None, Some(outcome(2, "two"))).expect("taken");
        run.input(NodeInput::BasePulled { base: digest("two"), transfer: TRANSFER }).expect("pulled");
        run
    }
}

#[test]
fn a_node_goes_through_two_rounds_to_its_sovereign_model() {
    let mut run = Run::after_the_loop();
    assert!(run.state.pending().contains(&NodeEffect::BuildSovereign { base: digest("two") }));
    let model = SovereignModel::new(digest("two"), digest("mine"));
    run.input(NodeInput::SovereignBuilt { model, metrics: METRICS }).expect("built");
    while let Some(NodeEffect::Measure { subject, model }) = run.state.pending().into_iter().next() {
        let measurement =
            Measurement { subject, model, held_out_bpb: Some(1.0), open_bpb: Some(1.0), wall_seconds: 1.0 };
        run.input(NodeInput::Measured(measurement)).expect("measured");
    }
    assert!(run.state.is_complete());
}

#[test]
fn a_charter_without_its_quorum_is_not_joined() {
    for signers in [&[][..], &[1], &[1, STRANGER], &[1, COORDINATOR]] {
        let error = Run::new(FRANCE).refuses(NodeInput::join(charter(signers)));
        assert!(matches!(error, RoundError::Charter(CharterError::Signatures(_))), "{signers:?}: {error}");
    }
}

#[test]
fn a_charter_with_a_forged_signature_is_not_joined_even_with_enough_true_ones() {
    let mut forged = charter(&[1, 2, 3]);
    let signature = key(STRANGER).sign(b"something else");
    forged.signatures.insert(key(3).public(), signature);
    let error = Run::new(FRANCE).refuses(NodeInput::join(forged));
    assert!(matches!(error, RoundError::Charter(CharterError::Signatures(_))), "{error}");
}

#[test]
fn a_charter_that_does_not_list_this_node_is_not_joined() {
    for outsider in [STRANGER, COORDINATOR] {
        let error = Run::new(outsider).refuses(NodeInput::join(charter(&[1, 2])));
        assert!(matches!(error, RoundError::Charter(CharterError::NotAMember { .. })), "{error}");
    }
}

#[test]
fn an_expired_or_early_charter_is_neither_joined_nor_followed() {
    for ms in [999, 2_000] {
        let verdict = Run::new(FRANCE).input_at(ms, NodeInput::join(charter(&[1, 2])));
        assert!(matches!(verdict, Err(RoundError::Charter(CharterError::Expired { .. }))), "{ms}");
        let verdict = Run::joined().input_at(ms, news(COORDINATOR, Some(announcement(1, "base")), None));
        assert!(matches!(verdict, Err(RoundError::Charter(CharterError::Expired { .. }))), "{ms}");
    }
}

#[test]
fn a_second_charter_does_not_replace_the_first_without_saying_so() {
    let mut run = Run::joined();
    run.input(NodeInput::join(charter(&[2, 3]))).expect("the same charter with other signatures");
    assert_eq!(run.log.len(), 1);
    let mut terms = CharterTerms::from(charter(&[]).document);
    terms.consortium = "Another".into();
    let mut other = Signed::unsigned(Charter::try_from(terms).expect("sound terms"));
    for n in [1, 2, 3] {
        other.sign(&key(n)).expect("signs");
    }
    assert!(matches!(run.refuses(NodeInput::join(other)), RoundError::OtherCharter { .. }));
}

#[test]
fn nothing_is_done_before_a_charter_is_joined() {
    let mut run = Run::new(FRANCE);
    assert!(run.state.pending().is_empty());
    let error = run.refuses(news(COORDINATOR, Some(announcement(1, "base")), None));
    assert!(matches!(error, RoundError::NoCharter));
}

#[test]
fn only_the_coordinator_that_the_charter_lists_is_believed() {
    // Not a stranger, not another member, not this node itself.
    for liar in [STRANGER, 2, FRANCE] {
        let mut run = Run::joined();
        let error = run.refuses(news(liar, Some(announcement(1, "base")), None));
        assert!(matches!(error, RoundError::Signature(_)), "{error}");
        let error = run.refuses(news(liar, None, Some(outcome(1, "poison"))));
        assert!(matches!(error, RoundError::Signature(_)), "{error}");
    }
}

#[test]
fn the_coordinators_signature_does_not_carry_over_to_other_content() {
    let mut signed = Signed::by(announcement(1, "base"), &key(COORDINATOR)).expect("signs");
    signed.document.closes_at = at(9_999);
    let input = NodeInput::News(News { version: 1, announcement: Some(signed), ..News::default() });
    assert!(matches!(Run::joined().refuses(input), RoundError::Signature(_)));
}

#[test]
fn news_of_another_charter_is_refused() {
    let mut run = Run::joined();
    let other = Announcement { charter: digest("other"), ..announcement(1, "base") };
    assert!(matches!(run.refuses(news(COORDINATOR, Some(other), None)), RoundError::OtherCharter { .. }));
    let other = Outcome { charter: digest("other"), ..outcome(1, "one") };
    assert!(matches!(run.refuses(news(COORDINATOR, None, Some(other))), RoundError::OtherCharter { .. }));
}

#[test]
fn a_round_from_another_base_than_the_published_one_is_refused_and_trains_nothing() {
    let mut run = Run::joined();
    let error = run.refuses(news(COORDINATOR, Some(announcement(1, "other")), None));
    assert!(matches!(error, RoundError::UnexpectedBase { .. }) && error.blame() == crate::Blame::Coordinator);
    run.hears(Some(announcement(1, "base")), None).expect("taken");
    run.takes_part(1, "base");
    // The next round must start from what was published.
    let error = run.refuses(news(COORDINATOR, Some(announcement(2, "base")), Some(outcome(1, "one"))));
    assert!(matches!(error, RoundError::UnexpectedBase { .. }), "{error}");
    assert!(!run.state.pending().iter().any(|effect| matches!(effect, NodeEffect::Train { .. })));
}

#[test]
fn a_coordinator_that_bends_the_charters_terms_is_refused() {
    let mut run = Run::joined();
    let mut check = |announcement, expected: &str| {
        let error = run.refuses(news(COORDINATOR, Some(announcement), None));
        assert_eq!(error.blame(), crate::Blame::Coordinator);
        assert!(error.to_string().contains(expected), "{error}");
    };
    check(announcement(2, "base"), "number of the round must be 1; found 2");
    let longer = Announcement { closes_at: at(1_100 + WINDOW_MS + 1), ..announcement(1, "base") };
    check(longer, "window in milliseconds must be 60000; found 60001");
    let backwards = Announcement { closes_at: at(1), ..announcement(1, "base") };
    check(backwards, "window in milliseconds must be 60000; found 0");
    let error = Run::after_the_loop().refuses(news(COORDINATOR, Some(announcement(3, "two")), None));
    assert!(error.to_string().contains("number of the last round must be 2; found 3"), "{error}");
    let error = Run::after_the_loop().refuses(news(COORDINATOR, None, Some(outcome(3, "three"))));
    assert!(error.to_string().contains("number of the last round must be 2; found 3"), "{error}");
}

#[test]
fn an_abandoned_round_cannot_bring_another_base() {
    let abandoned = |base| Outcome { result: RoundResult::Abandoned { reason: String::new() }, ..outcome(1, base) };
    let error = Run::joined().refuses(news(COORDINATOR, None, Some(abandoned("smuggled"))));
    assert!(matches!(error, RoundError::UnexpectedBase { .. }), "{error}");
    Run::joined().hears(Some(announcement(2, "base")), Some(abandoned("base"))).expect("taken");
}

#[test]
fn repeated_and_old_news_changes_nothing() {
    let mut run = Run::joined();
    run.hears(Some(announcement(1, "base")), None).expect("taken");
    run.takes_part(1, "base");
    run.hears(Some(announcement(2, "one")), Some(outcome(1, "one"))).expect("taken");
    let num_events = run.log.len();
    let replays = [
        (Some(announcement(1, "base")), None),
        (Some(announcement(2, "one")), Some(outcome(1, "one"))),
        (None, Some(outcome(1, "one"))),
        (None, None),
    ];
    for (announcement, outcome) in replays {
        run.hears(announcement, outcome).expect("no error: it is only old");
    }
    assert_eq!(run.log.len(), num_events);
    assert_eq!(run.state.round().expect("open").announcement.round, 2);
}

#[test]
fn another_announcement_of_an_open_round_does_not_restart_it() {
    let mut run = Run::joined();
    run.hears(Some(announcement(1, "base")), None).expect("taken");
    run.takes_part(1, "base");
    let again = Announcement { closes_at: at(1_999), ..announcement(1, "base") };
    run.hears(Some(again), None).expect("no error: the round is known");
    assert!(matches!(run.state.round().expect("open").progress, Progress::Sent(_)));
}

#[test]
fn a_round_is_trained_and_sent_once() {
    let mut run = Run::joined();
    run.hears(Some(announcement(1, "base")), None).expect("taken");
    run.takes_part(1, "base");
    let contributed = ContributedCpt::from_training(digest("second"), METRICS);
    assert!(matches!(run.refuses(NodeInput::Trained { round: 1, contributed }), RoundError::Unexpected { .. }));
    let sent = NodeInput::ContributionSent { round: 1, transfer: TRANSFER };
    assert!(matches!(run.refuses(sent), RoundError::Unexpected { .. }));
}

#[test]
fn a_result_that_comes_after_its_round_is_not_taken() {
    let mut run = Run::joined();
    run.hears(Some(announcement(1, "base")), None).expect("taken");
    run.input(NodeInput::BasePulled { base: digest("base"), transfer: TRANSFER }).expect("pulled");
    run.hears(Some(announcement(2, "one")), Some(outcome(1, "one"))).expect("taken");
    let contributed = ContributedCpt::from_training(digest("late"), METRICS);
    assert!(matches!(run.refuses(NodeInput::Trained { round: 1, contributed }), RoundError::Unexpected { .. }));
    assert_eq!(run.state.pending(), [NodeEffect::PullBase { base: digest("one") }], "the new base comes first");
    let stale = NodeInput::BasePulled { base: digest("base"), transfer: TRANSFER };
    assert!(matches!(run.refuses(stale), RoundError::Unexpected { .. }));
}

#[test]
fn a_node_that_cannot_train_declines_in_at_most_the_bytes_that_are_accepted() {
    let mut run = Run::joined();
    run.hears(Some(announcement(1, "base")), None).expect("taken");
    run.input(NodeInput::BasePulled { base: digest("base"), transfer: TRANSFER }).expect("pulled");
    // Two bytes a character: the cut must not fall inside one.
    let reason = format!("x{}", "é".repeat(600));
    run.input(NodeInput::CannotTrain { round: 1, reason }).expect("taken");
    let pending = run.state.pending();
    let [NodeEffect::SendDecline { decline }] = &pending[..] else { panic!("{pending:?}") };
    assert_eq!(decline.reason.len(), Decline::MAX_REASON_BYTES - 1);
    run.input(NodeInput::DeclineSent { round: 1 }).expect("taken");
    assert!(!run.state.pending().iter().any(|effect| matches!(effect, NodeEffect::Train { .. })));
}

#[test]
fn training_that_diverged_is_declined_and_its_weights_go_nowhere() {
    let mut run = Run::joined();
    run.hears(Some(announcement(1, "base")), None).expect("taken");
    run.input(NodeInput::BasePulled { base: digest("base"), transfer: TRANSFER }).expect("pulled");
    let metrics = TrainingMetrics { last_loss: f64::NAN, ..METRICS };
    let contributed = ContributedCpt::from_training(digest("broken"), metrics);
    run.input(NodeInput::Trained { round: 1, contributed }).expect("taken");
    assert!(matches!(run.state.pending()[..], [NodeEffect::SendDecline { .. }]));
    let measurement = Measurement {
        subject: Subject::SharedBase { round: 0 },
        model: digest("base"),
        held_out_bpb: Some(f64::INFINITY),
        open_bpb: None,
        wall_seconds: 1.0,
    };
    assert!(matches!(run.refuses(NodeInput::Measured(measurement)), RoundError::NotFinite { .. }));
}

#[test]
fn a_crash_at_any_event_resumes_with_the_same_work() {
    let whole = Run::after_the_loop();
    let mut resumed = Node::new(key(FRANCE).public());
    for (number, event) in whole.log.iter().enumerate() {
        resumed.apply(event).expect("follows");
        let mut again = Node::new(key(FRANCE).public());
        whole.log[..=number].iter().for_each(|event| again.apply(event).expect("follows"));
        assert_eq!(again.pending(), resumed.pending());
    }
    assert_eq!(resumed, whole.state);
}

/// Compiles only while no conversion from `SovereignModel` into what a contribution is made of exists: with one, both
/// implementations would apply to it and the call below would be ambiguous.
mod no_way_from_sovereign_to_contribution {
    use super::{ContributedCpt, SovereignModel};
    use crate::Contribution;

    trait Unambiguous<Marker> {
        fn check() {}
    }

    struct IntoCpt;
    struct IntoContribution;
    struct FromReference;

    impl<T> Unambiguous<()> for T {}
    impl<T: Into<ContributedCpt>> Unambiguous<IntoCpt> for T {}
    impl<T: Into<Contribution>> Unambiguous<IntoContribution> for T {}
    impl<T> Unambiguous<FromReference> for T where for<'a> ContributedCpt: From<&'a T> {}

    #[test]
    fn no_conversion_exists() {
        <SovereignModel as Unambiguous<_>>::check();
    }
}

#[test]
fn nothing_sovereign_is_ever_sent() {
    let mut run = Run::after_the_loop();
    let model = SovereignModel::new(digest("two"), digest("mine"));
    run.input(NodeInput::SovereignBuilt { model, metrics: METRICS }).expect("built");
    // Whatever the coordinator says from here on, nothing leaves the node.
    for (announcement, outcome) in [
        (Some(announcement(3, "two")), None),
        (Some(announcement(1, "base")), Some(outcome(1, "one"))),
        (None, Some(outcome(3, "three"))),
    ] {
        let _ = run.hears(announcement, outcome);
        let sends = |effect: &NodeEffect| {
            matches!(effect, NodeEffect::SendContribution { .. } | NodeEffect::SendDecline { .. })
        };
        assert!(!run.state.pending().iter().any(sends), "{:?}", run.state.pending());
    }
}
