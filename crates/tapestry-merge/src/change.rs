//! How far a weight vector has moved from its base, and whether all of it are numbers.

use crate::element::{Bf16, Element, F16, F32};
use rayon::prelude::*;
use tapestry_core::Dtype;

/// Elements of one partial sum. Part of the definition of the result.
const BLOCK_ELEMENTS: usize = 4096;
/// Sums side by side within a block, so that the processor need not wait for one addition to begin the next. Part of the
/// definition of the result.
const NUM_LANES: usize = 8;

/// Measures how far weights have moved from their base, piece by piece.
///
/// # Order
/// The result is defined to the last bit and does not depend on how the pieces are cut nor on threads: the elements are
/// counted from the first piece on, 4096 in a row make a block, element `i` of a block goes to lane `i mod 8`, each
/// lane is summed in `f64` in order, then the lanes, then the blocks.
#[derive(Debug, Clone, Default)]
pub struct DeltaNorm {
    complete: Squares,
    block: Block,
}

/// Sums of squares of the change and of the base.
#[derive(Debug, Clone, Copy, Default)]
struct Squares {
    change: f64,
    base: f64,
}

/// A block that is being filled.
#[derive(Debug, Clone, Copy, Default)]
struct Block {
    num_elements: usize,
    change: [f64; NUM_LANES],
    base: [f64; NUM_LANES],
}

impl DeltaNorm {
    /// Nothing measured yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next piece: the bytes of `weights`, and those of `base` at the same place.
    ///
    /// # Panics
    /// Where the two differ in length or end within an element. Callers read the same range of two manifests that match.
    pub fn add(&mut self, dtype: Dtype, base: &[u8], weights: &[u8]) {
        assert_eq!(base.len(), weights.len(), "a piece of the weights and of the base cover the same range");
        match dtype {
            Dtype::F32 => self.add_elements::<F32>(base, weights),
            Dtype::BF16 => self.add_elements::<Bf16>(base, weights),
            Dtype::F16 => self.add_elements::<F16>(base, weights),
        }
    }

    fn add_elements<E: Element>(&mut self, base: &[u8], weights: &[u8]) {
        assert!(base.len().is_multiple_of(E::LEN), "a piece of {} bytes ends within an element", base.len());
        let to_fill = (BLOCK_ELEMENTS - self.block.num_elements) % BLOCK_ELEMENTS;
        let head_len = (to_fill * E::LEN).min(base.len());
        let (base_head, base) = base.split_at(head_len);
        let (weights_head, weights) = weights.split_at(head_len);
        self.block.add::<E>(base_head, weights_head);
        self.close_full_block();

        let block_len = BLOCK_ELEMENTS * E::LEN;
        let whole_len = base.len() - base.len() % block_len;
        let (base, base_tail) = base.split_at(whole_len);
        let (weights, weights_tail) = weights.split_at(whole_len);
        let pairs = base.par_chunks_exact(block_len).zip(weights.par_chunks_exact(block_len));
        let sums: Vec<Squares> = pairs.map(|(base, weights)| Block::of::<E>(base, weights).sum()).collect();
        sums.into_iter().for_each(|squares| self.complete.add(squares));
        self.block.add::<E>(base_tail, weights_tail);
    }

    /// Adds what was measured of whole blocks elsewhere, on another thread: they follow on what was added so far.
    ///
    /// # Panics
    /// Where what was added so far ends within a block.
    pub fn append(&mut self, part: &ChangePart) {
        self.close_full_block();
        assert_eq!(self.block.num_elements, 0, "a part begins with a block");
        part.0.iter().for_each(|squares| self.complete.add(*squares));
    }

    fn close_full_block(&mut self) {
        if self.block.num_elements == BLOCK_ELEMENTS {
            self.complete.add(self.block.sum());
            self.block = Block::default();
        }
    }

    fn squares(&self) -> Squares {
        let mut all = self.complete;
        all.add(self.block.sum());
        all
    }

    /// The Euclidean length of the change.
    #[must_use]
    pub fn change(&self) -> f64 {
        self.squares().change.sqrt()
    }

    /// The Euclidean length of the base.
    #[must_use]
    pub fn base(&self) -> f64 {
        self.squares().base.sqrt()
    }

    /// The length of the change over the length of the base. Zero where nothing changed, infinite where only the base is
    /// zero, not a number where a value was none.
    #[must_use]
    pub fn relative_change(&self) -> f64 {
        let (change, base) = (self.change(), self.base());
        if change == 0.0 && base == 0.0 { 0.0 } else { change / base }
    }
}

/// The change of a stretch of whole blocks, for [`DeltaNorm::append`].
#[derive(Debug, Clone, Default)]
pub struct ChangePart(Vec<Squares>);

impl ChangePart {
    /// Elements that are added at a time, or a multiple of them.
    pub const ELEMENTS: usize = BLOCK_ELEMENTS;

    /// Adds the next blocks, as [`DeltaNorm::add`]; uses no other threads.
    ///
    /// # Panics
    /// Where the two differ in length or are not whole blocks.
    pub fn add(&mut self, dtype: Dtype, base: &[u8], weights: &[u8]) {
        assert_eq!(base.len(), weights.len(), "a piece of the weights and of the base cover the same range");
        match dtype {
            Dtype::F32 => self.add_blocks::<F32>(base, weights),
            Dtype::BF16 => self.add_blocks::<Bf16>(base, weights),
            Dtype::F16 => self.add_blocks::<F16>(base, weights),
        }
    }

    fn add_blocks<E: Element>(&mut self, base: &[u8], weights: &[u8]) {
        let block_len = BLOCK_ELEMENTS * E::LEN;
        assert!(base.len().is_multiple_of(block_len), "{} bytes are not whole blocks", base.len());
        let pairs = base.chunks_exact(block_len).zip(weights.chunks_exact(block_len));
        self.0.extend(pairs.map(|(base, weights)| Block::of::<E>(base, weights).sum()));
    }
}

impl Squares {
    fn add(&mut self, other: Self) {
        self.change += other.change;
        self.base += other.base;
    }
}

impl Block {
    fn of<E: Element>(base: &[u8], weights: &[u8]) -> Self {
        let mut block = Self::default();
        block.add::<E>(base, weights);
        block
    }

    fn add<E: Element>(&mut self, base: &[u8], weights: &[u8]) {
        // Up to the first lane one by one, then all lanes at a time, which the compiler turns into vector instructions.
        let to_first_lane = (NUM_LANES - self.num_elements % NUM_LANES) % NUM_LANES;
        let head_len = (to_first_lane * E::LEN).min(base.len());
        let (base_head, base) = base.split_at(head_len);
        let (weights_head, weights) = weights.split_at(head_len);
        self.add_one_by_one::<E>(base_head, weights_head);

        let row_len = NUM_LANES * E::LEN;
        let (base_rows, weights_rows) = (base.chunks_exact(row_len), weights.chunks_exact(row_len));
        let (base_tail, weights_tail) = (base_rows.remainder(), weights_rows.remainder());
        self.num_elements += base.len() / row_len * NUM_LANES;
        for (base, weights) in base_rows.zip(weights_rows) {
            for lane in 0..NUM_LANES {
                let range = lane * E::LEN..(lane + 1) * E::LEN;
                let (base, weight) = (E::load(&base[range.clone()]), E::load(&weights[range]));
                let change = weight - base;
                self.change[lane] += change * change;
                self.base[lane] += base * base;
            }
        }
        self.add_one_by_one::<E>(base_tail, weights_tail);
    }

    fn add_one_by_one<E: Element>(&mut self, base: &[u8], weights: &[u8]) {
        for (base, weight) in base.chunks_exact(E::LEN).zip(weights.chunks_exact(E::LEN)) {
            let (base, weight) = (E::load(base), E::load(weight));
            let change = weight - base;
            let lane = self.num_elements % NUM_LANES;
            self.change[lane] += change * change;
            self.base[lane] += base * base;
            self.num_elements += 1;
        }
    }

    fn sum(&self) -> Squares {
        Squares { change: self.change.iter().sum(), base: self.base.iter().sum() }
    }
}

/// The place of the first element, counted from the start of `bytes`, that is infinite or not a number.
///
/// # Panics
/// Where `bytes` ends within an element.
#[must_use]
pub fn first_non_finite(dtype: Dtype, bytes: &[u8]) -> Option<u64> {
    match dtype {
        Dtype::F32 => first::<F32>(bytes),
        Dtype::BF16 => first::<Bf16>(bytes),
        Dtype::F16 => first::<F16>(bytes),
    }
}

fn first<E: Element>(bytes: &[u8]) -> Option<u64> {
    assert!(bytes.len().is_multiple_of(E::LEN), "{} bytes end within an element", bytes.len());
    let block_len = BLOCK_ELEMENTS * E::LEN;
    let blocks = bytes.par_chunks(block_len).enumerate();
    let found = blocks.find_map_first(|(block, bytes)| {
        // Asking all of them first is several times faster than looking for the place.
        let is_clean = bytes.chunks_exact(E::LEN).fold(true, |clean, element| clean & E::is_finite(element));
        if is_clean {
            return None;
        }
        let place = bytes.chunks_exact(E::LEN).position(|element| !E::is_finite(element))?;
        Some(block * BLOCK_ELEMENTS + place)
    });
    found.map(|place| place as u64)
}
