//! Half-blocks on plain slices.

use crate::attention::{copy_from_heads, copy_to_heads, rotate_to_heads};
pub use crate::cross_entropy::NllAccumulator;
use crate::elementwise::{add, exp, vectorized};
use crate::linear::{linear, linear_add};
use crate::plan::{AttentionPlan, NormOrder};
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
    /// Added to what `q`, `k` and `v` give: `[h*e]`, `[k*e]`, `[k*e]`; empty where a model has none.
    pub biases: [&'a [f32]; 3],
    /// Root-mean-square norms of queries and of keys before they are turned: over each head (`[e]`), or over all heads
    /// together (`[h*e]` and `[k*e]`); empty where a model has none.
    ///
    /// # Source
    /// Henry et al., "Query-Key Normalization for Transformers", section 3, with the norm that the models use.
    pub qk_norms: [&'a [f32]; 2],
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

/// Queries or keys before their norm.
#[derive(Debug)]
pub(crate) struct BeforeNorm {
    /// `[n, heads*e]`
    pub(crate) values: Vec<f32>,
    /// The norm's factors, one for each row of the norm's width.
    pub(crate) factors: Vec<f32>,
}

/// What the backward pass of an attention half-block reads.
#[derive(Debug)]
pub(crate) struct AttentionSaved {
    /// What the block's norm gave (before), or was given (after): `[n, d]`.
    pub(crate) stream: Vec<f32>,
    /// The norm's factors, `[n]`.
    pub(crate) factors: Vec<f32>,
    /// Queries and keys before their norm, where there is one.
    pub(crate) before_norms: [Option<BeforeNorm>; 2],
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
    /// What the block's norm gave (before), or was given (after): `[n, d]`.
    pub(crate) stream: Vec<f32>,
    /// The norm's factors, `[n]`.
    pub(crate) factors: Vec<f32>,
    /// `[n, f]`
    pub(crate) gate: Vec<f32>,
    /// `[n, f]`
    pub(crate) up: Vec<f32>,
}

/// `x + attention(norm(x))` or `x + norm(attention(x))`; x `[b*t, d]`.
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
    let width = plan.num_heads * plan.head_dim;
    let (normed, factors) = norm_before(x, weights.norm, plan.norm_eps, plan.norm_order);
    let input = if normed.is_empty() { x } else { &normed };
    let Projected { q, k, v, before_norms } = project(input, weights, n, plan.norm_eps);
    let q = rotate_to_heads(&q, plan, plan.num_heads);
    let k = rotate_to_heads(&k, plan, plan.num_kv_heads);
    let v = copy_to_heads(&v, plan, plan.num_kv_heads);
    let (out, lse) = attention::forward(&q, &k, &v, plan);
    let mixed = copy_from_heads(&out, plan, plan.num_heads);
    let saved = |stream, factors| AttentionSaved { stream, factors, before_norms, q, k, v, out, lse };
    match plan.norm_order {
        NormOrder::Before => {
            let mut y = x.to_vec();
            linear_add(&mixed, weights.o, &mut y, n, width, d);
            (y, saved(normed, factors))
        }
        NormOrder::After => {
            let stream = linear(&mixed, weights.o, n, width, d);
            let (y, factors) = norm_after(x, &stream, weights.norm, plan.norm_eps);
            (y, saved(stream, factors))
        }
    }
}

/// The norm of a block that has it before; nothing for one that has it after.
fn norm_before(x: &[f32], weight: &[f32], eps: f32, order: NormOrder) -> (Vec<f32>, Vec<f32>) {
    match order {
        NormOrder::Before => norm::forward(x, weight, eps),
        NormOrder::After => (vec![], vec![]),
    }
}

/// `x + norm(stream)` with the norm's factors.
pub(crate) fn norm_after(x: &[f32], stream: &[f32], weight: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let (mut y, factors) = norm::forward(stream, weight, eps);
    add(&mut y, x);
    (y, factors)
}

/// Queries `[n, h*e]`, keys and values `[n, k*e]`, not yet turned.
pub(crate) struct Projected {
    pub(crate) q: Vec<f32>,
    pub(crate) k: Vec<f32>,
    pub(crate) v: Vec<f32>,
    pub(crate) before_norms: [Option<BeforeNorm>; 2],
}

/// `input` `[n, d]` through the three matrices, their biases and the norms of queries and keys.
fn project(input: &[f32], weights: &AttentionWeights<'_>, n: usize, eps: f32) -> Projected {
    project_with(input, weights, n, eps, linear)
}

/// As [`project`], with the product that is given.
pub(crate) fn project_with(
    input: &[f32],
    weights: &AttentionWeights<'_>,
    n: usize,
    eps: f32,
    linear: impl Fn(&[f32], &[f32], usize, usize, usize) -> Vec<f32>,
) -> Projected {
    let d = input.len() / n;
    let through = |matrix: &[f32], bias: &[f32]| {
        let width = matrix.len() / d;
        let mut y = linear(input, matrix, n, d, width);
        if !bias.is_empty() {
            y.chunks_exact_mut(width).for_each(|row| add(row, bias));
        }
        y
    };
    let normed = |values: Vec<f32>, weight: &[f32]| {
        if weight.is_empty() {
            return (values, None);
        }
        let (y, factors) = norm::forward(&values, weight, eps);
        (y, Some(BeforeNorm { values, factors }))
    };
    let [q_bias, k_bias, v_bias] = weights.biases;
    let (q, q_before) = normed(through(weights.q, q_bias), weights.qk_norms[0]);
    let (k, k_before) = normed(through(weights.k, k_bias), weights.qk_norms[1]);
    Projected { q, k, v: through(weights.v, v_bias), before_norms: [q_before, k_before] }
}

/// `x + mlp(norm(x))` or `x + norm(mlp(x))` with `mlp(x) = down(silu(gate(x)) * up(x))`; x `[n, d]`.
///
/// # Source
/// Shazeer, "GLU Variants Improve Transformer", equation 6.
///
/// # Panics
/// Where a slice is too short: a defect of the caller.
#[must_use]
pub fn mlp_block(x: &[f32], weights: &MlpWeights<'_>, norm_eps: f32, order: NormOrder) -> Vec<f32> {
    mlp_saved(x, weights, norm_eps, order).0
}

pub(crate) fn mlp_saved(x: &[f32], weights: &MlpWeights<'_>, norm_eps: f32, order: NormOrder) -> (Vec<f32>, MlpSaved) {
    let d = weights.norm.len();
    let (n, f) = (x.len() / d, weights.gate.len() / d);
    let (normed, factors) = norm_before(x, weights.norm, norm_eps, order);
    let input = if normed.is_empty() { x } else { &normed };
    let gate = linear(input, weights.gate, n, d, f);
    let up = linear(input, weights.up, n, d, f);
    let product = swiglu(&gate, &up);
    match order {
        NormOrder::Before => {
            let mut y = x.to_vec();
            linear_add(&product, weights.down, &mut y, n, f, d);
            (y, MlpSaved { stream: normed, factors, gate, up })
        }
        NormOrder::After => {
            let stream = linear(&product, weights.down, n, f, d);
            let (y, factors) = norm_after(x, &stream, weights.norm, norm_eps);
            (y, MlpSaved { stream, factors, gate, up })
        }
    }
}

/// Elements that one task handles.
pub(crate) const PIECE: usize = 1 << 13;

/// `silu(gate) * up`.
pub(crate) fn swiglu(gate: &[f32], up: &[f32]) -> Vec<f32> {
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
