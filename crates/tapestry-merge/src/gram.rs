//! Inner products of weight vectors. All distances, angles and norms that a method needs follow from them, so that one pass
//! over the values is enough, whatever the method does with them afterwards.

use crate::simd::dispatch;

/// Elements of one partial sum, counted from the start of a tensor. Part of the definition of the result.
pub const GRAM_BLOCK_ELEMENTS: usize = 1 << 16;
/// Sums side by side within a block. Part of the definition of the result.
const NUM_LANES: usize = 16;
/// Numbers of all vectors together that are worked on at a time, so that they stay in the fastest cache.
const STRIP_NUMBERS: usize = 4096;
/// The fewest elements of a strip, so that loading and storing the sums does not cost more than the products.
const MIN_STRIP: usize = 128;

/// The symmetric matrix of inner products of `n` vectors.
///
/// # Order
/// Defined to the last bit: values are subtracted in `f64`. Within a block of [`GRAM_BLOCK_ELEMENTS`] elements of one tensor,
/// the product of element `i` goes to lane `i mod 16`; each lane is summed in `f64` in order, then the lanes from the first to
/// the last; the blocks of a tensor are added in order. Every product and every sum is rounded once. So vectors that are equal
/// have equal products with everything, to the last bit.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    num_vectors: usize,
    /// The lower triangle, row by row.
    products: Vec<f64>,
}

/// The sums of one pair of vectors.
type Lanes = [f64; NUM_LANES];

impl Gram {
    /// Nothing added yet.
    #[must_use]
    pub fn zero(num_vectors: usize) -> Self {
        Self { num_vectors, products: vec![0.0; num_vectors * (num_vectors + 1) / 2] }
    }

    /// How many vectors.
    #[must_use]
    pub const fn num_vectors(&self) -> usize {
        self.num_vectors
    }

    /// The inner products within one block: of `input - origin` for every input, or of the inputs where `origin` is empty.
    ///
    /// Whatever finite values there are, the products are finite.
    ///
    /// # Panics
    /// Where rows differ in length or are longer than a block.
    #[must_use]
    pub fn of_block(origin: &[f32], inputs: &[&[f32]]) -> Self {
        let len = inputs.first().map_or(0, |input| input.len());
        assert!(len <= GRAM_BLOCK_ELEMENTS && inputs.iter().all(|input| input.len() == len), "rows of one block");
        assert!(origin.is_empty() || origin.len() == len, "an origin as long as the rows");
        let mut sums = vec![[0.0; NUM_LANES]; inputs.len() * (inputs.len() + 1) / 2];
        dispatch(
            #[inline(always)]
            || add_block(origin, inputs, len, &mut sums),
        );
        let products = sums.iter().map(|lanes| lanes.iter().fold(0.0, |sum, lane| sum + lane)).collect();
        Self { num_vectors: inputs.len(), products }
    }

    /// Adds the products of further elements.
    ///
    /// # Panics
    /// Where the numbers of vectors differ.
    pub fn add(&mut self, other: &Self) {
        assert_eq!(self.num_vectors, other.num_vectors, "matrices of one size");
        self.products.iter_mut().zip(&other.products).for_each(|(sum, product)| *sum += product);
    }

    /// The inner product of two of the vectors.
    #[must_use]
    pub fn product(&self, a: usize, b: usize) -> f64 {
        let (row, column) = (a.max(b), a.min(b));
        self.products[row * (row + 1) / 2 + column]
    }

    /// The length of one of the vectors.
    #[must_use]
    pub fn norm(&self, vector: usize) -> f64 {
        self.product(vector, vector).sqrt()
    }

    /// The squared distance between two of the vectors: never negative, and zero between vectors that are equal.
    #[must_use]
    pub fn squared_distance(&self, a: usize, b: usize) -> f64 {
        // Rounding can leave a little less than nothing.
        (self.product(a, a) + self.product(b, b) - 2.0 * self.product(a, b)).max(0.0)
    }
}

/// Adds the products of a block to the sums of all pairs, strip by strip. The strips cannot be seen in the sums: each lane goes
/// through its elements in order whatever their length.
#[inline(always)]
fn add_block(origin: &[f32], inputs: &[&[f32]], len: usize, sums: &mut [Lanes]) {
    let max_strip = (STRIP_NUMBERS / inputs.len().max(1)).max(MIN_STRIP).next_multiple_of(NUM_LANES);
    let mut strips = vec![0.0; inputs.len() * max_strip];
    for start in (0..len).step_by(max_strip) {
        let end = (start + max_strip).min(len);
        // Beyond the last element there are zeros: they add nothing, as no sum is a negative zero.
        let strip = (end - start).next_multiple_of(NUM_LANES);
        for (row, input) in strips.chunks_exact_mut(max_strip).zip(inputs) {
            let origin = if origin.is_empty() { origin } else { &origin[start..end] };
            subtract(origin, &input[start..end], &mut row[..strip]);
        }
        add_strip(&strips, max_strip, strip, sums);
    }
}

#[inline(always)]
fn subtract(origin: &[f32], input: &[f32], row: &mut [f64]) {
    let (row, beyond) = row.split_at_mut(input.len());
    beyond.fill(0.0);
    if origin.is_empty() {
        row.iter_mut().zip(input).for_each(|(to, value)| *to = f64::from(*value));
    } else {
        let changes = input.iter().zip(origin).map(|(value, origin)| f64::from(*value) - f64::from(*origin));
        row.iter_mut().zip(changes).for_each(|(to, change)| *to = change);
    }
}

/// The products of each row with those up to itself, three at a time: their sums and a row fit into the registers.
#[inline(always)]
fn add_strip(strips: &[f64], max_strip: usize, strip: usize, sums: &mut [Lanes]) {
    let row = |at: usize| strips[at * max_strip..][..strip].as_chunks::<NUM_LANES>().0;
    let num_rows = strips.len() / max_strip;
    let mut rest = sums;
    for a in 0..num_rows {
        let (sums, later) = rest.split_at_mut(a + 1);
        rest = later;
        let (triples, last) = sums.as_chunks_mut::<3>();
        let num_triples = triples.len();
        for (triple, sums) in triples.iter_mut().enumerate() {
            let b = 3 * triple;
            add_products(row(a), [row(b), row(b + 1), row(b + 2)], sums);
        }
        let b = 3 * num_triples;
        match last {
            [] => {}
            [sum] => add_products(row(a), [row(b)], std::array::from_mut(sum)),
            [first, second] => {
                let mut sums = [*first, *second];
                add_products(row(a), [row(b), row(b + 1)], &mut sums);
                [*first, *second] = sums;
            }
            _ => unreachable!("fewer than three are left"),
        }
    }
}

#[inline(always)]
fn add_products<const N: usize>(a: &[Lanes], b: [&[Lanes]; N], sums: &mut [Lanes; N]) {
    let mut sums_here = *sums;
    let b = b.map(|b| &b[..a.len()]);
    for (at, a) in a.iter().enumerate() {
        for (sum, b) in sums_here.iter_mut().zip(b) {
            for lane in 0..NUM_LANES {
                sum[lane] += a[lane] * b[at][lane];
            }
        }
    }
    *sums = sums_here;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of everyday size, a different row for each seed.
    fn row(seed: u32, len: usize) -> Vec<f32> {
        let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(1);
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(i16::try_from(state >> 17).expect("15 bits")) / 16384.0 - 1.0
        };
        (0..len).map(|_| next()).collect()
    }

    /// The definition, word for word.
    fn naive(origin: &[f32], a: &[f32], b: &[f32]) -> f64 {
        let mut whole = 0.0;
        for (block, a) in a.chunks(GRAM_BLOCK_ELEMENTS).enumerate() {
            let mut lanes = [0.0; 16];
            for (i, a) in a.iter().enumerate() {
                let at = block * GRAM_BLOCK_ELEMENTS + i;
                let origin = f64::from(origin.get(at).copied().unwrap_or(0.0));
                lanes[i % 16] += (f64::from(*a) - origin) * (f64::from(b[at]) - origin);
            }
            whole += lanes.iter().fold(0.0, |sum, lane| sum + lane);
        }
        whole
    }

    fn of_blocks(origin: &[f32], inputs: &[&[f32]]) -> Gram {
        let mut gram = Gram::zero(inputs.len());
        let len = inputs[0].len();
        for start in (0..len).step_by(GRAM_BLOCK_ELEMENTS) {
            let range = start..(start + GRAM_BLOCK_ELEMENTS).min(len);
            let origin = if origin.is_empty() { origin } else { &origin[range.clone()] };
            gram.add(&Gram::of_block(origin, &inputs.iter().map(|input| &input[range.clone()]).collect::<Vec<_>>()));
        }
        gram
    }

    #[test]
    fn products_are_those_of_the_definition_to_the_last_bit() {
        for num_vectors in [1, 2, 3, 4, 5, 7, 12, 33, 50u32] {
            for len in [1, 15, 16, 17, 127, 128, 129, 1000, 4097] {
                let rows: Vec<Vec<f32>> = (0..num_vectors).map(|i| row(i, len)).collect();
                let inputs: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
                for origin in [vec![], row(99, len)] {
                    let gram = Gram::of_block(&origin, &inputs);
                    for a in 0..inputs.len() {
                        for b in 0..inputs.len() {
                            let expected = naive(&origin, inputs[a], inputs[b]);
                            assert_eq!(gram.product(a, b).to_bits(), expected.to_bits(), "{num_vectors} {len} {a} {b}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn a_tensor_of_many_blocks_is_the_sum_of_its_blocks_wherever_its_last_one_ends() {
        for len in
            [GRAM_BLOCK_ELEMENTS - 1, GRAM_BLOCK_ELEMENTS, GRAM_BLOCK_ELEMENTS + 1, 2 * GRAM_BLOCK_ELEMENTS + 777]
        {
            let (origin, rows) = (row(7, len), [row(1, len), row(2, len), row(3, len)]);
            let inputs: Vec<&[f32]> = rows.iter().map(|row| &row[..]).collect();
            let gram = of_blocks(&origin, &inputs);
            for (a, b) in [(0, 0), (1, 0), (2, 1)] {
                assert_eq!(gram.product(a, b).to_bits(), naive(&origin, inputs[a], inputs[b]).to_bits());
            }
            let exact: f64 = inputs[0].iter().zip(&origin).map(|(a, o)| f64::from(a - o).powi(2)).sum();
            assert!((gram.product(0, 0) / exact - 1.0).abs() < 1e-6);
        }
    }

    #[test]
    fn equal_vectors_have_no_distance_and_the_largest_no_infinite_one() {
        let (same, largest) = (row(4, 3000), vec![f32::MAX; 3000]);
        let smallest = vec![f32::MIN; 3000];
        let gram = Gram::of_block(&row(5, 3000), &[&same, &largest, &same, &smallest]);
        assert_eq!(gram.squared_distance(0, 2).to_bits(), 0f64.to_bits());
        assert!(gram.squared_distance(1, 3).is_finite() && gram.squared_distance(1, 3) > 1e80);
    }
}
