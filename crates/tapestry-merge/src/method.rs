//! The ways of merging. One file each; this one knows which there are.
//!
//! A method is configuration: its name and its parameters, as a recipe or a charter states them. Before a merge it says what
//! it [`demands`](Method::demands); from what a first look at the values gave (the [`Survey`]) it becomes a [`Rule`].

mod adaptive;
mod centred_clipping;
mod changes;
mod dare;
mod dare_ties;
mod diloco;
mod fedadam;
mod fedavg;
mod fedyogi;
mod geometric_median;
mod geometry;
mod krum;
mod linear;
mod median;
mod model_stock;
mod multi_krum;
mod norm_bounding;
mod order;
mod slerp;
mod task_arithmetic;
mod ties;
mod trimmed_mean;

pub use centred_clipping::CentredClipping;
pub use dare::Dare;
pub use dare_ties::DareTies;
pub use diloco::DiLoCo;
pub use fedadam::FedAdam;
pub use fedavg::FedAvg;
pub use fedyogi::FedYogi;
pub use geometric_median::GeometricMedian;
pub use krum::Krum;
pub use median::Median;
pub use model_stock::ModelStock;
pub use multi_krum::MultiKrum;
pub use norm_bounding::NormBounding;
pub use slerp::Slerp;
pub use task_arithmetic::TaskArithmetic;
pub use ties::Ties;
pub use trimmed_mean::TrimmedMean;

use crate::block::{Rule, Setting};
use crate::survey::{Survey, SurveyKind};
use serde::{Deserialize, Serialize};

/// A method and its parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "name")]
pub enum Method {
    /// The weighted mean.
    #[serde(rename = "fedavg")]
    FedAvg(FedAvg),
    /// The coordinate-wise median.
    #[serde(rename = "median")]
    Median(Median),
    /// The coordinate-wise trimmed mean.
    #[serde(rename = "trimmed-mean")]
    TrimmedMean(TrimmedMean),
    /// The point with the smallest weighted sum of distances.
    #[serde(rename = "geometric-median")]
    GeometricMedian(GeometricMedian),
    /// The contribution nearest to its neighbours.
    #[serde(rename = "krum")]
    Krum(Krum),
    /// The mean of the contributions nearest to their neighbours.
    #[serde(rename = "multi-krum")]
    MultiKrum(MultiKrum),
    /// The weighted mean of changes of bounded length.
    #[serde(rename = "norm-bounding")]
    NormBounding(NormBounding),
    /// The clipped mean round a centre that moves.
    #[serde(rename = "centred-clipping")]
    CentredClipping(CentredClipping),
    /// The base plus scaled changes.
    #[serde(rename = "task-arithmetic")]
    TaskArithmetic(TaskArithmetic),
    /// Trim, elect sign, merge.
    #[serde(rename = "ties")]
    Ties(Ties),
    /// Drop changes at random and rescale.
    #[serde(rename = "dare")]
    Dare(Dare),
    /// Drop, rescale, elect sign, add.
    #[serde(rename = "dare-ties")]
    DareTies(DareTies),
    /// A point on the arc between two models.
    #[serde(rename = "slerp")]
    Slerp(Slerp),
    /// Between base and mean, by agreement.
    #[serde(rename = "model-stock")]
    ModelStock(ModelStock),
    /// Outer Nesterov momentum.
    #[serde(rename = "diloco")]
    DiLoCo(DiLoCo),
    /// Adaptive outer steps.
    #[serde(rename = "fedadam")]
    FedAdam(FedAdam),
    /// Adaptive outer steps with a slower second moment.
    #[serde(rename = "fedyogi")]
    FedYogi(FedYogi),
}

/// What a method needs before it can run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Demands {
    /// Whether it works on changes to a base.
    pub base: bool,
    /// The fewest contributions that it can work with.
    pub min_contributions: usize,
    /// The most.
    pub max_contributions: usize,
    /// Whether the shares of the contributions have an effect.
    pub uses_shares: bool,
    /// How many vectors of the size of the model it keeps from one round to the next.
    pub num_states: usize,
    /// What must be known of all values before the first is merged.
    pub survey: SurveyKind,
}

impl Demands {
    /// What most methods demand: one contribution, shares that count; no base, no state, no survey.
    pub const PLAIN: Self = Self {
        base: false,
        min_contributions: 1,
        max_contributions: usize::MAX,
        uses_shares: true,
        num_states: 0,
        survey: SurveyKind::Nothing,
    };
}

/// Why a method cannot be used as it was asked for.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum MethodError {
    /// A parameter is outside its range.
    #[error("{method}: parameter `{parameter}` must be {expected}; found {found}")]
    Parameter {
        /// The method.
        method: &'static str,
        /// The parameter.
        parameter: &'static str,
        /// What is possible.
        expected: String,
        /// What was found.
        found: String,
    },
    /// Too few contributions for what the method promises.
    #[error("{method} needs at least {needed} contributions to keep its promise and has {found}; {remedy}")]
    TooFew {
        /// The method.
        method: &'static str,
        /// The fewest.
        needed: usize,
        /// How many there are.
        found: usize,
        /// What to do.
        remedy: String,
    },
    /// More contributions than the method is defined for.
    #[error("{method} is defined for {allowed} contributions and has {found}; use another method, or merge in steps")]
    TooMany {
        /// The method.
        method: &'static str,
        /// The most.
        allowed: usize,
        /// How many there are.
        found: usize,
    },
    /// There is no base to take changes from.
    #[error("{method} merges changes to a base and has none; name the `base` that the contributions were trained from")]
    NoBase {
        /// The method.
        method: &'static str,
    },
    /// Weights that would have no effect.
    #[error("{method} counts every contribution the same; leave the weights out, or use a method that obeys them")]
    SharesWithoutEffect {
        /// The method.
        method: &'static str,
    },
}

impl MethodError {
    /// Refuses a count of zero.
    fn unless_at_least_one(method: &'static str, parameter: &'static str, count: usize) -> Result<(), Self> {
        if count >= 1 {
            return Ok(());
        }
        Err(Self::Parameter { method, parameter, expected: "at least 1".into(), found: count.to_string() })
    }

    /// Refuses a count of zero and one above `max`.
    fn unless_within(method: &'static str, parameter: &'static str, found: usize, max: usize) -> Result<(), Self> {
        if (1..=max).contains(&found) {
            return Ok(());
        }
        let expected = format!("between 1 and {max}");
        Err(Self::Parameter { method, parameter, expected, found: found.to_string() })
    }

    /// Refuses a length or a tolerance that is not a positive number.
    fn unless_positive(method: &'static str, parameter: &'static str, found: f64) -> Result<(), Self> {
        if found.is_finite() && found > 0.0 {
            return Ok(());
        }
        let expected = "a number above 0".into();
        Err(Self::Parameter { method, parameter, expected, found: found.to_string() })
    }
}

impl Method {
    /// The method's name in recipes and charters.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::FedAvg(_) => FedAvg::NAME,
            Self::Median(_) => Median::NAME,
            Self::TrimmedMean(_) => TrimmedMean::NAME,
            Self::GeometricMedian(_) => GeometricMedian::NAME,
            Self::Krum(_) => Krum::NAME,
            Self::MultiKrum(_) => MultiKrum::NAME,
            Self::NormBounding(_) => NormBounding::NAME,
            Self::CentredClipping(_) => CentredClipping::NAME,
            Self::TaskArithmetic(_) => TaskArithmetic::NAME,
            Self::Ties(_) => Ties::NAME,
            Self::Dare(_) => Dare::NAME,
            Self::DareTies(_) => DareTies::NAME,
            Self::Slerp(_) => Slerp::NAME,
            Self::ModelStock(_) => ModelStock::NAME,
            Self::DiLoCo(_) => DiLoCo::NAME,
            Self::FedAdam(_) => FedAdam::NAME,
            Self::FedYogi(_) => FedYogi::NAME,
        }
    }

    /// What the method needs.
    #[must_use]
    pub fn demands(&self) -> Demands {
        match self {
            Self::FedAvg(_) => Demands::PLAIN,
            Self::Median(method) => method.demands(),
            Self::TrimmedMean(method) => method.demands(),
            Self::GeometricMedian(method) => method.demands(),
            Self::Krum(method) => method.demands(),
            Self::MultiKrum(method) => method.demands(),
            Self::NormBounding(method) => method.demands(),
            Self::CentredClipping(method) => method.demands(),
            Self::TaskArithmetic(_) => TaskArithmetic::demands(),
            Self::Ties(method) => method.demands(),
            Self::Dare(_) | Self::DareTies(_) => dare::demands(),
            Self::Slerp(_) => Slerp::demands(),
            Self::ModelStock(_) => ModelStock::demands(),
            Self::DiLoCo(method) => method.demands(),
            Self::FedAdam(_) | Self::FedYogi(_) => adaptive::demands(),
        }
    }

    /// The same method for one round of many. A method that draws at random draws anew: its seed is the stated one plus the
    /// round's number (modulo 2^53), or else the same elements of a contribution would be dropped for ever.
    #[must_use]
    pub fn in_round(mut self, round: u32) -> Self {
        if let Self::Dare(Dare { seed, .. }) | Self::DareTies(DareTies { seed, .. }) = &mut self {
            *seed = seed.wrapping_add(round.into()) % (1 << 53);
        }
        self
    }

    /// Checks the parameters alone: whether the method makes sense for any number of contributions.
    ///
    /// # Errors
    /// [`MethodError::Parameter`].
    pub fn check(&self) -> Result<(), MethodError> {
        match self {
            Self::FedAvg(_) | Self::Median(_) | Self::Slerp(_) | Self::ModelStock(_) => Ok(()),
            Self::TrimmedMean(method) => method.check(),
            Self::GeometricMedian(method) => method.check(),
            Self::Krum(method) => method.check(),
            Self::MultiKrum(method) => method.check(),
            Self::NormBounding(method) => method.check(),
            Self::CentredClipping(method) => method.check(),
            Self::TaskArithmetic(method) => method.check(),
            Self::Ties(method) => method.check(),
            Self::Dare(method) => method.check(),
            Self::DareTies(method) => method.check(),
            Self::DiLoCo(method) => method.check(),
            Self::FedAdam(method) => method.check(),
            Self::FedYogi(method) => method.check(),
        }
    }

    /// Checks that the method can merge these contributions.
    ///
    /// # Errors
    /// [`MethodError`].
    pub fn check_setting(
        &self,
        num_contributions: usize,
        has_base: bool,
        has_equal_shares: bool,
    ) -> Result<(), MethodError> {
        self.check()?;
        let (method, demands) = (self.name(), self.demands());
        if demands.base && !has_base {
            return Err(MethodError::NoBase { method });
        }
        self.check_number(num_contributions)?;
        if !demands.uses_shares && !has_equal_shares {
            return Err(MethodError::SharesWithoutEffect { method });
        }
        Ok(())
    }

    fn check_number(&self, found: usize) -> Result<(), MethodError> {
        let (method, demands) = (self.name(), self.demands());
        if found < demands.min_contributions {
            let remedy = "add contributions, ask for less protection, or use a method that needs fewer".into();
            return Err(MethodError::TooFew { method, needed: demands.min_contributions, found, remedy });
        }
        if found > demands.max_contributions {
            return Err(MethodError::TooMany { method, allowed: demands.max_contributions, found });
        }
        Ok(())
    }

    /// The rule for each element, now that the survey is done.
    ///
    /// # Errors
    /// [`MethodError`], for callers that did not ask [`Self::check_setting`] first.
    ///
    /// # Panics
    /// Where the survey is not the one that the method [`demands`](Self::demands).
    pub fn rule(&self, setting: &Setting<'_>, survey: &Survey) -> Result<Box<dyn Rule>, MethodError> {
        self.check()?;
        self.check_number(setting.contributors.len())?;
        match self {
            Self::FedAvg(method) => Ok(method.rule(setting)),
            Self::Median(method) => Ok(method.rule(setting)),
            Self::TrimmedMean(method) => Ok(method.rule(setting)),
            Self::GeometricMedian(method) => Ok(method.rule(setting, survey)),
            Self::Krum(method) => Ok(method.rule(setting, survey)),
            Self::MultiKrum(method) => Ok(method.rule(setting, survey)),
            Self::NormBounding(method) => Ok(method.rule(setting, survey)),
            Self::CentredClipping(method) => Ok(method.rule(setting, survey)),
            Self::TaskArithmetic(method) => Ok(method.rule(setting)),
            Self::Ties(method) => Ok(method.rule(setting, survey)),
            Self::Dare(method) => Ok(method.rule(setting)),
            Self::DareTies(method) => Ok(method.rule(setting)),
            Self::Slerp(_) => Ok(Slerp::rule(setting, survey)),
            Self::ModelStock(_) => Ok(ModelStock::rule(setting, survey)),
            Self::DiLoCo(method) => Ok(method.rule(setting)),
            Self::FedAdam(method) => Ok(method.rule(setting)),
            Self::FedYogi(method) => Ok(method.rule(setting)),
        }
    }
}

/// A scale that changes nothing.
const fn one() -> f64 {
    1.0
}

/// Refuses a share of a tensor that is none.
fn unless_density(method: &'static str, found: f64) -> Result<(), MethodError> {
    if found > 0.0 && found <= 1.0 {
        return Ok(());
    }
    let expected = "above 0 and at most 1".into();
    Err(MethodError::Parameter { method, parameter: "density", expected, found: found.to_string() })
}

/// Refuses what cannot be multiplied with.
fn unless_scale(method: &'static str, found: f64) -> Result<(), MethodError> {
    if found.is_finite() {
        return Ok(());
    }
    let expected = "a finite number".into();
    Err(MethodError::Parameter { method, parameter: "scale", expected, found: found.to_string() })
}

/// Refuses a share of a state that does not fade.
fn unless_decay(method: &'static str, parameter: &'static str, found: f64) -> Result<(), MethodError> {
    if (0.0..1.0).contains(&found) {
        return Ok(());
    }
    let expected = "at least 0 and below 1".into();
    Err(MethodError::Parameter { method, parameter, expected, found: found.to_string() })
}

/// The weighted mean of a block: what the outer optimisers take as the members' proposal.
fn mean(block: &crate::Block<'_>, shares: &[f64], out: &mut [f64]) {
    linear::Linear::uniform(linear::Coefficients { base: 0.0, inputs: shares.to_vec() }).merge(block, out, &mut []);
}
