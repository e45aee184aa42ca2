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
    #[expect(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        reason = "positions and widths are far below 2^52; rounding the tables to f32 is the point"
    )]
    pub fn new(theta: f64, head_dim: usize, num_positions: usize) -> Self {
        let half = head_dim / 2;
        let angle = |p: usize, i: usize| p as f64 * theta.powf(-(i as f64) / half as f64);
        let all = || (0..num_positions).flat_map(|p| (0..half).map(move |i| angle(p, i)));
        Self { half, cos: all().map(|a| a.cos() as f32).collect(), sin: all().map(|a| a.sin() as f32).collect() }
    }

    /// How many positions the tables have.
    #[must_use]
    pub fn num_positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }
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
    /// Positions count from the start of each window.
    pub rope: Arc<RopeTables>,
    /// For each token of the batch, the first position of its window that it may see: where its document begins. Empty:
    /// each window is one document.
    pub starts: Arc<[u32]>,
}

impl AttentionPlan {
    /// The first position that token `position` of window `window` may see.
    pub(crate) fn start(&self, window: usize, position: usize) -> usize {
        self.starts.get(window * self.time + position).map_or(0, |start| (*start as usize).min(position))
    }

    /// Checks what every kernel relies on.
    ///
    /// # Panics
    /// Where the plan contradicts itself: a defect of the caller.
    pub(crate) fn check(&self) {
        assert!(self.num_kv_heads > 0 && self.num_heads.is_multiple_of(self.num_kv_heads), "heads are shared evenly");
        assert!(self.head_dim == 2 * self.rope.half, "the rotary tables are those of the head width");
        assert!(self.time <= self.rope.num_positions(), "the rotary tables reach to the end of the window");
        assert!(self.starts.is_empty() || self.starts.len() == self.batch * self.time, "one start for each token");
    }
}
