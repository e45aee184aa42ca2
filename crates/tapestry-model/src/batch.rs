//! What a training step looks at.

use crate::{LlamaConfig, ModelError};

/// Windows of tokens with what is to be predicted at each position. Row-major, `num_windows × window`.
///
/// A window may hold several documents one after another; attention does not cross from one segment into another.
/// Positions count from the start of the window, which rotary attention does not notice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    num_windows: usize,
    window: usize,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    segments: Vec<u32>,
    counts: Vec<bool>,
}

impl Batch {
    /// Puts a batch together.
    ///
    /// `targets[i]` is the token to predict after reading `tokens[i]`; `segments[i]` names the document that `tokens[i]`
    /// belongs to, unique within its window; where `counts[i]` is false the position adds nothing to the loss (its target
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
        segments: Vec<u32>,
        counts: Vec<bool>,
    ) -> Result<Self, ModelError> {
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
        Ok(Self { num_windows, window, tokens, targets, segments, counts })
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
        self.counts.iter().filter(|counts| **counts).count()
    }

    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    pub(crate) fn targets(&self) -> &[u32] {
        &self.targets
    }

    pub(crate) fn segments(&self) -> &[u32] {
        &self.segments
    }

    pub(crate) fn counts(&self) -> &[bool] {
        &self.counts
    }

    /// Checks that a model can run this batch.
    pub(crate) fn check(&self, config: &LlamaConfig) -> Result<(), ModelError> {
        check_tokens(config, self.tokens.iter().chain(&self.targets), self.window)
    }
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
    config: &LlamaConfig,
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
