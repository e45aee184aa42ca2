//! The learning rate over the steps.

/// Where the cosine ends, as a share of the largest rate.
const FINAL_SHARE: f64 = 0.1;

/// The rate of update `step` (from 0): a line up to `largest` over `warmup` updates, then half a cosine down to a tenth.
///
/// # Source
/// Loshchilov and Hutter, "SGDR", equation 5, without restarts.
#[expect(clippy::cast_precision_loss, reason = "steps are far below 2^52")]
pub(crate) fn learning_rate(step: u64, num_steps: u64, warmup: u64, largest: f64) -> f64 {
    if step < warmup {
        return largest * (step + 1) as f64 / (warmup + 1) as f64;
    }
    let after = (num_steps.saturating_sub(warmup + 1)).max(1) as f64;
    let share = ((step - warmup) as f64 / after).min(1.0);
    let cosine = 0.5 * (1.0 + (std::f64::consts::PI * share).cos());
    largest * (FINAL_SHARE + (1.0 - FINAL_SHARE) * cosine)
}

#[cfg(test)]
mod tests {
    use super::learning_rate;

    #[test]
    fn it_rises_then_falls_to_a_tenth() {
        let rates: Vec<f64> = (0..100).map(|step| learning_rate(step, 100, 10, 1.0)).collect();
        assert!(rates[..=10].windows(2).all(|pair| pair[0] < pair[1]));
        assert!(rates[10..].windows(2).all(|pair| pair[0] > pair[1]));
        assert!((rates[10] - 1.0).abs() < 1e-12 && (rates[99] - 0.1).abs() < 1e-12 && rates[0] > 0.0);
        assert!((learning_rate(0, 1, 0, 1.0) - 1.0).abs() < 1e-12);
    }
}
