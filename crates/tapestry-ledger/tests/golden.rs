//! Trees, proofs and notes against those of an independent implementation: `golden/make.py` says which.

use serde::Deserialize;
use std::collections::BTreeMap;
use tapestry_core::{SecretKey, Timestamp};
use tapestry_ledger::{Checkpoint, SignedCheckpoint, Tree, TreeHash, verify_consistency, verify_inclusion};

#[derive(Debug, Deserialize)]
struct Golden {
    roots: BTreeMap<u64, TreeHash>,
    inclusion: Vec<Inclusion>,
    consistency: Vec<Consistency>,
    notes: Vec<Note>,
}

#[derive(Debug, Deserialize)]
struct Inclusion {
    index: u64,
    size: u64,
    path: Vec<TreeHash>,
}

#[derive(Debug, Deserialize)]
struct Consistency {
    old: u64,
    size: u64,
    path: Vec<TreeHash>,
}

#[derive(Debug, Deserialize)]
struct Note {
    size: u64,
    text: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("golden/log.json")).expect("the golden file is as the script wrote it")
}

fn leaf(n: u64) -> TreeHash {
    TreeHash::of_leaf(format!("entry {n}").as_bytes())
}

fn tree() -> Tree {
    let mut tree = Tree::default();
    tree.extend((0..257).map(leaf));
    tree
}

#[test]
fn roots_are_those_of_the_reference() {
    let (golden, tree) = (golden(), tree());
    assert_eq!(golden.roots.len(), 16);
    for (size, root) in golden.roots {
        assert_eq!(tree.root(size), Some(root), "of {size}");
    }
}

#[test]
fn inclusion_proofs_are_those_of_the_reference() {
    let (golden, tree) = (golden(), tree());
    assert!(golden.inclusion.len() > 50);
    for Inclusion { index, size, path } in golden.inclusion {
        assert_eq!(tree.inclusion(index, size).as_ref(), Some(&path), "{index} of {size}");
        verify_inclusion(leaf(index), index, size, &path, golden.roots[&size]).expect("the reference's proof holds");
    }
}

#[test]
fn consistency_proofs_are_those_of_the_reference() {
    let (golden, tree) = (golden(), tree());
    assert_eq!(golden.consistency.len(), 120);
    for Consistency { old, size, path } in golden.consistency {
        assert_eq!(tree.consistency(old, size).as_ref(), Some(&path), "{old} of {size}");
        verify_consistency(old, golden.roots[&old], size, golden.roots[&size], &path).expect("holds");
    }
}

#[test]
fn signed_notes_and_cosignatures_are_those_of_the_reference_to_the_byte() {
    let (golden, key) = (golden(), |n: u8| SecretKey::from_seed(&[n; 32].into()));
    for Note { size, text } in golden.notes {
        let checkpoint = Checkpoint { origin: "tapestry/golden".into(), size, root: golden.roots[&size] };
        let mut ours = SignedCheckpoint::by(checkpoint, &key(1));
        for (n, name, seconds) in [(2, "france", 1_795_500_000), (3, "iran", 1_795_500_061)] {
            let member = name.parse().expect("a name");
            ours.add(&ours.cosign(&member, &key(n), Timestamp::from_ms(seconds * 1000)));
        }
        assert_eq!(ours.to_string(), text);
        let read: SignedCheckpoint = text.parse().expect("the reference's note reads");
        read.verify_by(&key(1).public()).expect("its signature holds");
    }
}
