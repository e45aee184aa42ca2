//! Changes to the base, pruned and put together again: what the TIES and DARE families share.

use crate::block::Block;
use crate::simd::dispatch;

/// Elements that are worked on at a time: the pruned changes of all contributions stay in the fastest caches.
const RUN: usize = 512;

/// How pruned changes become one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Putting {
    /// `sum_i share_i c_i`.
    Adding,
    /// The sign with the larger share-weighted sum is elected (positive where they are equal); `sum share_i c_i` over the changes of
    /// that sign.
    Electing,
    /// The same, divided by the shares of those changes.
    ElectingMean,
}

/// Writes `base + scale * put together(pruned changes)`.
///
/// A change is `x_i - base`, rounded to `f32`; `prune(contribution, first element in the block, changes)` works on runs of them. Sums are
/// taken in the order of the contributions, in `f64`.
pub(super) fn merge_changes(
    block: &Block<'_>,
    shares: &[f64],
    scale: f64,
    putting: Putting,
    prune: impl Fn(usize, usize, &mut [f64]),
    out: &mut [f64],
) {
    let mut changes = vec![0.0; block.inputs.len() * RUN];
    for (start, out) in (0..block.len()).step_by(RUN).zip(out.chunks_mut(RUN)) {
        let len = out.len();
        let base = &block.base[start..start + len];
        for (contribution, (input, changes)) in block.inputs.iter().zip(changes.chunks_exact_mut(RUN)).enumerate() {
            let changes = &mut changes[..len];
            let input = &input[start..start + len];
            dispatch(
                #[inline(always)]
                || {
                    for ((change, base), input) in changes.iter_mut().zip(base).zip(input) {
                        *change = f64::from(input - base);
                    }
                },
            );
            prune(contribution, start, changes);
        }
        dispatch(
            #[inline(always)]
            || match putting {
                Putting::Adding => add(&changes, shares, scale, base, out),
                Putting::Electing => elect::<false>(&changes, shares, scale, base, out),
                Putting::ElectingMean => elect::<true>(&changes, shares, scale, base, out),
            },
        );
    }
}

#[inline(always)]
fn sum(changes: &[f64], shares: &[f64], out: &mut [f64]) {
    out.fill(0.0);
    for (changes, share) in changes.chunks_exact(RUN).zip(shares) {
        out.iter_mut().zip(changes).for_each(|(sum, change)| *sum += share * change);
    }
}

#[inline(always)]
fn add(changes: &[f64], shares: &[f64], scale: f64, base: &[f32], out: &mut [f64]) {
    sum(changes, shares, out);
    out.iter_mut().zip(base).for_each(|(out, base)| *out = f64::from(*base) + scale * *out);
}

#[inline(always)]
fn elect<const MEAN: bool>(changes: &[f64], shares: &[f64], scale: f64, base: &[f32], out: &mut [f64]) {
    let (mut merged, mut agreeing) = ([0.0; RUN], [0.0; RUN]);
    let len = out.len();
    let (merged, agreeing) = (&mut merged[..len], &mut agreeing[..len]);
    sum(changes, shares, out);
    for (changes, share) in changes.chunks_exact(RUN).zip(shares) {
        for at in 0..len {
            // The elected sign is in `out` until the end.
            let (change, is_positive) = (changes[at], out[at] >= 0.0);
            let agrees = if is_positive { change > 0.0 } else { change < 0.0 };
            merged[at] += if agrees { share * change } else { 0.0 };
            if MEAN {
                agreeing[at] += if agrees { *share } else { 0.0 };
            }
        }
    }
    for at in 0..len {
        let divisor = if MEAN && agreeing[at] > 0.0 { agreeing[at] } else { 1.0 };
        out[at] = f64::from(base[at]) + scale * (merged[at] / divisor);
    }
}
