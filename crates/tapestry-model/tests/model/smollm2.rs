//! A real model against a reference that ran apart from Tapestry: `tests/golden/reference_bpb.py`.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;
use tapestry_model::measure_bpb_of_dir;
use tapestry_weights::adopt_gguf;

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
#[test]
#[ignore = "needs the real base model; set TAPESTRY_BASE_GGUF and run with --ignored"]
fn the_adopted_base_gives_the_reference_on_four_languages() {
    let gguf = PathBuf::from(std::env::var_os("TAPESTRY_BASE_GGUF").expect("TAPESTRY_BASE_GGUF is set"));
    let temporary = tempfile::tempdir().unwrap();
    let base = temporary.path().join("base");
    adopt_gguf(&gguf, &base, &mut |_, _| {}).unwrap();
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
