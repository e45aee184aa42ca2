//! Robust methods against what NumPy makes of the same vectors: `golden/make_robust.py`.

use crate::robust::merge;
use serde::Deserialize;
use tapestry_merge::Method;

/// A base and members, and what methods make of them.
#[derive(Deserialize)]
struct Group {
    lengths: Vec<usize>,
    base: String,
    members: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    method: Method,
    shares: Vec<f64>,
    exact: bool,
    /// Of the median distance between two members; why so much, says the script.
    tolerance: f64,
    merged: String,
}

pub(crate) fn floats(hex_digits: &str) -> Vec<f32> {
    hex::decode(hex_digits).unwrap().as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

pub(crate) fn doubles(hex_digits: &str) -> Vec<f64> {
    hex::decode(hex_digits).unwrap().as_chunks::<8>().0.iter().map(|bytes| f64::from_le_bytes(*bytes)).collect()
}

fn tensors(values: &[f32], lengths: &[usize]) -> Vec<Vec<f32>> {
    let mut rest = values;
    let mut next = |len| {
        let (tensor, later) = rest.split_at(len);
        rest = later;
        tensor.to_vec()
    };
    lengths.iter().map(|len| next(*len)).collect()
}

fn distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn robust_merges_are_those_that_numpy_computes() {
    let groups: Vec<Group> = serde_json::from_str(include_str!("../golden/robust.json")).unwrap();
    let mut num_cases = 0;
    for group in groups {
        let base = tensors(&floats(&group.base), &group.lengths);
        let rows: Vec<Vec<f32>> = group.members.iter().map(|member| floats(member)).collect();
        let wide: Vec<Vec<f64>> = rows.iter().map(|row| row.iter().copied().map(f64::from).collect()).collect();
        // Of all pairs the median: a member that is far away does not widen what is tolerated.
        let mut distances: Vec<f64> =
            (0..wide.len()).flat_map(|i| wide[..i].iter().map(|a| distance(a, &wide[i])).collect::<Vec<_>>()).collect();
        distances.sort_by(f64::total_cmp);
        let spread = distances[distances.len() / 2];
        for Case { method, shares, exact, tolerance, merged: expected } in group.cases {
            let member = |i: usize| (format!("m{i:02}"), shares[i], tensors(&rows[i], &group.lengths));
            let members: Vec<_> = (0..rows.len()).map(member).collect();
            let found = merge(&method, &base, &members, 16).unwrap().concat();
            let expected = doubles(&expected);
            num_cases += 1;
            if exact {
                assert!(found.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{method:?}");
            } else {
                let off = distance(&found, &expected) / spread;
                assert!(off <= tolerance, "{method:?} of {}: off by {off:e} of the spread", rows.len());
            }
        }
    }
    assert!(num_cases > 90, "{num_cases} cases");
}
