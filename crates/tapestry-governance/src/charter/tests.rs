use super::*;
use tapestry_core::SecretKey;

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32].into())
}

fn terms() -> CharterTerms {
    let member = |name: &str, n| (name.parse().expect("a name"), key(n).public());
    CharterTerms {
        consortium: "Test".into(),
        version: 1,
        previous: None,
        members: BTreeMap::from([member("france", 1), member("china", 2), member("iran", 3)]),
        coordinator: key(9).public(),
        standbys: BTreeSet::from([key(8).public()]),
        quorum: 2,
        base: Digest::of(b"base"),
        open_held_out: HeldOutTerms { text: Digest::of(b"text"), max_tokens: 2048 },
        rounds: RoundTerms { num_rounds: 2, window_ms: 60_000, min_contributions: 2, late_rounds: 0 },
        screening: ScreeningTerms { max_relative_change: 0.1, max_bpb_rise: 0.1 },
        merge: MergeTerms::plain(0.5),
        gate: GateTerms { max_bpb_rise: 0.03 },
        privacy_tier: 0,
        valid_from: Timestamp::from_ms(1_000),
        valid_until: Timestamp::from_ms(2_000),
        governance: None,
    }
}

fn signed_by(keys: &[u8]) -> Signed<Charter> {
    let mut signed = Signed::unsigned(Charter::try_from(terms()).expect("sound terms"));
    for n in keys {
        signed.sign(&key(*n)).expect("signs");
    }
    signed
}

const NOW: Timestamp = Timestamp::from_ms(1_500);

#[test]
fn a_charter_binds_with_the_quorum_of_its_members_and_not_before() {
    assert!(Charter::binding(&signed_by(&[1, 2]), NOW).is_ok());
    assert!(matches!(Charter::binding(&signed_by(&[1]), NOW), Err(CharterError::Signatures(_))));
}

#[test]
fn the_coordinator_has_no_vote() {
    assert!(Charter::binding(&signed_by(&[1, 9]), NOW).is_err());
}

#[test]
fn a_standby_may_coordinate_and_has_no_vote_and_nobody_elses_key() {
    let charter = Charter::try_from(terms()).expect("sound terms");
    for n in [8, 9] {
        assert!(charter.check_may_coordinate(key(n).public()).is_ok());
    }
    assert!(matches!(charter.check_may_coordinate(key(1).public()), Err(CharterError::NotAStandby { .. })));
    assert!(charter.check_coordinator(key(8).public()).is_err(), "it may take the role, it does not have it");
    assert!(Charter::binding(&signed_by(&[1, 8]), NOW).is_err());
    for taken in [1, 9] {
        let standbys = BTreeSet::from([key(taken).public()]);
        let verdict = Charter::try_from(CharterTerms { standbys, ..terms() });
        assert!(matches!(verdict, Err(TermsError::SharedKey { .. })), "{taken}");
    }
}

#[test]
fn an_expired_or_early_charter_does_not_bind() {
    for ms in [999, 2_000] {
        let signed = signed_by(&[1, 2, 3]);
        let verdict = Charter::binding(&signed, Timestamp::from_ms(ms));
        assert!(matches!(verdict, Err(CharterError::Expired { .. })), "{ms}");
    }
}

#[test]
fn a_charter_changed_after_signing_does_not_bind() {
    let mut signed = signed_by(&[1, 2, 3]);
    signed.document.0.merge.influence_cap = 1.0;
    assert!(matches!(Charter::binding(&signed, NOW), Err(CharterError::Signatures(SignedError::Forged { .. }))));
}

#[test]
fn senseless_terms_are_refused_with_the_terms_name() {
    let check = |expected: &str, change: fn(&mut CharterTerms)| {
        let mut broken = terms();
        change(&mut broken);
        let message = Charter::try_from(broken).expect_err("refused").to_string();
        assert!(message.contains(expected), "{message}");
    };
    check("`quorum`", |t| t.quorum = 1);
    check("`quorum`", |t| t.quorum = 4);
    check("`merge.influence_cap`", |t| t.merge.influence_cap = 0.0);
    check("`merge.influence_cap`", |t| t.merge.influence_cap = f64::NAN);
    check("`rounds.min_contributions`", |t| t.rounds.min_contributions = 4);
    check("`privacy_tier`", |t| t.privacy_tier = 3);
    check("`valid_until`", |t| t.valid_until = t.valid_from);
    check("`previous`", |t| t.version = 2);
    check("listed twice", |t| t.coordinator = key(1).public());
}

#[test]
fn json_with_senseless_terms_or_unknown_fields_does_not_parse() {
    let mut value = serde_json::to_value(terms()).expect("serialises");
    assert!(serde_json::from_value::<Charter>(value.clone()).is_ok());
    value["quorum"] = 0.into();
    assert!(serde_json::from_value::<Charter>(value.clone()).is_err());
    value["quorum"] = 2.into();
    value["veto"] = "france".into();
    assert!(serde_json::from_value::<Charter>(value).is_err());
}

#[test]
fn parties_are_known_by_their_keys() {
    let charter = Charter::try_from(terms()).expect("sound terms");
    assert_eq!(charter.member_of(key(3).public()).expect("a member").as_str(), "iran");
    assert!(charter.member_of(key(9).public()).is_err());
    assert!(charter.check_coordinator(key(9).public()).is_ok());
    assert!(charter.check_coordinator(key(1).public()).is_err());
}

fn refused(change: impl Fn(&mut CharterTerms), expected: &str) {
    let mut terms = terms();
    change(&mut terms);
    let error = Charter::try_from(terms).expect_err(expected).to_string();
    assert!(error.contains(expected), "{error}");
}

#[test]
fn ways_of_merging_that_do_not_fit_are_refused() {
    use tapestry_merge::method::{DiLoCo, Krum, Median, Slerp, Ties};
    use tapestry_merge::weights::{CulturallyAware, DataProportional, QualityWeighted};
    let quality = Weighting::QualityWeighted(QualityWeighted { temperature: 0.05 });
    refused(
        |t| t.merge.method = Method::Ties(Ties { density: 2.0, scale: 1.0 }),
        "`density` must be above 0 and at most 1",
    );
    refused(|t| t.merge.method = Method::Krum(Krum { faulty: 1 }), "`rounds.min_contributions` must be 5 or more");
    refused(|t| t.merge.weighting = Weighting::QualityWeighted(QualityWeighted { temperature: 0.0 }), "`temperature`");
    refused(|t| t.merge.weighting = Weighting::DataProportional(DataProportional {}), "capture risk");
    refused(|t| t.merge.influence_cap = 0.4, "`merge.influence_cap` must be at least 0.5");
    refused(|t| t.merge.method = Method::Slerp(Slerp {}), "`merge.method` must be one for more than 2 contributions");
    refused(|t| t.merge.staleness_exponent = f64::NAN, "merge.staleness_exponent");
    let median = |t: &mut CharterTerms| {
        t.merge.method = Method::Median(Median {});
        t.merge.weighting = quality;
        t.rounds.min_contributions = 3;
    };
    refused(median, "the method `median` counts all alike");
    let aware = Weighting::CulturallyAware(CulturallyAware { temperature: 0.05, community_share: 0.5 });
    refused(|t| t.merge.weighting = aware, "one text for each member");
    let text = || HeldOutTerms { text: Digest::of(b"own"), max_tokens: 100 };
    let one =
        |t: &mut CharterTerms| t.merge.community_held_out = BTreeMap::from([("iran".parse().expect("a name"), text())]);
    refused(one, "absent unless the weighting is `culturally-aware`");

    let mut sound = terms();
    sound.merge.method = Method::DiLoCo(DiLoCo { learning_rate: 0.7, momentum: 0.9 });
    sound.merge.weighting = aware;
    sound.merge.community_held_out = sound.members.keys().map(|member| (member.clone(), text())).collect();
    let charter = Charter::try_from(sound).expect("sound terms");
    let json = serde_json::to_string(&charter).expect("plain data");
    assert_eq!(serde_json::from_str::<Charter>(&json).expect("reads its own"), charter);
}

#[test]
fn a_method_that_selects_contributions_cannot_go_round_the_cap() {
    use tapestry_merge::method::{Krum, MultiKrum};
    let five = |method: Method, influence_cap: f64| {
        move |t: &mut CharterTerms| {
            for n in 4..=5 {
                t.members.insert(format!("m{n}").parse().expect("a name"), key(n).public());
            }
            (t.quorum, t.rounds.min_contributions) = (5, 5);
            (t.merge.method, t.merge.influence_cap) = (method.clone(), influence_cap);
        }
    };
    refused(five(Method::Krum(Krum { faulty: 1 }), 0.9), "at least 1, because the result of `krum` is one");
    let two_of_five = || Method::MultiKrum(MultiKrum { faulty: 1, selected: None });
    refused(five(two_of_five(), 0.4), "at least 0.5, because `multi-krum` selects");
    let mut sound = terms();
    five(two_of_five(), 0.5)(&mut sound);
    assert!(Charter::try_from(sound).is_ok());
}
