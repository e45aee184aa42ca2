//! Distances between combinations of weight vectors, from their inner products alone.

use crate::block::Setting;
use crate::gram::Gram;
use crate::survey::Survey;

/// The contributions as points, and after the last of them one more: the origin that the products were taken from.
#[derive(Clone, Copy)]
pub(super) struct Points<'a> {
    gram: &'a Gram,
}

/// The inner products over the whole weight vector.
///
/// # Panics
/// Where these are not the products of all contributions: the caller did not make the survey that the method demands.
pub(super) fn whole(setting: &Setting<'_>, survey: &Survey) -> Gram {
    let gram = survey.whole();
    assert_eq!(gram.num_vectors(), setting.contributors.len(), "the method demands a survey of every contribution");
    gram
}

impl<'a> Points<'a> {
    pub(super) const fn new(gram: &'a Gram) -> Self {
        Self { gram }
    }

    fn product(self, a: usize, b: usize) -> f64 {
        let origin = self.gram.num_vectors();
        if a == origin || b == origin { 0.0 } else { self.gram.product(a, b) }
    }

    /// The length of `sum_j weights_j (x_j - x_from)`. Where the weights sum to one, that is how far their combination lies
    /// from the point `from`; where they sum to zero, it is the length of the combination whatever `from` is.
    ///
    /// Everything is seen from `from`: so a point that is far away and hardly counts does not drown the distances between
    /// those that are near, and equal points have a distance of zero exactly.
    pub(super) fn length_from(self, from: usize, weights: &[f64]) -> f64 {
        let mut squares = 0.0;
        for (a, weight_a) in weights.iter().enumerate() {
            for (b, weight_b) in weights.iter().enumerate() {
                let seen_from =
                    (self.product(a, b) - self.product(from, b)) - (self.product(a, from) - self.product(from, from));
                // In this order, so that a tiny weight tames a huge product before anything overflows.
                squares += weight_a * seen_from * weight_b;
            }
        }
        squares.max(0.0).sqrt()
    }
}

/// The middle value; of an even number the smaller of the two in the middle, so that half of the values being arbitrarily large
/// do not move it.
pub(super) fn lower_median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_the_vectors_even_beside_a_huge_one() {
        let rows: [&[f32]; 3] = [&[1.0, 2.0], &[3.0, 2.5], &[1e30, -1e30]];
        let gram = Gram::of_block(&[0.5, 0.5], &rows);
        let points = Points::new(&gram);
        // Half-way between the first two, seen from the first, from the origin, and with a thousandth of a millionth of a hair
        // of the huge one.
        assert!((points.length_from(0, &[0.5, 0.5, 0.0]) - 1.0625f64.sqrt()).abs() < 1e-12);
        assert!((points.length_from(3, &[0.5, 0.5, 0.0]) - (1.5f64.powi(2) + 1.75f64.powi(2)).sqrt()).abs() < 1e-12);
        // An f32 is within a ten-millionth of 1e30.
        let tiny = 1e-30;
        let expected = (2f64.powi(2) + (0.25f64 - 1.0).powi(2)).sqrt();
        assert!((points.length_from(0, &[0.5, 0.5, tiny]) - expected).abs() < 1e-6);
    }

    #[test]
    fn the_lower_median_is_not_moved_by_half_of_the_values() {
        assert_eq!(lower_median(vec![f64::MAX, 2.0, 1.0, f64::MAX]).to_bits(), 2f64.to_bits());
        assert_eq!(lower_median(vec![3.0, 2.0, 1.0]).to_bits(), 2f64.to_bits());
        assert_eq!(lower_median(vec![7.0]).to_bits(), 7f64.to_bits());
    }
}
