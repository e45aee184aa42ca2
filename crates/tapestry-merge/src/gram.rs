//! Inner products of weight vectors. All distances, angles and norms that a method needs follow from them, so that one pass
//! over the values is enough, whatever the method does with them afterwards.

use crate::simd::dispatch;

/// Elements of one partial sum, counted from the start of a tensor. Part of the definition of the result.
pub const GRAM_BLOCK_ELEMENTS: usize = 1 << 16;
/// Sums side by side within a block. Part of the definition of the result.
const NUM_LANES: usize = 16;

/// The symmetric matrix of inner products of `n` vectors.
///
/// # Order
/// Defined to the last bit: within a block of [`GRAM_BLOCK_ELEMENTS`] elements of one tensor, element `i` goes to lane
/// `i mod 16`; each lane is summed in `f64` in order, then the lanes from the first to the last; the blocks of a tensor are
/// added in order.
#[derive(Debug, Clone, PartialEq)]
pub struct Gram {
    num_vectors: usize,
    /// The lower triangle, row by row.
    products: Vec<f64>,
}

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
    /// The differences are rounded to `f32` once, the products and sums are `f64`.
    ///
    /// # Panics
    /// Where rows differ in length or are longer than a block.
    #[must_use]
    pub fn of_block(origin: &[f32], inputs: &[&[f32]]) -> Self {
        let len = inputs.first().map_or(0, |input| input.len());
        assert!(len <= GRAM_BLOCK_ELEMENTS && inputs.iter().all(|input| input.len() == len), "rows of one block");
        let mut gram = Self::zero(inputs.len());
        dispatch(
            #[inline(always)]
            || {
                let mut at = 0;
                for row in 0..inputs.len() {
                    for column in 0..=row {
                        gram.products[at] = inner_product(origin, inputs[row], inputs[column]);
                        at += 1;
                    }
                }
            },
        );
        gram
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
}

#[inline(always)]
fn inner_product(origin: &[f32], a: &[f32], b: &[f32]) -> f64 {
    let mut lanes = [0.0; NUM_LANES];
    let change =
        |values: &[f32], at: usize| f64::from(if origin.is_empty() { values[at] } else { values[at] - origin[at] });
    let whole = a.len() - a.len() % NUM_LANES;
    for start in (0..whole).step_by(NUM_LANES) {
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += change(a, start + lane) * change(b, start + lane);
        }
    }
    for at in whole..a.len() {
        lanes[at - whole] += change(a, at) * change(b, at);
    }
    lanes.iter().fold(0.0, |sum, lane| sum + lane)
}
