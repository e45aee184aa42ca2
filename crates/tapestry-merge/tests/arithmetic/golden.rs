use serde::Deserialize;
use tapestry_core::Dtype;
use tapestry_merge::{DeltaNorm, merge_chunk};

#[derive(Deserialize)]
struct Case {
    dtype: Dtype,
    shares: Vec<f64>,
    inputs: Vec<String>,
    merged: String,
    base: String,
    moved: String,
    relative_change: f64,
}

/// `tests/golden/make.py` wrote the file.
#[test]
fn merges_and_norms_are_those_that_python_computes() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../golden/merge.json")).unwrap();
    assert_eq!(cases.len(), 12);
    for (number, case) in cases.iter().enumerate() {
        let inputs: Vec<Vec<u8>> = case.inputs.iter().map(|text| hex::decode(text).unwrap()).collect();
        let inputs: Vec<(&[u8], f64)> = inputs.iter().map(Vec::as_slice).zip(case.shares.iter().copied()).collect();
        let mut merged = vec![];
        merge_chunk(case.dtype, &inputs, &mut merged).unwrap();
        assert_eq!(hex::encode(merged), case.merged, "case {number}, {:?}", case.dtype);

        let mut norm = DeltaNorm::new();
        norm.add(case.dtype, &hex::decode(&case.base).unwrap(), &hex::decode(&case.moved).unwrap());
        let error = (norm.relative_change() / case.relative_change - 1.0).abs();
        // 60 additions, each off by at most 2^-53 of the sum.
        assert!(error < 1e-14, "case {number}: {} against {}", norm.relative_change(), case.relative_change);
    }
}
