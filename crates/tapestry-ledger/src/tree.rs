//! The Merkle tree of RFC 6962 (section 2.1) over the entries of a log, and the two proofs that it gives.
//!
//! Leaves are hashed as SHA-256(0x00 || leaf), inner nodes as SHA-256(0x01 || left || right), so that neither can pass for
//! the other. An *inclusion proof* shows that a leaf is in a tree of which only the root is known, a *consistency proof*
//! that one tree begins with all of another: nothing was changed, dropped or moved. Both have a logarithmic number of hashes.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;

/// A SHA-256 hash of a Merkle tree: of a leaf, an inner node, or a whole tree. Written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeHash([u8; 32]);

/// A text that is not a hash.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("expected a hash of 64 lower-case hexadecimal digits, found {found:?}")]
pub struct ParseHashError {
    found: String,
}

impl TreeHash {
    /// The hash of a leaf (RFC 6962, 2.1).
    #[must_use]
    pub fn of_leaf(content: &[u8]) -> Self {
        Self(Sha256::new().chain_update([0]).chain_update(content).finalize().into())
    }

    /// The hash of an inner node (RFC 6962, 2.1).
    #[must_use]
    pub fn of_node(left: &Self, right: &Self) -> Self {
        let mut both = [1; 65];
        both[1..33].copy_from_slice(&left.0);
        both[33..].copy_from_slice(&right.0);
        Self(Sha256::digest(both).into())
    }

    /// The root of the tree without leaves: the hash of nothing (RFC 6962, 2.1).
    #[must_use]
    pub fn of_nothing() -> Self {
        Self(Sha256::digest([]).into())
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// A hash from its 32 bytes.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The first 12 hexadecimal digits, for people; never for comparing.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }
}

impl fmt::Display for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for TreeHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TreeHash({self})")
    }
}

impl FromStr for TreeHash {
    type Err = ParseHashError;

    fn from_str(text: &str) -> Result<Self, ParseHashError> {
        let wrong = || ParseHashError { found: text.chars().take(80).collect() };
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| wrong())?;
        Ok(Self(bytes))
    }
}

impl Serialize for TreeHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for TreeHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// The right edge of a growing tree: the roots of its complete subtrees, one for each bit of its size. All that is needed to
/// go on, and to know the root.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// From the largest subtree to the smallest.
    roots: Vec<TreeHash>,
}

impl Frontier {
    /// The number of leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: TreeHash) {
        self.push_subtree(leaf, 0);
    }

    /// Adds a complete subtree of `2^height` leaves.
    ///
    /// # Panics
    /// Where the tree so far does not end at a multiple of that: a mistake of the caller.
    pub fn push_subtree(&mut self, root: TreeHash, height: u32) {
        assert!(self.size.trailing_zeros() >= height, "a subtree of height {height} begins at {}", self.size);
        let mut root = root;
        let mut rest = self.size >> height;
        while rest & 1 == 1 {
            let left = self.roots.pop().expect("one root for each bit of the size");
            root = TreeHash::of_node(&left, &root);
            rest >>= 1;
        }
        self.roots.push(root);
        self.size += 1 << height;
    }

    /// The root of the tree.
    #[must_use]
    pub fn root(&self) -> TreeHash {
        let mut roots = self.roots.iter().rev();
        let Some(last) = roots.next() else { return TreeHash::of_nothing() };
        roots.fold(*last, |right, left| TreeHash::of_node(left, &right))
    }
}

/// A whole tree: the hashes of all complete subtrees, about 64 bytes a leaf. Gives roots and proofs for every size up to its own.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// `levels[h][i]` is the root of leaves `i * 2^h .. (i + 1) * 2^h`.
    levels: Vec<Vec<TreeHash>>,
}

impl Tree {
    /// The number of leaves.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.levels.first().map_or(0, |leaves| leaves.len() as u64)
    }

    /// Adds a leaf.
    pub fn push(&mut self, leaf: TreeHash) {
        let mut hash = leaf;
        for height in 0.. {
            if self.levels.len() == height {
                self.levels.push(vec![]);
            }
            let level = &mut self.levels[height];
            level.push(hash);
            let [.., left, right] = level.as_slice() else { return };
            if level.len() % 2 == 1 {
                return;
            }
            hash = TreeHash::of_node(left, right);
        }
    }

    /// The hashes of complete subtrees of `2^height` leaves, in order.
    #[must_use]
    pub fn level(&self, height: usize) -> &[TreeHash] {
        self.levels.get(height).map_or(&[], Vec::as_slice)
    }

    /// The root of the first `size` leaves; none where there are fewer.
    #[must_use]
    pub fn root(&self, size: u64) -> Option<TreeHash> {
        match size {
            0 => Some(TreeHash::of_nothing()),
            _ if size > self.size() => None,
            _ => Some(self.range(0, size)),
        }
    }

    /// MTH of RFC 6962 over leaves `from..to`, a range that the recursion of 2.1 reaches, of at least one leaf.
    fn range(&self, from: u64, to: u64) -> TreeHash {
        let count = to - from;
        if count.is_power_of_two() && from.is_multiple_of(count) {
            let index = usize::try_from(from / count).expect("a tree in memory");
            return self.levels[count.trailing_zeros() as usize][index];
        }
        let middle = from + split(count);
        TreeHash::of_node(&self.range(from, middle), &self.range(middle, to))
    }

    /// The audit path of leaf `index` (from 0) in the tree of the first `size` leaves (RFC 6962, 2.1.1); none where there is
    /// no such leaf.
    #[must_use]
    pub fn inclusion(&self, index: u64, size: u64) -> Option<Vec<TreeHash>> {
        if index >= size || size > self.size() {
            return None;
        }
        let (mut from, mut to, mut path) = (0, size, vec![]);
        while to - from > 1 {
            let middle = from + split(to - from);
            if index < middle {
                path.push(self.range(middle, to));
                to = middle;
            } else {
                path.push(self.range(from, middle));
                from = middle;
            }
        }
        path.reverse();
        Some(path)
    }

    /// The proof that the tree of the first `size` leaves begins with the first `old` (RFC 6962, 2.1.2); none where there are
    /// not so many. Empty where the two are the same, or the older has no leaf.
    #[must_use]
    pub fn consistency(&self, old: u64, size: u64) -> Option<Vec<TreeHash>> {
        if old > size || size > self.size() {
            return None;
        }
        if old == 0 || old == size {
            return Some(vec![]);
        }
        let (mut from, mut to, mut is_whole, mut path) = (0, size, true, vec![]);
        // SUBPROOF(m, D[from..to], b): until the older tree ends where the range does.
        while old != to {
            let middle = from + split(to - from);
            if old <= middle {
                path.push(self.range(middle, to));
                to = middle;
            } else {
                path.push(self.range(from, middle));
                from = middle;
                is_whole = false;
            }
        }
        if !is_whole {
            path.push(self.range(from, to));
        }
        path.reverse();
        Some(path)
    }
}

impl Extend<TreeHash> for Tree {
    fn extend<I: IntoIterator<Item = TreeHash>>(&mut self, leaves: I) {
        leaves.into_iter().for_each(|leaf| self.push(leaf));
    }
}

/// The largest power of two below `count`, which is at least 2.
const fn split(count: u64) -> u64 {
    1 << (u64::BITS - 1 - (count - 1).leading_zeros())
}

/// A proof that does not prove what it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The sizes do not fit each other.
    #[error("there is no such proof: {0}")]
    Impossible(String),
    /// The proof has another number of hashes than its sizes ask for.
    #[error("the proof has {found} hashes, and one for these sizes has another number")]
    Length {
        /// How many it has.
        found: usize,
    },
    /// The hashes lead to another root.
    #[error("the proof leads to root {found}, and the root is {expected}")]
    Root {
        /// The root that was to be reached.
        expected: TreeHash,
        /// The root that was.
        found: TreeHash,
    },
}

/// Checks that a leaf is number `index` (from 0) of the tree of `size` leaves with this root (RFC 9162, 2.1.3.2).
///
/// # Errors
/// [`ProofError`].
pub fn verify_inclusion(
    leaf: TreeHash,
    index: u64,
    size: u64,
    proof: &[TreeHash],
    root: TreeHash,
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::Impossible(format!("leaf {index} of a tree of {size}")));
    }
    let wrong_length = ProofError::Length { found: proof.len() };
    let (mut node, mut last, mut hash) = (index, size - 1, leaf);
    for sibling in proof {
        if last == 0 {
            return Err(wrong_length);
        }
        if node & 1 == 1 || node == last {
            hash = TreeHash::of_node(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            hash = TreeHash::of_node(&hash, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    if last != 0 {
        return Err(wrong_length);
    }
    if hash == root { Ok(()) } else { Err(ProofError::Root { expected: root, found: hash }) }
}

/// Checks that the tree of `size` leaves with root `root` begins with the tree of `old` leaves with root `old_root` (RFC 9162,
/// 2.1.4.2).
///
/// # Errors
/// [`ProofError`].
pub fn verify_consistency(
    old: u64,
    old_root: TreeHash,
    size: u64,
    root: TreeHash,
    proof: &[TreeHash],
) -> Result<(), ProofError> {
    if old > size {
        return Err(ProofError::Impossible(format!("a tree of {size} leaves does not begin with one of {old}")));
    }
    let wrong_length = ProofError::Length { found: proof.len() };
    if old == size || old == 0 {
        let expected = if old == 0 { TreeHash::of_nothing() } else { root };
        return match () {
            () if !proof.is_empty() => Err(wrong_length),
            () if old_root != expected => Err(ProofError::Root { expected, found: old_root }),
            () => Ok(()),
        };
    }
    // Where the older tree is one complete subtree, its root is the first hash.
    let (first, rest) = if old.is_power_of_two() {
        (old_root, proof)
    } else {
        let (first, rest) = proof.split_first().ok_or_else(|| wrong_length.clone())?;
        (*first, rest)
    };
    let (mut node, mut last) = (old - 1, size - 1);
    while node & 1 == 1 {
        (node, last) = (node >> 1, last >> 1);
    }
    let (mut old_hash, mut hash) = (first, first);
    for sibling in rest {
        if last == 0 {
            return Err(wrong_length);
        }
        if node & 1 == 1 || node == last {
            old_hash = TreeHash::of_node(sibling, &old_hash);
            hash = TreeHash::of_node(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                (node, last) = (node >> 1, last >> 1);
            }
        } else {
            hash = TreeHash::of_node(&hash, sibling);
        }
        (node, last) = (node >> 1, last >> 1);
    }
    if last != 0 {
        return Err(wrong_length);
    }
    if old_hash != old_root {
        return Err(ProofError::Root { expected: old_root, found: old_hash });
    }
    if hash == root { Ok(()) } else { Err(ProofError::Root { expected: root, found: hash }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(n: u64) -> TreeHash {
        TreeHash::of_leaf(format!("leaf {n}").as_bytes())
    }

    fn tree(size: u64) -> Tree {
        let mut tree = Tree::default();
        tree.extend((0..size).map(leaf));
        tree
    }

    #[test]
    fn the_hash_of_nothing_is_the_published_one() {
        let published = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(TreeHash::of_nothing().to_string(), published);
    }

    #[test]
    fn frontier_and_tree_agree_at_every_size() {
        let (tree, mut frontier) = (tree(130), Frontier::default());
        for size in 0..=130 {
            assert_eq!((frontier.size(), Some(frontier.root())), (size, tree.root(size)));
            frontier.push(leaf(size));
        }
        assert_eq!(tree.root(131), None);
        let mut by_subtrees = Frontier::default();
        by_subtrees.push_subtree(tree.level(6)[0], 6);
        by_subtrees.push_subtree(tree.level(6)[1], 6);
        by_subtrees.push_subtree(tree.level(1)[64], 1);
        assert_eq!(Some(by_subtrees.root()), tree.root(130));
    }

    #[test]
    fn every_leaf_of_every_tree_is_shown_to_be_there_and_nothing_else_is() {
        let tree = tree(40);
        for size in 1..=40 {
            let root = tree.root(size).expect("in range");
            for index in 0..size {
                let proof = tree.inclusion(index, size).expect("in range");
                verify_inclusion(leaf(index), index, size, &proof, root).expect("holds");
                assert!(verify_inclusion(leaf(index + 1), index, size, &proof, root).is_err());
                assert!(verify_inclusion(leaf(index), (index + 1) % size, size, &proof, root).is_err() || size == 1);
                let longer = [proof.as_slice(), &[root]].concat();
                assert!(verify_inclusion(leaf(index), index, size, &longer, root).is_err());
                if let Some((_, shorter)) = proof.split_last() {
                    assert!(verify_inclusion(leaf(index), index, size, shorter, root).is_err());
                }
            }
            assert!(tree.inclusion(size, size).is_none());
        }
    }

    #[test]
    fn every_tree_begins_with_each_smaller_one_and_with_no_other() {
        let honest = tree(40);
        let mut forked = tree(20);
        forked.extend((20..40).map(|n| leaf(n + 1000)));
        for size in 0..=40 {
            for old in 0..=size {
                let (old_root, root) = (honest.root(old).expect("in range"), honest.root(size).expect("in range"));
                let proof = honest.consistency(old, size).expect("in range");
                verify_consistency(old, old_root, size, root, &proof).expect("holds");
                let other = forked.root(size).expect("in range");
                let lie = forked.consistency(old, size).expect("in range");
                let is_caught = verify_consistency(old, old_root, size, other, &lie).is_err();
                assert_eq!(is_caught, old > 20, "{old} of {size}");
                if !proof.is_empty() {
                    assert!(verify_consistency(old, old_root, size, root, &proof[1..]).is_err());
                }
                let longer = [proof.as_slice(), &[root]].concat();
                assert!(verify_consistency(old, old_root, size, root, &longer).is_err());
            }
        }
    }
}
