//! DARE: drop changes at random, and rescale the rest.
//!
//! # Formula
//! `merged = base + scale * sum_i share_i m_i d_i / density`, where `d_i = x_i - base` and `m_i` is 1 with probability `density` and 0 otherwise, for
//! each element of each contribution by itself: 1 where its draw, a whole number below 2^32, is below `density * 2^32`.
//!
//! The draws come from Philox 4x32-10 (`crate::philox`) keyed by seed, contribution's name and tensor's name, at the element's index: the same
//! recipe drops the same changes on every machine.
//!
//! # Source
//! Yu, Yu, Yu, Huang, Li, "Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch", 2024, section 3. `mergekit`
//! rescales each tensor to keep its sum of magnitudes instead of dividing by the density; the two agree on average.
//!
//! # Limits
//! No robustness. Low densities make large changes larger: what is kept is multiplied by `1 / density`.

use super::changes::{Putting, merge_changes};
use super::{Demands, MethodError, Rule, Setting, unless_density, unless_scale};
use crate::block::Block;
use crate::philox::Draws;
use crate::simd::dispatch;
use serde::{Deserialize, Serialize};

/// Drop and rescale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dare {
    /// The probability that a change is kept, in (0, 1].
    pub density: f64,
    /// Decides which are. Below 2^53, so that JSON can hold it.
    pub seed: u64,
    /// What the merged change is multiplied with.
    #[serde(default = "super::one")]
    pub scale: f64,
}

/// Also the rule of `dare-ties`.
pub(super) struct DareRule {
    shares: Vec<f64>,
    /// For each tensor, one for each contribution.
    draws: Vec<Vec<Draws>>,
    density: f64,
    scale: f64,
    putting: Putting,
}

impl Dare {
    pub(super) const NAME: &'static str = "dare";

    pub(super) fn check(self) -> Result<(), MethodError> {
        check(Self::NAME, self.density, self.seed, self.scale)
    }

    pub(super) fn rule(self, setting: &Setting<'_>) -> Box<dyn Rule> {
        Box::new(DareRule::new(setting, self.density, self.seed, self.scale, Putting::Adding))
    }
}

/// What the family demands.
pub(super) const fn demands() -> Demands {
    Demands { base: true, ..Demands::PLAIN }
}

pub(super) fn check(method: &'static str, density: f64, seed: u64, scale: f64) -> Result<(), MethodError> {
    unless_density(method, density)?;
    unless_scale(method, scale)?;
    if seed < 1 << 53 {
        return Ok(());
    }
    let expected = "below 2^53".into();
    Err(MethodError::Parameter { method, parameter: "seed", expected, found: seed.to_string() })
}

impl DareRule {
    pub(super) fn new(setting: &Setting<'_>, density: f64, seed: u64, scale: f64, putting: Putting) -> Self {
        let shares = setting.contributors.iter().map(|contributor| contributor.share).collect();
        let of_tensor = |tensor: &tapestry_core::TensorSpec| {
            let draws = |name: &str| Draws::new(seed, &[name, &tensor.name]);
            setting.contributors.iter().map(|contributor| draws(&contributor.name)).collect()
        };
        let draws = setting.tensors.iter().map(of_tensor).collect();
        Self { shares, draws, density, scale, putting }
    }
}

impl Rule for DareRule {
    fn merge(&self, block: &Block<'_>, out: &mut [f64], _: &mut [&mut [f64]]) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most 2^32")]
        let limit = (self.density * 4_294_967_296.0) as u64;
        let prune = |contribution: usize, start: usize, changes: &mut [f64]| {
            let mut draws = [0; 512];
            let draws = &mut draws[..changes.len()];
            self.draws[block.tensor][contribution].fill(block.first + start as u64, draws);
            dispatch(
                #[inline(always)]
                || {
                    for (change, draw) in changes.iter_mut().zip(&*draws) {
                        *change = if u64::from(*draw) < limit { *change / self.density } else { 0.0 };
                    }
                },
            );
        };
        merge_changes(block, &self.shares, self.scale, self.putting, prune, out);
    }
}
