//! What attention needs to know besides tensors.

use std::sync::Arc;

/// Cosines and sines of the rotary position embedding, `[t, e/2]` each. Dimension `i` of a head turns together with
/// dimension `i + e/2`.
///
/// # Source
/// Su et al., "RoFormer", equation 34, with the pairs laid out in halves.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeTables {
    pub(crate) half: usize,
    pub(crate) cos: Vec<f32>,
    pub(crate) sin: Vec<f32>,
}

impl RopeTables {
    /// The tables for positions `0..num_positions`. Angles are computed in `f64`.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "a head's width is small")]
    pub fn new(theta: f64, head_dim: usize, num_positions: usize) -> Self {
        let half = head_dim / 2;
        let frequencies: Vec<f64> = (0..half).map(|i| theta.powf(-(i as f64) / half as f64)).collect();
        Self::from_frequencies(&frequencies, 1.0, num_positions)
    }

    /// The tables for positions `0..num_positions` from the angle that each pair turns by from one position to the next,
    /// `[e/2]` in radians. Every entry is multiplied by `magnitude`, which is how some ways of stretching a context sharpen
    /// attention.
    #[must_use]
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "positions are far below 2^52; rounding the tables to f32 is the point"
    )]
    pub fn from_frequencies(frequencies: &[f64], magnitude: f64, num_positions: usize) -> Self {
        let angles = || (0..num_positions).flat_map(|p| frequencies.iter().map(move |f| p as f64 * f));
        Self {
            half: frequencies.len(),
            cos: angles().map(|a| (a.cos() * magnitude) as f32).collect(),
            sin: angles().map(|a| (a.sin() * magnitude) as f32).collect(),
        }
    }

    /// How many positions the tables have.
    #[must_use]
    pub fn num_positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
}

/// Where a half-block has its norm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOrder {
    /// `x + f(norm(x))`.
    Before,
    /// `x + norm(f(x))`.
    ///
    /// # Source
    /// Team OLMo, "2 OLMo 2 Furious", section 3.2 (after Liu et al., "Swin Transformer V2", section 3.2).
    After,
}

/// The shape of an attention block, its positions, and who may see whom.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionPlan {
    /// Windows.
    pub batch: usize,
    /// Tokens in a window.
    pub time: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in the norm.
    pub norm_eps: f32,
    /// Where the block's norm is.
    pub norm_order: NormOrder,
    /// Whether the gradient computes the block again instead of keeping what it made: less memory, more time, the same bits.
    ///
    /// # Source
    /// Chen et al., "Training Deep Nets with Sublinear Memory Cost", section 3.
    pub recompute: bool,
    /// How many tokens a token sees, itself included; none: all before it.
    ///
    /// # Source
    /// Beltagy et al., "Longformer", section 3.1; Jiang et al., "Mistral 7B", section 2.
    pub window: Option<usize>,
    /// Positions count from the start of each window.
    pub rope: Arc<RopeTables>,
    /// For each token of the batch, the first position of its window that it may see: where its document begins. Empty:
    /// each window is one document.
    pub starts: Arc<[u32]>,
}

/// What a feed-forward block needs to know besides tensors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MlpPlan {
    /// Added to the mean square in the norm.
    pub norm_eps: f32,
    /// Where the block's norm is.
    pub norm_order: NormOrder,
    /// As [`AttentionPlan::recompute`].
    pub recompute: bool,
}

impl AttentionPlan {
    /// The plan of the feed-forward block beside it.
    #[must_use]
    pub const fn mlp(&self) -> MlpPlan {
        MlpPlan { norm_eps: self.norm_eps, norm_order: self.norm_order, recompute: self.recompute }
    }

    /// The first position that token `position` of window `window` may see.
    pub(crate) fn start(&self, window: usize, position: usize) -> usize {
        let document =
            self.starts.get(window * self.time + position).map_or(0, |start| (*start as usize).min(position));
        document.max(first_in_window(self.window, position))
    }

    /// Checks what every kernel relies on.
    ///
    /// # Panics
    /// Where the plan contradicts itself: a defect of the caller.
    pub(crate) fn check(&self) {
        assert!(self.window != Some(0), "a token sees at least itself");
        assert!(self.num_kv_heads > 0 && self.num_heads.is_multiple_of(self.num_kv_heads), "heads are shared evenly");
        assert!(self.head_dim == 2 * self.rope.half, "the rotary tables are those of the head width");
        assert!(self.time <= self.rope.num_positions(), "the rotary tables reach to the end of the window");
        assert!(self.starts.is_empty() || self.starts.len() == self.batch * self.time, "one start for each token");
    }
}

/// The first position that `position` sees through a sliding window.
pub(crate) fn first_in_window(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}
