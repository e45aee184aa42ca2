//! Merges that are a linear combination of base and contributions, with one set of coefficients for each tensor.

use crate::block::{Block, Rule};
use crate::simd::dispatch;

/// Elements whose sums stay in registers while the contributions are gone through.
const LANES: usize = 32;

/// `coefficient * value`, summed over the base and then over the contributions in order, those left out whose coefficient is
/// zero. At least one coefficient is not.
///
/// Each product and each sum is rounded once, in `f64`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Linear {
    /// For each tensor; or one set for all tensors.
    per_tensor: Vec<Coefficients>,
}

/// The coefficients of one tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Coefficients {
    /// Of the base.
    pub(super) base: f64,
    /// Of each contribution.
    pub(super) inputs: Vec<f64>,
}

impl Linear {
    /// The same coefficients everywhere.
    pub(super) fn uniform(coefficients: Coefficients) -> Self {
        Self { per_tensor: vec![coefficients] }
    }

    /// Coefficients for each tensor.
    pub(super) const fn by_tensor(per_tensor: Vec<Coefficients>) -> Self {
        Self { per_tensor }
    }
}

impl Rule for Linear {
    fn merge(&self, block: &Block<'_>, out: &mut [f64], _: &mut [&mut [f64]]) {
        let coefficients = if let [all] = &self.per_tensor[..] { all } else { &self.per_tensor[block.tensor] };
        let mut rows: Vec<(&[f32], f64)> = vec![];
        if coefficients.base != 0.0 {
            rows.push((block.base, coefficients.base));
        }
        let inputs = block.inputs.iter().copied().zip(coefficients.inputs.iter().copied());
        rows.extend(inputs.filter(|(_, coefficient)| *coefficient != 0.0));
        dispatch(
            #[inline(always)]
            || combine(&rows, out),
        );
    }
}

#[inline(always)]
fn combine(rows: &[(&[f32], f64)], out: &mut [f64]) {
    let (first, rest) = rows.split_first().expect("one coefficient is not zero");
    let len = out.len();
    assert!(rows.iter().all(|(row, _)| row.len() == len), "rows of one block");
    let whole = len - len % LANES;
    for start in (0..whole).step_by(LANES) {
        let mut sums = [0.0; LANES];
        // Not added to zero, which would turn a negative zero into a positive one.
        for (sum, value) in sums.iter_mut().zip(&first.0[start..start + LANES]) {
            *sum = first.1 * f64::from(*value);
        }
        for (row, coefficient) in rest {
            for (sum, value) in sums.iter_mut().zip(&row[start..start + LANES]) {
                *sum += coefficient * f64::from(*value);
            }
        }
        out[start..start + LANES].copy_from_slice(&sums);
    }
    for at in whole..len {
        let sum = first.1 * f64::from(first.0[at]);
        out[at] = rest.iter().fold(sum, |sum, (row, coefficient)| sum + coefficient * f64::from(row[at]));
    }
}
