//! The `k`-th largest magnitude of a tensor's change, exactly, without holding the tensor.
//!
//! The magnitude of an `f32` is ordered like its bits without the sign. A first pass over the values counts how many fall under each
//! value of the upper 15 bits, a second how many of those in the decisive bucket fall under each value of the lower 16. Counting is
//! commutative: threads and blocks cannot be seen in the result.

/// Bits of a magnitude that the second pass looks at.
const LOWER_BITS: u32 = 16;
const NUM_UPPER: usize = 1 << (31 - LOWER_BITS);
const NUM_LOWER: usize = 1 << LOWER_BITS;
const LOWER_MASK: u32 = (1 << LOWER_BITS) - 1;

/// A search for the smallest of the `k` largest magnitudes of `input - base`, where `k` is the density times the number of elements,
/// rounded down, and at least one.
///
/// The difference is rounded to `f32` once. Whoever keeps all magnitudes that are not smaller than the result keeps `k` of them, or
/// more where several are equal: a choice among equals would depend on the order in which they are looked at. (The papers' top-k and
/// mergekit's sort keep exactly `k`, whichever of the equals come first.)
#[derive(Debug, Clone)]
pub struct Selection {
    stage: Stage,
}

#[derive(Debug, Clone)]
enum Stage {
    /// Counting upper bits; the rank that is looked for, from 1 for the largest.
    Upper {
        rank: u64,
        counts: Vec<u64>,
    },
    /// Counting lower bits below `upper`; the rank among those.
    Lower {
        rank: u64,
        upper: u32,
        counts: Vec<u64>,
    },
    Done {
        threshold: f32,
    },
}

/// What one thread has counted in one pass.
#[derive(Debug)]
pub struct Counts {
    upper: Option<u32>,
    /// Two tables for neighbouring elements, so that counting one need not wait for the other.
    tables: [Vec<u64>; 2],
}

impl Selection {
    /// A search that has seen nothing. `density` is in (0, 1].
    #[must_use]
    pub fn new(num_elements: u64, density: f64) -> Self {
        let rank = num_kept(num_elements, density);
        // All are kept: no value is too small. And an empty tensor has none.
        if rank >= num_elements {
            return Self { stage: Stage::Done { threshold: 0.0 } };
        }
        Self { stage: Stage::Upper { rank, counts: vec![0; NUM_UPPER] } }
    }

    /// Whether the threshold is known.
    #[must_use]
    pub const fn is_done(&self) -> bool {
        matches!(self.stage, Stage::Done { .. })
    }

    /// Empty counts for the present pass.
    #[must_use]
    pub fn counts(&self) -> Counts {
        match &self.stage {
            Stage::Upper { .. } => Counts { upper: None, tables: [vec![0; NUM_UPPER], vec![0; NUM_UPPER]] },
            Stage::Lower { upper, .. } => Counts { upper: Some(*upper), tables: [vec![0; NUM_LOWER], vec![]] },
            Stage::Done { .. } => Counts { upper: None, tables: [vec![], vec![]] },
        }
    }

    /// Adds what a thread has counted in the present pass.
    pub fn absorb(&mut self, counts: &Counts) {
        let (Stage::Upper { counts: sums, .. } | Stage::Lower { counts: sums, .. }) = &mut self.stage else { return };
        for table in &counts.tables {
            sums.iter_mut().zip(table).for_each(|(sum, count)| *sum += count);
        }
    }

    /// All values have been counted.
    pub fn end_pass(&mut self) {
        self.stage = match &self.stage {
            Stage::Upper { rank, counts } => {
                let (upper, rank) = find(counts, *rank);
                Stage::Lower { rank, upper, counts: vec![0; NUM_LOWER] }
            }
            Stage::Lower { rank, upper, counts } => {
                let (lower, _) = find(counts, *rank);
                Stage::Done { threshold: f32::from_bits(upper << LOWER_BITS | lower) }
            }
            Stage::Done { threshold } => Stage::Done { threshold: *threshold },
        };
    }

    /// The threshold.
    ///
    /// # Panics
    /// Before the search [is done](Self::is_done).
    #[must_use]
    pub fn threshold(&self) -> f32 {
        let Stage::Done { threshold } = self.stage else { panic!("the threshold is known after the last pass") };
        threshold
    }
}

impl Counts {
    /// Counts some elements.
    pub fn add(&mut self, base: &[f32], input: &[f32]) {
        let keys = base.iter().zip(input).map(|(base, input)| (input - base).to_bits() & 0x7fff_ffff);
        match self.upper {
            None => {
                let [even, odd] = &mut self.tables;
                for (index, key) in keys.enumerate() {
                    let table = if index % 2 == 0 { &mut *even } else { &mut *odd };
                    table[(key >> LOWER_BITS) as usize] += 1;
                }
            }
            Some(upper) => {
                let table = &mut self.tables[0];
                // Few are in the decisive bucket.
                for key in keys.filter(|key| key >> LOWER_BITS == upper) {
                    table[(key & LOWER_MASK) as usize] += 1;
                }
            }
        }
    }
}

/// The threshold of a tensor that is at hand.
#[must_use]
pub fn select_in_memory(base: &[f32], input: &[f32], density: f64) -> f32 {
    let rank = num_kept(input.len() as u64, density);
    if rank >= input.len() as u64 {
        return 0.0;
    }
    let mut keys: Vec<u32> =
        base.iter().zip(input).map(|(base, input)| (input - base).to_bits() & 0x7fff_ffff).collect();
    let place = keys.len() - usize::try_from(rank).expect("less than the length");
    f32::from_bits(*keys.select_nth_unstable(place).1)
}

/// How many elements are kept.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::cast_precision_loss,
    reason = "a positive number, rounded down; tensors have fewer than 2^53 elements"
)]
fn num_kept(num_elements: u64, density: f64) -> u64 {
    ((density * num_elements as f64) as u64).max(1)
}

/// The bucket that holds the value of this rank, counted from the largest, and its rank within it.
fn find(counts: &[u64], rank: u64) -> (u32, u64) {
    let mut above = 0;
    for (bucket, count) in counts.iter().enumerate().rev() {
        if above + count >= rank {
            return (u32::try_from(bucket).expect("at most 2^16 buckets"), rank - above);
        }
        above += count;
    }
    // Fewer were counted than there are: only a caller that left some out gets here.
    (0, 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn by_passes(base: &[f32], input: &[f32], density: f64, cut: usize) -> f32 {
        let mut selection = Selection::new(input.len() as u64, density);
        while !selection.is_done() {
            for (base, input) in base.chunks(cut).zip(input.chunks(cut)) {
                let mut counts = selection.counts();
                counts.add(base, input);
                selection.absorb(&counts);
            }
            selection.end_pass();
        }
        selection.threshold()
    }

    proptest! {
        #[test]
        fn it_is_what_sorting_finds(
            values in proptest::collection::vec((-4i8..4, prop::num::f32::NORMAL | prop::num::f32::ZERO), 1..300),
            density in 0.001f64..=1.0,
            cut in 1usize..400,
        ) {
            // Some values are equal, some are far apart.
            let base: Vec<f32> = values.iter().map(|(small, _)| f32::from(*small)).collect();
            let input: Vec<f32> = values.iter().map(|(small, any)| if small % 2 == 0 { *any } else { 0.5 }).collect();
            let mut sorted: Vec<f32> = base.iter().zip(&input).map(|(base, input)| (input - base).abs()).collect();
            sorted.sort_by(|a, b| b.total_cmp(a));
            #[expect(clippy::cast_possible_truncation, reason = "rounding down is the definition")]
            let kept = ((density * sorted.len() as f64) as usize).max(1);
            let expected = if kept == sorted.len() { 0.0 } else { sorted[kept - 1] };
            prop_assert_eq!(by_passes(&base, &input, density, cut).to_bits(), expected.to_bits());
            prop_assert_eq!(select_in_memory(&base, &input, density).to_bits(), expected.to_bits());
        }
    }
}
