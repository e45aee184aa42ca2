//! What a training step looks at.

use crate::{DecoderConfig, ModelError};
use std::sync::Arc;

/// Windows of tokens with what is to be predicted at each position. Row-major, `num_windows × window`.
///
/// A window may hold several documents one after another; attention does not cross from one into another. Positions
/// count from the start of the window, which rotary attention does not notice.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    num_windows: usize,
    window: usize,
    tokens: Arc<Vec<u32>>,
    targets: Arc<Vec<u32>>,
    /// For each token, where in its window its document begins.
    starts: Arc<[u32]>,
    /// For each token, its share of the mean loss.
    shares: Arc<Vec<f32>>,
}

impl Batch {
    /// Puts a batch together.
    ///
    /// `targets[i]` is the token to predict after reading `tokens[i]`; a document begins where `segments[i]` differs from
    /// the segment before it, and at the start of a window; where `counts[i]` is false the position adds nothing to the loss (its target
    /// must still be a token).
    ///
    /// # Errors
    /// [`ModelError::BatchShape`] where a list has the wrong length, [`ModelError::NothingCounts`] where no position
    /// counts.
    pub fn new(
        num_windows: usize,
        window: usize,
        tokens: Vec<u32>,
        targets: Vec<u32>,
        segments: impl AsRef<[u32]>,
        counts: impl AsRef<[bool]>,
    ) -> Result<Self, ModelError> {
        let (segments, counts) = (segments.as_ref(), counts.as_ref());
        let expected = num_windows.saturating_mul(window);
        for (what, found) in [
            ("tokens", tokens.len()),
            ("targets", targets.len()),
            ("segments", segments.len()),
            ("marks of what counts", counts.len()),
        ] {
            if found != expected {
                return Err(ModelError::BatchShape { what, num_windows, window, expected, found });
            }
        }
        if !counts.contains(&true) {
            return Err(ModelError::NothingCounts);
        }
        let num_counted = counts.iter().filter(|counts| **counts).count();
        #[expect(clippy::cast_precision_loss, reason = "a batch has fewer than 2^24 tokens")]
        let share = 1.0 / num_counted as f32;
        let shares = counts.iter().map(|counts| if *counts { share } else { 0.0 }).collect();
        let starts = segments.chunks(window).flat_map(starts).collect();
        let (tokens, targets) = (Arc::new(tokens), Arc::new(targets));
        Ok(Self { num_windows, window, tokens, targets, starts, shares: Arc::new(shares) })
    }

    /// Whole windows of one document each: every token but the last predicts the next one.
    ///
    /// # Errors
    /// [`ModelError::Windows`] where the windows differ in length or have fewer than two tokens.
    pub fn from_windows(windows: &[&[u32]]) -> Result<Self, ModelError> {
        let length = check_windows(windows)?;
        let tokens = windows.iter().flat_map(|window| &window[..length - 1]).copied().collect();
        let targets = windows.iter().flat_map(|window| &window[1..]).copied().collect();
        let size = windows.len() * (length - 1);
        Self::new(windows.len(), length - 1, tokens, targets, vec![0; size], vec![true; size])
    }

    /// How many windows.
    #[must_use]
    pub const fn num_windows(&self) -> usize {
        self.num_windows
    }

    /// Tokens in a window.
    #[must_use]
    pub const fn window(&self) -> usize {
        self.window
    }

    /// How many positions count towards the loss.
    #[must_use]
    pub fn num_counted(&self) -> usize {
        self.shares.iter().filter(|share| **share > 0.0).count()
    }

    /// Which positions count, row-major.
    #[must_use]
    pub fn counts(&self) -> Vec<bool> {
        self.shares.iter().map(|share| *share > 0.0).collect()
    }

    /// The tokens of all windows, row-major.
    #[must_use]
    pub fn tokens_of_windows(&self) -> &[u32] {
        &self.tokens
    }

    /// What is to be predicted after each of them.
    #[must_use]
    pub fn targets_of_windows(&self) -> &[u32] {
        &self.targets
    }

    pub(crate) fn tokens(&self) -> Arc<Vec<u32>> {
        self.tokens.clone()
    }

    pub(crate) fn targets(&self) -> Arc<Vec<u32>> {
        self.targets.clone()
    }

    pub(crate) fn starts(&self) -> Arc<[u32]> {
        self.starts.clone()
    }

    pub(crate) fn shares(&self) -> Arc<Vec<f32>> {
        self.shares.clone()
    }

    /// Checks that a model can run this batch.
    pub(crate) fn check(&self, config: &DecoderConfig) -> Result<(), ModelError> {
        check_tokens(config, self.tokens.iter().chain(&*self.targets), self.window)
    }
}

/// For each token of a window, the first position of its segment.
fn starts(segments: &[u32]) -> Vec<u32> {
    let mut start = 0;
    let mut starts = vec![0];
    for (at, pair) in (1..).zip(segments.windows(2)) {
        if pair[0] != pair[1] {
            start = at;
        }
        starts.push(start);
    }
    starts
}

/// The common length of windows.
pub(crate) fn check_windows(windows: &[&[u32]]) -> Result<usize, ModelError> {
    let mut found: Vec<usize> = windows.iter().map(|window| window.len()).collect();
    found.dedup();
    match found[..] {
        [length] if length >= 2 => Ok(length),
        _ => Err(ModelError::Windows { minimum: 2, found }),
    }
}

/// Checks that every token is one of the model's, and that the window is not longer than what it was made for.
pub(crate) fn check_tokens<'t>(
    config: &DecoderConfig,
    tokens: impl IntoIterator<Item = &'t u32>,
    window: usize,
) -> Result<(), ModelError> {
    if window > config.max_position_embeddings {
        return Err(ModelError::ContextOverflow { tokens: window, limit: config.max_position_embeddings });
    }
    match tokens.into_iter().find(|id| **id as usize >= config.vocab_size) {
        Some(id) => Err(ModelError::TokenOutsideVocabulary { id: *id, vocabulary: config.vocab_size }),
        None => Ok(()),
    }
}
