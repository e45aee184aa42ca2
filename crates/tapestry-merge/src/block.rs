//! What a merge rule sees: the same run of elements of one tensor, from the base and from every contribution.

use tapestry_core::TensorSpec;

/// One contribution in a merge: whose it is and how much it counts.
#[derive(Debug, Clone, PartialEq)]
pub struct Contributor {
    /// The member's name. Names are distinct, and contributions are always in the order of their bytes; so the order in
    /// which they arrived or were written down cannot be seen in the result.
    pub name: String,
    /// The share, above zero; all shares sum to one.
    pub share: f64,
}

/// Everything about a merge but the values.
#[derive(Debug, Clone, Copy)]
pub struct Setting<'a> {
    /// The tensors, in the order of their names. Base and contributions all have exactly these.
    pub tensors: &'a [TensorSpec],
    /// The contributions, in the order of their names.
    pub contributors: &'a [Contributor],
}

/// A run of elements of one tensor. Every type of element that weights come in (f32, bf16, f16) is exact in `f32`.
#[derive(Debug, Clone, Copy)]
pub struct Block<'a> {
    /// The tensor's place in [`Setting::tensors`].
    pub tensor: usize,
    /// The first element's row-major index in its tensor. A rule's result for an element may depend on the element's index
    /// and must not depend on where blocks begin.
    pub first: u64,
    /// The base's values; empty where the merge has no base.
    pub base: &'a [f32],
    /// The contributions' values, in the order of [`Setting::contributors`]; all of one length, at least 1.
    pub inputs: &'a [&'a [f32]],
    /// The values of the method's state from the round before (all zero in the first round).
    pub states: &'a [&'a [f32]],
}

impl Block<'_> {
    /// Elements of the block.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inputs[0].len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A merge with everything decided but the values of one block: what happens to each element.
///
/// # Order
/// The result for an element is a function of the values of that element alone, of its index, and of what was decided
/// before (shares, coefficients, thresholds). It is computed in `f64` by a stated sequence of operations, each rounded once
/// (no fused multiply-add), so that blocks, threads and the width of vector registers cannot be seen in it.
pub trait Rule: Send + Sync {
    /// Writes the merged value of every element to `out`, and the next state to `states_out`, which has as many rows as
    /// [`Block::states`]. All rows have the length of the block; what they held before is of no meaning.
    fn merge(&self, block: &Block<'_>, out: &mut [f64], states_out: &mut [&mut [f64]]);
}
