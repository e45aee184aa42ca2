//! The geometric median: the point with the smallest weighted sum of distances to the contributions.
//!
//! # Formula
//! The minimum over `v` of `sum_i share_i |x_i - v|`, by the smoothed Weiszfeld algorithm: `v = sum_i w_i x_i`, and again and
//! again `w_i = share_i / max(smoothing r, |x_i - v|)`, divided by the sum of all `w_i`.
//!
//! `r_i` is the distance from contribution `i` within which half of the shares lie, its own included; `r` is the smallest of
//! them: a measure of how far the honest lie apart, which less than half of the shares cannot change at will. The first
//! weights are `share_i / r_i`. Where `r` is zero, half of the shares agree on one point, which is a median: it is the result.
//!
//! Each `v` is a convex combination of the contributions, so all distances follow from their inner products, and only the last
//! `v` is computed value by value.
//!
//! # Source
//! Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning", 2022, Algorithm 2. There `smoothing` is a length
//! in absolute terms and the first weights are the caller's; here both follow from the distances, so that neither the scale of
//! the weights nor the magnitude of a poisoned contribution has a say in how many iterations are needed.
//!
//! # Limits
//! While the faulty have less than half of the shares, the result stays within a multiple of the honest spread `S`: with a share
//! `a` of them, `2 (1 - a) / (1 - 2a) S` from the honest mean, and a little more for the smoothing. A member with half of the
//! shares or more is the median. Where the minimum lies at a contribution, convergence is slow and the last iterate is taken.

use super::geometry::{Points, whole};
use super::linear::{Coefficients, Linear};
use super::{Demands, MethodError, Rule, Setting, Survey, SurveyKind};
use crate::gram::Gram;
use serde::{Deserialize, Serialize};

/// The weighted geometric median.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GeometricMedian {
    /// Distances below this share of `r` count as much as it; in (0, 1]. Larger is nearer to the mean of those that lie close
    /// together. Without it 1e-6.
    pub smoothing: f64,
    /// The most iterations, in 1..=10000; each costs nothing beside reading the weights. Without it 1000.
    pub max_iterations: usize,
    /// The iterations end where one moves the result by at most this share of `r`; in (0, 1]. Without it 1e-9.
    pub tolerance: f64,
}

impl Default for GeometricMedian {
    fn default() -> Self {
        Self { smoothing: 1e-6, max_iterations: 1000, tolerance: 1e-9 }
    }
}

/// Beyond this nothing changes any more, and a recipe could keep the machine busy.
const MAX_ITERATIONS: usize = 10_000;
/// What shares that sum to one half may lack of it after rounding.
const HALF: f64 = 0.5 - 1e-12;

impl GeometricMedian {
    pub(super) const NAME: &'static str = "geometric-median";

    pub(super) const fn demands(self) -> Demands {
        Demands { min_contributions: 3, survey: SurveyKind::Grams, ..Demands::PLAIN }
    }

    pub(super) fn check(self) -> Result<(), MethodError> {
        MethodError::unless_within(Self::NAME, "max_iterations", self.max_iterations, MAX_ITERATIONS)?;
        for (parameter, found) in [("smoothing", self.smoothing), ("tolerance", self.tolerance)] {
            if !(found > 0.0 && found <= 1.0) {
                let (method, expected) = (Self::NAME, "above 0 and at most 1".into());
                return Err(MethodError::Parameter { method, parameter, expected, found: found.to_string() });
            }
        }
        Ok(())
    }

    pub(super) fn rule(self, setting: &Setting<'_>, survey: &Survey) -> Box<dyn Rule> {
        let shares: Vec<f64> = setting.contributors.iter().map(|contributor| contributor.share).collect();
        let inputs = self.weights(&whole(setting, survey), &shares);
        Box::new(Linear::uniform(Coefficients { base: 0.0, inputs }))
    }

    /// The weight of each contribution in the median.
    fn weights(self, gram: &Gram, shares: &[f64]) -> Vec<f64> {
        let (points, all) = (Points::new(gram), 0..shares.len());
        let radii: Vec<f64> = all.clone().map(|i| radius_of_half(gram, shares, i)).collect();
        let centre = all.clone().min_by(|a, b| radii[*a].total_cmp(&radii[*b])).expect("at least three contributions");
        let radius = radii[centre];
        if radius <= 0.0 {
            let agreeing = |i: usize| if gram.squared_distance(centre, i) > 0.0 { 0.0 } else { shares[i] };
            return summing_to_one(all.map(agreeing).collect());
        }
        let floor = self.smoothing * radius;
        let mut weights = summing_to_one(shares.iter().zip(&radii).map(|(share, radius)| share / radius).collect());
        for _ in 0..self.max_iterations {
            let pull = |i: usize| shares[i] / points.length_from(i, &weights).max(floor);
            let next = summing_to_one(all.clone().map(pull).collect());
            let step: Vec<f64> = next.iter().zip(&weights).map(|(next, weight)| next - weight).collect();
            weights = next;
            if points.length_from(centre, &step) <= self.tolerance * radius {
                break;
            }
        }
        weights
    }
}

/// The distance from contribution `i` within which half of the shares lie.
fn radius_of_half(gram: &Gram, shares: &[f64], i: usize) -> f64 {
    let mut others: Vec<(f64, f64)> =
        shares.iter().enumerate().map(|(j, share)| (gram.squared_distance(i, j), *share)).collect();
    others.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut sum = 0.0;
    for (squared_distance, share) in others {
        sum += share;
        if sum >= HALF {
            return squared_distance.sqrt();
        }
    }
    unreachable!("the shares sum to one")
}

fn summing_to_one(mut weights: Vec<f64>) -> Vec<f64> {
    let sum: f64 = weights.iter().sum();
    weights.iter_mut().for_each(|weight| *weight /= sum);
    weights
}
