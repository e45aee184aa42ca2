//! FedAdam: the mean change as a gradient, with a step size of its own for each element.
//!
//! # Formula
//! `g = sum_i share_i x_i - base`; `m' = beta1 m + (1 - beta1) g`; `v' = beta2 v + (1 - beta2) g^2`;
//! `merged = base + learning_rate m' / (sqrt(v') + tau)`. The state is `m`, zero at first, and `v`, `tau^2` at first (stored as `v - tau^2`). No correction of the
//! bias of the first rounds, as in the paper.
//!
//! # Source
//! Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated Optimization", 2021, Algorithm 2.
//!
//! # Limits
//! The step of an element is about the learning rate, whatever the size of its change: a rate that suits one model ruins another. No robustness of its own.

use super::adaptive::{self, Adaptive};
use super::{MethodError, Rule, Setting};
use serde::{Deserialize, Serialize};

/// Adaptive outer steps.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedAdam {
    /// The outer learning rate, above 0.
    #[serde(default = "adaptive::default_learning_rate")]
    pub learning_rate: f64,
    /// The share of the first moment that stays, in [0, 1).
    #[serde(default = "adaptive::default_beta1")]
    pub beta1: f64,
    /// The same for the second moment.
    #[serde(default = "adaptive::default_beta2")]
    pub beta2: f64,
    /// How adaptive it is: elements whose changes are far smaller than this are not scaled up. Above 0.
    #[serde(default = "adaptive::default_tau")]
    pub tau: f64,
}

impl FedAdam {
    pub(super) const NAME: &'static str = "fedadam";

    pub(super) fn check(self) -> Result<(), MethodError> {
        adaptive::check(Self::NAME, self.learning_rate, [self.beta1, self.beta2], self.tau)
    }

    pub(super) fn rule(self, setting: &Setting<'_>) -> Box<dyn Rule> {
        let Self { learning_rate, beta1, beta2, tau } = self;
        Box::new(Adaptive::<false> { shares: adaptive::shares(setting), learning_rate, beta1, beta2, tau })
    }
}
