//! DARE with TIES' election: drop at random, rescale, elect a sign, add those that agree.
//!
//! # Formula
//! Changes are dropped and rescaled as in `dare`. For each element, the sign of `sum_i share_i c_i` over what is left is elected (positive where it is
//! zero), and `merged = base + scale * sum share_i c_i` over the changes that have this sign.
//!
//! # Source
//! Yu et al., 2024 (see `dare`), section 4, with TIES (Yadav et al., 2023) as the merge. TIES divides by the shares of those that agree; after random dropping
//! that would undo the rescaling, so the sum is not divided, as in `mergekit`, whose default for this method is the same.
//!
//! # Limits
//! As `dare` and `ties`.

use super::changes::Putting;
use super::dare::{self, DareRule};
use super::{MethodError, Rule, Setting};
use serde::{Deserialize, Serialize};

/// Drop, rescale, elect sign, add.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DareTies {
    /// The probability that a change is kept, in (0, 1].
    pub density: f64,
    /// Decides which are. Below 2^53, so that JSON can hold it.
    pub seed: u64,
    /// What the merged change is multiplied with.
    #[serde(default = "super::one")]
    pub scale: f64,
}

impl DareTies {
    pub(super) const NAME: &'static str = "dare-ties";

    pub(super) fn check(self) -> Result<(), MethodError> {
        dare::check(Self::NAME, self.density, self.seed, self.scale)
    }

    pub(super) fn rule(self, setting: &Setting<'_>) -> Box<dyn Rule> {
        Box::new(DareRule::new(setting, self.density, self.seed, self.scale, Putting::Electing))
    }
}
