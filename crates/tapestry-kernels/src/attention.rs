//! Causal attention with shared key/value heads, within documents.
//!
//! # Source
//! Vaswani et al., "Attention Is All You Need", equation 1; Ainslie et al., "GQA"; the backward pass from the stored
//! log-sum-exp as in Dao, "FlashAttention-2", algorithm 2.

use crate::elementwise::{dot, exp, exp_sum, max, vectorized};
use crate::linear::{View, matmul_serial};
use crate::plan::{AttentionPlan, RopeTables};
use rayon::prelude::*;

/// Rows of scores computed at once.
const ROWS: usize = 64;

/// Turns the heads by their positions and sorts them: `[b, t, h, e]` to `[b, h, t, e]`.
pub(crate) fn rotate_to_heads(x: &[f32], plan: &AttentionPlan, num_heads: usize) -> Vec<f32> {
    to_heads(x, plan, num_heads, |position, from, to| rotate(plan, position, from, to, 1.0))
}

/// Sorts heads: `[b, t, h, e]` to `[b, h, t, e]`.
pub(crate) fn copy_to_heads(x: &[f32], plan: &AttentionPlan, num_heads: usize) -> Vec<f32> {
    to_heads(x, plan, num_heads, |_, from, to| to.copy_from_slice(from))
}

fn to_heads(
    x: &[f32],
    plan: &AttentionPlan,
    num_heads: usize,
    each: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let (t, e) = (plan.time, plan.head_dim);
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(t * e).enumerate().for_each(|(index, out)| {
        let (window, head) = (index / num_heads, index % num_heads);
        for (position, to) in out.chunks_exact_mut(e).enumerate() {
            let from = ((window * t + position) * num_heads + head) * e;
            each(position, &x[from..from + e], to);
        }
    });
    out
}

/// Back again, turned back: `[b, h, t, e]` to `[b, t, h, e]`.
pub(crate) fn rotate_from_heads(x: &[f32], plan: &AttentionPlan, num_heads: usize) -> Vec<f32> {
    from_heads(x, plan, num_heads, |position, from, to| rotate(plan, position, from, to, -1.0))
}

/// Back again: `[b, h, t, e]` to `[b, t, h, e]`.
pub(crate) fn copy_from_heads(x: &[f32], plan: &AttentionPlan, num_heads: usize) -> Vec<f32> {
    from_heads(x, plan, num_heads, |_, from, to| to.copy_from_slice(from))
}

fn from_heads(
    x: &[f32],
    plan: &AttentionPlan,
    num_heads: usize,
    each: impl Fn(usize, &[f32], &mut [f32]) + Sync,
) -> Vec<f32> {
    let (t, e) = (plan.time, plan.head_dim);
    let mut out = vec![0.0; x.len()];
    out.par_chunks_mut(num_heads * e).enumerate().for_each(|(token, out)| {
        let (window, position) = (token / t, token % t);
        for (head, to) in out.chunks_exact_mut(e).enumerate() {
            let from = ((window * num_heads + head) * t + position) * e;
            each(position, &x[from..from + e], to);
        }
    });
    out
}

/// Turns one head `[e]` by its position.
pub(crate) fn rotate_head(rope: &RopeTables, position: usize, from: &[f32], to: &mut [f32]) {
    turn(rope, position, from, to, 1.0);
}

fn rotate(plan: &AttentionPlan, position: usize, from: &[f32], to: &mut [f32], sign: f32) {
    turn(&plan.rope, position, from, to, sign);
}

fn turn(rope: &RopeTables, position: usize, from: &[f32], to: &mut [f32], sign: f32) {
    let half = rope.half;
    let (cos, sin) = (&rope.cos[position * half..][..half], &rope.sin[position * half..][..half]);
    let ((a, b), (out_a, out_b)) = (from.split_at(half), to.split_at_mut(half));
    for i in 0..half {
        let s = sin[i] * sign;
        out_a[i] = a[i] * cos[i] - b[i] * s;
        out_b[i] = b[i] * cos[i] + a[i] * s;
    }
}

fn scale(plan: &AttentionPlan) -> f32 {
    head_scale(plan.head_dim)
}

/// What scores are multiplied by.
#[expect(clippy::cast_precision_loss, reason = "a head's width is small")]
pub(crate) fn head_scale(head_dim: usize) -> f32 {
    1.0 / (head_dim as f32).sqrt()
}

/// q `[b, h, t, e]`, k and v `[b, k, t, e]`; returns the output `[b, h, t, e]` and the log-sum-exp of each row `[b, h, t]`.
pub(crate) fn forward(q: &[f32], k: &[f32], v: &[f32], plan: &AttentionPlan) -> (Vec<f32>, Vec<f32>) {
    let (t, e, h) = (plan.time, plan.head_dim, plan.num_heads);
    let (mut out, mut lse) = (vec![0.0; q.len()], vec![0.0; q.len() / e]);
    let tasks = out.par_chunks_mut(t * e).zip(lse.par_chunks_mut(t)).enumerate();
    tasks.for_each_init(
        || vec![0.0; ROWS.min(t) * t],
        |scores, (index, (out, lse))| {
            let (q, kv) = (&q[index * t * e..][..t * e], shared_head(plan, index / h, index % h) * t * e);
            let (k, v) = (&k[kv..][..t * e], &v[kv..][..t * e]);
            for first in (0..t).step_by(ROWS) {
                let (rows, seen) = (ROWS.min(t - first), (first + ROWS).min(t));
                let (q, scores) = (&q[first * e..][..rows * e], &mut scores[..rows * seen]);
                matmul_serial(scores, View::new(q, rows, e), View::new(k, seen, e).transposed(), false);
                vectorized(
                    #[inline(always)]
                    || {
                        for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
                            let position = first + i;
                            lse[position] = softmax(row, plan.start(index / h, position), position, scale(plan));
                        }
                    },
                );
                matmul_serial(
                    &mut out[first * e..][..rows * e],
                    View::new(scores, rows, seen),
                    View::new(v, seen, e),
                    false,
                );
            }
        },
    );
    (out, lse)
}

/// The key/value head that query head `head` of window `window` reads, counted over the batch.
const fn shared_head(plan: &AttentionPlan, window: usize, head: usize) -> usize {
    window * plan.num_kv_heads + head / (plan.num_heads / plan.num_kv_heads)
}

/// Softmax over `start..=position`, zero elsewhere; returns the log-sum-exp.
#[inline(always)]
pub(crate) fn softmax(row: &mut [f32], start: usize, position: usize, scale: f32) -> f32 {
    row[..start].fill(0.0);
    row[position + 1..].fill(0.0);
    let seen = &mut row[start..=position];
    let largest = max(seen) * scale;
    let sum = exp_sum(seen, scale, largest);
    let inverse = 1.0 / sum;
    seen.iter_mut().for_each(|x| *x *= inverse);
    largest + sum.ln()
}

/// What the backward pass reads, as the forward pass made it.
pub(crate) struct Saved<'a> {
    pub(crate) q: &'a [f32],
    pub(crate) k: &'a [f32],
    pub(crate) v: &'a [f32],
    pub(crate) out: &'a [f32],
    pub(crate) lse: &'a [f32],
}

/// Gradients of q, k and v, shaped like them. One task for each key/value head, which sums over the query heads that share
/// it in their order.
pub(crate) fn backward(saved: &Saved<'_>, d_out: &[f32], plan: &AttentionPlan) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
    let (t, e) = (plan.time, plan.head_dim);
    let shared = plan.num_heads / plan.num_kv_heads;
    let (mut dq, mut dk, mut dv) = (vec![0.0; saved.q.len()], vec![0.0; saved.k.len()], vec![0.0; saved.v.len()]);
    let tasks =
        dq.par_chunks_mut(shared * t * e).zip(dk.par_chunks_mut(t * e)).zip(dv.par_chunks_mut(t * e)).enumerate();
    tasks.for_each_init(
        || (vec![0.0; ROWS.min(t) * t], vec![0.0; ROWS.min(t) * t]),
        |(p, ds), (kv, ((dq, dk), dv))| {
            let (window, group) = (kv / plan.num_kv_heads, kv % plan.num_kv_heads);
            let (k, v) = (&saved.k[kv * t * e..][..t * e], &saved.v[kv * t * e..][..t * e]);
            for (nth, dq) in dq.chunks_exact_mut(t * e).enumerate() {
                let head = window * plan.num_heads + group * shared + nth;
                let at = head * t * e;
                let (q, out, d_out) = (&saved.q[at..][..t * e], &saved.out[at..][..t * e], &d_out[at..][..t * e]);
                let lse = &saved.lse[head * t..][..t];
                for first in (0..t).step_by(ROWS) {
                    let (rows, seen) = (ROWS.min(t - first), (first + ROWS).min(t));
                    let range = first * e..(first + rows) * e;
                    let (q, out, d_out) = (&q[range.clone()], &out[range.clone()], &d_out[range.clone()]);
                    let (q, d_out_view) = (View::new(q, rows, e), View::new(d_out, rows, e));
                    let (k, v) = (View::new(k, seen, e), View::new(v, seen, e));
                    let (p, ds) = (&mut p[..rows * seen], &mut ds[..rows * seen]);
                    matmul_serial(p, q, k.transposed(), false);
                    matmul_serial(ds, d_out_view, v.transposed(), false);
                    vectorized(
                        #[inline(always)]
                        || {
                            for (i, (p, ds)) in p.chunks_exact_mut(seen).zip(ds.chunks_exact_mut(seen)).enumerate() {
                                let position = first + i;
                                let delta = dot(&out[i * e..][..e], &d_out[i * e..][..e]);
                                let start = plan.start(window, position);
                                score_gradient(p, ds, start, position, lse[position], delta, scale(plan));
                            }
                        },
                    );
                    let (p, ds) = (View::new(p, rows, seen), View::new(ds, rows, seen));
                    matmul_serial(&mut dv[..seen * e], p.transposed(), d_out_view, true);
                    matmul_serial(&mut dk[..seen * e], ds.transposed(), q, true);
                    matmul_serial(&mut dq[range], ds, k, false);
                }
            }
        },
    );
    (dq, dk, dv)
}

/// Turns a row of raw scores into probabilities, and a row of their gradients into gradients of the scores.
#[inline(always)]
fn score_gradient(p: &mut [f32], ds: &mut [f32], start: usize, position: usize, lse: f32, delta: f32, scale: f32) {
    for row in [&mut *p, &mut *ds] {
        row[..start].fill(0.0);
        row[position + 1..].fill(0.0);
    }
    for (p, ds) in p[start..=position].iter_mut().zip(&mut ds[start..=position]) {
        *p = exp(*p * scale - lse);
        *ds = *p * (*ds - delta) * scale;
    }
}
