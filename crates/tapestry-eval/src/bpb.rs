//! Bits per byte of a text under a model.
//!
//! The text is tokenised whole, then cut into consecutive windows. Within a window every token after the first is
//! scored given the tokens of that window before it; the first is context only. The result is the sum of `-log2 p` over
//! the scored tokens divided by the number of bytes of text that those tokens stand for.
//!
//! Dividing by bytes and not by tokens is what makes models with different tokenizers comparable.

use serde::{Deserialize, Serialize};
use std::num::NonZeroUsize;

/// A model, as far as scoring is concerned: it gives the surprise of each token given those before it.
pub trait TokenScorer {
    /// Why scoring failed.
    type Error;

    /// For each window, the `-ln p` of its tokens after the first: one value fewer than the window has tokens.
    ///
    /// All windows of one call have the same number of tokens, at least two.
    ///
    /// # Units
    /// Nats.
    ///
    /// # Errors
    /// Whatever keeps the model from answering, such as an id outside its vocabulary.
    fn score(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Self::Error>;
}

/// How a text is cut for scoring.
///
/// `window` and `max_tokens` change the result and belong to its definition; `batch` only trades memory for speed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BpbOptions {
    /// Tokens in a window. Below 2 there is nothing to score.
    pub window: NonZeroUsize,
    /// Windows given to the model at once.
    pub batch: NonZeroUsize,
    /// Look only at the first so many tokens of the text.
    pub max_tokens: Option<usize>,
}

impl Default for BpbOptions {
    /// The definition that charters and tables use: windows of 256 tokens, the whole text.
    fn default() -> Self {
        Self {
            window: NonZeroUsize::new(256).expect("256 is not zero"),
            batch: NonZeroUsize::new(8).expect("8 is not zero"),
            max_tokens: None,
        }
    }
}

/// How far a measurement has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpbProgress {
    /// Tokens scored so far.
    pub tokens_scored: u64,
    /// Tokens that will have been scored at the end.
    pub tokens_total: u64,
}

/// The result of a measurement, kept as sums so that measurements of parts of a text add up.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BitsPerByte {
    /// Sum of `-log2 p` over the scored tokens.
    pub bits: f64,
    /// Bytes of text that the scored tokens stand for.
    pub bytes: u64,
    /// How many tokens were scored.
    pub tokens_scored: u64,
    /// How many windows held them.
    pub windows: u64,
}

impl BitsPerByte {
    /// The figure itself: `bits / bytes`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a text of 2^53 bytes does not exist")]
    pub fn bpb(&self) -> f64 {
        self.bits / self.bytes as f64
    }
}

/// Why there is no figure.
#[derive(Debug, thiserror::Error)]
pub enum BpbError<E> {
    /// The caller gave lists that do not belong together.
    #[error("{tokens} token ids came with {lengths} byte lengths; each token needs exactly one length")]
    LengthsDoNotMatch {
        /// Number of ids.
        tokens: usize,
        /// Number of byte lengths.
        lengths: usize,
    },
    /// Too little text, too small a window, or tokens that stand for no bytes.
    #[error(
        "nothing to score: {tokens} tokens in windows of {window} leave no scored token that stands for text; give a longer text (two tokens at least) and a window of 2 or more"
    )]
    NothingToScore {
        /// Tokens looked at.
        tokens: usize,
        /// Window length.
        window: usize,
    },
    /// The model answered with the wrong number of values: a defect of the scorer.
    #[error("the model gave {found} values where {expected} were due (windows from token {first_token} on)")]
    WrongAnswer {
        /// First token of the batch.
        first_token: usize,
        /// Values that were due.
        expected: usize,
        /// Values that came.
        found: usize,
    },
    /// The model gave NaN or an infinity.
    #[error(
        "the model gave {value} for token {token} of the text: its weights hold values that are not finite, or so large that they overflow; do not use them"
    )]
    NotFinite {
        /// Position of the token in the text.
        token: usize,
        /// What the model gave.
        value: f32,
    },
    /// The model itself failed.
    #[error("the model could not score tokens {first_token} onwards")]
    Scorer {
        /// First token of the batch.
        first_token: usize,
        /// The reason.
        source: E,
    },
}

/// Measures bits per byte of a tokenised text.
///
/// `byte_lengths[i]` is the number of bytes of text that `token_ids[i]` stands for. A last window of a single token is
/// not scored, since its only token is a first token. The sum is made in `f64` in the order of the text, so the result
/// does not depend on `batch` as long as the model's answers do not.
///
/// # Errors
/// [`BpbError`]; nothing is returned for a part of a text.
pub fn bits_per_byte<S: TokenScorer>(
    scorer: &mut S,
    token_ids: &[u32],
    byte_lengths: &[u32],
    options: &BpbOptions,
    progress: &mut dyn FnMut(BpbProgress),
) -> Result<BitsPerByte, BpbError<S::Error>> {
    if token_ids.len() != byte_lengths.len() {
        return Err(BpbError::LengthsDoNotMatch { tokens: token_ids.len(), lengths: byte_lengths.len() });
    }
    let num_tokens = options.max_tokens.map_or(token_ids.len(), |max| max.min(token_ids.len()));
    let (token_ids, byte_lengths) = (&token_ids[..num_tokens], &byte_lengths[..num_tokens]);
    let window = options.window.get();

    // Full windows go in batches; a shorter last one goes alone, so that a scorer only ever sees rectangles.
    let full = num_tokens / window * window;
    let batch_tokens = window.saturating_mul(options.batch.get());
    let mut batches: Vec<(usize, usize)> =
        (0..full).step_by(batch_tokens).map(|first| (first, (first + batch_tokens).min(full))).collect();
    if full < num_tokens {
        batches.push((full, num_tokens));
    }
    batches.retain(|(first, end)| window.min(end - first) >= 2);
    let tokens_total = batches.iter().map(|(first, end)| (end - first - (end - first).div_ceil(window)) as u64).sum();

    let mut nats = 0.0_f64;
    let mut result = BitsPerByte { bits: 0.0, bytes: 0, tokens_scored: 0, windows: 0 };
    for (first, end) in batches {
        let windows: Vec<&[u32]> = token_ids[first..end].chunks(window).collect();
        let scores = scorer.score(&windows).map_err(|source| BpbError::Scorer { first_token: first, source })?;
        check_shape(&windows, &scores, first)?;
        for (index, scores) in scores.iter().enumerate() {
            let first_scored = first + index * window + 1;
            for (offset, &value) in scores.iter().enumerate() {
                let token = first_scored + offset;
                if !value.is_finite() {
                    return Err(BpbError::NotFinite { token, value });
                }
                nats += f64::from(value);
                result.bytes += u64::from(byte_lengths[token]);
            }
            result.tokens_scored += scores.len() as u64;
            result.windows += 1;
        }
        progress(BpbProgress { tokens_scored: result.tokens_scored, tokens_total });
    }
    if result.bytes == 0 {
        return Err(BpbError::NothingToScore { tokens: num_tokens, window });
    }
    result.bits = nats / std::f64::consts::LN_2;
    Ok(result)
}

fn check_shape<E>(windows: &[&[u32]], scores: &[Vec<f32>], first_token: usize) -> Result<(), BpbError<E>> {
    let expected = windows.iter().map(|window| window.len() - 1).sum();
    let found = scores.iter().map(Vec::len).sum();
    let fits = windows.len() == scores.len()
        && windows.iter().zip(scores).all(|(window, scores)| window.len() == scores.len() + 1);
    if fits { Ok(()) } else { Err(BpbError::WrongAnswer { first_token, expected, found }) }
}

#[cfg(test)]
mod tests;
