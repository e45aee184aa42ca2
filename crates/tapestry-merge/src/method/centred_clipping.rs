//! Centred clipping: a mean that nobody can pull further than a given length at a time.
//!
//! # Formula
//! `v_0 = base`, `v_(l+1) = v_l + sum_i share_i (x_i - v_l) min(1, radius / |x_i - v_l|)`; merged is `v_L` after `L`
//! iterations. Each `v_l` is a combination of base and contributions; its coefficients and all distances follow from the inner
//! products of the changes, so only the last one is computed value by value.
//!
//! # Source
//! Karimireddy, He, Jaggi, "Learning from History for Byzantine Robust Optimization", 2021, section 4. There the centre is the
//! last step of momentum; here it is the base. Theirs weighs everybody the same; this one obeys the shares. The median of
//! the lengths of the changes as the radius where none is given is ours (see [norm bounding](super::NormBounding)).
//!
//! # Limits
//! Each iteration, a faulty member can pull the result by its share of the radius, wherever it likes. More iterations come nearer
//! to the honest mean and let it pull more often.

use super::geometry::{Points, whole};
use super::linear::{Coefficients, Linear};
use super::norm_bounding::{bounding_demands, kept_within, median_norm};
use super::{Demands, MethodError, Rule, Setting, Survey};
use serde::{Deserialize, Serialize};

/// The clipped mean round a centre that moves.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CentredClipping {
    /// The largest Euclidean length, over the whole weight vector, by which a contribution pulls at a time; above 0. Without
    /// it, the median of the lengths of all changes: at least 3 contributions are then needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub radius: Option<f64>,
    /// How often the centre moves; at least 1. Without it 3: with the median as the radius, more hardly bring it nearer.
    pub iterations: usize,
}

impl Default for CentredClipping {
    fn default() -> Self {
        Self { radius: None, iterations: 3 }
    }
}

/// Beyond this nothing changes any more, and a recipe could keep the machine busy.
const MAX_ITERATIONS: usize = 1000;

impl CentredClipping {
    pub(super) const NAME: &'static str = "centred-clipping";

    pub(super) const fn demands(self) -> Demands {
        bounding_demands(self.radius)
    }

    pub(super) fn check(self) -> Result<(), MethodError> {
        MethodError::unless_within(Self::NAME, "iterations", self.iterations, MAX_ITERATIONS)?;
        self.radius.map_or(Ok(()), |radius| MethodError::unless_positive(Self::NAME, "radius", radius))
    }

    pub(super) fn rule(self, setting: &Setting<'_>, survey: &Survey) -> Box<dyn Rule> {
        let gram = whole(setting, survey);
        let (points, base) = (Points::new(&gram), setting.contributors.len());
        let radius = self.radius.unwrap_or_else(|| median_norm(&gram));
        // Of each contribution, and then of the base: the centre starts there.
        let mut centre = vec![0.0; base + 1];
        centre[base] = 1.0;
        for _ in 0..self.iterations {
            let mut left = 0.0;
            let mut pulls = vec![];
            for (i, contributor) in setting.contributors.iter().enumerate() {
                let kept = kept_within(points.length_from(i, &centre), radius);
                left += contributor.share * (1.0 - kept);
                pulls.push(contributor.share * kept);
            }
            centre.iter_mut().for_each(|coefficient| *coefficient *= left);
            centre.iter_mut().zip(&pulls).for_each(|(coefficient, pull)| *coefficient += pull);
        }
        let base = centre.pop().expect("the base is last");
        Box::new(Linear::uniform(Coefficients { base, inputs: centre }))
    }
}
