//! A real model against a reference that ran apart from Tapestry: `tests/golden/reference_bpb.py`.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tapestry_eval::TokenScorer as _;
use tapestry_model::{DecoderConfig, StreamingScorer, measure_bpb_of_dir};
use tapestry_weights::{HfDir, SafetensorsFile, adopt_gguf};

#[derive(Deserialize)]
struct Reference {
    texts: BTreeMap<String, Entry>,
}

#[derive(Deserialize)]
struct Entry {
    bpb: f64,
    bytes: u64,
    tokens_scored: u64,
}

/// `TAPESTRY_BASE_GGUF` names the file `SmolLM2-135M-Instruct.Q4_1.gguf`, which `cargo demo` keeps in its cache of inputs.
fn adopt(temporary: &tempfile::TempDir) -> PathBuf {
    let gguf = PathBuf::from(std::env::var_os("TAPESTRY_BASE_GGUF").expect("TAPESTRY_BASE_GGUF is set"));
    let base = temporary.path().join("base");
    adopt_gguf(&gguf, &base, &mut |_, _| {}).unwrap();
    base
}

#[test]
#[ignore = "needs the real base model; set TAPESTRY_BASE_GGUF and run with --ignored"]
fn the_adopted_base_gives_the_reference_on_four_languages() {
    let temporary = tempfile::tempdir().unwrap();
    let base = adopt(&temporary);
    let reference: Reference = serde_json::from_str(include_str!("../golden/smollm2_bpb.json")).unwrap();
    assert_eq!(reference.texts.len(), 4);
    let texts = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/texts"));
    for (name, expected) in reference.texts {
        let text = std::fs::read_to_string(texts.join(&name)).unwrap();
        let found = measure_bpb_of_dir(&base, &text, None, &mut |_| {}).unwrap();
        assert_eq!((found.bytes, found.tokens_scored), (expected.bytes, expected.tokens_scored), "{name}");
        let difference = found.bpb() - expected.bpb;
        assert!(difference.abs() < 1e-4, "{name}: expected {}, found {}", expected.bpb, found.bpb());
    }
}

/// The matrix products of a real model are large enough to be cut into blocks; the small ones of other tests are not.
#[test]
#[ignore = "needs the real base model; set TAPESTRY_BASE_GGUF and run with --ignored"]
fn neighbours_and_threads_do_not_change_a_bit_of_a_real_models_scores() {
    let temporary = tempfile::tempdir().unwrap();
    let base = adopt(&temporary);
    let files = HfDir::open(&base).unwrap();
    let config = DecoderConfig::try_from(files.shape).unwrap();
    let weights = SafetensorsFile::open(&files.weights_path).unwrap();
    let windows: Vec<Vec<u32>> = (0..10).map(|w| (0..256).map(|t| (w * 7919 + t * t * 31) % 49152).collect()).collect();
    let windows: Vec<&[u32]> = windows.iter().map(Vec::as_slice).collect();
    let score = |windows: &[&[u32]], num_threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap();
        pool.install(|| StreamingScorer::new(&weights, &config).unwrap().score(windows).unwrap())
    };
    let all = score(&windows, 2);
    assert_eq!(score(&windows[..3], 1), all[..3]);
    assert_eq!(score(&windows[9..], 3), all[9..]);
}
