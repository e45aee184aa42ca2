//! Half-blocks on plain slices.

use crate::attention::{copy_from_heads, copy_to_heads, rotate_to_heads};
pub use crate::cross_entropy::NllAccumulator;
use crate::elementwise::{exp, vectorized};
use crate::linear::{linear, linear_add};
use crate::plan::AttentionPlan;
use crate::{attention, norm};
use rayon::prelude::*;

/// The parameters of an attention half-block.
#[derive(Debug, Clone, Copy)]
pub struct AttentionWeights<'a> {
    /// `[d]`
    pub norm: &'a [f32],
    /// `[h*e, d]`
    pub q: &'a [f32],
    /// `[k*e, d]`
    pub k: &'a [f32],
    /// `[k*e, d]`
    pub v: &'a [f32],
    /// `[d, h*e]`
    pub o: &'a [f32],
}

/// The parameters of a feed-forward half-block.
#[derive(Debug, Clone, Copy)]
pub struct MlpWeights<'a> {
    /// `[d]`
    pub norm: &'a [f32],
    /// `[f, d]`
    pub gate: &'a [f32],
    /// `[f, d]`
    pub up: &'a [f32],
    /// `[d, f]`
    pub down: &'a [f32],
}

/// What the backward pass of an attention half-block reads.
#[derive(Debug)]
pub(crate) struct AttentionSaved {
    /// The normed input, `[n, d]`.
    pub(crate) normed: Vec<f32>,
    /// The norm's factors, `[n]`.
    pub(crate) factors: Vec<f32>,
    /// `[b, h, t, e]`
    pub(crate) q: Vec<f32>,
    /// `[b, k, t, e]`
    pub(crate) k: Vec<f32>,
    /// `[b, k, t, e]`
    pub(crate) v: Vec<f32>,
    /// `[b, h, t, e]`
    pub(crate) out: Vec<f32>,
    /// `[b, h, t]`
    pub(crate) lse: Vec<f32>,
}

/// What the backward pass of a feed-forward half-block reads.
#[derive(Debug)]
pub(crate) struct MlpSaved {
    /// The normed input, `[n, d]`.
    pub(crate) normed: Vec<f32>,
    /// The norm's factors, `[n]`.
    pub(crate) factors: Vec<f32>,
    /// `[n, f]`
    pub(crate) gate: Vec<f32>,
    /// `[n, f]`
    pub(crate) up: Vec<f32>,
}

/// `x + attention(norm(x))`; x `[b*t, d]`.
///
/// # Panics
/// Where the plan contradicts itself or a slice is too short: a defect of the caller.
#[must_use]
pub fn attention_block(x: &[f32], weights: &AttentionWeights<'_>, plan: &AttentionPlan) -> Vec<f32> {
    attention_saved(x, weights, plan).0
}

pub(crate) fn attention_saved(
    x: &[f32],
    weights: &AttentionWeights<'_>,
    plan: &AttentionPlan,
) -> (Vec<f32>, AttentionSaved) {
    plan.check();
    let (d, n) = (weights.norm.len(), plan.batch * plan.time);
    assert!(x.len() == n * d, "the input has {} elements, not {n} x {d}", x.len());
    let (width, kv_width) = (plan.num_heads * plan.head_dim, plan.num_kv_heads * plan.head_dim);
    let (normed, factors) = norm::forward(x, weights.norm, plan.norm_eps);
    let q = rotate_to_heads(&linear(&normed, weights.q, n, d, width), plan, plan.num_heads);
    let k = rotate_to_heads(&linear(&normed, weights.k, n, d, kv_width), plan, plan.num_kv_heads);
    let v = copy_to_heads(&linear(&normed, weights.v, n, d, kv_width), plan, plan.num_kv_heads);
    let (out, lse) = attention::forward(&q, &k, &v, plan);
    let mut y = x.to_vec();
    linear_add(&copy_from_heads(&out, plan, plan.num_heads), weights.o, &mut y, n, width, d);
    (y, AttentionSaved { normed, factors, q, k, v, out, lse })
}

/// `x + down(silu(gate(norm(x))) * up(norm(x)))`; x `[n, d]`.
///
/// # Source
/// Shazeer, "GLU Variants Improve Transformer", equation 6.
///
/// # Panics
/// Where a slice is too short: a defect of the caller.
#[must_use]
pub fn mlp_block(x: &[f32], weights: &MlpWeights<'_>, norm_eps: f32) -> Vec<f32> {
    mlp_saved(x, weights, norm_eps).0
}

pub(crate) fn mlp_saved(x: &[f32], weights: &MlpWeights<'_>, norm_eps: f32) -> (Vec<f32>, MlpSaved) {
    let d = weights.norm.len();
    let (n, f) = (x.len() / d, weights.gate.len() / d);
    let (normed, factors) = norm::forward(x, weights.norm, norm_eps);
    let gate = linear(&normed, weights.gate, n, d, f);
    let up = linear(&normed, weights.up, n, d, f);
    let mut y = x.to_vec();
    linear_add(&swiglu(&gate, &up), weights.down, &mut y, n, f, d);
    (y, MlpSaved { normed, factors, gate, up })
}

/// Elements that one task handles.
const PIECE: usize = 1 << 13;

/// `silu(gate) * up`.
fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
    let mut out = vec![0.0; gate.len()];
    out.par_chunks_mut(PIECE).zip(gate.par_chunks(PIECE)).zip(up.par_chunks(PIECE)).for_each(|((out, gate), up)| {
        vectorized(
            #[inline(always)]
            || {
                for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                    *out = gate / (1.0 + exp(-gate)) * up;
                }
            },
        );
    });
    out
}

/// In place: `gate` becomes its gradient, `up` its gradient, and `d_product` (the product's gradient) the product.
pub(crate) fn swiglu_backward(gate: &mut [f32], up: &mut [f32], d_product: &mut [f32]) {
    let pieces = gate.par_chunks_mut(PIECE).zip(up.par_chunks_mut(PIECE)).zip(d_product.par_chunks_mut(PIECE));
    pieces.for_each(|((gate, up), d_product)| {
        vectorized(
            #[inline(always)]
            || {
                for ((gate, up), d_product) in gate.iter_mut().zip(up).zip(d_product) {
                    let (g, u, d) = (*gate, *up, *d_product);
                    let sigmoid = 1.0 / (1.0 + exp(-g));
                    let silu = g * sigmoid;
                    *d_product = silu * u;
                    *up = d * silu;
                    *gate = d * u * sigmoid * (1.0 + g * (1.0 - sigmoid));
                }
            },
        );
    });
}

/// The root-mean-square norm of x `[n, d]`.
#[must_use]
pub fn rms_norm(x: &[f32], weight: &[f32], eps: f32) -> Vec<f32> {
    norm::forward(x, weight, eps).0
}

/// `-ln p(target)` under `softmax(x head^T)`: x `[n, d]`, head `[v, d]`; one value for each row, in nats.
#[must_use]
pub fn token_nll(x: &[f32], head: &[f32], targets: &[u32]) -> Vec<f32> {
    let mut sum = NllAccumulator::new(targets.len());
    sum.add(x, head, 0, targets);
    sum.finish()
}
