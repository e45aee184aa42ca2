//! AdamW on slices, one pass over memory.
//!
//! # Source
//! Loshchilov and Hutter, "Decoupled Weight Decay Regularization", algorithm 2, with a constant schedule multiplier.

use crate::elementwise::vectorized;
use rayon::prelude::*;

/// The numbers of one update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// The learning rate of this update.
    pub learning_rate: f32,
    /// Decay of the mean of gradients.
    pub beta1: f32,
    /// Decay of the mean of squared gradients.
    pub beta2: f32,
    /// Keeps the division finite.
    pub eps: f32,
    /// Share of a weight taken away at each update, times the learning rate.
    pub weight_decay: f32,
    /// The number of this update, from 1.
    pub step: u32,
}

/// Elements that one task handles.
const PIECE: usize = 1 << 15;

/// Updates weights `w` with gradients `g` (each multiplied by `factor` first, which is how clipping comes in) and the two
/// moments `m`, `v`, which are zeros before the first update.
///
/// # Panics
/// Where the slices differ in length: a defect of the caller.
pub fn update(w: &mut [f32], g: &[f32], m: &mut [f32], v: &mut [f32], factor: f32, settings: &AdamW) {
    assert!(
        w.len() == g.len() && w.len() == m.len() && w.len() == v.len(),
        "one gradient and two moments for each weight"
    );
    let AdamW { learning_rate, beta1, beta2, eps, weight_decay, step } = *settings;
    let power = |beta: f32| beta.powi(i32::try_from(step).unwrap_or(i32::MAX));
    let (correction1, correction2) = (1.0 / (1.0 - power(beta1)), 1.0 / (1.0 - power(beta2)).sqrt());
    let (keep, rate) = (1.0 - learning_rate * weight_decay, learning_rate * correction1);
    let pieces =
        w.par_chunks_mut(PIECE).zip(g.par_chunks(PIECE)).zip(m.par_chunks_mut(PIECE)).zip(v.par_chunks_mut(PIECE));
    pieces.for_each(|(((w, g), m), v)| {
        vectorized(
            #[inline(always)]
            || {
                for (((w, g), m), v) in w.iter_mut().zip(g).zip(m).zip(v) {
                    let g = g * factor;
                    *m = *m * beta1 + (1.0 - beta1) * g;
                    *v = *v * beta2 + (1.0 - beta2) * g * g;
                    *w = *w * keep - rate * *m / (v.sqrt() * correction2 + eps);
                }
            },
        );
    });
}

/// The sum of squares, in pieces whose order does not depend on the number of threads.
#[must_use]
pub fn sum_of_squares(g: &[f32]) -> f64 {
    let parts: Vec<f64> =
        g.par_chunks(PIECE).map(|piece| piece.iter().map(|x| f64::from(*x) * f64::from(*x)).sum()).collect();
    parts.iter().sum()
}
