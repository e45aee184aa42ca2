//! What is trained on, and what is set aside.

use crate::Validation;
use tapestry_core::Digest;

/// Whether an item is set aside: its own bytes decide, so that equal ones are on one side, whatever file they are in.
#[expect(clippy::cast_precision_loss, reason = "53 bits are kept exactly")]
fn is_set_aside(bytes: &[u8], share: f64) -> bool {
    let digest = Digest::of(bytes);
    let (first, _) = digest.as_bytes().split_first_chunk::<8>().expect("a digest has 32 bytes");
    ((u64::from_le_bytes(*first) >> 11) as f64 / (1u64 << 53) as f64) < share
}

/// Items to train on and items to measure on.
pub(crate) fn split<T>(
    items: Vec<T>,
    validation: Option<&Validation>,
    bytes: impl Fn(&T) -> Vec<u8>,
) -> (Vec<T>, Vec<T>) {
    match validation.and_then(|validation| validation.share) {
        None => (items, vec![]),
        Some(share) => items.into_iter().partition(|item| !is_set_aside(&bytes(item), share)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_items_are_on_one_side_and_the_share_is_kept() {
        let items: Vec<u32> = (0..20_000).map(|i| i / 2).collect();
        let validation = Validation { share: Some(0.1), files: vec![], every: 1, max_batches: None };
        let (trained, aside) = split(items, Some(&validation), |i| i.to_le_bytes().to_vec());
        assert!((1800..2200).contains(&aside.len()), "{}", aside.len());
        assert!(aside.iter().all(|item| trained.binary_search(item).is_err()), "nothing is on both sides");
    }
}
