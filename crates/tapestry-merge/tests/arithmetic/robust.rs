//! Robust methods: against naive arithmetic, and against a member that poisons.

use proptest::prelude::*;
use tapestry_merge::{Block, Contributor, GRAM_BLOCK_ELEMENTS, Gram, Method, MethodError, Setting, Survey, SurveyKind};

/// Whatever a method needs, done as the engine does it: contributions by name, survey in blocks, merge in rows of `row` elements.
pub(crate) fn merge(
    method: &Method,
    base: &[Vec<f32>],
    members: &[(String, f64, Vec<Vec<f32>>)],
    row: usize,
) -> Result<Vec<Vec<f64>>, MethodError> {
    let mut members = members.to_vec();
    members.sort_by(|a, b| a.0.cmp(&b.0));
    let equal = members.iter().all(|member| (member.1 - members[0].1).abs() < 1e-12);
    method.check_setting(members.len(), !base.is_empty(), equal)?;
    let demands = method.demands();
    let base = if demands.base { base } else { &[] };
    let contributors: Vec<_> =
        members.iter().map(|(name, share, _)| Contributor { name: name.clone(), share: *share }).collect();
    let cut = |tensor: usize, range: std::ops::Range<usize>| -> (&[f32], Vec<&[f32]>) {
        let base = base.get(tensor).map_or(&[][..], |base| &base[range.clone()]);
        (base, members.iter().map(|(_, _, tensors)| &tensors[tensor][range.clone()]).collect())
    };
    let lens: Vec<usize> = members[0].2.iter().map(Vec::len).collect();
    let ranges = |len: usize, step: usize| (0..len).step_by(step).map(move |start| start..(start + step).min(len));
    let mut survey = Survey::default();
    if demands.survey == SurveyKind::Grams {
        for (tensor, len) in lens.iter().enumerate() {
            let mut gram = Gram::zero(members.len());
            for range in ranges(*len, GRAM_BLOCK_ELEMENTS) {
                let (base, inputs) = cut(tensor, range);
                gram.add(&Gram::of_block(base, &inputs));
            }
            survey.grams.push(gram);
        }
    }
    let rule = method.rule(&Setting { tensors: &[], contributors: &contributors }, &survey)?;
    let mut merged = vec![];
    for (tensor, len) in lens.iter().enumerate() {
        let mut out = vec![f64::NAN; *len];
        for range in ranges(*len, row) {
            let (base, inputs) = cut(tensor, range.clone());
            let block = Block { tensor, first: range.start as u64, base, inputs: &inputs, states: &[] };
            rule.merge(&block, &mut out[range], &mut []);
        }
        merged.push(out);
    }
    Ok(merged)
}

pub(crate) fn method(json: &str) -> Method {
    serde_json::from_str(json).unwrap()
}

/// Members of equal shares, with one tensor each.
pub(crate) fn equal_members(rows: &[Vec<f32>]) -> Vec<(String, f64, Vec<Vec<f32>>)> {
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
