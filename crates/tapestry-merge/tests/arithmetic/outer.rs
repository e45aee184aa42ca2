//! Outer optimisers over several rounds against torch and NumPy: `golden/make_outer.py`.

use crate::robust::{bits, method};
use crate::robust_golden::{doubles, floats};
use crate::run::{Member, Model};
use proptest::prelude::*;
use serde::Deserialize;
use tapestry_merge::Method;

#[derive(Deserialize)]
struct Golden {
    shares: Vec<f64>,
    rounds: Vec<Round>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Round {
    base: String,
    members: Vec<String>,
}

#[derive(Deserialize)]
struct Case {
    method: Method,
    /// What storing states as `f32` may cost, says the script.
    tolerance: f64,
    merged: Vec<String>,
}

/// As the engine stores them between rounds.
#[expect(clippy::cast_possible_truncation, reason = "rounding is what storing does")]
fn stored(states: &[Vec<Vec<f64>>]) -> Vec<Vec<Vec<f32>>> {
    let tensor = |tensor: &Vec<f64>| tensor.iter().map(|value| *value as f32).collect();
    states.iter().map(|state| state.iter().map(tensor).collect()).collect()
}

#[test]
fn rounds_are_those_of_torch_and_numpy() {
    let golden: Golden = serde_json::from_str(include_str!("../golden/outer.json")).unwrap();
    assert_eq!((golden.cases.len(), golden.rounds.len()), (7, 8));
    for case in golden.cases {
        let mut states = vec![];
        for (number, (round, expected)) in golden.rounds.iter().zip(&case.merged).enumerate() {
            let base = [floats(&round.base)];
            let members: Vec<Member> = round
                .members
                .iter()
                .zip(&golden.shares)
                .enumerate()
                .map(|(i, (member, share))| (format!("m{i}"), *share, vec![floats(member)]))
                .collect();
            let model = Model { states, ..Model::new(&base, 1) };
            let merged = model.merge(&case.method, &members, 16).unwrap();
            for (at, (found, expected)) in merged.tensors[0].iter().zip(doubles(expected)).enumerate() {
                let off = (found - expected).abs();
                assert!(
                    off <= case.tolerance,
                    "{:?}, round {number}, element {at}: {found} and not {expected}, off by {off:e} > {:e}",
                    case.method,
                    case.tolerance,
                );
            }
            states = stored(&merged.states);
        }
    }
}

fn values() -> impl Strategy<Value = (Vec<f32>, Vec<Vec<f32>>)> {
    (1usize..5, 1usize..100).prop_flat_map(|(n, len)| {
        let row = move || prop::collection::vec(-2f32..2.0, len);
        (row(), prop::collection::vec(row(), n))
    })
}

fn members(rows: &[Vec<f32>]) -> Vec<Member> {
    let total = (1..=rows.len()).sum::<usize>() as f64;
    rows.iter().enumerate().map(|(i, row)| (format!("m{i}"), (i + 1) as f64 / total, vec![row.clone()])).collect()
}

const OUTER: [&str; 3] = [r#"{"name": "diloco"}"#, r#"{"name": "fedadam"}"#, r#"{"name": "fedyogi"}"#];

proptest! {
    #[test]
    fn diloco_without_momentum_and_with_a_rate_of_one_is_fedavg_to_the_last_bit((base, rows) in values()) {
        let (base, members) = ([base], members(&rows));
        let model = Model::new(&base, 1);
        let diloco = model.merge(&method(r#"{"name": "diloco", "learning_rate": 1, "momentum": 0}"#), &members, 32).unwrap();
        let fedavg = model.merge(&method(r#"{"name": "fedavg"}"#), &members, 32).unwrap();
        prop_assert!(diloco.states.is_empty());
        prop_assert_eq!(bits(&diloco.tensors), bits(&fedavg.tensors));
    }

    #[test]
    fn states_and_values_do_not_depend_on_the_cut((base, rows) in values(), row in 1usize..70) {
        let (base, mut members) = ([base], members(&rows));
        let len = base[0].len();
        let state = |step: f32| vec![(0..len).map(|at| step * (at % 7) as f32).collect()];
        for outer in OUTER {
            let model = Model { states: vec![state(0.01), state(0.02)], ..Model::new(&base, 1) };
            let whole = model.merge(&method(outer), &members, 4096).unwrap();
            members.reverse();
            let cut = model.merge(&method(outer), &members, row).unwrap();
            prop_assert_eq!(bits(&whole.tensors), bits(&cut.tensors));
            for (whole, cut) in whole.states.iter().zip(&cut.states) {
                prop_assert_eq!(bits(whole), bits(cut));
            }
        }
    }
}

#[test]
fn a_round_in_which_nobody_changed_anything_leaves_the_base_and_the_momentum_at_rest() {
    let base = [vec![0.0f32, 0.125, -1.5, 3e38]];
    let members: Vec<Member> = (0..4).map(|i| (format!("m{i}"), 0.25, base.to_vec())).collect();
    for outer in OUTER {
        let merged = Model::new(&base, 1).merge(&method(outer), &members, 4096).unwrap();
        let expected: Vec<f64> = base[0].iter().copied().map(f64::from).collect();
        assert_eq!(merged.tensors, [expected], "{outer}");
        assert!(merged.states[0][0].iter().all(|value| *value == 0.0), "{outer}");
    }
}
