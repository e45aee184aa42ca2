//! Task arithmetic: the base plus the changes, weighted and scaled.
//!
//! # Formula
//! `merged = base + scale * sum_i share_i (x_i - base)`, computed as `(1 - scale) base + sum_i (scale share_i) x_i`.
//!
//! # Source
//! Ilharco, Ribeiro, Wortsman, Gururangan, Schmidt, Hajishirzi, Farhadi, "Editing Models with Task Arithmetic", 2023, section 2. There the changes are added without
//! shares; with `n` equal shares, `scale = n` gives that sum.
//!
//! # Limits
//! With `scale = 1` it is the weighted mean. No robustness.

use super::linear::{Coefficients, Linear};
use super::{Demands, MethodError, Rule, Setting, unless_scale};
use serde::{Deserialize, Serialize};

/// The base plus scaled changes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskArithmetic {
    /// What the weighted sum of the changes is multiplied with.
    #[serde(default = "super::one")]
    pub scale: f64,
}

impl TaskArithmetic {
    pub(super) const NAME: &'static str = "task-arithmetic";

    pub(super) const fn demands() -> Demands {
        Demands { base: true, ..Demands::PLAIN }
    }

    pub(super) fn check(self) -> Result<(), MethodError> {
        unless_scale(Self::NAME, self.scale)
    }

    pub(super) fn rule(self, setting: &Setting<'_>) -> Box<dyn Rule> {
        let inputs = setting.contributors.iter().map(|contributor| self.scale * contributor.share).collect();
        Box::new(Linear::uniform(Coefficients { base: 1.0 - self.scale, inputs }))
    }
}
