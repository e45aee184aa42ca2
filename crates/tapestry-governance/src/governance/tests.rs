use super::*;
use crate::{CreditKind, MAX_MEMBERS, MAX_TEXT_BYTES};
use crate::{DecisionTerms, GateTerms, GovernanceTerms, HeldOutTerms, Leaving, MergeTerms, RoundTerms, ScreeningTerms};
use tapestry_core::{SecretKey, to_canonical_json};

const NAMES: [&str; 5] = ["brazil", "china", "france", "iran", "kenya"];

fn key(n: usize) -> SecretKey {
    let mut seed = [7; 32];
    seed[..8].copy_from_slice(&(n as u64).to_le_bytes());
    SecretKey::from_seed(&seed.into())
}

fn name(n: usize) -> MemberName {
    NAMES.get(n).map_or_else(|| format!("member-{n:033}"), ToString::to_string).parse().expect("a name")
}

fn terms(num_members: usize) -> CharterTerms {
    CharterTerms {
        consortium: "Test".into(),
        version: 1,
        previous: None,
        members: (0..num_members).map(|n| (name(n), key(n).public())).collect(),
        coordinator: key(100).public(),
        standbys: BTreeSet::from([key(101).public()]),
        quorum: u32::try_from(num_members / 2 + 1).expect("few"),
        base: Digest::of(b"base"),
        open_held_out: HeldOutTerms { text: Digest::of(b"text"), max_tokens: 2048 },
        rounds: RoundTerms { num_rounds: 2, window_ms: 60_000, min_contributions: 2, late_rounds: 0 },
        screening: ScreeningTerms { max_relative_change: 0.1, max_bpb_rise: 0.1 },
        merge: MergeTerms::plain(0.5),
        gate: GateTerms { max_bpb_rise: 0.03 },
        privacy_tier: 0,
        valid_from: at(0),
        valid_until: at(1_000_000),
        governance: Some(GovernanceTerms {
            text: "We train together.".into(),
            decisions: DecisionTerms {
                min_open_ms: 1000,
                percent: DecisionKind::ALL.map(|kind| (kind, if kind == DecisionKind::Eject { 66 } else { 50 })).into(),
            },
            witnesses: 2,
            leaving: Leaving::Counts,
        }),
    }
}

fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(ms)
}

fn founded(num_members: usize) -> Governance {
    let mut signed = Signed::unsigned(Charter::try_from(terms(num_members)).expect("sound"));
    for n in 0..num_members {
        signed.sign(&key(n)).expect("signs");
    }
    Governance::found(signed).expect("binds")
}

/// The terms in force as the next charter, with a change.
fn next(governance: &Governance, change: impl FnOnce(&mut CharterTerms)) -> Change {
    let mut terms = governance.next_terms();
    change(&mut terms);
    Change::Charter(Box::new(terms))
}

fn proposal(governance: &Governance, by: usize, change: Change) -> Signed<Proposal> {
    let proposal = Proposal {
        charter: governance.digest(),
        member: name(by),
        change,
        rationale: "It is better so.".into(),
        consulted: vec!["The council of elders".into()],
        made_at: at(10),
        closes_at: at(5000),
    };
    Signed::by(proposal, &key(by)).expect("signs")
}

fn vote(governance: &Governance, proposal: &Signed<Proposal>, by: usize, choice: Choice) -> Signed<Vote> {
    let (charter, proposal) = (governance.digest(), proposal.digest().expect("canonical"));
    let vote = Vote { charter, proposal, member: name(by), choice, reason: String::new() };
    Signed::by(vote, &key(by)).expect("signs")
}

/// The step that these votes for would make.
fn adopted(governance: &Governance, change: Change, yes: &[usize]) -> Step {
    let proposal = proposal(governance, yes[0], change);
    let votes = yes.iter().map(|n| vote(governance, &proposal, *n, Choice::Yes)).collect();
    Step::Adopted { proposal: Box::new(proposal), votes }
}

fn cap(governance: &Governance, cap: f64) -> Change {
    next(governance, |terms| terms.merge.influence_cap = cap)
}

#[test]
fn members_change_their_charter_and_fewer_than_agreed_do_not() {
    let mut governance = founded(5);
    let step = adopted(&governance, cap(&governance, 0.6), &[0, 1]);
    assert!(matches!(governance.follow(&step), Err(GovernanceError::Votes { found: 2, required: 3, .. })));
    let step = adopted(&governance, cap(&governance, 0.6), &[0, 1, 4]);
    let before = governance.digest();
    governance.follow(&step).expect("three of five");
    let charter = governance.charter();
    assert_eq!((charter.document.version, charter.document.previous), (2, Some(before)));
    assert!((charter.document.merge.influence_cap - 0.6).abs() < 1e-12);
    assert!(governance.knows(&before) && governance.charters().len() == 2);
    assert_eq!(Governance::of(&governance.history()).expect("follows"), governance);
}

#[test]
fn a_step_is_taken_once_in_its_place_and_never_back() {
    let mut governance = founded(3);
    let first = adopted(&governance, cap(&governance, 0.6), &[0, 1]);
    governance.follow(&first).expect("binds");
    let second = adopted(&governance, cap(&governance, 0.7), &[0, 1]);
    let mut other = founded(3);
    assert!(matches!(other.follow(&second), Err(GovernanceError::OtherCharter { .. })), "a gap");
    governance.follow(&second).expect("binds");
    for old in [first, second] {
        assert!(governance.follow(&old).is_err(), "a replayed step");
    }
    let back = next(&governance, |terms| terms.previous = terms.previous.map(|_| Digest::of(b"earlier")));
    assert!(matches!(governance.kinds_of(&back), Err(GovernanceError::NotTheNext { version: 4, .. })));
}

#[test]
fn votes_belong_to_one_proposal_of_one_consortium_and_one_member() {
    let governance = founded(3);
    let proposed = proposal(&governance, 0, cap(&governance, 0.6));
    let other = proposal(&governance, 0, cap(&governance, 0.9));
    let follow = |votes: Vec<Signed<Vote>>| {
        governance.clone().follow(&Step::Adopted { proposal: Box::new(proposed.clone()), votes })
    };
    let yes = |n| vote(&governance, &proposed, n, Choice::Yes);
    follow(vec![yes(0), yes(1)]).expect("two of three");
    assert!(follow(vec![yes(0), yes(0)]).is_err(), "one member twice");
    assert!(follow(vec![yes(0), vote(&governance, &other, 1, Choice::Yes)]).is_err(), "for another proposal");
    assert!(follow(vec![yes(0), vote(&governance, &proposed, 1, Choice::No)]).is_err(), "against");
    let mut turned = vote(&governance, &proposed, 1, Choice::No);
    turned.document.choice = Choice::Yes;
    assert!(follow(vec![yes(0), turned]).is_err(), "a changed vote");
    let mut in_anothers_name = yes(0);
    in_anothers_name.document.member = name(1);
    assert!(follow(vec![yes(0), in_anothers_name]).is_err());
    let mut stripped = yes(1);
    stripped.signatures.clear();
    assert!(follow(vec![yes(0), stripped]).is_err(), "without its signature");
    let by_coordinator = Signed::by(Vote { member: name(1), ..yes(1).document }, &key(100)).expect("signs");
    assert!(follow(vec![yes(0), by_coordinator]).is_err(), "the coordinator has no vote");

    // The same members with the same keys in another consortium.
    let mut signed =
        Signed::unsigned(Charter::try_from(CharterTerms { consortium: "Other".into(), ..terms(3) }).expect("sound"));
    (0..3).for_each(|n| signed.sign(&key(n)).expect("signs"));
    let mut elsewhere = Governance::found(signed).expect("binds");
    let step = adopted(&governance, cap(&governance, 0.6), &[0, 1]);
    assert!(matches!(elsewhere.follow(&step), Err(GovernanceError::OtherCharter { .. })));
}

type ChangeTerms = fn(&mut CharterTerms);

#[test]
fn what_is_decided_follows_from_the_terms_and_not_from_the_proposers_word() {
    let governance = founded(4);
    let kinds_of = |change: ChangeTerms| governance.kinds_of(&next(&governance, change)).expect("can be decided");
    let cases: [(ChangeTerms, DecisionKind); 12] = [
        (
            |terms| {
                terms.members.insert(name(4), key(4).public());
            },
            DecisionKind::Admit,
        ),
        (
            |terms| {
                terms.members.remove(&name(3));
            },
            DecisionKind::Eject,
        ),
        (
            |terms| {
                terms.members.insert(name(3), key(50).public());
            },
            DecisionKind::RecoverKey,
        ),
        (|terms| terms.merge.staleness_exponent = 1.0, DecisionKind::MergePolicy),
        (|terms| terms.merge.influence_cap = 0.9, DecisionKind::FloorOrCap),
        (|terms| terms.screening.max_bpb_rise = 0.5, DecisionKind::FloorOrCap),
        (|terms| terms.rounds.window_ms = 90_000, DecisionKind::Window),
        (|terms| terms.gate.max_bpb_rise = 0.5, DecisionKind::Gate),
        (|terms| terms.coordinator = key(60).public(), DecisionKind::Coordinator),
        (|terms| terms.base = Digest::of(b"another"), DecisionKind::Base),
        (|terms| terms.consortium = "Renamed".into(), DecisionKind::Text),
        (|terms| terms.valid_until = at(2_000_000), DecisionKind::Decisions),
    ];
    for (change, expected) in cases {
        assert_eq!(kinds_of(change), BTreeSet::from([expected]));
    }
    assert!(matches!(governance.kinds_of(&next(&governance, |_| ())), Err(GovernanceError::NoChange)));
    let without = next(&governance, |terms| terms.governance = None);
    assert!(governance.kinds_of(&without).is_err(), "the rules for deciding cannot be voted away");
    // A small change does not carry a large one with it: the most that any of them needs is needed.
    let both = next(&governance, |terms| {
        terms.merge.influence_cap = 0.9;
        terms.members.remove(&name(3));
    });
    let proposed = proposal(&governance, 0, both);
    let tally = governance.tally(&proposed.document, std::iter::empty()).expect("can be decided");
    assert_eq!((tally.required, tally.kinds.len()), (3, 2));
}

#[test]
fn an_ejected_member_votes_on_its_own_case_and_never_again() {
    let mut governance = founded(4);
    let eject = |terms: &mut CharterTerms| {
        terms.members.remove(&name(3));
    };
    let proposed = proposal(&governance, 0, next(&governance, eject));
    let own = vote(&governance, &proposed, 3, Choice::No);
    let tally = governance.tally(&proposed.document, std::iter::once(&own.document)).expect("can be decided");
    assert_eq!((tally.count(Choice::No), tally.num_members, tally.required), (1, 4, 3));
    let step = adopted(&governance, next(&governance, eject), &[0, 1]);
    assert!(governance.follow(&step).is_err(), "two of four do not exclude anybody");
    governance.follow(&adopted(&governance, next(&governance, eject), &[0, 1, 2])).expect("three of four");
    assert!(!governance.is_member(&name(3)) && governance.was_member(&key(3).public()).is_some());
    let change = cap(&governance, 0.9);
    assert!(governance.follow(&adopted(&governance, change.clone(), &[0, 3])).is_err(), "its vote does not count");
    governance.follow(&adopted(&governance, change, &[0, 1])).expect("two of three");
    let back = next(&governance, |terms| {
        terms.members.insert(name(3), key(3).public());
    });
    assert!(matches!(governance.kinds_of(&back), Err(GovernanceError::GivenUp { .. })), "its old key is given up");
    let with_new_key = next(&governance, |terms| {
        terms.members.insert(name(3), key(33).public());
    });
    assert_eq!(governance.kinds_of(&with_new_key).expect("can be decided"), BTreeSet::from([DecisionKind::Admit]));
}

#[test]
fn excluded_members_are_no_quorum_together() {
    let mut governance = founded(5);
    for gone in [4, 3] {
        let change = next(&governance, |terms| {
            terms.members.remove(&name(gone));
        });
        governance.follow(&adopted(&governance, change, &[0, 1, 2, 3][..4.min(gone + 1)])).expect("excluded");
    }
    let change = cap(&governance, 0.9);
    assert!(governance.follow(&adopted(&governance, change, &[0, 3, 4])).is_err());
}

fn rotation(governance: &Governance, member: usize, from: usize, to: usize, by: &[usize]) -> Step {
    let rotation = KeyRotation {
        charter: governance.digest(),
        member: name(member),
        from: key(from).public(),
        to: key(to).public(),
    };
    let mut signed = Signed::unsigned(rotation);
    by.iter().for_each(|n| signed.sign(&key(*n)).expect("signs"));
    Step::Rotated(signed)
}

#[test]
fn a_key_is_rotated_by_itself_and_recovered_by_the_members() {
    let mut governance = founded(3);
    for (to, by) in [(50, &[0][..]), (50, &[50]), (50, &[1, 50]), (1, &[0, 1]), (100, &[0, 100])] {
        assert!(governance.follow(&rotation(&governance, 0, 0, to, by)).is_err(), "{to} by {by:?}");
    }
    let step = rotation(&governance, 0, 0, 50, &[0, 50]);
    governance.follow(&step).expect("by both keys");
    assert_eq!(governance.member_of(&key(50).public()), Some(&name(0)));
    assert_eq!((governance.member_of(&key(0).public()), governance.charter().document.version), (None, 2));
    assert!(governance.follow(&step).is_err(), "twice");
    assert!(governance.follow(&rotation(&governance, 0, 50, 0, &[50, 0])).is_err(), "an old key does not come back");

    // Key 1 is lost: the others give its member another.
    let change = next(&governance, |terms| {
        terms.members.insert(name(1), key(51).public());
    });
    let proposed = proposal(&governance, 2, change.clone());
    let yes = |n: usize, secret: usize| {
        let vote = vote(&governance, &proposed, n, Choice::Yes).document;
        Signed::by(vote, &key(secret)).expect("signs")
    };
    let step = |votes| Step::Adopted { proposal: Box::new(proposed.clone()), votes };
    assert!(governance.clone().follow(&step(vec![yes(0, 0), yes(2, 2)])).is_err(), "a vote with the old key");
    governance.follow(&step(vec![yes(0, 50), yes(2, 2)])).expect("two of three");
    assert_eq!(governance.member_of(&key(51).public()), Some(&name(1)));
    assert_eq!(governance.member_of(&key(1).public()), None, "who stole the lost key has nothing");
}

#[test]
fn leaving_needs_nobody_and_what_is_required_follows() {
    let mut governance = founded(4);
    let departure = |by: usize, signer: usize| {
        let departure = Departure { charter: governance.digest(), member: name(by), reason: "Our own way.".into() };
        Step::Left(Signed::by(departure, &key(signer)).expect("signs"))
    };
    let (forged, own) = (departure(3, 0), departure(3, 3));
    assert!(governance.follow(&forged).is_err(), "nobody leaves for another");
    governance.follow(&own).expect("at once");
    assert!(governance.follow(&own).is_err(), "once");
    assert_eq!((governance.num_members(), governance.charter().document.version), (3, 1));
    assert!(
        matches!(governance.kinds_of(&next(&governance, |_| ())), Err(GovernanceError::NoChange)),
        "nobody is excluded"
    );
    let change = cap(&governance, 0.9);
    governance.follow(&adopted(&governance, change, &[0, 1])).expect("two of the three that are left");
    let listed = next(&governance, |terms| {
        terms.members.insert(name(3), key(3).public());
    });
    assert!(matches!(governance.kinds_of(&listed), Err(GovernanceError::GivenUp { .. })));
    // Listing it again is admitting it.
    let kinds = governance.kinds_of(&next(&governance, |terms| {
        terms.members.insert(name(3), key(34).public());
    }));
    assert!(kinds.expect("can be decided").contains(&DecisionKind::Admit));
}

#[test]
fn a_charter_without_rules_gets_them_by_the_signatures_of_its_quorum() {
    let mut signed = Signed::unsigned(Charter::try_from(CharterTerms { governance: None, ..terms(3) }).expect("sound"));
    [0, 1].iter().for_each(|n| signed.sign(&key(*n)).expect("signs"));
    let mut governance = Governance::found(signed).expect("binds");
    assert!(matches!(governance.kinds_of(&cap(&governance, 0.9)), Err(GovernanceError::NoRules)));
    let mut next: CharterTerms = governance.charter().document.clone().into();
    (next.version, next.previous, next.governance) = (2, Some(governance.digest()), terms(3).governance);
    let mut with_rules = Signed::unsigned(Charter::try_from(next).expect("sound"));
    with_rules.sign(&key(0)).expect("signs");
    assert!(governance.follow(&Step::Founded(Box::new(with_rules.clone()))).is_err(), "one of three");
    with_rules.sign(&key(1)).expect("signs");
    governance.follow(&Step::Founded(Box::new(with_rules.clone()))).expect("two of three");
    assert!(governance.follow(&Step::Founded(Box::new(with_rules))).is_err());
    let change = cap(&governance, 0.9);
    governance.follow(&adopted(&governance, change, &[0, 1])).expect("and now by votes");
}

#[test]
fn credits_are_entered_by_vote_and_bounded() {
    let mut governance = founded(3);
    let credit = |member: usize, amount| Credit {
        member: name(member),
        kind: CreditKind::Engineering,
        amount,
        unit: "hours".into(),
        what: "the installer".into(),
    };
    let step = adopted(&governance, Change::Credits(vec![credit(1, 80)]), &[0, 2]);
    governance.follow(&step).expect("two of three");
    assert_eq!(governance.credits(), [credit(1, 80)]);
    assert_eq!(governance.charter().document.version, 1, "the charter is the same");
    for wrong in [vec![], vec![credit(9, 1)], vec![credit(1, 1 << 53)], vec![credit(1, 1); 65]] {
        assert!(governance.kinds_of(&Change::Credits(wrong)).is_err());
    }
}

#[test]
fn an_earlier_decision_under_the_same_charter_can_be_taken_only_once() {
    let mut governance = founded(3);
    let credit =
        Credit { member: name(1), kind: CreditKind::Data, amount: 1, unit: "texts".into(), what: "for once".into() };
    let step = adopted(&governance, Change::Credits(vec![credit]), &[0, 1]);
    governance.follow(&step).expect("once");
    assert!(governance.follow(&step).is_err(), "not twice");
}

#[test]
fn proposals_are_bounded_and_open_long_enough() {
    let governance = founded(3);
    let good = proposal(&governance, 0, cap(&governance, 0.9)).document;
    let check =
        |proposal: Proposal| governance.check_proposal(&Signed::by(proposal, &key(0)).expect("signs")).map(drop);
    check(good.clone()).expect("sound");
    for wrong in [
        Proposal { rationale: " ".into(), ..good.clone() },
        Proposal { rationale: "x".repeat(MAX_RATIONALE_BYTES + 1), ..good.clone() },
        Proposal { rationale: "bell \u{7}".into(), ..good.clone() },
        Proposal { consulted: vec!["x".into(); 17], ..good.clone() },
        Proposal { closes_at: at(1009), ..good.clone() },
        Proposal { closes_at: at(9), ..good.clone() },
        Proposal { closes_at: at(MAX_OPEN_MS + 11), ..good.clone() },
        Proposal { member: name(1), ..good },
    ] {
        assert!(check(wrong).is_err());
    }
}

/// The longest that a text of so many bytes can become in JSON.
fn longest(num_bytes: usize) -> String {
    "\"".repeat(num_bytes)
}

#[test]
fn the_largest_charter_and_the_largest_proposal_fit_an_entry_of_a_log() {
    const MAX_ENTRY_BYTES: usize = 65_535;
    let mut large = terms(MAX_MEMBERS);
    large.consortium = "\u{1F310}".repeat(200);
    large.standbys = (0..16).map(|n| key(200 + n).public()).collect();
    large.merge.weighting = serde_json::from_str(r#"{"type":"culturally-aware"}"#).unwrap_or(large.merge.weighting);
    let text = HeldOutTerms { text: Digest::of(b"a community's text"), max_tokens: 10_000_000 };
    if large.merge.weighting.needs_community_texts() {
        large.merge.community_held_out = large.members.keys().map(|member| (member.clone(), text.clone())).collect();
    }
    large.governance.as_mut().expect("has rules").text = longest(MAX_TEXT_BYTES);
    let mut signed = Signed::unsigned(Charter::try_from(large).expect("sound"));
    (0..MAX_MEMBERS).for_each(|n| signed.sign(&key(n)).expect("signs"));
    let governance = Governance::found(signed.clone()).expect("binds");
    let mut proposal = proposal(&governance, 0, cap(&governance, 0.9)).document;
    proposal.rationale = longest(MAX_RATIONALE_BYTES);
    proposal.consulted = vec![longest(MAX_CONSULTED.1); MAX_CONSULTED.0];
    let proposal = Signed::by(proposal, &key(0)).expect("signs");
    governance.check_proposal(&proposal).expect("sound");
    // What an entry has beside its event: numbers, times, keys of successors.
    let beside = 200 + 17 * 70;
    for size in [to_canonical_json(&signed), to_canonical_json(&proposal)].map(|json| json.expect("canonical").len()) {
        assert!(size + beside <= MAX_ENTRY_BYTES, "{size}");
    }
}
