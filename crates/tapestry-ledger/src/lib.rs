//! The append-only log of a role: entries that are the leaves of a Merkle tree, whose root the log's writer signs.
//!
//! An entry has its number, a time and an event. Entries are written in *commits*: some entries and the checkpoint of the log
//! after them, signed by its writer ([`note`]). The root in a checkpoint stands for all entries before it ([`tree`]), so
//! changing, dropping, inserting or reordering any of them leads to another root; and two checkpoints can be shown to belong to
//! one history, or that one of them was rewritten, by a proof of a few hashes. That the owner of the key does not show two
//! histories to two readers is what witnesses are for: members cosign a checkpoint after they have checked that it continues
//! what they saw before.
//!
//! A log has one writer at a time, at first its founder. An entry may name *successors*, keys that may take the log over; a
//! commit that one of them signs makes it the writer from there on, and its first entry holds the last checkpoint of the writer
//! before it. What that one writes after that is no entry of this log.
//!
//! Pure: bytes in, verdict out. Where entries are kept is the store's business.

mod chain;
pub mod export;
pub mod note;
pub mod tile;
pub mod tree;

pub use chain::{Accepted, Chain, ChainError, Commit, Entry, MAX_COMMIT_BYTES, MAX_COMMIT_ENTRIES, origin};
pub use note::{Checkpoint, Cosignature, NoteError, SignedCheckpoint};
pub use tile::MAX_ENTRY_BYTES;
pub use tree::{ProofError, Tree, TreeHash, verify_consistency, verify_inclusion};

#[cfg(test)]
mod tests;
