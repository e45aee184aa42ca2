use serde::Deserialize;
use tapestry_core::Dtype;
use tapestry_core::TensorSpec;
use tapestry_merge::method::FedAvg;
use tapestry_merge::{Block, Contributor, DeltaNorm, Method, Setting, Survey, decode_row, encode_row};

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

/// The weighted mean of the bytes of vectors, as the engine makes it: decoded, merged, rounded once.
pub(crate) fn merged(dtype: Dtype, inputs: &[(&[u8], f64)]) -> Vec<u8> {
    let num_bytes = inputs[0].0.len();
    let num_elements = num_bytes / usize::try_from(dtype.size_bytes()).unwrap();
    let tensors = [TensorSpec { name: "all".into(), dtype, shape: vec![num_elements as u64] }];
    let contributor =
        |(index, (_, share)): (usize, &(&[u8], f64))| Contributor { name: format!("{index:03}"), share: *share };
    let contributors: Vec<_> = inputs.iter().enumerate().map(contributor).collect();
    let setting = Setting { tensors: &tensors, contributors: &contributors };
    let rule = Method::FedAvg(FedAvg {}).rule(&setting, &Survey::default()).unwrap();
    let decode = |(bytes, _): &(&[u8], f64)| {
        let mut row = vec![0.0; num_elements];
        decode_row(dtype, bytes, &mut row);
        row
    };
    let rows: Vec<Vec<f32>> = inputs.iter().map(decode).collect();
    let rows: Vec<&[f32]> = rows.iter().map(Vec::as_slice).collect();
    let (mut out, mut bytes) = (vec![0.0; num_elements], vec![0; num_bytes]);
    if num_elements > 0 {
        rule.merge(&Block { tensor: 0, first: 0, base: &[], inputs: &rows, states: &[] }, &mut out, &mut []);
    }
    let _ = encode_row(dtype, &out, &mut bytes);
    bytes
}

/// `tests/golden/make.py` wrote the file.
#[test]
fn merges_and_norms_are_those_that_python_computes() {
    let cases: Vec<Case> = serde_json::from_str(include_str!("../golden/merge.json")).unwrap();
    assert_eq!(cases.len(), 12);
    for (number, case) in cases.iter().enumerate() {
        let inputs: Vec<Vec<u8>> = case.inputs.iter().map(|text| hex::decode(text).unwrap()).collect();
        let inputs: Vec<(&[u8], f64)> = inputs.iter().map(Vec::as_slice).zip(case.shares.iter().copied()).collect();
        assert_eq!(hex::encode(merged(case.dtype, &inputs)), case.merged, "case {number}, {:?}", case.dtype);

        let mut norm = DeltaNorm::new();
        norm.add(case.dtype, &hex::decode(&case.base).unwrap(), &hex::decode(&case.moved).unwrap());
        let error = (norm.relative_change() / case.relative_change - 1.0).abs();
        // 60 additions, each off by at most 2^-53 of the sum.
        assert!(error < 1e-14, "case {number}: {} against {}", norm.relative_change(), case.relative_change);
    }
}
