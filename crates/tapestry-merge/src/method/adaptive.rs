//! What FedAdam and FedYogi share.
//!
//! The second moment begins at `tau^2`. The state holds what it is beyond that, so that a state of zeros is the beginning.

use super::{Demands, MethodError, Rule, Setting};
use crate::block::Block;
use crate::simd::dispatch;

/// The outer learning rate of the paper's middle ground; it depends on the task more than anything else here.
pub(super) const fn default_learning_rate() -> f64 {
    0.01
}

pub(super) const fn default_beta1() -> f64 {
    0.9
}

pub(super) const fn default_beta2() -> f64 {
    0.99
}

pub(super) const fn default_tau() -> f64 {
    1e-3
}

/// Parameters and shares; `YOGI` decides how the second moment moves.
pub(super) struct Adaptive<const YOGI: bool> {
    pub(super) shares: Vec<f64>,
    pub(super) learning_rate: f64,
    pub(super) beta1: f64,
    pub(super) beta2: f64,
    pub(super) tau: f64,
}

pub(super) const fn demands() -> Demands {
    Demands { base: true, num_states: 2, ..Demands::PLAIN }
}

pub(super) fn check(method: &'static str, learning_rate: f64, betas: [f64; 2], tau: f64) -> Result<(), MethodError> {
    MethodError::unless_positive(method, "learning_rate", learning_rate)?;
    super::unless_decay(method, "beta1", betas[0])?;
    super::unless_decay(method, "beta2", betas[1])?;
    MethodError::unless_positive(method, "tau", tau)
}

pub(super) fn shares(setting: &Setting<'_>) -> Vec<f64> {
    setting.contributors.iter().map(|contributor| contributor.share).collect()
}

impl<const YOGI: bool> Rule for Adaptive<YOGI> {
    fn merge(&self, block: &Block<'_>, out: &mut [f64], states_out: &mut [&mut [f64]]) {
        super::mean(block, &self.shares, out);
        let [first_out, second_out] = states_out else { panic!("two rows of state") };
        let (base, first, second) = (block.base, block.states[0], block.states[1]);
        let tau2 = self.tau * self.tau;
        dispatch(
            #[inline(always)]
            || {
                for at in 0..out.len() {
                    let base = f64::from(base[at]);
                    let change = out[at] - base;
                    let square = change * change;
                    let m = self.beta1 * f64::from(first[at]) + (1.0 - self.beta1) * change;
                    // Rounding the state to f32 may leave a hair less than nothing.
                    let v = (f64::from(second[at]) + tau2).max(0.0);
                    let v = if YOGI {
                        let beyond = v - square;
                        let sign = if beyond > 0.0 {
                            1.0
                        } else if beyond < 0.0 {
                            -1.0
                        } else {
                            0.0
                        };
                        v - (1.0 - self.beta2) * square * sign
                    } else {
                        self.beta2 * v + (1.0 - self.beta2) * square
                    };
                    first_out[at] = m;
                    second_out[at] = v - tau2;
                    out[at] = base + self.learning_rate * m / (v.sqrt() + self.tau);
                }
            },
        );
    }
}
