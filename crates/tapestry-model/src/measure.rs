//! Bits per byte of a text under a model on disk.

use crate::{DecoderConfig, ModelError, ScoreProgress, StreamingScorer, Tokenizer};
use std::num::NonZeroUsize;
use std::path::Path;
use tapestry_eval::{BitsPerByte, BpbOptions, BpbProgress, bits_per_byte};
use tapestry_weights::{HfDir, SafetensorsModel, WeightSource};

/// Measures bits per byte, with windows of 256 tokens as [`tapestry_eval::bits_per_byte`] defines it, of the text or of its
/// first `max_tokens` tokens. Weights are read a layer at a time.
///
/// `progress` counts tokens in proportion to the layers that they have passed.
///
/// # Errors
/// [`ModelError`]: weights that do not fit, are not finite or cannot be read; a tokenizer of another model; a text that
/// leaves nothing to score.
pub fn measure_bpb(
    weights: &dyn WeightSource,
    config: &DecoderConfig,
    tokenizer: &Tokenizer,
    text: &str,
    max_tokens: Option<usize>,
    progress: &mut dyn FnMut(BpbProgress),
) -> Result<BitsPerByte, ModelError> {
    let encoded = tokenizer.encode_first(text, max_tokens.unwrap_or(usize::MAX))?;
    // Everything in one call: the scorer divides it by its own measure, and reads all weights once for each part.
    let options = BpbOptions { batch: NonZeroUsize::MAX, max_tokens, ..BpbOptions::default() };
    let num_tokens = max_tokens.map_or(encoded.ids.len(), |max| max.min(encoded.ids.len()));
    let tokens_total = (num_tokens - num_tokens.div_ceil(options.window.get())) as u64;
    let mut before = 0;
    let mut report = |ScoreProgress { tokens_done, tokens_total: tokens_of_call }: ScoreProgress| {
        progress(BpbProgress { tokens_scored: before + tokens_done, tokens_total });
        if tokens_done == tokens_of_call {
            before += tokens_of_call;
        }
    };
    let mut scorer = StreamingScorer::new(weights, config)?.with_progress(&mut report);
    Ok(bits_per_byte(&mut scorer, &encoded.ids, &encoded.byte_lengths, &options, &mut |_| {})?)
}

/// [`measure_bpb`] of a model's folder in Hugging Face layout.
///
/// # Errors
/// As [`measure_bpb`]; or the folder is not a model's.
pub fn measure_bpb_of_dir(
    dir: &Path,
    text: &str,
    max_tokens: Option<usize>,
    progress: &mut dyn FnMut(BpbProgress),
) -> Result<BitsPerByte, ModelError> {
    let files = HfDir::open(dir)?;
    let config = DecoderConfig::try_from(files.shape)?;
    let tokenizer = Tokenizer::read(&files.tokenizer_path)?;
    let weights = SafetensorsModel::open(&files.weights_path)?;
    measure_bpb(&weights, &config, &tokenizer, text, max_tokens, progress)
}
