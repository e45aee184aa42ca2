//! BLAKE3 of a whole file from the hashes of its parts, computed in any order and on any thread.
//!
//! BLAKE3 is a tree: a part whose length is a power of two, and which lies on a multiple of it, is a subtree of the whole.
//!
//! # Source
//! O'Connor, Aumasson, Neves, Wilcox-O'Hearn, "BLAKE3: one function, fast everywhere", section 2.1.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt as _, Mode, merge_subtrees_non_root, merge_subtrees_root};
use tapestry_core::Digest;

/// The hash of one part of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PartHash {
    /// As a subtree of a larger file.
    pub(crate) subtree: ChainingValue,
}

impl PartHash {
    /// The hash of `bytes`, which begin at `offset` in the file. All parts but the last have the same power of two as their length.
    pub(crate) fn new(offset: u64, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new();
        hasher.set_input_offset(offset).update(bytes);
        Self { subtree: hasher.finalize_non_root() }
    }
}

/// The hash of a file of more than one part.
///
/// # Panics
/// Where there are fewer than two parts: the hash of a small file is that of its bytes.
pub(crate) fn whole(parts: &[PartHash]) -> Digest {
    assert!(parts.len() > 1, "the root joins two subtrees");
    let (left, right) = parts.split_at(left_len(parts.len()));
    let hash = merge_subtrees_root(&subtree(left), &subtree(right), Mode::Hash);
    Digest::from_bytes(*hash.as_bytes())
}

fn subtree(parts: &[PartHash]) -> ChainingValue {
    if let [part] = parts {
        return part.subtree;
    }
    let (left, right) = parts.split_at(left_len(parts.len()));
    merge_subtrees_non_root(&subtree(left), &subtree(right), Mode::Hash)
}

/// The largest power of two that leaves something on the right.
const fn left_len(num_parts: usize) -> usize {
    num_parts.next_power_of_two() / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_hashes_make_the_hash_of_the_file() {
        const PART: usize = 4096;
        let content: Vec<u8> = (0..PART * 9).map(|i| u8::try_from(i * i % 251).expect("below 251")).collect();
        for len in [PART + 1, 2 * PART, 2 * PART + 1, 3 * PART, 5 * PART - 7, 8 * PART, 8 * PART + 1, 9 * PART] {
            let content = &content[..len];
            let parts: Vec<_> =
                content.chunks(PART).enumerate().map(|(i, part)| PartHash::new((i * PART) as u64, part)).collect();
            assert_eq!(whole(&parts), Digest::of(content), "{len}");
        }
    }
}
