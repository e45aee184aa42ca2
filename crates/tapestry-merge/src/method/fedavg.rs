//! Federated averaging: the weighted mean of the contributions.
//!
//! # Formula
//! `merged = sum_i share_i * x_i`.
//!
//! # Source
//! McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
//! Data", 2017, Algorithm 1. There the shares are proportional to the number of examples; here they are what the charter's
//! policy gives.
//!
//! # Limits
//! One contribution can move the result anywhere, in proportion to its share: what protects the base is screening and the
//! influence cap.

use super::linear::{Coefficients, Linear};
use crate::block::{Rule, Setting};
use serde::{Deserialize, Serialize};

/// The weighted mean. It has no parameters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FedAvg {}

impl FedAvg {
    pub(super) const NAME: &'static str = "fedavg";

    pub(super) fn rule(self, setting: &Setting<'_>) -> Box<dyn Rule> {
        let inputs = setting.contributors.iter().map(|contributor| contributor.share).collect();
        Box::new(Linear::uniform(Coefficients { base: 0.0, inputs }))
    }
}
