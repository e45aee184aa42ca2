//! What some methods must know of all values before the first one is merged.

use crate::gram::Gram;

/// What a method asks to be found out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SurveyKind {
    /// Nothing: one pass over the values is enough.
    Nothing,
    /// The inner products of the contributions, tensor by tensor, one pass before the merge. The origin is the base
    /// where the merge has one, so that they are inner products of changes; otherwise it is zero.
    Grams,
    /// For each tensor and contribution, the magnitude of the `k`-th largest change, `k = density * elements` rounded down and
    /// at least 1; zero where that is all of them. See [`Selection`](crate::Selection).
    Thresholds {
        /// The share of a tensor's elements that is kept, in (0, 1].
        density: f64,
    },
}

/// What was found out. Whatever was not asked for is empty.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Survey {
    /// One for each tensor.
    pub grams: Vec<Gram>,
    /// For each tensor, one for each contribution.
    pub thresholds: Vec<Vec<f32>>,
}

impl Survey {
    /// The inner products over the whole weight vector: the tensors' sums, added in the order of the tensors.
    #[must_use]
    pub fn whole(&self) -> Gram {
        let mut whole = Gram::zero(self.grams.first().map_or(0, Gram::num_vectors));
        self.grams.iter().for_each(|gram| whole.add(gram));
        whole
    }
}
