//! What holds for every robust method, and what one poisoned member of five can do.

use crate::robust::{bits, equal_members, finite, merge, method};
use proptest::prelude::*;
use tapestry_merge::{Method, MethodError};

/// Every robust method as five members can use it.
fn methods() -> Vec<Method> {
    let recipes = [
        r#"{"name": "median"}"#,
        r#"{"name": "trimmed-mean", "trim": 1}"#,
        r#"{"name": "geometric-median"}"#,
        r#"{"name": "krum", "faulty": 1}"#,
        r#"{"name": "multi-krum", "faulty": 1}"#,
        r#"{"name": "norm-bounding"}"#,
        r#"{"name": "centred-clipping"}"#,
    ];
    recipes.into_iter().map(method).collect()
}

fn wide(row: &[f32]) -> Vec<f64> {
    row.iter().copied().map(f64::from).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

fn mean(rows: &[Vec<f32>]) -> Vec<f64> {
    let len = rows.len() as f64;
    (0..rows[0].len()).map(|at| rows.iter().map(|row| f64::from(row[at])).sum::<f64>() / len).collect()
}

/// What four honest members trained from, and what they have.
#[derive(Debug, Clone)]
struct Honest {
    base: Vec<f32>,
    rows: Vec<Vec<f32>>,
}

impl Honest {
    /// The largest distance of an honest member from the honest mean.
    fn spread(&self) -> f64 {
        let mean = mean(&self.rows);
        self.rows.iter().map(|row| distance(&wide(row), &mean)).fold(0.0, f64::max)
    }

    /// The length of the largest honest change.
    fn largest_change(&self) -> f64 {
        self.rows.iter().map(|row| distance(&wide(row), &wide(&self.base))).fold(0.0, f64::max)
    }

    /// How far from the honest mean one other member of equal share can bring the result at most, whatever it sends.
    ///
    /// With `S` the spread and `R` the largest honest change:
    /// * median, trimmed mean: each coordinate lies between honest ones, so its distance from their mean is at most that of one
    ///   of the four; over all coordinates `sqrt(4) S`.
    /// * geometric median: `2 (1 - a) / (1 - 2a) S` with `a = 1/5`, that is 2.67 S (and the smoothing).
    /// * Krum: who is selected has a score of at most that of an honest member, `2 (2S)^2`; so one of its two nearest, who is
    ///   honest, is within `2 S`, and the mean within `3 S`. Of the two of multi-Krum, one at least is honest: `(3 + 1) / 2 S`.
    /// * norm bounding: base and honest mean are within `R`, and so are base and result: `2 R`. It is no multiple of `S`.
    /// * centred clipping: each of the iterations after the first can add `R / 5`: `2.4 R`. It is no multiple of `S`.
    fn bound(&self, method: &Method) -> f64 {
        let (spread, largest_change) = (self.spread(), self.largest_change());
        match method {
            Method::Median(_) | Method::TrimmedMean(_) | Method::MultiKrum(_) => 2.0 * spread,
            Method::GeometricMedian(_) => 2.0 * 0.8 / 0.6 * spread,
            Method::Krum(_) => 3.0 * spread,
            Method::NormBounding(_) => 2.0 * largest_change,
            Method::CentredClipping(_) => 2.4 * largest_change,
            _ => unreachable!("not a robust method"),
        }
    }
}

fn honest() -> impl Strategy<Value = Honest> {
    // A base, what all of them learned, what each learned alone; and how much of it.
    let vector = |len| prop::collection::vec(-1f32..1.0, len);
    (1usize..40, 0f32..0.1, 0.0001f32..0.1).prop_flat_map(move |(len, common_size, own_size)| {
        (vector(len), vector(len), prop::collection::vec(vector(len), 4)).prop_map(move |(base, common, own)| {
            let value = |at: usize, own: &[f32]| base[at] + common_size * common[at] + own_size * own[at];
            let rows = own.iter().map(|own| (0..own.len()).map(|at| value(at, own)).collect()).collect();
            Honest { base, rows }
        })
    })
}

#[derive(Debug, Clone, Copy)]
enum Attack {
    /// A direction of its own.
    Anywhere,
    /// The honest mean change, enlarged.
    Along,
    /// The honest mean change, turned round.
    Against,
    /// Every value as large as can be.
    Largest,
}

fn poisoned(honest: &Honest, attack: Attack, magnitude: f64, seed: u64) -> Vec<f32> {
    let mean = mean(&honest.rows);
    let value = |at: usize| {
        let base = f64::from(honest.base[at]);
        let along = (mean[at] - base) / honest.largest_change().max(1e-30);
        let sign = if (seed >> (at % 64)) & 1 == 0 { 1.0 } else { -1.0 };
        match attack {
            Attack::Anywhere => base + sign * magnitude,
            Attack::Along => base + along * magnitude,
            Attack::Against => base - along * magnitude,
            Attack::Largest => sign * f64::from(f32::MAX),
        }
    };
    let largest = f64::from(f32::MAX);
    #[expect(clippy::cast_possible_truncation, reason = "within the range of the type; rounding is meant")]
    (0..mean.len()).map(|at| value(at).clamp(-largest, largest) as f32).collect()
}

fn attack() -> impl Strategy<Value = Attack> {
    prop_oneof![Just(Attack::Anywhere), Just(Attack::Along), Just(Attack::Against), Just(Attack::Largest)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn one_poisoned_member_of_five_moves_the_result_no_further_than_the_method_promises(
        honest in honest(),
        attack in attack(),
        exponent in -3f64..38.0,
        (seed, place) in (any::<u64>(), 0usize..=4),
    ) {
        let mut rows = honest.rows.clone();
        rows.insert(place, poisoned(&honest, attack, 10f64.powf(exponent), seed));
        for method in methods() {
            let merged = merge(&method, std::slice::from_ref(&honest.base), &equal_members(&rows), 4096).unwrap();
            let (moved, bound) = (distance(&merged[0], &mean(&honest.rows)), honest.bound(&method));
            // The smoothing, and where the base is not subtracted the rounding of its products.
            prop_assert!(moved <= bound * (1.0 + 1e-5) + 1e-12, "{:?}: {:e}, bound {:e}", method, moved, bound);
        }
    }

    #[test]
    fn the_weighted_mean_is_not_robust_so_the_attacks_are_attacks(honest in honest(), seed in any::<u64>()) {
        let mut rows = honest.rows.clone();
        rows.push(poisoned(&honest, Attack::Anywhere, 1e3, seed));
        let merged = merge(&method(r#"{"name": "fedavg"}"#), &[], &equal_members(&rows), 4096).unwrap();
        prop_assert!(distance(&merged[0], &mean(&honest.rows)) > 100.0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn equal_contributions_give_themselves_to_the_last_bit(
        (base, row) in (1usize..100)
            .prop_flat_map(|len| (prop::collection::vec(-1f32..1.0, len), prop::collection::vec(finite(), len))),
        num_members in 5usize..12,
    ) {
        for method in methods() {
            let rows = vec![row.clone(); num_members];
            let merged = merge(&method, std::slice::from_ref(&base), &equal_members(&rows), 4096).unwrap();
            for (found, expected) in merged[0].iter().zip(&row) {
                #[expect(clippy::cast_possible_truncation, reason = "rounding is meant")]
                let found = *found as f32;
                prop_assert_eq!(found.to_bits(), expected.to_bits(), "{:?}", method);
            }
        }
    }

    #[test]
    fn neither_the_order_of_listing_nor_the_cut_into_rows_matters(honest in honest(), turn in 0usize..4, row in 1usize..70) {
        let members = equal_members(&[honest.rows.clone(), vec![honest.base.clone()]].concat());
        let mut turned = members.clone();
        turned.rotate_left(turn);
        turned.swap(0, 1);
        let base = std::slice::from_ref(&honest.base);
        for method in methods() {
            let expected = bits(&merge(&method, base, &members, 4096).unwrap());
            prop_assert_eq!(bits(&merge(&method, base, &turned, row).unwrap()), expected, "{:?}", method);
        }
    }

    #[test]
    fn who_has_which_name_does_not_matter_beyond_rounding(honest in honest(), turn in 1usize..4) {
        let mut rows = [honest.rows.clone(), vec![honest.base.clone()]].concat();
        let base = std::slice::from_ref(&honest.base);
        let before: Vec<_> = methods().iter().map(|method| merge(method, base, &equal_members(&rows), 4096).unwrap()).collect();
        rows.rotate_left(turn);
        for (method, before) in methods().iter().zip(before) {
            // Of equal scores the first by name is selected.
            if matches!(method, Method::Krum(_) | Method::MultiKrum(_)) {
                continue;
            }
            let after = merge(method, base, &equal_members(&rows), 4096).unwrap();
            prop_assert!(distance(&before[0], &after[0]) <= 1e-5 * honest.spread(), "{:?}", method);
        }
    }
}

/// Members on a line.
fn on_a_line(members: &[(f64, f32)]) -> Vec<(String, f64, Vec<Vec<f32>>)> {
    let member = |(i, (share, value)): (usize, &(f64, f32))| (format!("m{i}"), *share, vec![vec![*value]]);
    members.iter().enumerate().map(member).collect()
}

#[test]
fn the_geometric_median_is_where_half_of_the_shares_are() {
    let median = |members: &[(f64, f32)]| {
        merge(&method(r#"{"name": "geometric-median"}"#), &[], &on_a_line(members), 64).unwrap()[0][0]
    };
    // One of them has half of the shares; three agree who have half; two agree and have less, and the middle is another.
    assert_eq!(median(&[(0.2, 1.0), (0.5, 7.0), (0.3, 2.0)]).to_bits(), 7f64.to_bits());
    assert!((median(&[(0.1, 3.0), (0.2, 3.0), (0.3, 9.0), (0.2, 3.0), (0.2, 1e30)]) - 3.0).abs() < 1e-12);
    assert!((median(&[(0.2, 1.0), (0.2, 1.0), (0.25, 2.0), (0.35, 5.0)]) - 2.0).abs() < 1e-3);
    // Of equal shares without the weights it would be the other one.
    assert!((median(&[(0.6, 1.0), (0.2, 2.0), (0.2, 3.0)]) - 1.0).abs() < 1e-12);
}

#[test]
fn of_equal_scores_krum_takes_the_first_by_name() {
    let members = on_a_line(&[(0.2, 5.0), (0.2, 4.0), (0.2, 3.0), (0.2, 2.0), (0.2, 1.0)]);
    // The three in the middle have two neighbours each at a distance of one.
    let merged = |json: &str| merge(&method(json), &[], &members, 64).unwrap()[0][0];
    assert_eq!(merged(r#"{"name": "krum", "faulty": 1}"#).to_bits(), 4f64.to_bits());
    assert_eq!(merged(r#"{"name": "multi-krum", "faulty": 1}"#).to_bits(), 3.5f64.to_bits());
    assert_eq!(merged(r#"{"name": "multi-krum", "faulty": 1, "selected": 1}"#).to_bits(), 4f64.to_bits());
}

#[test]
fn bounds_that_nothing_exceeds_leave_the_weighted_mean() {
    let members = on_a_line(&[(0.5, 3.0), (0.25, 2.0), (0.25, 5.0)]);
    for json in [r#"{"name": "norm-bounding", "max_norm": 100}"#, r#"{"name": "centred-clipping", "radius": 100}"#] {
        assert_eq!(merge(&method(json), &[vec![1.0]], &members, 64).unwrap()[0][0].to_bits(), 3.25f64.to_bits());
    }
    // Changes of 2, 1 and 4, of which the last is halved; a contribution that changes nothing is left alone.
    let bounded =
        |json: &str, members: &[(f64, f32)]| merge(&method(json), &[vec![1.0]], &on_a_line(members), 64).unwrap()[0][0];
    assert!((bounded(r#"{"name": "norm-bounding"}"#, &[(0.5, 3.0), (0.25, 2.0), (0.25, 5.0)]) - 2.75).abs() < 1e-12);
    let idle = [(0.5, 1.0), (0.25, 1.0), (0.25, 5.0)];
    assert_eq!(bounded(r#"{"name": "norm-bounding"}"#, &idle).to_bits(), 1f64.to_bits());
    assert_eq!(bounded(r#"{"name": "centred-clipping"}"#, &idle).to_bits(), 1f64.to_bits());
}

#[test]
fn too_few_members_are_an_error_that_says_how_many_are_needed() {
    let cases = [
        (r#"{"name": "median"}"#, 3),
        (r#"{"name": "trimmed-mean", "trim": 2}"#, 5),
        (r#"{"name": "geometric-median"}"#, 3),
        (r#"{"name": "krum", "faulty": 2}"#, 7),
        (r#"{"name": "multi-krum", "faulty": 1}"#, 5),
        (r#"{"name": "multi-krum", "faulty": 1, "selected": 4}"#, 7),
        (r#"{"name": "norm-bounding"}"#, 3),
        (r#"{"name": "centred-clipping"}"#, 3),
        (r#"{"name": "norm-bounding", "max_norm": 1.5}"#, 1),
    ];
    for (json, needed) in cases {
        let members = |count: usize| equal_members(&vec![vec![1.0]; count]);
        assert!(merge(&method(json), &[vec![0.0]], &members(needed), 64).is_ok(), "{json}");
        if needed > 1 {
            let error = merge(&method(json), &[vec![0.0]], &members(needed - 1), 64).unwrap_err();
            assert!(
                matches!(error, MethodError::TooFew { needed: n, found, .. } if n == needed && found == n - 1),
                "{json}"
            );
            assert!(error.to_string().contains(&format!("at least {needed} contributions")), "{error}");
        }
    }
    // No number of members is enough, and nothing overflows.
    let huge = format!(r#"{{"name": "multi-krum", "faulty": {0}, "selected": {0}}}"#, usize::MAX);
    assert!(matches!(method(&huge).check_setting(9, false, true), Err(MethodError::TooFew { .. })));
}

#[test]
fn parameters_without_sense_are_refused_by_name() {
    let cases = [
        (r#"{"name": "trimmed-mean", "trim": 0}"#, "trim"),
        (r#"{"name": "krum", "faulty": 0}"#, "faulty"),
        (r#"{"name": "multi-krum", "faulty": 0}"#, "faulty"),
        (r#"{"name": "multi-krum", "faulty": 1, "selected": 0}"#, "selected"),
        (r#"{"name": "geometric-median", "smoothing": 0}"#, "smoothing"),
        (r#"{"name": "geometric-median", "tolerance": -1}"#, "tolerance"),
        (r#"{"name": "geometric-median", "max_iterations": 0}"#, "max_iterations"),
        (r#"{"name": "geometric-median", "max_iterations": 1000000000}"#, "max_iterations"),
        (r#"{"name": "norm-bounding", "max_norm": 0}"#, "max_norm"),
        (r#"{"name": "centred-clipping", "radius": -1}"#, "radius"),
        (r#"{"name": "centred-clipping", "iterations": 0}"#, "iterations"),
    ];
    for (json, expected) in cases {
        let error = method(json).check().unwrap_err();
        assert!(matches!(error, MethodError::Parameter { parameter, .. } if parameter == expected), "{json}: {error}");
    }
    for json in
        [r#"{"name": "median", "trim": 1}"#, r#"{"name": "krum"}"#, r#"{"name": "centred-clipping", "radios": 1}"#]
    {
        assert!(serde_json::from_str::<Method>(json).is_err(), "{json}");
    }
    for method in methods() {
        let json = serde_json::to_string(&method).unwrap();
        assert_eq!(serde_json::from_str::<Method>(&json).unwrap(), method);
        let ignores_shares =
            matches!(method, Method::Median(_) | Method::TrimmedMean(_) | Method::Krum(_) | Method::MultiKrum(_));
        assert_eq!(method.check_setting(5, true, false).is_err(), ignores_shares, "{json}");
    }
}
