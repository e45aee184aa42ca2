//! Robust methods: against naive arithmetic, and against a member that poisons.

use crate::run::{Member, Model};
use proptest::prelude::*;
use tapestry_merge::{Method, MethodError};

/// A merge of models whose tensors need no names, and of methods without a state.
pub(crate) fn merge(
    method: &Method,
    base: &[Vec<f32>],
    members: &[Member],
    row: usize,
) -> Result<Vec<Vec<f64>>, MethodError> {
    let num_tensors = members.first().map_or(0, |member| member.2.len());
    Ok(Model::new(base, num_tensors).merge(method, members, row)?.tensors)
}

pub(crate) fn method(json: &str) -> Method {
    serde_json::from_str(json).unwrap()
}

/// Members of equal shares, with one tensor each.
pub(crate) fn equal_members(rows: &[Vec<f32>]) -> Vec<Member> {
    let share = 1.0 / rows.len() as f64;
    rows.iter().enumerate().map(|(i, row)| (format!("m{i:02}"), share, vec![row.clone()])).collect()
}

pub(crate) fn bits(vectors: &[Vec<f64>]) -> Vec<Vec<u64>> {
    vectors.iter().map(|vector| vector.iter().map(|value| value.to_bits()).collect()).collect()
}

pub(crate) fn finite() -> impl Strategy<Value = f32> {
    prop_oneof![
        3 => -1f32..1.0,
        1 => any::<u32>().prop_map(|bits| if f32::from_bits(bits).is_finite() { f32::from_bits(bits) } else { -0.0 }),
        1 => prop_oneof![Just(0f32), Just(-0.0), Just(1.0)],
    ]
}

fn rows() -> impl Strategy<Value = Vec<Vec<f32>>> {
    (3usize..=21, 1usize..200).prop_flat_map(|(n, len)| prop::collection::vec(prop::collection::vec(finite(), len), n))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn median_and_trimmed_mean_are_those_of_a_plain_sort(rows in rows(), trim in 1usize..10) {
        let trim = trim.min((rows.len() - 1) / 2);
        let methods =
            [(method(r#"{"name": "median"}"#), (rows.len() - 1) / 2), (method(&format!(r#"{{"name": "trimmed-mean", "trim": {trim}}}"#)), trim)];
        for (method, dropped) in methods {
            let merged = merge(&method, &[], &equal_members(&rows), 4096).unwrap();
            for (at, found) in merged[0].iter().enumerate() {
                let mut values: Vec<f32> = rows.iter().map(|row| row[at]).collect();
                values.sort_by(f32::total_cmp);
                let kept = &values[dropped..values.len() - dropped];
                let sum = kept[1..].iter().fold(f64::from(kept[0]), |sum, value| sum + f64::from(*value));
                prop_assert_eq!(found.to_bits(), (sum / kept.len() as f64).to_bits(), "element {} of {:?}", at, values);
            }
            for row in [1, 63, 64, 100] {
                prop_assert_eq!(bits(&merge(&method, &[], &equal_members(&rows), row).unwrap()), bits(&merged));
            }
        }
    }
}

#[test]
fn fifty_members_have_a_median() {
    let rows: Vec<Vec<f32>> = (0..50u16).map(|i| (0..70u16).map(|j| f32::from((i * 37 + j) % 50)).collect()).collect();
    let merged = merge(&method(r#"{"name": "median"}"#), &[], &equal_members(&rows), 4096).unwrap();
    assert!(merged[0].iter().all(|value| value.to_bits() == 24.5f64.to_bits()));
}
