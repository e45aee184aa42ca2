//! Shares under an influence cap.

use super::WeightError;

/// The shares that are nearest to `raw / sum(raw)` with none above `cap`, each with whether the cap holds it.
///
/// # Formula
/// `w_i = min(cap, c raw_i)` with the one `c` for which they sum to one. So whoever is below the cap keeps the proportions of the raw weights, and what the cap takes from
/// some goes to all others in proportion. Among all shares that sum to one under the cap, these minimise the relative entropy to `raw / sum(raw)`. Solved exactly by going through the
/// raw weights from the largest (water-filling), not by repeating.
///
/// The sum is one to within a few units of the last place of an `f64`.
///
/// # Errors
/// [`WeightError::Empty`]; [`WeightError::InfeasibleCap`] where `cap` is below one over their number. One part in 10^12 of slack: a charter that writes 0.333333333333 for a third
/// means a third.
///
/// # Panics
/// Where a raw weight is not above zero: the ways of weighing give none.
#[expect(clippy::cast_precision_loss, reason = "a number of members")]
pub fn capped(raw: &[f64], cap: f64) -> Result<Vec<(f64, bool)>, WeightError> {
    let num_members = raw.len();
    if num_members == 0 {
        return Err(WeightError::Empty);
    }
    assert!(raw.iter().all(|raw| *raw > 0.0 && raw.is_finite()), "raw weights are above zero: {raw:?}");
    let smallest_feasible = 1.0 / num_members as f64;
    if cap.is_nan() || smallest_feasible > cap * (1.0 + 1e-12) {
        return Err(WeightError::InfeasibleCap { cap, num_members, smallest_feasible });
    }
    // What equal shares make of a cap that is a hair below them is equal shares.
    let cap = cap.max(smallest_feasible);
    let mut order: Vec<usize> = (0..num_members).collect();
    order.sort_by(|a, b| raw[*b].total_cmp(&raw[*a]));
    // Summed from the smallest, so that little is lost.
    let mut rest_sums = vec![0.0; num_members + 1];
    for (at, member) in order.iter().enumerate().rev() {
        rest_sums[at] = rest_sums[at + 1] + raw[*member];
    }
    let mut weights = vec![(cap, true); num_members];
    for (num_capped, sum) in rest_sums[..num_members].iter().enumerate() {
        // Where those at the cap have everything but a rounding error, the others still have some: no weight is zero, and none is below it.
        let left = (1.0 - num_capped as f64 * cap).max(f64::EPSILON / 2.0);
        // The largest that is left decides whether anybody who is left is above the cap.
        if raw[order[num_capped]] / sum * left <= cap {
            for member in &order[num_capped..] {
                weights[*member] = (raw[*member] / sum * left, false);
            }
            return Ok(weights);
        }
    }
    // All are at the cap, which is then one over their number.
    Ok(weights.into_iter().map(|(weight, _)| (weight, false)).collect())
}
