use super::*;
use proptest::prelude::*;

fn candidate(member: &str, score_bpb: f64) -> Candidate {
    let member = member.parse().expect("a name");
    Candidate { member, score_bpb, base_bpb: 2.0, community: None, num_tokens: 100, staleness: 0 }
}

fn candidates(scores: &[f64]) -> Vec<Candidate> {
    scores.iter().enumerate().map(|(i, score)| candidate(&format!("m{i}"), *score)).collect()
}

const BOUNDS: Bounds = Bounds { floor_bpb: 2.2, cap: 0.5, staleness_exponent: 0.5 };
const UNIFORM: Weighting = Weighting::Uniform(Uniform {});
const QUALITY: Weighting = Weighting::QualityWeighted(QualityWeighted { temperature: 0.05 });

fn weights(weighting: Weighting, candidates: &[Candidate], bounds: &Bounds) -> Vec<f64> {
    weighting.weigh(candidates, bounds).expect("feasible").into_iter().map(|record| record.weight).collect()
}

#[test]
fn uniform_weights_are_equal_and_sum_to_one() {
    let found = weights(UNIFORM, &candidates(&[1.0, 1.9, 1.5]), &BOUNDS);
    assert!((found.iter().sum::<f64>() - 1.0).abs() < 1e-15);
    assert!(found.iter().all(|weight| (weight - 1.0 / 3.0).abs() < 1e-15));
}

#[test]
fn a_cap_that_cannot_hold_is_an_error_that_says_what_would() {
    for weighting in [UNIFORM, QUALITY] {
        let error = weighting.weigh(&candidates(&[1.0, 1.0]), &Bounds { cap: 0.4, ..BOUNDS }).expect_err("infeasible");
        assert_eq!(error, WeightError::InfeasibleCap { cap: 0.4, num_members: 2, smallest_feasible: 0.5 });
        assert!(weighting.weigh(&candidates(&[1.0]), &Bounds { cap: 1.0, ..BOUNDS }).is_ok());
        assert!(weighting.weigh(&candidates(&[1.0, 1.1, 1.2]), &Bounds { cap: 0.333_333_333_333, ..BOUNDS }).is_ok());
        assert_eq!(weighting.weigh(&[], &BOUNDS), Err(WeightError::Empty));
    }
}

#[test]
fn quality_counts_by_the_formula() {
    // Five percent better at a temperature of 0.05: e times as much.
    let found = weights(QUALITY, &candidates(&[1.8, 1.9]), &Bounds { cap: 1.0, ..BOUNDS });
    assert!((found[0] / found[1] - std::f64::consts::E).abs() < 1e-12, "{found:?}");
}

#[test]
fn a_dominant_member_is_held_at_the_cap_and_the_rest_keep_their_proportions() {
    let records = QUALITY.weigh(&candidates(&[1.0, 1.9, 1.95]), &BOUNDS).expect("feasible");
    assert!(records[0].is_capped && records[0].raw_weight > 0.99);
    assert!((records[0].weight - 0.5).abs() < 1e-15);
    let kept = records[1].weight / records[2].weight;
    assert!((kept - records[1].raw_weight / records[2].raw_weight).abs() < 1e-9, "{kept}");
}

#[test]
fn who_serves_its_own_community_gains_under_culturally_aware_weighting_only() {
    let own = |score_bpb| Some(CommunityScore { score_bpb, base_bpb: 4.0 });
    // The first is good at the common text, the second at its own.
    let mut both = candidates(&[1.8, 2.0]);
    (both[0].community, both[1].community) = (own(4.0), own(3.2));
    let bounds = Bounds { cap: 0.95, ..BOUNDS };
    let common = weights(QUALITY, &both, &bounds);
    let aware = Weighting::CulturallyAware(CulturallyAware { temperature: 0.05, community_share: 0.5 });
    let aware_weights = weights(aware, &both, &bounds);
    assert!(common[0] > common[1] && aware_weights[1] > aware_weights[0], "{common:?} {aware_weights:?}");
    // (0.10 + 0) / 2 against (0 + 0.20) / 2: five percent, so e to one.
    assert!((aware_weights[1] / aware_weights[0] - std::f64::consts::E).abs() < 1e-12);
    both[1].community = None;
    let error = aware.weigh(&both, &bounds).expect_err("a score is missing");
    assert!(error.to_string().contains("member m1 has no score on a text of its own community"), "{error}");
}

#[test]
fn tokens_count_only_where_the_charter_chose_so() {
    let mut two = candidates(&[1.5, 1.5]);
    two[0].num_tokens = 300;
    let bounds = Bounds { cap: 1.0, ..BOUNDS };
    let by_data = weights(Weighting::DataProportional(DataProportional {}), &two, &bounds);
    assert!((by_data[0] - 0.75).abs() < 1e-15 && (weights(UNIFORM, &two, &bounds)[0] - 0.5).abs() < 1e-15);
    two[1].num_tokens = 0;
    let by_data = weights(Weighting::DataProportional(DataProportional {}), &two, &bounds);
    assert!(by_data[1] > 0.0 && by_data[1] < 0.01, "stating nothing stops nobody: {by_data:?}");
}

#[test]
fn a_late_contribution_counts_less_and_its_record_says_so() {
    let mut three = candidates(&[1.5, 1.5, 1.5]);
    three[2].staleness = 3;
    let records = UNIFORM.weigh(&three, &BOUNDS).expect("feasible");
    // One over the square root of four.
    assert!((records[2].discount - 0.5).abs() < 1e-15 && (records[2].weight - 0.2).abs() < 1e-15, "{records:?}");
    assert!((records[0].weight - 0.4).abs() < 1e-15);
}

#[test]
fn what_cannot_be_weighed_is_refused_by_name() {
    for (score, base) in [(f64::NAN, 2.0), (-1.0, 2.0), (0.0, 2.0), (f64::INFINITY, 2.0), (1.0, f64::NAN)] {
        let mut two = candidates(&[1.0, score]);
        two[1].base_bpb = base;
        let error = QUALITY.weigh(&two, &BOUNDS).expect_err("refused").to_string();
        assert!(error.contains("member m1"), "{error}");
    }
    let twice = [candidate("a", 1.0), candidate("b", 1.0), candidate("a", 1.0)];
    assert!(matches!(UNIFORM.weigh(&twice, &BOUNDS), Err(WeightError::Duplicate { member }) if member.as_str() == "a"));
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        assert!(Weighting::QualityWeighted(QualityWeighted { temperature }).check().is_err(), "{temperature}");
    }
}

#[test]
fn the_table_shows_what_counted() {
    let mut two = candidates(&[1.0, 1.9]);
    two.iter_mut().for_each(|c| c.community = Some(CommunityScore { score_bpb: 3.0, base_bpb: 4.0 }));
    let aware = Weighting::CulturallyAware(CulturallyAware { temperature: 0.05, community_share: 0.5 });
    let text = explain(&aware.weigh(&two, &BOUNDS).expect("feasible"));
    assert!(text.contains("own text") && text.contains("3.0000   4.0000") && !text.contains("tokens"), "{text}");
    let by_quality = explain(&QUALITY.weigh(&candidates(&[1.0, 1.9, 1.95]), &BOUNDS).expect("feasible"));
    assert!(by_quality.contains("0.500000  capped") && !by_quality.contains("own text"), "{by_quality}");
}

#[test]
fn weights_a_hair_above_the_cap_still_sum_to_one() {
    for hairs in 1..200 {
        let hair = f64::from(hairs) * 5e-15;
        let found = capped(&[0.5 + hair, 0.3, 0.2 - hair], 0.5).expect("feasible");
        let sum: f64 = found.iter().map(|(weight, _)| weight).sum();
        assert!((sum - 1.0).abs() < 1e-15 && found.iter().all(|(weight, _)| *weight <= 0.5), "{hair}: {found:?}");
    }
}

#[test]
fn nobody_is_too_late_or_too_bad_to_have_a_weight() {
    let mut two = candidates(&[0.1, 1.9]);
    two[1].staleness = u32::MAX;
    let sharp = Weighting::QualityWeighted(QualityWeighted { temperature: 0.001 });
    let bounds = Bounds { cap: 1.0, staleness_exponent: 100.0, ..BOUNDS };
    let found = weights(sharp, &two, &bounds);
    assert!(found[1] > 0.0 && found[0] <= 1.0, "{found:?}");
}

/// What trying every set of members to hold at the cap finds: the nearest to `raw` that keeps it.
fn nearest_by_trying(raw: &[f64], cap: f64) -> Vec<f64> {
    let held = |set: u32, at: usize| set & (1 << at) != 0;
    let weights_of = |set: u32| -> Vec<f64> {
        let left = 1.0 - f64::from(set.count_ones()) * cap;
        let rest: f64 = (0..raw.len()).filter(|at| !held(set, *at)).map(|at| raw[at]).sum();
        (0..raw.len()).map(|at| if held(set, at) { cap } else { raw[at] / rest * left }).collect()
    };
    let is_possible = |weights: &Vec<f64>| weights.iter().all(|weight| (0.0..=cap * (1.0 + 1e-9)).contains(weight));
    let all = (0..(1_u32 << raw.len()) - 1).map(weights_of).filter(is_possible);
    all.min_by(|a, b| divergence(a, raw).total_cmp(&divergence(b, raw))).expect("one is possible")
}

/// The relative entropy of `weights` to `raw`, which water-filling minimises.
fn divergence(weights: &[f64], raw: &[f64]) -> f64 {
    let sum: f64 = raw.iter().sum();
    weights.iter().zip(raw).map(|(weight, raw)| weight * (weight / (raw / sum)).ln()).sum()
}

/// Found by the simulator: three at a cap of a third left the fourth a weight of zero.
#[test]
fn whoever_was_accepted_has_a_weight_though_those_at_the_cap_have_nearly_everything() {
    for (num_capped, cap) in [(3, 1.0 / 3.0), (10, 0.1), (49, 1.0 / 49.0)] {
        let mut raw: Vec<f64> = (0..num_capped).map(|number| 0.5_f64.powi(number)).collect();
        raw.push(1e-63);
        let weights: Vec<f64> = capped(&raw, cap).expect("feasible").into_iter().map(|(weight, _)| weight).collect();
        assert!(weights.iter().all(|weight| *weight > 0.0 && *weight <= cap), "{weights:?}");
        assert!((weights.iter().sum::<f64>() - 1.0).abs() < 1e-14, "{weights:?}");
    }
}

proptest! {
    #[test]
    fn caps_hold_weights_sum_to_one_and_proportions_are_kept(
        logs in proptest::collection::vec(-30.0f64..30.0, 1..60),
        slack in 0.0f64..1.0,
    ) {
        let raw: Vec<f64> = logs.iter().map(|log| log.exp()).collect();
        let smallest = 1.0 / raw.len() as f64;
        let cap = smallest + slack * (1.0 - smallest);
        let found = capped(&raw, cap).expect("feasible");
        let weights: Vec<f64> = found.iter().map(|(weight, _)| *weight).collect();
        prop_assert!((weights.iter().sum::<f64>() - 1.0).abs() < 2e-15, "{weights:?}");
        prop_assert!(weights.iter().all(|weight| *weight > 0.0 && *weight <= cap * (1.0 + 1e-12)));
        let free: Vec<usize> = (0..raw.len()).filter(|i| !found[*i].1).collect();
        for pair in free.windows(2) {
            let (expected, ratio) = (raw[pair[0]] / raw[pair[1]], weights[pair[0]] / weights[pair[1]]);
            prop_assert!((ratio / expected - 1.0).abs() < 1e-9, "{ratio} {expected}");
        }
        // Whoever is held has the cap, and at least as much raw weight as any who is not.
        let least_held = (0..raw.len()).filter(|i| found[*i].1).map(|i| raw[i]).fold(f64::INFINITY, f64::min);
        prop_assert!(found.iter().all(|(weight, is_held)| !is_held || (weight / cap - 1.0).abs() < 1e-12));
        prop_assert!(free.iter().all(|i| raw[*i] <= least_held));
    }

    #[test]
    fn trying_every_set_of_held_members_finds_the_same(
        logs in proptest::collection::vec(-4.0f64..4.0, 1..8),
        slack in 0.01f64..1.0,
    ) {
        let raw: Vec<f64> = logs.iter().map(|log| log.exp()).collect();
        let smallest = 1.0 / raw.len() as f64;
        let cap = smallest + slack * (1.0 - smallest);
        let found = capped(&raw, cap).expect("feasible");
        for ((weight, _), expected) in found.iter().zip(nearest_by_trying(&raw, cap)) {
            prop_assert!((weight - expected).abs() < 1e-9, "{found:?} {expected}");
        }
    }

    #[test]
    fn no_other_weights_under_the_cap_are_nearer(
        raw in proptest::collection::vec(0.01f64..10.0, 3..6),
        others in proptest::collection::vec(proptest::collection::vec(0.01f64..10.0, 6), 50),
        slack in 0.05f64..1.0,
    ) {
        let smallest = 1.0 / raw.len() as f64;
        let cap = smallest + slack * (1.0 - smallest);
        let best: Vec<f64> = capped(&raw, cap).expect("feasible").into_iter().map(|(weight, _)| weight).collect();
        for other in others {
            let sum: f64 = other[..raw.len()].iter().sum();
            // On the way from the best towards any other point, as far as the cap lets.
            let other: Vec<f64> = other[..raw.len()].iter().map(|x| x / sum).collect();
            for step in [1e-4, 1e-2, 0.3, 1.0] {
                let moved: Vec<f64> = best.iter().zip(&other).map(|(a, b)| a + step * (b - a)).collect();
                if moved.iter().all(|weight| *weight <= cap) {
                    prop_assert!(divergence(&moved, &raw) >= divergence(&best, &raw) - 1e-12);
                }
            }
        }
    }
}
