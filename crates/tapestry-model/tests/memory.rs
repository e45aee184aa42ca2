//! How much memory scoring takes; alone in its process, so that the system's count is of nothing else.

#![expect(clippy::unwrap_used, reason = "tests")]
#![cfg(target_os = "linux")]

use tapestry_core::TensorSpec;
use tapestry_eval::TokenScorer as _;
use tapestry_model::{DecoderConfig, StreamingScorer};
use tapestry_weights::{WeightSource, WeightsError, expected_tensors};

/// Weights that are nowhere.
struct Computed(Vec<TensorSpec>);

impl WeightSource for Computed {
    fn tensors(&self) -> &[TensorSpec] {
        &self.0
    }

    fn read_f32(&self, _: usize, first: u64, count: u64) -> Result<Vec<f32>, WeightsError> {
        let value = |at: u64| f32::from(i8::from_le_bytes([at.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes()[7]]));
        Ok((first..first + count).map(|at| value(at) / 3000.0).collect())
    }
}

fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn a_model_of_smollm_width_is_scored_in_less_than_170_mib() {
    // Layers of SmolLM2-135M; fewer of them, and fewer words, since they come and go one by one and block by block. All
    // parameters together would add 60 MiB to the 130 that it takes. Every thread has buffers of its own, so there are two.
    let json = r#"{
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 8192, "rms_norm_eps": 1e-5, "max_position_embeddings": 8192,
        "tie_word_embeddings": true
    }"#;
    let config = DecoderConfig::from_json(json).unwrap();
    let weights = Computed(expected_tensors(&config));
    let windows: Vec<Vec<u32>> = (0..70)
        .map(|w: u32| (0..256).map(|t: u32| w.wrapping_mul(2_654_435_761).wrapping_add(t * 40_503) % 8192).collect())
        .collect();
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().unwrap();
    let scores = pool.install(|| StreamingScorer::new(&weights, &config).unwrap().score(&windows).unwrap());
    assert!(scores.iter().flatten().all(|nats| nats.is_finite()));
    let peak = peak_mib();
    assert!(peak < 170, "{peak} MiB");
}
