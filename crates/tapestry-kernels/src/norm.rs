//! Root-mean-square norm.
//!
//! # Source
//! Zhang and Sennrich, "Root Mean Square Layer Normalization", equation 4.

use crate::elementwise::{add, dot, dot3, vectorized};
use rayon::prelude::*;

/// Rows that one task handles; also the blocks in which the gradient of the weights is summed, so that its order does not
/// depend on the number of threads.
const ROWS: usize = 16;

/// `y = x * r * w` with `r = 1/sqrt(mean(x^2) + eps)`; returns y `[n, d]` and r `[n]`.
#[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
pub(crate) fn forward(x: &[f32], w: &[f32], eps: f32) -> (Vec<f32>, Vec<f32>) {
    let d = w.len();
    let (mut y, mut r) = (vec![0.0; x.len()], vec![0.0; x.len() / d]);
    y.par_chunks_mut(ROWS * d).zip(r.par_chunks_mut(ROWS)).zip(x.par_chunks(ROWS * d)).for_each(|((y, r), x)| {
        vectorized(
            #[inline(always)]
            || {
                for ((y, r), x) in y.chunks_exact_mut(d).zip(r).zip(x.chunks_exact(d)) {
                    *r = 1.0 / (dot(x, x) / d as f32 + eps).sqrt();
                    for ((y, x), w) in y.iter_mut().zip(x).zip(w) {
                        *y = x * *r * w;
                    }
                }
            },
        );
    });
    (y, r)
}

/// Gradients of input and weights; the input's has `residual` (the gradient that goes around the block) added.
#[expect(clippy::cast_precision_loss, reason = "a width is far below 2^24")]
pub(crate) fn backward(dy: &[f32], x: &[f32], w: &[f32], r: &[f32], residual: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let d = w.len();
    let mut dx = residual.to_vec();
    let partial: Vec<Vec<f32>> = dx
        .par_chunks_mut(ROWS * d)
        .zip(dy.par_chunks(ROWS * d))
        .zip(x.par_chunks(ROWS * d))
        .zip(r.par_chunks(ROWS))
        .map(|(((dx, dy), x), r)| {
            let mut dw = vec![0.0; d];
            vectorized(
                #[inline(always)]
                || {
                    let rows = dx.chunks_exact_mut(d).zip(dy.chunks_exact(d)).zip(x.chunks_exact(d)).zip(r);
                    for (((dx, dy), x), r) in rows {
                        let c = dot3(x, dy, w) * r * r * r / d as f32;
                        for i in 0..d {
                            dw[i] += x[i] * r * dy[i];
                            dx[i] += dy[i] * w[i] * r - c * x[i];
                        }
                    }
                },
            );
            dw
        })
        .collect();
    let mut dw = vec![0.0; d];
    for part in &partial {
        add(&mut dw, part);
    }
    (dx, dw)
}
