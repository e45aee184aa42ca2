//! The output matrix and the cross entropy together: the logits of the whole vocabulary never exist at once for all tokens.

use crate::elementwise::{exp_sum, max, vectorized};
use crate::linear::{View, matmul};
use rayon::prelude::*;

/// Elements of logits that exist at once: 32 MiB.
const MAX_LOGITS: usize = 8 << 20;

/// Tokens whose logits exist at once: blocks of equal size, as few as the bound allows.
fn block_rows(num_tokens: usize, num_logits: usize) -> usize {
    let most = (MAX_LOGITS / num_logits.max(1)).clamp(1, num_tokens);
    num_tokens.div_ceil(num_tokens.div_ceil(most))
}

/// `-ln p` of targets, from the rows of the output matrix in any number of pieces.
///
/// Keeps for each token the largest logit so far, the sum of exponentials relative to it, and the target's own logit.
#[derive(Debug)]
pub struct NllAccumulator {
    largest: Vec<f32>,
    sum: Vec<f64>,
    target: Vec<f32>,
}

impl NllAccumulator {
    /// For so many tokens.
    #[must_use]
    pub fn new(num_tokens: usize) -> Self {
        Self {
            largest: vec![f32::NEG_INFINITY; num_tokens],
            sum: vec![0.0; num_tokens],
            target: vec![f32::NAN; num_tokens],
        }
    }

    /// Adds rows `first..` of the output matrix: x `[n, d]`, rows `[r, d]`, one target for each token.
    ///
    /// # Panics
    /// Where the slices do not fit each other: a defect of the caller.
    pub fn add(&mut self, x: &[f32], rows: &[f32], first: usize, targets: &[u32]) {
        let n = targets.len();
        assert!(n == self.sum.len() && n > 0 && x.len().is_multiple_of(n), "one row of x for each target");
        let d = x.len() / n;
        let r = rows.len() / d;
        let block = block_rows(n, r);
        let mut logits = vec![0.0; block * r];
        for start in (0..n).step_by(block) {
            let count = block.min(n - start);
            let logits = &mut logits[..count * r];
            matmul(logits, View::new(&x[start * d..], count, d), View::new(rows, r, d).transposed(), false);
            let tokens = start..start + count;
            let state = self.largest[tokens.clone()]
                .par_iter_mut()
                .zip(self.sum[tokens.clone()].par_iter_mut())
                .zip(self.target[tokens.clone()].par_iter_mut());
            state.zip(logits.par_chunks_mut(r)).zip(&targets[tokens]).for_each(
                |((((largest, sum), target), row), wanted)| {
                    let at = (*wanted as usize).wrapping_sub(first);
                    if let Some(logit) = row.get(at) {
                        *target = *logit;
                    }
                    vectorized(
                        #[inline(always)]
                        || {
                            let new = max(row).max(*largest);
                            let part = exp_sum(row, 1.0, new);
                            let old = if *sum == 0.0 { 0.0 } else { *sum * f64::from(*largest - new).exp() };
                            *sum = old + f64::from(part);
                            *largest = new;
                        },
                    );
                },
            );
        }
    }

    /// `-ln p` of each target, in nats; NaN where its row was never added, or where a logit was not finite.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "the result is as exact as the logits")]
    pub fn finish(self) -> Vec<f32> {
        let all = self.largest.iter().zip(&self.sum).zip(&self.target);
        all.map(|((largest, sum), target)| (f64::from(*largest) + sum.ln() - f64::from(*target)) as f32).collect()
    }
}

/// The weighted sum of `-ln p(target)` with its gradients.
pub(crate) struct CrossEntropy {
    /// `sum_i weight_i * -ln p(target_i)`.
    pub(crate) loss: f32,
    /// `[n, d]`; empty where no gradients were asked for.
    pub(crate) dx: Vec<f32>,
    /// `[v, d]`; empty where no gradients were asked for.
    pub(crate) d_head: Vec<f32>,
}

/// x `[n, d]`, head `[v, d]`; a weight of zero leaves a token out.
#[expect(clippy::cast_possible_truncation, reason = "the loss is summed in f64 and handed over as f32")]
pub(crate) fn linear_cross_entropy(
    x: &[f32],
    head: &[f32],
    targets: &[u32],
    weights: &[f32],
    with_gradients: bool,
) -> CrossEntropy {
    let n = targets.len();
    assert!(n > 0 && x.len().is_multiple_of(n) && weights.len() == n, "one row of x and one weight for each target");
    let d = x.len() / n;
    let v = head.len() / d;
    assert!(targets.iter().all(|target| (*target as usize) < v), "every target has a row in the head's {v}");
    let block = block_rows(n, v);
    let mut logits = vec![0.0; block * v];
    let (mut dx, mut d_head) = if with_gradients { (vec![0.0; n * d], vec![0.0; v * d]) } else { (vec![], vec![]) };
    let mut loss = 0.0;
    for start in (0..n).step_by(block) {
        let count = block.min(n - start);
        let logits = &mut logits[..count * v];
        let x = View::new(&x[start * d..], count, d);
        let head = View::new(head, v, d);
        matmul(logits, x, head.transposed(), false);
        let rows = logits.par_chunks_mut(v).zip(&targets[start..start + count]).zip(&weights[start..start + count]);
        let losses: Vec<f64> = rows
            .map(|((row, target), weight)| {
                vectorized(
                    #[inline(always)]
                    || row_loss(row, *target as usize, *weight),
                )
            })
            .collect();
        // In the order of the tokens, whatever thread did them.
        loss += losses.iter().sum::<f64>();
        if with_gradients {
            let logits = View::new(logits, count, v);
            matmul(&mut dx[start * d..], logits, head, false);
            matmul(&mut d_head, logits.transposed(), x, start > 0);
        }
    }
    CrossEntropy { loss: loss as f32, dx, d_head }
}

/// Turns a row of logits into the gradient of its weighted loss, and returns that loss.
#[inline(always)]
fn row_loss(row: &mut [f32], target: usize, weight: f32) -> f64 {
    if weight == 0.0 {
        row.fill(0.0);
        return 0.0;
    }
    let largest = max(row);
    let wanted = row[target];
    let sum = exp_sum(row, 1.0, largest);
    let factor = weight / sum;
    row.iter_mut().for_each(|x| *x *= factor);
    row[target] -= weight;
    f64::from(weight) * (f64::from(largest) + f64::from(sum).ln() - f64::from(wanted))
}
