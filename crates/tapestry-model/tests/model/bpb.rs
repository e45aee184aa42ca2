//! Bits per byte through the whole chain.

use crate::fixture::{MemoryWeights, TOKENIZER_SIZE, model_dir, tokenizer_json};
use std::num::NonZeroUsize;
use tapestry_eval::{BpbError, BpbOptions, bits_per_byte};
use tapestry_model::{DecoderConfig, ModelError, StreamingScorer, Tokenizer, measure_bpb, measure_bpb_of_dir};

fn text() -> String {
    "the rain in the night; le théâtre. 子曰 ".repeat(40)
}

fn setting() -> (DecoderConfig, MemoryWeights, Tokenizer) {
    let config = DecoderConfig::tiny(TOKENIZER_SIZE);
    let weights = MemoryWeights::generate(&config, 4);
    (config, weights, Tokenizer::from_bytes(tokenizer_json().as_bytes()).unwrap())
}

#[test]
fn a_folder_gives_the_same_bits_every_time() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("model");
    model_dir(&dir, 1);
    let measure = || measure_bpb_of_dir(&dir, &text(), None, &mut |_| {}).unwrap();
    let first = measure();
    assert_eq!(first, measure());
    // A model that knows nothing needs about log2(265) bits for each token, and most tokens are one byte.
    assert!((4.0..8.5).contains(&first.bpb()), "{first:?}");
    let tokens = Tokenizer::read(&dir.join("tokenizer.json")).unwrap().encode(&text()).unwrap();
    let windows = tokens.ids.len().div_ceil(256);
    assert_eq!(first.tokens_scored, (tokens.ids.len() - windows) as u64);
}

#[test]
fn the_size_of_a_batch_does_not_change_a_bit() {
    let (config, weights, tokenizer) = setting();
    let tokens = tokenizer.encode(&text()).unwrap();
    let measure = |batch| {
        let options = BpbOptions {
            window: NonZeroUsize::new(64).unwrap(),
            batch: NonZeroUsize::new(batch).unwrap(),
            max_tokens: None,
        };
        let mut scorer = StreamingScorer::new(&weights, &config).unwrap();
        bits_per_byte(&mut scorer, &tokens.ids, &tokens.byte_lengths, &options, &mut |_| {}).unwrap()
    };
    let alone = measure(1);
    assert!(alone.windows > 10);
    for batch in [2, 3, 1000] {
        assert_eq!(measure(batch), alone);
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    let (config, weights, tokenizer) = setting();
    let measure = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| measure_bpb(&weights, &config, &tokenizer, &text(), None, &mut |_| {}).unwrap())
    };
    assert_eq!(measure(1), measure(3));
}

#[test]
fn progress_grows_to_the_total() {
    let (config, weights, tokenizer) = setting();
    let mut seen = vec![];
    let result = measure_bpb(&weights, &config, &tokenizer, &text(), Some(600), &mut |p| seen.push(p)).unwrap();
    assert_eq!(result.tokens_scored, 600 - 3);
    assert!(seen.windows(2).all(|pair| pair[0].tokens_scored <= pair[1].tokens_scored), "{seen:?}");
    let last = seen.last().unwrap();
    assert_eq!((last.tokens_scored, last.tokens_total), (597, 597));
}

#[test]
fn weights_that_overflow_give_an_error_and_no_figure() {
    let (config, mut weights, tokenizer) = setting();
    // Finite, but what they compute is not.
    weights.tensor("model.layers.0.mlp.down_proj.weight").fill(3e38);
    let error = measure_bpb(&weights, &config, &tokenizer, &text(), None, &mut |_| {}).unwrap_err();
    assert!(matches!(&error, ModelError::Measure(e) if matches!(**e, BpbError::NotFinite { .. })), "{error}");
}

#[test]
fn nothing_to_score_is_an_error() {
    let (config, weights, tokenizer) = setting();
    for text in ["", "a"] {
        let error = measure_bpb(&weights, &config, &tokenizer, text, None, &mut |_| {}).unwrap_err();
        assert!(matches!(&error, ModelError::Measure(e) if matches!(**e, BpbError::NothingToScore { .. })), "{error}");
    }
}

#[test]
fn a_tokenizer_of_another_model_is_refused() {
    let (_, _, tokenizer) = setting();
    let config = DecoderConfig::tiny(200);
    let weights = MemoryWeights::generate(&config, 4);
    let error = measure_bpb(&weights, &config, &tokenizer, &text(), None, &mut |_| {}).unwrap_err();
    assert!(matches!(error, ModelError::TokenOutsideVocabulary { .. }), "{error}");
}
