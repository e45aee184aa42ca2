//! Spherical linear interpolation between two models, tensor by tensor.
//!
//! # Formula
//! With `t` the share of the second model (in the order of names) and `theta` the angle between the two tensors seen as vectors:
//! `merged = sin((1 - t) theta) / sin(theta) a + sin(t theta) / sin(theta) b`. Where the cosine is beyond 0.9995 in magnitude, or a tensor is zero,
//! `merged = (1 - t) a + t b`.
//!
//! # Source
//! Shoemake, "Animating Rotation with Quaternion Curves", 1985; for models as `mergekit` does it, with the same bounds. A tensor of zeros stands at a
//! right angle to every other there, so that `t = 1/2` gives 0.71 of the other; here it has no direction, and the other is halved.
//!
//! # Limits
//! Defined for two models only. The angle is that of the weights themselves, not of their changes to a base; a base is compared with and not used.

use super::linear::{Coefficients, Linear};
use super::{Demands, Rule, Setting, Survey, SurveyKind};
use crate::gram::Gram;
use serde::{Deserialize, Serialize};

/// Tensors that are more nearly parallel than this are interpolated along the line.
const MAX_COSINE: f64 = 0.9995;
/// A tensor that is shorter than this counts as zero.
const MIN_NORM: f64 = 1e-8;

/// A point on the arc between two models.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Slerp {}

impl Slerp {
    pub(super) const NAME: &'static str = "slerp";

    pub(super) const fn demands() -> Demands {
        Demands { min_contributions: 2, max_contributions: 2, survey: SurveyKind::Grams, ..Demands::PLAIN }
    }

    pub(super) fn rule(setting: &Setting<'_>, survey: &Survey) -> Box<dyn Rule> {
        assert_eq!(survey.grams.len(), setting.tensors.len(), "the method demands a survey of every tensor");
        let t = setting.contributors[1].share;
        Box::new(Linear::by_tensor(survey.grams.iter().map(|gram| coefficients(gram, t)).collect()))
    }
}

fn coefficients(gram: &Gram, t: f64) -> Coefficients {
    let (a, b) = (gram.product(0, 0).sqrt(), gram.product(1, 1).sqrt());
    let cosine = if a > MIN_NORM && b > MIN_NORM { (gram.product(0, 1) / a / b).clamp(-1.0, 1.0) } else { 1.0 };
    let inputs = if cosine.abs() > MAX_COSINE {
        vec![1.0 - t, t]
    } else {
        // Not the system's functions, whose last bit differs from machine to machine.
        let theta = libm::acos(cosine);
        vec![libm::sin((1.0 - t) * theta) / libm::sin(theta), libm::sin(t * theta) / libm::sin(theta)]
    };
    Coefficients { base: 0.0, inputs }
}
