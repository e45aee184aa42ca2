//! What says something of a log and comes from outside: notes, cosignatures, tiles, commits, proofs. The first byte of the input
//! says which.

#![no_main]

use libfuzzer_sys::fuzz_target;
use std::sync::LazyLock;
use tapestry_core::{SecretKey, Timestamp};
use tapestry_ledger::export::Bundle;
use tapestry_ledger::tile::{Tile, TileKind, bundle, unbundle};
use tapestry_ledger::{
    Chain, Commit, Cosignature, SignedCheckpoint, Tree, TreeHash, origin, verify_consistency, verify_inclusion,
};
use zeroize::Zeroizing;

/// How many leaves the honest tree has: no power of two.
const SIZE: u64 = 37;

static KEY: LazyLock<SecretKey> = LazyLock::new(|| SecretKey::from_seed(&Zeroizing::new([7; 32])));

static TREE: LazyLock<Tree> = LazyLock::new(|| {
    let mut tree = Tree::default();
    (0..SIZE).for_each(|leaf| tree.push(TreeHash::of_leaf(&leaf.to_be_bytes())));
    tree
});

/// An honest commit, which the input is laid over.
static COMMIT: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let chain = Chain::new(KEY.public());
    chain.seal(Timestamp::from_ms(1), vec![("one", None), ("two", None)], &KEY).expect("it is sealed")
});

/// The input laid over something honest: a byte of zero changes nothing.
fn laid_over(honest: &[u8], input: &[u8]) -> Vec<u8> {
    honest.iter().zip(input.iter().copied().chain(std::iter::repeat(0))).map(|(honest, over)| honest ^ over).collect()
}

fn hashes(bytes: &[u8]) -> Vec<TreeHash> {
    bytes.as_chunks::<32>().0.iter().map(|hash| TreeHash::from_bytes(*hash)).collect()
}

fn flat(proof: &[TreeHash]) -> Vec<u8> {
    proof.iter().flat_map(TreeHash::as_bytes).copied().collect()
}

fn number(bytes: &mut &[u8]) -> u64 {
    let Some((number, rest)) = bytes.split_first_chunk::<8>() else { return 0 };
    *bytes = rest;
    u64::from_be_bytes(*number)
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, mut bytes)) = input.split_first() else { return };
    let text = std::str::from_utf8(bytes);
    match kind % 8 {
        0 => {
            if let Ok(Ok(note)) = text.map(str::parse::<SignedCheckpoint>) {
                assert_eq!(note.to_string().parse::<SignedCheckpoint>().expect("it was written"), note);
                let _ = note.verify_all(&KEY.public(), std::iter::empty());
            }
        }
        1 => {
            let origin = origin(KEY.public());
            if let Ok(Ok(cosignature)) = text.map(|line| Cosignature::parse_line(line, &origin)) {
                assert_eq!(Ok(cosignature.to_line(&origin).as_str()), text.map(str::trim_end));
            }
        }
        2 => {
            if let Ok(Some(tile)) = text.map(Tile::parse) {
                assert_eq!(Ok(tile.path().as_str()), text);
                let _ = tile.hashes(&TREE);
            }
        }
        3 => {
            let Some((count, bytes)) = bytes.split_first() else { return };
            if let Some(entries) = unbundle(bytes, u64::from(*count)) {
                assert_eq!(bundle(entries), bytes);
            }
        }
        4 => {
            let Some((width, bytes)) = bytes.split_first() else { return };
            let tile = Tile { kind: TileKind::Entries, index: 0, width: u64::from(*width).max(1) };
            if let Ok(read) = Bundle::read(&tile, bytes) {
                assert_eq!(read.leaves().len() as u64, tile.width);
            }
        }
        5 => {
            let first = number(&mut bytes);
            let _ = Commit::<String>::read(first, bytes);
            let changed = laid_over(&COMMIT, bytes);
            let accepted = Chain::new(KEY.public()).accept::<String>(&changed);
            assert_eq!(accepted.is_ok(), changed == *COMMIT, "{:?}", String::from_utf8_lossy(&changed));
        }
        6 => {
            let (index, size) = (number(&mut bytes), number(&mut bytes));
            let root = TREE.root(SIZE).expect("it has so many");
            let _ = verify_inclusion(TreeHash::of_leaf(b"leaf"), index, size, &hashes(bytes), root);
            let index = index % SIZE;
            let honest = TREE.inclusion(index, SIZE).expect("it has it");
            let changed = hashes(&laid_over(&flat(&honest), bytes));
            let leaf = TreeHash::of_leaf(&index.to_be_bytes());
            assert_eq!(verify_inclusion(leaf, index, SIZE, &changed, root).is_ok(), changed == honest);
        }
        _ => {
            let (old, size) = (number(&mut bytes), number(&mut bytes));
            let root = TREE.root(SIZE).expect("it has so many");
            let _ = verify_consistency(old, root, size, root, &hashes(bytes));
            let old = old % SIZE + 1;
            let honest = TREE.consistency(old, SIZE).expect("it has them");
            let changed = hashes(&laid_over(&flat(&honest), bytes));
            let old_root = TREE.root(old).expect("it has so many");
            assert_eq!(verify_consistency(old, old_root, SIZE, root, &changed).is_ok(), changed == honest);
        }
    }
});
