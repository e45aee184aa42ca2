//! Half-blocks over sequences that grow: keys and values of what was read are kept, so that a new token is computed alone.
//!
//! Any number of sequences go through together, each with any number of new tokens: a prompt is many new tokens of one
//! sequence, a step of generation one new token of each. Nothing is summed over different sequences or tokens but in attention,
//! and a sequence's attention reads only its own cache.

use crate::attention::{head_scale, rotate_head, softmax};
use crate::elementwise::{dot, vectorized};
use crate::forward::{AttentionWeights, MlpWeights, Projected, norm_after, swiglu};
use crate::linear::{View, linear, matmul_serial};
use crate::norm;
use crate::plan::{NormOrder, RopeTables, first_in_window};
use rayon::prelude::*;
use std::sync::Arc;

/// Rows of scores computed at once.
const ROWS: usize = 64;
/// Up to so many rows a product reads each row of the matrix once and multiplies it with all of them, instead of packing it first.
const FEW: usize = 4;

/// Keys (turned by their positions) and values of one layer and sequence, each head by itself: `[t, e]`.
#[derive(Debug, Clone)]
pub struct KvCache {
    keys: Vec<Vec<f32>>,
    values: Vec<Vec<f32>>,
    head_dim: usize,
    len: usize,
}

impl KvCache {
    /// An empty one.
    #[must_use]
    pub fn new(num_kv_heads: usize, head_dim: usize) -> Self {
        Self { keys: vec![vec![]; num_kv_heads], values: vec![vec![]; num_kv_heads], head_dim, len: 0 }
    }

    /// Forgets all tokens but the first `len`.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        for head in self.keys.iter_mut().chain(&mut self.values) {
            head.truncate(self.len * self.head_dim);
        }
    }

    /// How many tokens it holds.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// The shape of an attention block and its positions.
#[derive(Debug, Clone)]
pub struct StepPlan {
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
    /// Added to the mean square in a norm.
    pub norm_eps: f32,
    /// Where the block's norm is.
    pub norm_order: NormOrder,
    /// How many tokens a token sees, itself included; none: all before it.
    pub window: Option<usize>,
    /// Reaches to the longest sequence.
    pub rope: Arc<RopeTables>,
}

/// Attention of new tokens over what their sequences hold, and over each other. x `[n, d]` holds the new tokens of all
/// sequences one after another, `counts[s]` of them for the cache `caches[s]`, which takes them up.
///
/// # Panics
/// Where the numbers do not fit each other, or a sequence grows beyond the rotary tables: a defect of the caller.
#[must_use]
pub fn attention_step(
    x: &[f32],
    weights: &AttentionWeights<'_>,
    plan: &StepPlan,
    caches: &mut [&mut KvCache],
    counts: &[usize],
) -> Vec<f32> {
    let d = weights.norm.len();
    let n: usize = counts.iter().sum();
    assert!(
        caches.len() == counts.len() && x.len() == n * d,
        "one cache and count for each sequence, one row for each token"
    );
    let normed = match plan.norm_order {
        NormOrder::Before => Some(norm::forward(x, weights.norm, plan.norm_eps).0),
        NormOrder::After => None,
    };
    let projected = project(normed.as_deref().unwrap_or(x), weights, n, plan.norm_eps);
    let (e, shared) = (plan.head_dim, plan.num_heads / plan.num_kv_heads);
    // For each sequence and key/value head, what its query heads mix: `[shared, count, e]`.
    let mut first = 0;
    let mut tasks = vec![];
    for (cache, count) in caches.iter_mut().zip(counts) {
        let before = cache.len;
        assert!(before + count <= plan.rope.num_positions(), "the rotary tables reach to the end of the sequence");
        cache.len += count;
        let heads = cache.keys.iter_mut().zip(&mut cache.values).enumerate();
        tasks.extend(heads.map(|(head, (keys, values))| Task { head, first, count: *count, before, keys, values }));
        first += count;
    }
    let mixed: Vec<Vec<f32>> = tasks.par_iter_mut().map(|task| task.run(&projected, plan)).collect();
    let width = plan.num_heads * e;
    let mut out = vec![0.0; n * width];
    for (task, mixed) in tasks.iter().zip(&mixed) {
        for (nth, rows) in mixed.chunks_exact((task.count * e).max(1)).enumerate() {
            let column = (task.head * shared + nth) * e;
            for (row, values) in rows.chunks_exact(e).enumerate() {
                out[(task.first + row) * width + column..][..e].copy_from_slice(values);
            }
        }
    }
    let stream = linear_rows(&out, weights.o, n, width, d);
    finish(x, stream, weights.norm, plan.norm_eps, plan.norm_order)
}

/// The feed-forward block of few or many rows; x `[n, d]`.
///
/// # Panics
/// Where a slice is too short: a defect of the caller.
#[must_use]
pub fn mlp_step(x: &[f32], weights: &MlpWeights<'_>, norm_eps: f32, order: NormOrder) -> Vec<f32> {
    let d = weights.norm.len();
    let (n, f) = (x.len() / d, weights.gate.len() / d);
    let normed = match order {
        NormOrder::Before => Some(norm::forward(x, weights.norm, norm_eps).0),
        NormOrder::After => None,
    };
    let input = normed.as_deref().unwrap_or(x);
    let (gate, up) = (linear_rows(input, weights.gate, n, d, f), linear_rows(input, weights.up, n, d, f));
    let stream = linear_rows(&swiglu(&gate, &up), weights.down, n, f, d);
    finish(x, stream, weights.norm, norm_eps, order)
}

fn finish(x: &[f32], mut stream: Vec<f32>, norm: &[f32], eps: f32, order: NormOrder) -> Vec<f32> {
    match order {
        NormOrder::Before => {
            crate::elementwise::add(&mut stream, x);
            stream
        }
        NormOrder::After => norm_after(x, &stream, norm, eps).0,
    }
}

/// `y = x w^T`: x `[n, i]`, w `[o, i]`, y `[n, o]`. For few rows each row of the matrix is read once, which is all that such a
/// product costs.
///
/// # Panics
/// Where a slice is too short: a defect of the caller.
#[must_use]
pub fn linear_rows(x: &[f32], w: &[f32], n: usize, i: usize, o: usize) -> Vec<f32> {
    if n > FEW {
        return linear(x, w, n, i, o);
    }
    assert!(x.len() >= n * i && w.len() >= o * i, "the operands lie inside their slices");
    // Transposed while it is made, so that each task writes rows of its own.
    let mut by_output = vec![0.0; o * n];
    by_output.par_chunks_mut(n * 64).enumerate().for_each(|(piece, out)| {
        vectorized(
            #[inline(always)]
            || {
                for (at, out) in out.chunks_exact_mut(n).enumerate() {
                    let row = &w[(piece * 64 + at) * i..][..i];
                    for (y, x) in out.iter_mut().zip(x.chunks_exact(i)) {
                        *y = dot(x, row);
                    }
                }
            },
        );
    });
    if n == 1 {
        return by_output;
    }
    (0..n).flat_map(|row| by_output.chunks_exact(n).map(move |values| values[row]).collect::<Vec<_>>()).collect()
}

fn project(input: &[f32], weights: &AttentionWeights<'_>, n: usize, eps: f32) -> Projected {
    crate::forward::project_with(input, weights, n, eps, linear_rows)
}

/// One key/value head of one sequence.
struct Task<'a> {
    head: usize,
    /// The first of its new tokens among all.
    first: usize,
    count: usize,
    /// Tokens that the sequence held before.
    before: usize,
    keys: &'a mut Vec<f32>,
    values: &'a mut Vec<f32>,
}

impl Task<'_> {
    /// Takes up the new keys and values; what the query heads that share them mix, `[shared, count, e]`.
    fn run(&mut self, projected: &Projected, plan: &StepPlan) -> Vec<f32> {
        let (e, shared) = (plan.head_dim, plan.num_heads / plan.num_kv_heads);
        let (width, kv_width) = (plan.num_heads * e, plan.num_kv_heads * e);
        let mut turned = vec![0.0; e];
        for row in self.first..self.first + self.count {
            let at = row * kv_width + self.head * e;
            rotate_head(&plan.rope, self.before + row - self.first, &projected.k[at..][..e], &mut turned);
            self.keys.extend_from_slice(&turned);
            self.values.extend_from_slice(&projected.v[at..][..e]);
        }
        let mut out = vec![0.0; shared * self.count * e];
        let mut scores = vec![];
        for (nth, out) in out.chunks_exact_mut((self.count * e).max(1)).enumerate() {
            let column = (self.head * shared + nth) * e;
            for (piece, out) in out.chunks_mut(ROWS * e).enumerate() {
                let (start, rows) = (piece * ROWS, out.len() / e);
                let mut q = vec![0.0; rows * e];
                for (row, q) in q.chunks_exact_mut(e).enumerate() {
                    let from = &projected.q[(self.first + start + row) * width + column..][..e];
                    rotate_head(&plan.rope, self.before + start + row, from, q);
                }
                let seen = self.before + start + rows;
                scores.resize(rows * seen, 0.0);
                let (keys, values) = (View::new(self.keys, seen, e), View::new(self.values, seen, e));
                matmul_serial(&mut scores, View::new(&q, rows, e), keys.transposed(), false);
                vectorized(
                    #[inline(always)]
                    || {
                        for (row, scores) in scores.chunks_exact_mut(seen).enumerate() {
                            let position = self.before + start + row;
                            let from = first_in_window(plan.window, position);
                            softmax(scores, from, position, head_scale(e));
                        }
                    },
                );
                matmul_serial(out, View::new(&scores, rows, seen), values, false);
            }
        }
        out
    }
}
