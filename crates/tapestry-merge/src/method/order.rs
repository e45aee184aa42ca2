//! Means of the middle values: what the coordinate-wise median and the trimmed mean have in common.
//!
//! A sorting network compares and exchanges the contributions' rows in an order that does not depend on the values, so many
//! elements are sorted at once without a branch. Only the comparisons that the middle values depend on are made.
//!
//! # Source
//! Batcher, "Sorting Networks and their Applications", 1968; for any number of rows: Knuth, "The Art of Computer Programming",
//! volume 3, section 5.2.2, Algorithm M.

use crate::block::{Block, Rule};
use crate::simd::dispatch;
use std::ops::Range;

/// Elements that are sorted side by side: with them, two rows fit into the registers of every processor.
const LANES: usize = 64;

/// One element of each lane, as a key: see [`key`].
type Keys = [i32; LANES];

/// For each element: its values sorted, a run of places in the middle summed in ascending order in `f64`, and divided by
/// their number. Of zeros the negative counts as the smaller.
#[derive(Debug)]
pub(super) struct MiddleMean {
    num_rows: usize,
    /// The places that are averaged.
    places: Range<usize>,
    steps: Vec<Step>,
}

/// Puts the smaller of two rows' values into the lower row and the larger into the higher.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Step {
    low: usize,
    high: usize,
    /// Which of the two anybody looks at afterwards.
    keep: Keep,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    Both,
    Low,
    High,
}

impl MiddleMean {
    /// Of `num_rows` values, the mean of all but the `num_dropped` smallest and the `num_dropped` largest.
    ///
    /// # Panics
    /// Where nothing is left.
    pub(super) fn new(num_rows: usize, num_dropped: usize) -> Self {
        let places = num_dropped..num_rows.saturating_sub(num_dropped);
        assert!(!places.is_empty(), "checked: more than {num_dropped} contributions at each end");
        let steps = steps_for(num_rows, &places);
        Self { num_rows, places, steps }
    }

    #[inline(always)]
    fn merge_all(&self, inputs: &[&[f32]], out: &mut [f64]) {
        let mut keys = vec![[0; LANES]; self.num_rows];
        let (chunks, rest) = out.as_chunks_mut::<LANES>();
        for (chunk, out) in chunks.iter_mut().enumerate() {
            for (keys, input) in keys.iter_mut().zip(inputs) {
                let values = input[chunk * LANES..].first_chunk::<LANES>().expect("rows of one block");
                keys.iter_mut().zip(values).for_each(|(to, value)| *to = key(*value));
            }
            self.sort(&mut keys);
            self.mean(&keys, out);
        }
        if rest.is_empty() {
            return;
        }
        // The last elements are sorted among lanes that nobody looks at.
        let start = chunks.len() * LANES;
        for (keys, input) in keys.iter_mut().zip(inputs) {
            keys.iter_mut().zip(&input[start..]).for_each(|(to, value)| *to = key(*value));
        }
        let mut last = [0.0; LANES];
        self.sort(&mut keys);
        self.mean(&keys, &mut last);
        rest.copy_from_slice(&last[..rest.len()]);
    }

    #[inline(always)]
    fn sort(&self, keys: &mut [Keys]) {
        for &Step { low, high, keep } in &self.steps {
            let (a, b) = (keys[low], keys[high]);
            if keep != Keep::High {
                keys[low].iter_mut().zip(a).zip(b).for_each(|((to, a), b)| *to = a.min(b));
            }
            if keep != Keep::Low {
                keys[high].iter_mut().zip(a).zip(b).for_each(|((to, a), b)| *to = a.max(b));
            }
        }
    }

    #[inline(always)]
    fn mean(&self, keys: &[Keys], out: &mut [f64; LANES]) {
        let (first, rest) = keys[self.places.clone()].split_first().expect("there is a middle");
        // Not added to zero, which would turn a negative zero into a positive one.
        out.iter_mut().zip(first).for_each(|(sum, key)| *sum = f64::from(value(*key)));
        for row in rest {
            out.iter_mut().zip(row).for_each(|(sum, key)| *sum += f64::from(value(*key)));
        }
        match self.places.len() {
            1 => {}
            2 => out.iter_mut().for_each(|sum| *sum *= 0.5),
            // Divided and not multiplied by the reciprocal: equal values give exactly themselves.
            #[expect(clippy::cast_precision_loss, reason = "the number of contributions is far below 2^52")]
            count => out.iter_mut().for_each(|sum| *sum /= count as f64),
        }
    }
}

impl Rule for MiddleMean {
    fn merge(&self, block: &Block<'_>, out: &mut [f64], _: &mut [&mut [f64]]) {
        assert_eq!(block.inputs.len(), self.num_rows, "a row for each contribution");
        assert!(block.inputs.iter().all(|input| input.len() == out.len()), "rows of one block");
        dispatch(
            #[inline(always)]
            || self.merge_all(block.inputs, out),
        );
    }
}

/// An integer that compares as the number does, with -0 just below +0. [`value`] takes it back.
#[inline(always)]
fn key(value: f32) -> i32 {
    flip(value.to_bits().cast_signed())
}

#[inline(always)]
fn value(key: i32) -> f32 {
    f32::from_bits(flip(key).cast_unsigned())
}

/// Of negative numbers, all bits but the sign are turned over: the larger their magnitude, the smaller the key.
#[inline(always)]
fn flip(bits: i32) -> i32 {
    bits ^ ((bits >> 31).cast_unsigned() >> 1).cast_signed()
}

/// The comparisons that put `places` of `num_rows` sorted rows into their places; the other rows are left in any order.
fn steps_for(num_rows: usize, places: &Range<usize>) -> Vec<Step> {
    let mut is_looked_at = vec![false; num_rows];
    is_looked_at[places.clone()].fill(true);
    // From the last comparison to the first: one whose results nobody looks at is left out.
    let mut steps: Vec<Step> = all_comparisons(num_rows)
        .into_iter()
        .rev()
        .filter_map(|(low, high)| {
            let keep = match (is_looked_at[low], is_looked_at[high]) {
                (false, false) => return None,
                (true, true) => Keep::Both,
                (true, false) => Keep::Low,
                (false, true) => Keep::High,
            };
            (is_looked_at[low], is_looked_at[high]) = (true, true);
            Some(Step { low, high, keep })
        })
        .collect();
    steps.reverse();
    steps
}

/// Batcher's merge exchange for any number of rows: comparisons of a lower with a higher row.
fn all_comparisons(num_rows: usize) -> Vec<(usize, usize)> {
    let mut comparisons = vec![];
    let largest = num_rows.next_power_of_two() / 2;
    let mut width = largest;
    while width > 0 {
        let (mut reach, mut residue, mut distance) = (largest, 0, width);
        loop {
            let lows = (0..num_rows.saturating_sub(distance)).filter(|low| low & width == residue);
            comparisons.extend(lows.map(|low| (low, low + distance)));
            if reach == width {
                break;
            }
            (distance, reach, residue) = (reach - width, reach / 2, width);
        }
        width /= 2;
    }
    comparisons
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sorts zeros and ones: a network that sorts all of them sorts everything.
    fn run(steps: &[Step], mut bits: u64) -> u64 {
        for &Step { low, high, keep } in steps {
            let (a, b) = (bits >> low & 1, bits >> high & 1);
            let mut set = |at: usize, bit: u64| bits = bits & !(1 << at) | bit << at;
            if keep != Keep::High {
                set(low, a & b);
            }
            if keep != Keep::Low {
                set(high, a | b);
            }
        }
        bits
    }

    #[test]
    fn every_input_of_zeros_and_ones_has_the_right_values_in_the_places_asked_for() {
        for num_rows in 1..=14usize {
            for num_dropped in 0..=(num_rows - 1) / 2 {
                let places = num_dropped..num_rows - num_dropped;
                let steps = steps_for(num_rows, &places);
                for bits in 0..1u64 << num_rows {
                    let (found, num_zeros) = (run(&steps, bits), num_rows - bits.count_ones() as usize);
                    for place in places.clone() {
                        assert_eq!(found >> place & 1 == 1, place >= num_zeros, "{num_rows} {num_dropped} {bits:b}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_median_needs_fewer_comparisons_than_a_sort() {
        assert_eq!(all_comparisons(5).len(), 9);
        assert!(steps_for(25, &(12..13)).len() < all_comparisons(25).len());
    }

    #[test]
    fn keys_compare_as_numbers_do_and_come_back() {
        let ascending =
            [f32::MIN, -1.5, -f32::MIN_POSITIVE, -1e-45, -0.0, 0.0, 1e-45, f32::MIN_POSITIVE, 1.5, f32::MAX];
        assert!(ascending.map(key).is_sorted_by(|a, b| a < b));
        assert!(ascending.iter().all(|number| value(key(*number)).to_bits() == number.to_bits()));
    }
}
