//! DiLoCo's outer optimiser: the mean change as a gradient, with Nesterov momentum from round to round.
//!
//! # Formula
//! `g = base - sum_i share_i x_i`; `m' = momentum m + g`; `merged = base - learning_rate (g + momentum m')`. `m` is the state, zero at first. That is
//! `torch.optim.SGD(nesterov=True)` on the pseudo-gradient `g`.
//!
//! # Source
//! Douillard, Feng, Rusu, Chhaparia, Donchev, Kuncoro, Ranzato, Szlam, Shen, "DiLoCo: Distributed Low-Communication Training of Language Models", 2023, Algorithm 1 and
//! section 3.3 (0.7 and 0.9).
//!
//! # Limits
//! No robustness of its own. A refused round leaves the state as it was. With a momentum of zero there is no state, and with a learning rate of 1 as well it is `fedavg`,
//! bit for bit.

use super::linear::{Coefficients, Linear};
use super::{Demands, MethodError, Rule, Setting};
use crate::block::Block;
use crate::simd::dispatch;
use serde::{Deserialize, Serialize};

/// Outer Nesterov momentum.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DiLoCo {
    /// The outer learning rate, above 0.
    #[serde(default = "default_learning_rate")]
    pub learning_rate: f64,
    /// The share of the state that stays, in [0, 1).
    #[serde(default = "default_momentum")]
    pub momentum: f64,
}

const fn default_learning_rate() -> f64 {
    0.7
}

const fn default_momentum() -> f64 {
    0.9
}

struct DiLoCoRule {
    shares: Vec<f64>,
    learning_rate: f64,
    momentum: f64,
}

impl DiLoCo {
    pub(super) const NAME: &'static str = "diloco";

    pub(super) fn demands(self) -> Demands {
        Demands { base: true, num_states: usize::from(self.momentum > 0.0), ..Demands::PLAIN }
    }

    pub(super) fn check(self) -> Result<(), MethodError> {
        MethodError::unless_positive(Self::NAME, "learning_rate", self.learning_rate)?;
        super::unless_decay(Self::NAME, "momentum", self.momentum)
    }

    pub(super) fn rule(self, setting: &Setting<'_>) -> Box<dyn Rule> {
        let shares: Vec<f64> = setting.contributors.iter().map(|contributor| contributor.share).collect();
        if self.momentum > 0.0 {
            return Box::new(DiLoCoRule { shares, learning_rate: self.learning_rate, momentum: self.momentum });
        }
        let inputs = shares.iter().map(|share| self.learning_rate * share).collect();
        Box::new(Linear::uniform(Coefficients { base: 1.0 - self.learning_rate, inputs }))
    }
}

impl Rule for DiLoCoRule {
    fn merge(&self, block: &Block<'_>, out: &mut [f64], states_out: &mut [&mut [f64]]) {
        super::mean(block, &self.shares, out);
        let (rate, momentum) = (self.learning_rate, self.momentum);
        let (base, state, next) = (block.base, block.states[0], &mut *states_out[0]);
        dispatch(
            #[inline(always)]
            || {
                for at in 0..out.len() {
                    let base = f64::from(base[at]);
                    let gradient = base - out[at];
                    let moved = momentum * f64::from(state[at]) + gradient;
                    next[at] = moved;
                    out[at] = base - rate * (gradient + momentum * moved);
                }
            },
        );
    }
}
