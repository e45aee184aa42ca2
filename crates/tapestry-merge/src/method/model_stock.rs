//! Model Stock: from the base towards the mean, the further the more the changes agree, tensor by tensor.
//!
//! # Formula
//! With `n` contributions, `c` the mean cosine between their changes over all pairs, and `t = n c / (1 + (n - 1) c)`:
//! `merged = (1 - t) base + t mean(x_i)`. `t` is kept within 0 and 1: changes that disagree on the whole leave the base as it is.
//!
//! # Source
//! Jang, Yun, Han, "Model Stock: All we need is just a few fine-tuned models", 2024, equations 3 and 4 (per layer). `mergekit` lets `t` fall below zero, which walks
//! away from the contributions.
//!
//! # Limits
//! All contributions count alike. A tensor that one contribution left unchanged has a cosine of zero with the others.

use super::linear::{Coefficients, Linear};
use super::{Demands, Rule, Setting, Survey, SurveyKind};
use crate::gram::Gram;
use serde::{Deserialize, Serialize};

/// Between base and mean, by agreement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelStock {}

impl ModelStock {
    pub(super) const NAME: &'static str = "model-stock";

    pub(super) const fn demands() -> Demands {
        Demands { base: true, min_contributions: 2, uses_shares: false, survey: SurveyKind::Grams, ..Demands::PLAIN }
    }

    pub(super) fn rule(setting: &Setting<'_>, survey: &Survey) -> Box<dyn Rule> {
        assert_eq!(survey.grams.len(), setting.tensors.len(), "the method demands a survey of every tensor");
        Box::new(Linear::by_tensor(survey.grams.iter().map(coefficients).collect()))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a number of members")]
fn coefficients(gram: &Gram) -> Coefficients {
    let num = gram.num_vectors();
    let norms: Vec<f64> = (0..num).map(|i| gram.product(i, i).sqrt()).collect();
    let mut sum = 0.0;
    for a in 0..num {
        for b in a + 1..num {
            let norms = norms[a] * norms[b];
            sum += if norms > 0.0 { (gram.product(a, b) / norms).clamp(-1.0, 1.0) } else { 0.0 };
        }
    }
    let n = num as f64;
    let cosine = sum / (n * (n - 1.0) / 2.0);
    let t = if cosine > 0.0 { n * cosine / (1.0 + (n - 1.0) * cosine) } else { 0.0 };
    Coefficients { base: 1.0 - t, inputs: vec![t / n; num] }
}
