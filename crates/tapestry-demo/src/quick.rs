//! Quick mode: texts that the project generates, and a tokenizer with one token per byte. No download.
//!
//! Each member's texts follow a small grammar written for this purpose in that member's language and manner. They are not
//! meant to be read; they differ from one another as real corpora do, and a tiny model can learn them in seconds.

mod grammar;
mod grammars;
mod tokenizer;

pub use tokenizer::{BYTE_TOKENIZER_SPECIALS, BYTE_TOKENIZER_VOCAB_SIZE, byte_tokenizer_json};

use crate::atomic::{self, AtomicError};
use crate::corpora::{
    Corpora, GENERAL_ENGLISH_RULE, MEMBER_RULE, QuickBase, Rule, split, write_general_english, write_member,
    write_training,
};
use crate::members::DemoMember;
use grammar::{Grammar, Random};
use std::collections::{BTreeMap, HashSet};
use std::path::Path;

/// Bytes of generated text per member, and of general English.
const TEXT_BYTES: usize = 160_000;
/// Bytes of the pre-training mix.
const MIX_BYTES: usize = 240_000;
/// Of the mix, how many documents in a hundred are English; the others are words of the members' languages in no order.
const MIX_ENGLISH_PERCENT: u64 = 60;

/// Generates all texts of quick mode. The same members and seed give the same files.
///
/// # Errors
/// Where a file cannot be written.
pub fn generate_quick_texts(folder: &Path, members: &[DemoMember], seed: u64) -> Result<Corpora, AtomicError> {
    let mut texts = BTreeMap::new();
    for (i, member) in members.iter().enumerate() {
        let mut random = Random::new(seed ^ (0xA5A5 + i as u64).rotate_left(40));
        let documents = documents(grammars::of(member.source), &mut random, TEXT_BYTES);
        texts.insert(
            member.name.clone(),
            write_member(folder, &member.name, &split(documents, Rule { drops_quotations: false, ..MEMBER_RULE }))?,
        );
    }

    let mut random = Random::new(seed);
    let english = documents(&grammars::GENERAL_ENGLISH, &mut random, TEXT_BYTES);
    let parts = split(english, Rule { drops_quotations: false, ..GENERAL_ENGLISH_RULE });
    let (general_english_train, open_held_out) = write_general_english(folder, &parts)?;

    let pretraining_mix = folder.join("pretraining_mix.txt");
    write_training(&pretraining_mix, &mix(members, &parts.held_out, &mut random))?;
    let tokenizer = folder.join("tokenizer.json");
    atomic::write(&tokenizer, byte_tokenizer_json().as_bytes())?;
    let quick_base = Some(QuickBase { pretraining_mix, tokenizer, vocab_size: BYTE_TOKENIZER_VOCAB_SIZE });
    Ok(Corpora { members: texts, open_held_out, general_english_train, quick_base })
}

/// Different documents of a grammar, about `num_bytes` together.
fn documents(grammar: &Grammar, random: &mut Random, num_bytes: usize) -> Vec<String> {
    let mut documents = Vec::new();
    let mut seen = HashSet::new();
    let mut total_bytes = 0;
    while total_bytes < num_bytes {
        let document = grammar.document(random);
        if seen.insert(document.clone()) {
            total_bytes += document.len();
            documents.push(document);
        }
    }
    documents
}

/// The pre-training mix: a base that knows English and has seen each script, but no member's way of putting words.
fn mix(members: &[DemoMember], held_out: &[String], random: &mut Random) -> Vec<String> {
    let mut mix = Vec::new();
    let mut total_bytes = 0;
    while total_bytes < MIX_BYTES {
        let document = if members.is_empty() || random.below(100) < MIX_ENGLISH_PERCENT {
            grammars::GENERAL_ENGLISH.document(random)
        } else {
            let member = &members[random.index(members.len())];
            grammars::of(member.source).words_in_no_order(random, 60)
        };
        if !held_out.contains(&document) {
            total_bytes += document.len();
            mix.push(document);
        }
    }
    mix
}
