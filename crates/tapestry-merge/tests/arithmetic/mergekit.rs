//! Methods for merging models against what mergekit makes of the same values: `golden/make_mergekit.py`.

use crate::robust_golden::{doubles, floats};
use crate::run::{Member, Model};
use serde::Deserialize;
use std::collections::BTreeMap;
use tapestry_merge::Method;

#[derive(Deserialize)]
struct Group {
    tensors: Vec<String>,
    base: Vec<String>,
    members: Vec<GoldenMember>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct GoldenMember {
    name: String,
    tensors: Vec<String>,
}

#[derive(Deserialize)]
struct Case {
    method: Method,
    shares: Vec<f64>,
    /// Why so much, says the script.
    tolerance: f64,
    merged: Vec<String>,
}

fn tensors(hex_digits: &[String]) -> Vec<Vec<f32>> {
    hex_digits.iter().map(|tensor| floats(tensor)).collect()
}

#[test]
fn merges_are_those_of_mergekit() {
    let groups: Vec<Group> = serde_json::from_str(include_str!("../golden/mergekit.json")).unwrap();
    let mut num_cases = BTreeMap::new();
    for group in groups {
        let base = tensors(&group.base);
        let model = Model { names: group.tensors.clone(), ..Model::new(&base, 0) };
        for case in group.cases {
            let member =
                |(member, share): (&GoldenMember, &f64)| (member.name.clone(), *share, tensors(&member.tensors));
            let members: Vec<Member> = group.members.iter().zip(&case.shares).map(member).collect();
            for row in [16, 4096] {
                let merged = model.merge(&case.method, &members, row).unwrap();
                for ((name, found), expected) in group.tensors.iter().zip(&merged.tensors).zip(&case.merged) {
                    for (at, (found, expected)) in found.iter().zip(doubles(expected)).enumerate() {
                        let off = (found - expected).abs();
                        assert!(
                            off <= case.tolerance,
                            "{:?} of {}: {name}[{at}] is {found} and not {expected}, off by {off:e} > {:e}",
                            case.method,
                            members.len(),
                            case.tolerance,
                        );
                    }
                }
            }
            *num_cases.entry(case.method.name()).or_insert(0) += 1;
        }
    }
    let expected = [
        ("dare", 16),
        ("dare-ties", 16),
        ("fedavg", 4),
        ("model-stock", 3),
        ("slerp", 4),
        ("task-arithmetic", 12),
        ("ties", 16),
    ];
    assert_eq!(num_cases, BTreeMap::from(expected));
}
