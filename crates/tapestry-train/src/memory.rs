//! How much memory a job takes, before it takes it.

use crate::TrainError;
use std::fs;
use tapestry_weights::{DecoderShape, expected_tensors};

/// An estimate in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryEstimate {
    /// Weights, their gradients and AdamW's two moments: four numbers of 32 bits for each parameter.
    pub parameters: u64,
    /// What the forward pass keeps for the gradient.
    pub activations: u64,
    /// What exists for a moment: gradients of the largest matrices, logits, a block under way.
    pub working: u64,
}

impl MemoryEstimate {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.parameters.saturating_add(self.activations).saturating_add(self.working)
    }
}

/// Logits that exist at once ([`tapestry_kernels::ops::linear_cross_entropy`] works in blocks).
const LOGITS_BYTES: u64 = 32 << 20;

/// The memory of training a model on `num_windows` windows of `window` tokens at a time.
///
/// Of each layer and token the blocks keep their two inputs and normed inputs (4 d), queries and mixed values (2 h e), keys and values (2 k e), and the two inner
/// values of the feed-forward block (2 f), 4 bytes each; with `recompute` only the two inputs.
#[must_use]
pub fn estimate_memory(shape: &DecoderShape, num_windows: usize, window: usize, recompute: bool) -> MemoryEstimate {
    let num_parameters: u64 = expected_tensors(shape).iter().filter_map(tapestry_core::TensorSpec::num_elements).sum();
    let tokens = num_windows as u64 * window as u64;
    let (d, f, v) = (shape.hidden_size as u64, shape.intermediate_size as u64, shape.vocab_size as u64);
    let q = (shape.num_attention_heads * shape.head_dim) as u64;
    let kv = (shape.num_key_value_heads * shape.head_dim) as u64;
    let of_block = 4 * d + 2 * q + 2 * kv + 2 * f;
    let of_layer = if recompute { 2 * d } else { of_block };
    let layers = shape.num_hidden_layers as u64;
    // The block under way holds about as much again as it keeps; the head's gradient is a second table.
    let working = 4 * (2 * tokens * of_block + v * d + tokens * 4 * d) + LOGITS_BYTES;
    MemoryEstimate {
        parameters: num_parameters.saturating_mul(16),
        activations: (4 * tokens).saturating_mul(of_layer * layers + 2 * d),
        working,
    }
}

/// Memory that this process may still take, where the system tells: what is available, or what its control group leaves.
fn available_bytes() -> Option<u64> {
    let meminfo = fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let available = line.split_whitespace().next()?.parse::<u64>().ok()? << 10;
    let number = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    let group = number("memory.max").map(|max| max.saturating_sub(number("memory.current").unwrap_or(0)));
    Some(group.map_or(available, |group| group.min(available)))
}

/// Refuses a job that cannot fit.
///
/// # Errors
/// [`TrainError::Memory`] with the numbers and with what would help.
pub(crate) fn check(estimate: &MemoryEstimate) -> Result<(), TrainError> {
    match available_bytes() {
        Some(available) if estimate.total() > available => {
            Err(TrainError::Memory { estimate: *estimate, available_bytes: available })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapestry_model::DecoderConfig;

    #[test]
    fn more_of_anything_takes_more_and_recomputation_less() {
        let shape = DecoderConfig::tiny(1000);
        let total = |windows, window, recompute| estimate_memory(&shape, windows, window, recompute).total();
        assert!(total(2, 64, false) < total(4, 64, false) && total(2, 64, false) < total(2, 128, false));
        assert!(total(64, 256, true) < total(64, 256, false));
        let kept = |recompute| estimate_memory(&shape, 64, 256, recompute).activations;
        assert!(kept(true) < kept(false) / 4);
        let parameters = estimate_memory(&shape, 1, 2, false).parameters;
        assert_eq!(parameters % 16, 0);
        let refused = check(&MemoryEstimate { parameters: u64::MAX / 2, activations: 1, working: 1 });
        if available_bytes().is_some() {
            let error = refused.expect_err("nothing has so much").to_string();
            assert!(error.contains("batch_windows") && error.contains("checkpoint_activations"), "{error}");
        }
    }
}
