//! Folders: written, read, saved; and what is refused.

use crate::fixture::{MemoryWeights, model_dir, tokenizer_json};
use burn::tensor::Device;
use std::fs;
use std::path::Path;
use tapestry_eval::TokenScorer as _;
use tapestry_model::{Batch, Decoder, DecoderConfig, ModelError, StreamingScorer, init_model};

fn weights_of(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("model.safetensors")).unwrap()
}

#[test]
fn a_loaded_model_saves_the_same_bytes() {
    let temporary = tempfile::tempdir().unwrap();
    let (base, saved) = (temporary.path().join("base"), temporary.path().join("saved"));
    model_dir(&base, 1);
    fs::write(base.join("generation_config.json"), "{}").unwrap();
    let model = Decoder::load(&base, &Device::flex().autodiff()).unwrap();
    model.save(&base, &saved).unwrap();
    for name in ["model.safetensors", "config.json", "tokenizer.json", "generation_config.json"] {
        assert_eq!(fs::read(base.join(name)).unwrap(), fs::read(saved.join(name)).unwrap(), "{name}");
    }
    assert_eq!(fs::read_dir(&saved).unwrap().count(), 4, "nothing half-written is left");
}

#[test]
fn the_same_seed_gives_the_same_model_and_another_seed_another() {
    let temporary = tempfile::tempdir().unwrap();
    let dirs = ["a", "b", "c"].map(|name| temporary.path().join(name));
    for (dir, seed) in dirs.iter().zip([1, 1, 2]) {
        model_dir(dir, seed);
    }
    assert_eq!(weights_of(&dirs[0]), weights_of(&dirs[1]));
    assert_ne!(weights_of(&dirs[0]), weights_of(&dirs[2]));
}

#[test]
fn a_new_model_knows_nothing_and_says_so() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("model");
    let config = model_dir(&dir, 3);
    let model = Decoder::load(&dir, &Device::flex()).unwrap();
    let window: Vec<u32> = (0..64).map(|i| i * 7 % 250).collect();
    let loss = model.loss(&Batch::from_windows(&[&window]).unwrap()).unwrap().into_scalar::<f32>();
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let uniform = (config.vocab_size as f32).ln();
    assert!((loss - uniform).abs() < 0.2, "{loss} is far from the {uniform} of a guess");
}

#[test]
fn a_model_on_an_autodiff_device_can_be_trained() {
    let config = DecoderConfig::tiny(50);
    let weights = MemoryWeights::generate(&config, 1);
    let model = Decoder::from_source(&weights, &config, &Device::flex().autodiff()).unwrap();
    let gradients = model.loss(&Batch::from_windows(&[&[1, 2, 3, 4], &[5, 6, 7, 8]]).unwrap()).unwrap().backward();
    assert!(model.embed_tokens.val().grad(&gradients).is_some());
    for block in &model.layers {
        let gradient = block.k_proj.val().grad(&gradients).unwrap().abs().sum().into_scalar::<f32>();
        assert!(gradient > 0.0 && gradient.is_finite());
    }
}

#[test]
fn a_tokenizer_that_is_larger_than_the_vocabulary_is_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let tokenizer = temporary.path().join("tokenizer.json");
    fs::write(&tokenizer, tokenizer_json()).unwrap();
    let result = init_model(&temporary.path().join("model"), &DecoderConfig::tiny(100), &tokenizer, 1);
    assert!(matches!(result, Err(ModelError::Config { .. })), "{result:?}");
}

#[test]
fn a_configuration_survives_its_file() {
    let config = DecoderConfig::tiny(77);
    assert_eq!(DecoderConfig::from_json(&config.to_json()).unwrap(), config);
}

#[test]
fn impossible_configurations_are_refused() {
    let good: serde_json::Value = serde_json::from_str(&DecoderConfig::tiny(77).to_json()).unwrap();
    for (key, value) in [
        ("num_attention_heads", serde_json::json!(0)),
        ("num_key_value_heads", serde_json::json!(3)),
        ("hidden_size", serde_json::json!(-1)),
        ("hidden_size", serde_json::json!(1u64 << 40)),
        ("vocab_size", serde_json::json!("many")),
        ("rms_norm_eps", serde_json::json!(0.0)),
        ("head_dim", serde_json::json!(31)),
        ("rope_theta", serde_json::json!(0.0)),
        ("model_type", serde_json::json!("mamba")),
        ("rope_scaling", serde_json::json!({"type": "yarn"})),
        ("attention_bias", serde_json::json!(true)),
    ] {
        let mut bad = good.clone();
        bad[key] = value;
        let result = DecoderConfig::from_json(&bad.to_string());
        assert!(matches!(result, Err(ModelError::Config { .. })), "{key}: {result:?}");
    }
}

/// Both ways of using weights refuse them, for the same reason.
fn check_refused(config: &DecoderConfig, weights: &MemoryWeights, is_expected: impl Fn(&ModelError) -> bool) {
    let error = Decoder::from_source(weights, config, &Device::flex()).unwrap_err();
    assert!(is_expected(&error), "loading: {error}");
    let scored = StreamingScorer::new(weights, config).and_then(|mut scorer| scorer.score(&[&[1, 2, 3]]));
    let error = scored.unwrap_err();
    assert!(is_expected(&error), "streaming: {error}");
}

#[test]
fn weights_of_another_model_are_refused() {
    let config = DecoderConfig::tiny(50);
    let good = MemoryWeights::generate(&config, 1);

    let mut missing = good.clone();
    missing.tensors.remove(3);
    missing.values.remove(3);
    let name = good.tensors[3].name.clone();
    check_refused(&config, &missing, |e| matches!(e, ModelError::MissingTensor { name: n } if *n == name));

    let mut renamed = good.clone();
    renamed.tensors.last_mut().unwrap().name = "z".into();
    check_refused(&config, &renamed, |e| matches!(e, ModelError::MissingTensor { .. }));

    let mut extra = good.clone();
    extra.tensors.push(tapestry_core::TensorSpec { name: "z".into(), ..good.tensors[0].clone() });
    extra.values.push(good.values[0].clone());
    check_refused(&config, &extra, |e| matches!(e, ModelError::UnexpectedTensor { name } if name == "z"));

    let mut reshaped = good.clone();
    reshaped.tensors[0].shape.reverse();
    check_refused(&config, &reshaped, |e| matches!(e, ModelError::Shape { .. }));
}

#[test]
fn weights_that_are_not_finite_are_refused_with_their_place() {
    let config = DecoderConfig::tiny(50);
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (name, at) in [("model.layers.2.mlp.up_proj.weight", 130), ("model.norm.weight", 5)] {
            let mut weights = MemoryWeights::generate(&config, 1);
            weights.tensor(name)[at] = value;
            check_refused(
                &config,
                &weights,
                |e| matches!(e, ModelError::NotFinite { name: n, index, .. } if n == name && *index == at as u64),
            );
        }
        // A row of the embedding that no token of the text asks for is met in the output matrix.
        let mut weights = MemoryWeights::generate(&config, 1);
        weights.tensor("model.embed_tokens.weight")[40 * 128 + 3] = value;
        check_refused(
            &config,
            &weights,
            |e| matches!(e, ModelError::NotFinite { index, .. } if *index == 40 * 128 + 3),
        );
    }
}

#[test]
fn tokens_outside_the_vocabulary_and_long_windows_are_refused() {
    let config = DecoderConfig::tiny(50);
    let weights = MemoryWeights::generate(&config, 1);
    let model = Decoder::from_source(&weights, &config, &Device::flex()).unwrap();
    let mut scorer = StreamingScorer::new(&weights, &config).unwrap();
    let check = |window: &[u32], scorer: &mut StreamingScorer<'_>, is_expected: fn(&ModelError) -> bool| {
        let error = model.loss(&Batch::from_windows(&[window]).unwrap()).unwrap_err();
        assert!(is_expected(&error), "{error}");
        let error = scorer.score(&[window]).unwrap_err();
        assert!(is_expected(&error), "{error}");
    };
    let outside = |e: &ModelError| matches!(e, ModelError::TokenOutsideVocabulary { id: 50, vocabulary: 50 });
    check(&[1, 50, 2], &mut scorer, outside);
    check(&[1, 2, 50], &mut scorer, outside);
    check(&vec![1; 1026], &mut scorer, |e| matches!(e, ModelError::ContextOverflow { limit: 1024, .. }));
}

#[test]
fn windows_that_do_not_fit_together_are_refused() {
    let config = DecoderConfig::tiny(50);
    let weights = MemoryWeights::generate(&config, 1);
    let mut scorer = StreamingScorer::new(&weights, &config).unwrap();
    for windows in [&[&[1u32, 2, 3][..], &[1, 2]][..], &[&[1]], &[]] {
        assert!(matches!(scorer.score(windows), Err(ModelError::Windows { .. })));
        assert!(matches!(Batch::from_windows(windows), Err(ModelError::Windows { .. })));
    }
    let batch = Batch::new(1, 2, vec![1, 2], vec![2, 3], [0], [true, true]);
    assert!(matches!(batch, Err(ModelError::BatchShape { what: "segments", expected: 2, found: 1, .. })));
    let batch = Batch::new(1, 1, vec![1], vec![2], [0], [false]);
    assert!(matches!(batch, Err(ModelError::NothingCounts)));
}
