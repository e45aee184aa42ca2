//! TIES, DARE and their kin, SLERP and Model Stock: what must hold whatever the values are.

use crate::robust::{bits, method};
use crate::run::{Member, Model};
use proptest::prelude::*;

/// Bases of two tensors and members with uneven shares; values of which many are equal, and some changes are nothing.
fn models() -> impl Strategy<Value = (Vec<Vec<f32>>, Vec<Member>)> {
    let value = || prop_oneof![4 => -2f32..2.0, 1 => prop_oneof![Just(0f32), Just(0.5), Just(-1.0)]];
    (2usize..6, 1usize..700, 1usize..40).prop_flat_map(move |(n, first, second)| {
        let model = move || (prop::collection::vec(value(), first), prop::collection::vec(value(), second));
        (model(), prop::collection::vec(model(), n)).prop_map(|(base, members)| {
            let total = (1..=members.len()).sum::<usize>() as f64;
            let member = |(i, (a, b))| (format!("m{i}"), (i + 1) as f64 / total, vec![a, b]);
            (vec![base.0, base.1], members.into_iter().enumerate().map(member).collect())
        })
    })
}

fn merge(json: &str, base: &[Vec<f32>], members: &[Member], row: usize) -> Vec<Vec<f64>> {
    Model::new(base, base.len()).merge(&method(json), members, row).unwrap().tensors
}

fn max_off(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    a.iter().flatten().zip(b.iter().flatten()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
}

fn equal_shares(members: &[Member]) -> Vec<Member> {
    let share = 1.0 / members.len() as f64;
    members.iter().map(|(name, _, tensors)| (name.clone(), share, tensors.clone())).collect()
}

const PRUNING: [&str; 4] = [
    r#"{"name": "task-arithmetic", "scale": 0.8}"#,
    r#"{"name": "ties", "density": 0.3, "scale": 0.8}"#,
    r#"{"name": "dare", "density": 0.3, "seed": 7, "scale": 0.8}"#,
    r#"{"name": "dare-ties", "density": 0.3, "seed": 7, "scale": 0.8}"#,
];

/// Changes are below 4 and rounded to `f32`; rescaling by 1 / 0.3 and a handful of roundings in `f64` stay far below.
const ROUNDED: f64 = 4.0 / (1u64 << 24) as f64;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn neither_cuts_nor_the_order_of_listing_can_be_seen((base, members) in models(), row in 1usize..600) {
        let listed: Vec<Member> = members.iter().rev().cloned().collect();
        for json in PRUNING {
            prop_assert_eq!(bits(&merge(json, &base, &members, 4096)), bits(&merge(json, &base, &listed, row)), "{}", json);
        }
        let stock = r#"{"name": "model-stock"}"#;
        let (equal, listed) = (equal_shares(&members), equal_shares(&listed));
        prop_assert_eq!(bits(&merge(stock, &base, &equal, 4096)), bits(&merge(stock, &base, &listed, row)));
        let slerp = r#"{"name": "slerp"}"#;
        let two = equal_shares(&members[..2]);
        let swapped = [two[1].clone(), two[0].clone()];
        prop_assert_eq!(bits(&merge(slerp, &base, &two, 4096)), bits(&merge(slerp, &base, &swapped, row)));
    }

    #[test]
    fn a_density_of_one_prunes_nothing((base, members) in models(), seed in 0u64..1 << 53) {
        let plain = merge(r#"{"name": "task-arithmetic"}"#, &base, &members, 4096);
        let dare = merge(&format!(r#"{{"name": "dare", "density": 1, "seed": {seed}}}"#), &base, &members, 4096);
        prop_assert!(max_off(&plain, &dare) <= ROUNDED);
        // Of a single contribution TIES takes all changes as they are.
        let one = equal_shares(&members[..1]);
        for json in [r#"{"name": "ties", "density": 1}"#, r#"{"name": "dare-ties", "density": 1, "seed": 0}"#] {
            let merged = merge(json, &base, &one, 4096);
            for (found, value) in merged.iter().flatten().zip(one[0].2.iter().flatten()) {
                prop_assert!((found - f64::from(*value)).abs() <= ROUNDED);
            }
        }
    }

    #[test]
    fn a_base_that_all_give_back_stays((base, members) in models(), seed in 0u64..1 << 53) {
        let same: Vec<Member> = members.iter().map(|(name, share, _)| (name.clone(), *share, base.clone())).collect();
        let dare = format!(r#"{{"name": "dare-ties", "density": 0.1, "seed": {seed}}}"#);
        let expected: Vec<Vec<f64>> = base.iter().map(|row| row.iter().copied().map(f64::from).collect()).collect();
        for json in [r#"{"name": "ties", "density": 0.2, "scale": 3}"#, &dare] {
            prop_assert_eq!(&merge(json, &base, &same, 4096), &expected);
        }
        for (json, members) in [
            (r#"{"name": "task-arithmetic", "scale": 3}"#, &same[..]),
            (r#"{"name": "model-stock"}"#, &equal_shares(&same)),
            (r#"{"name": "slerp"}"#, &equal_shares(&same[..2])),
        ] {
            // A sum of products that is one value only up to rounding; as an `f32` it is that value.
            prop_assert!(max_off(&merge(json, &base, members, 4096), &expected) < 1e-14, "{}", json);
        }
    }

    #[test]
    fn changes_that_are_all_equal_are_merged_as_one((base, members) in models()) {
        let same: Vec<Member> =
            members.iter().map(|(name, share, _)| (name.clone(), *share, members[0].2.clone())).collect();
        let one: Vec<Vec<f64>> = members[0].2.iter().map(|row| row.iter().copied().map(f64::from).collect()).collect();
        let ties = r#"{"name": "ties", "density": 0.4}"#;
        prop_assert!(max_off(&merge(ties, &base, &same, 4096), &merge(ties, &base, &equal_shares(&same[..1]), 4096)) < 1e-14);
        for json in [r#"{"name": "task-arithmetic"}"#, r#"{"name": "ties", "density": 1}"#] {
            prop_assert!(max_off(&merge(json, &base, &same, 4096), &one) <= ROUNDED, "{}", json);
        }
        let slerp = merge(r#"{"name": "slerp"}"#, &base, &equal_shares(&same[..2]), 4096);
        prop_assert!(max_off(&slerp, &one) < 1e-14);
    }

    #[test]
    fn ties_lies_between_the_base_and_the_changes_that_agree((base, members) in models(), density in 0.01f64..=1.0) {
        let merged = merge(&format!(r#"{{"name": "ties", "density": {density}}}"#), &base, &members, 4096);
        for (tensor, row) in merged.iter().enumerate() {
            for (at, found) in row.iter().enumerate() {
                let base = f64::from(base[tensor][at]);
                let changes = || members.iter().map(|member| f64::from(member.2[tensor][at]) - base);
                let (low, high) = (changes().fold(0.0, f64::min), changes().fold(0.0, f64::max));
                prop_assert!((low - ROUNDED..=high + ROUNDED).contains(&(found - base)));
            }
        }
    }
}

/// Of equal magnitudes at the threshold all are kept, so two of four is three here.
#[test]
fn ties_keeps_all_that_are_equal_at_the_threshold() {
    let base = [vec![0f32; 4]];
    let member = ("m".to_owned(), 1.0, vec![vec![0.5, -0.5, 0.25, 0.75]]);
    let merged = merge(r#"{"name": "ties", "density": 0.5}"#, &base, &[member], 4096);
    assert_eq!(merged, [[0.5, -0.5, 0.0, 0.75]]);
}

#[test]
fn seed_member_and_tensor_decide_what_is_dropped() {
    const LEN: usize = 20_000;
    let base = [vec![0f32; LEN], vec![0f32; LEN]];
    let kept = |seed: u64, name: &str, tensor: usize, density: f64| -> Vec<bool> {
        let member = (name.to_owned(), 1.0, vec![vec![1f32; LEN]; 2]);
        let json = format!(r#"{{"name": "dare", "density": {density}, "seed": {seed}}}"#);
        merge(&json, &base, &[member], 4096)[tensor].iter().map(|value| *value > 0.0).collect()
    };
    let all = [kept(1, "a", 0, 0.3), kept(2, "a", 0, 0.3), kept(1, "b", 0, 0.3), kept(1, "a", 1, 0.3)];
    assert_eq!(all[0], kept(1, "a", 0, 0.3));
    for (i, a) in all.iter().enumerate() {
        // The standard deviation is 65; what is kept in both is 0.09 of all, with one of 40.
        let count = a.iter().filter(|kept| **kept).count();
        assert!(count.abs_diff(LEN * 3 / 10) < 300, "{count}");
        for b in &all[i + 1..] {
            let both = a.iter().zip(b).filter(|(a, b)| **a && **b).count();
            assert!(both.abs_diff(LEN * 9 / 100) < 200, "{both}");
        }
    }
    // What a smaller density keeps, a larger one keeps too: their draws are the same.
    assert!(all[0].iter().zip(kept(1, "a", 0, 0.6)).all(|(few, many)| !few || many));
}

#[test]
fn dare_keeps_the_mean_change() {
    const LEN: usize = 100_000;
    let base = [vec![0f32; LEN]];
    let members: Vec<Member> = (0..2).map(|i| (format!("m{i}"), 0.5, vec![vec![1f32; LEN]])).collect();
    for json in
        [r#"{"name": "dare", "density": 0.1, "seed": 3}"#, r#"{"name": "dare-ties", "density": 0.1, "seed": 3}"#]
    {
        let mean = merge(json, &base, &members, 4096)[0].iter().sum::<f64>() / LEN as f64;
        // One value has a standard deviation of sqrt(0.9 / 0.1 / 2), so the mean of them all one of 0.007.
        assert!((mean - 1.0).abs() < 0.03, "{json}: {mean}");
    }
}

/// mergekit's ratio would be below zero here, and the result further from the contributions than the base is.
#[test]
fn model_stock_keeps_the_base_where_changes_disagree_and_the_mean_where_they_are_one() {
    let base = [vec![1f32, 1.0]];
    let members =
        |a: [f32; 2], b: [f32; 2]| [("a".to_owned(), 0.5, vec![a.to_vec()]), ("b".to_owned(), 0.5, vec![b.to_vec()])];
    let stock = |members: &[Member]| merge(r#"{"name": "model-stock"}"#, &base, members, 64).remove(0);
    assert_eq!(stock(&members([2.0, 1.5], [0.0, 1.0])), [1.0, 1.0]);
    assert_eq!(stock(&members([1.0, 1.0], [5.0, 1.0])), [1.0, 1.0], "one did not change anything");
    // A cosine of 0.6: t = 2 * 0.6 / 1.6.
    let (between, along) = (stock(&members([1.0, 2.0], [1.8, 1.6])), stock(&members([2.0, 1.0], [4.0, 1.0])));
    assert!(
        (between[0] - (1.0 + 0.75 * 0.4)).abs() < 1e-6 && (between[1] - (1.0 + 0.75 * 0.8)).abs() < 1e-6,
        "{between:?}"
    );
    assert!((along[0] - 3.0).abs() < 1e-12 && (along[1] - 1.0).abs() < 1e-12, "{along:?}");
}

/// mergekit takes a tensor of zeros to stand at a right angle to every other, and would give sin(pi / 8) here.
#[test]
fn slerp_goes_along_the_line_where_a_tensor_is_zero() {
    let zero_and = |b: f32| [("a".to_owned(), 0.75, vec![vec![0f32]]), ("b".to_owned(), 0.25, vec![vec![b]])];
    assert_eq!(merge(r#"{"name": "slerp"}"#, &[vec![0.0]], &zero_and(8.0), 64), [[2.0]]);
    assert_eq!(merge(r#"{"name": "slerp"}"#, &[vec![0.0]], &zero_and(0.0), 64), [[0.0]]);
}

#[test]
fn parameters_without_sense_and_a_wrong_number_of_models_are_refused() {
    let base = [vec![1f32, 2.0]];
    let members: Vec<Member> = (0..3).map(|i| (format!("m{i}"), 1.0 / 3.0, base.to_vec())).collect();
    let refusal = |json: &str, base: &[Vec<f32>], members: &[Member]| {
        Model::new(base, 1).merge(&method(json), members, 64).err().unwrap().to_string()
    };
    for (json, parameter) in [
        (r#"{"name": "ties", "density": 0}"#, "density"),
        (r#"{"name": "ties", "density": 1.1}"#, "density"),
        (r#"{"name": "dare", "density": -1, "seed": 1}"#, "density"),
        (r#"{"name": "dare-ties", "density": 0.5, "seed": 9007199254740992}"#, "seed"),
        (r#"{"name": "diloco", "learning_rate": 0}"#, "learning_rate"),
        (r#"{"name": "diloco", "momentum": 1}"#, "momentum"),
        (r#"{"name": "fedadam", "beta1": -0.1}"#, "beta1"),
        (r#"{"name": "fedadam", "beta2": 1}"#, "beta2"),
        (r#"{"name": "fedyogi", "tau": 0}"#, "tau"),
    ] {
        let message = refusal(json, &base, &members);
        assert!(message.contains(&format!("`{parameter}`")), "{json}: {message}");
    }
    for json in PRUNING.iter().chain(&[r#"{"name": "model-stock"}"#, r#"{"name": "diloco"}"#]) {
        assert!(refusal(json, &[], &members).contains("`base`"), "{json}");
    }
    assert!(refusal(r#"{"name": "slerp"}"#, &base, &members).contains("defined for 2"));
    assert!(refusal(r#"{"name": "slerp"}"#, &base, &members[..1]).contains("at least 2"));
    assert!(refusal(r#"{"name": "model-stock"}"#, &base, &members[..1]).contains("at least 2"));
    let uneven = [("a".to_owned(), 0.25, base.to_vec()), ("b".to_owned(), 0.75, base.to_vec())];
    assert!(refusal(r#"{"name": "model-stock"}"#, &base, &uneven).contains("the same"));
    for unknown in [r#"{"name": "ties", "density": 0.5, "lambda": 1}"#, r#"{"name": "dare", "density": 0.5}"#] {
        assert!(serde_json::from_str::<tapestry_merge::Method>(unknown).is_err(), "{unknown}");
    }
}
