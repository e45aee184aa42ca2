//! Against values that numpy computed.

use crate::fixture::MemoryWeights;
use burn::tensor::Device;
use serde::Deserialize;
use tapestry_eval::TokenScorer as _;
use tapestry_model::{Batch, Decoder, DecoderConfig, StreamingScorer};

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    config: serde_json::Value,
    seed: u64,
    windows: Vec<Vec<u32>>,
    segments: Vec<Vec<u32>>,
    nll: Vec<Vec<f32>>,
}

/// Rounding of `f32` through three layers of weights of order one; the reference is in `f64`.
const TOLERANCE: f32 = 2e-5;

fn cases() -> Vec<Case> {
    let golden: Golden = serde_json::from_str(include_str!("../golden/tiny_llama.json")).unwrap();
    golden.cases
}

impl Case {
    fn config(&self) -> DecoderConfig {
        DecoderConfig::from_json(&self.config.to_string()).unwrap()
    }

    fn is_packed(&self) -> bool {
        self.segments.iter().flatten().any(|segment| *segment != 0)
    }

    /// A batch of all windows; `counts` says which positions count.
    fn batch(&self, counts: impl Fn(usize) -> bool) -> Batch {
        let time = self.windows[0].len() - 1;
        let inputs = |rows: &[Vec<u32>]| rows.iter().flat_map(|row| row[..time].to_vec()).collect::<Vec<_>>();
        let targets = self.windows.iter().flat_map(|row| row[1..].to_vec()).collect();
        let counts: Vec<bool> = (0..self.windows.len() * time).map(counts).collect();
        let rows = self.windows.len();
        Batch::new(rows, time, inputs(&self.windows), targets, inputs(&self.segments), counts).unwrap()
    }
}

#[test]
fn the_loss_is_the_reference_mean_over_what_counts() {
    for case in cases() {
        let weights = MemoryWeights::generate(&case.config(), case.seed);
        for device in [Device::flex(), Device::flex().autodiff()] {
            let model = Decoder::from_source(&weights, &case.config(), &device).unwrap();
            for every in [1, 3] {
                let counts = |at: usize| at.is_multiple_of(every);
                let expected = case.nll.iter().flatten().enumerate().filter(|(at, _)| counts(*at)).map(|(_, nll)| nll);
                let expected: Vec<f32> = expected.copied().collect();
                #[expect(clippy::cast_precision_loss, reason = "a small count")]
                let expected = expected.iter().sum::<f32>() / expected.len() as f32;
                let found = model.loss(&case.batch(counts)).unwrap().into_scalar::<f32>();
                assert!((found - expected).abs() < TOLERANCE, "expected {expected}, found {found}");
            }
        }
    }
}

#[test]
fn the_streaming_scorer_gives_the_reference_for_each_token() {
    for case in cases().into_iter().filter(|case| !case.is_packed()) {
        let weights = MemoryWeights::generate(&case.config(), case.seed);
        let mut scorer = StreamingScorer::new(&weights, &case.config()).unwrap();
        let windows: Vec<&[u32]> = case.windows.iter().map(Vec::as_slice).collect();
        let found = scorer.score(&windows).unwrap();
        for (found, expected) in found.iter().flatten().zip(case.nll.iter().flatten()) {
            assert!((found - expected).abs() < TOLERANCE, "expected {expected}, found {found}");
        }
    }
}

#[test]
fn an_untied_head_and_one_key_value_head_stream_as_they_train() {
    let case = cases().pop().unwrap();
    let weights = MemoryWeights::generate(&case.config(), case.seed);
    let windows: Vec<&[u32]> = case.windows.iter().map(Vec::as_slice).collect();
    let model = Decoder::from_source(&weights, &case.config(), &Device::flex()).unwrap();
    let expected = model.loss(&Batch::from_windows(&windows).unwrap()).unwrap().into_scalar::<f32>();
    let scores = StreamingScorer::new(&weights, &case.config()).unwrap().score(&windows).unwrap().concat();
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let found = scores.iter().sum::<f32>() / scores.len() as f32;
    assert!((found - expected).abs() < TOLERANCE, "expected {expected}, found {found}");
}
