//! The gradients of the half-blocks on plain slices.

use crate::elementwise::{add, exp, vectorized};
use crate::forward::{AttentionSaved, AttentionWeights, MlpSaved, MlpWeights, PIECE};
use crate::linear::{linear_dw, linear_dx};
use crate::plan::{AttentionPlan, NormOrder};
use crate::{attention, norm};
use rayon::prelude::*;

/// Gradients of the input and of the parameters of an attention half-block, in the order x, norm, q, k, v, o, the three
/// biases, the two norms of queries and keys; empty for what the model does not have. `dy` and `x` are `[n, d]`.
pub(crate) fn attention_backward(
    dy: &[f32],
    x: &[f32],
    weights: &AttentionWeights<'_>,
    saved: &AttentionSaved,
    plan: &AttentionPlan,
) -> [Vec<f32>; 11] {
    let (n, d) = (plan.batch * plan.time, weights.norm.len());
    let width = plan.num_heads * plan.head_dim;
    // With the norm after the block, the gradient passes it first; with the norm before, last.
    let (after, d_norm_after) = match plan.norm_order {
        NormOrder::Before => (None, vec![]),
        NormOrder::After => {
            let (d_stream, d_norm) = norm::backward(dy, &saved.stream, weights.norm, &saved.factors, &vec![0.0; n * d]);
            (Some(d_stream), d_norm)
        }
    };
    let d_stream = after.as_deref().unwrap_or(dy);
    let out = attention::copy_from_heads(&saved.out, plan, plan.num_heads);
    let d_o_w = linear_dw(&out, d_stream, n, width, d);
    let mut d_out = out;
    linear_dx(d_stream, weights.o, &mut d_out, n, width, d, false);
    let d_out = attention::copy_to_heads(&d_out, plan, plan.num_heads);
    let kept = attention::Saved { q: &saved.q, k: &saved.k, v: &saved.v, out: &saved.out, lse: &saved.lse };
    let (dq, dk, dv) = attention::backward(&kept, &d_out, plan);
    let (dq, d_q_norm) = before_norm(
        attention::rotate_from_heads(&dq, plan, plan.num_heads),
        weights.qk_norms[0],
        saved.before_norms[0].as_ref(),
    );
    let (dk, d_k_norm) = before_norm(
        attention::rotate_from_heads(&dk, plan, plan.num_kv_heads),
        weights.qk_norms[1],
        saved.before_norms[1].as_ref(),
    );
    let dv = attention::copy_from_heads(&dv, plan, plan.num_kv_heads);
    let input = if after.is_some() { x } else { &saved.stream };
    let parts = [(&dq, weights.q), (&dk, weights.k), (&dv, weights.v)];
    // Where the norm is after the block, the gradient that goes around it is added to by those that go through it.
    let mut d_input = if after.is_some() { dy.to_vec() } else { vec![0.0; n * d] };
    for (index, (gradient, matrix)) in parts.into_iter().enumerate() {
        linear_dx(gradient, matrix, &mut d_input, n, d, matrix.len() / d, index > 0 || after.is_some());
    }
    let [d_q_w, d_k_w, d_v_w] = parts.map(|(gradient, matrix)| linear_dw(input, gradient, n, d, matrix.len() / d));
    let biases = [(&dq, weights.biases[0]), (&dk, weights.biases[1]), (&dv, weights.biases[2])];
    let [d_q_bias, d_k_bias, d_v_bias] = biases.map(|(gradient, bias)| column_sums(gradient, bias.len()));
    let (dx, d_norm) = match plan.norm_order {
        NormOrder::Before => norm::backward(&d_input, x, weights.norm, &saved.factors, dy),
        NormOrder::After => (d_input, d_norm_after),
    };
    [dx, d_norm, d_q_w, d_k_w, d_v_w, d_o_w, d_q_bias, d_k_bias, d_v_bias, d_q_norm, d_k_norm]
}

/// The gradient before the norm of queries or keys, and that of the norm.
fn before_norm(
    gradient: Vec<f32>,
    weight: &[f32],
    before: Option<&crate::forward::BeforeNorm>,
) -> (Vec<f32>, Vec<f32>) {
    match before {
        None => (gradient, vec![]),
        Some(before) => {
            let nothing = vec![0.0; gradient.len()];
            norm::backward(&gradient, &before.values, weight, &before.factors, &nothing)
        }
    }
}

/// The sum over rows of `width`, in their order.
fn column_sums(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sums = vec![0.0; width];
    if width > 0 {
        rows.chunks_exact(width).for_each(|row| add(&mut sums, row));
    }
    sums
}

/// Gradients of the input and of the parameters of a feed-forward half-block, in the order x, norm, gate, up, down.
pub(crate) fn mlp_backward(
    dy: &[f32],
    x: &[f32],
    weights: &MlpWeights<'_>,
    saved: MlpSaved,
    order: NormOrder,
) -> [Vec<f32>; 5] {
    let MlpSaved { stream, factors, mut gate, mut up } = saved;
    let (n, d) = (factors.len(), weights.norm.len());
    let f = weights.gate.len() / d;
    let (after, d_norm_after) = match order {
        NormOrder::Before => (None, vec![]),
        NormOrder::After => {
            let (d_stream, d_norm) = norm::backward(dy, &stream, weights.norm, &factors, &vec![0.0; n * d]);
            (Some(d_stream), d_norm)
        }
    };
    let d_stream = after.as_deref().unwrap_or(dy);
    let mut product = vec![0.0; n * f];
    linear_dx(d_stream, weights.down, &mut product, n, f, d, false);
    swiglu_backward(&mut gate, &mut up, &mut product);
    let d_down = linear_dw(&product, d_stream, n, f, d);
    drop(product);
    let mut d_input = if after.is_some() { dy.to_vec() } else { vec![0.0; n * d] };
    linear_dx(&gate, weights.gate, &mut d_input, n, d, f, after.is_some());
    linear_dx(&up, weights.up, &mut d_input, n, d, f, true);
    let input = if after.is_some() { x } else { &stream };
    let d_gate = linear_dw(input, &gate, n, d, f);
    let d_up = linear_dw(input, &up, n, d, f);
    let (dx, d_norm) = match order {
        NormOrder::Before => norm::backward(&d_input, x, weights.norm, &factors, dy),
        NormOrder::After => (d_input, d_norm_after),
    };
    [dx, d_norm, d_gate, d_up, d_down]
}

/// In place: `gate` becomes its gradient, `up` its gradient, and `d_product` (the product's gradient) the product.
fn swiglu_backward(gate: &mut [f32], up: &mut [f32], d_product: &mut [f32]) {
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
