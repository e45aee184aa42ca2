//! Quick mode's generated texts, as files.

use crate::fixture::name;
use std::collections::HashSet;
use std::fs;
use std::path::Path;
use tapestry_demo::Corpora;
use tapestry_demo::corpora::DOCUMENT_SEPARATOR;
use tapestry_demo::members::demo_members;
use tapestry_demo::quick::{
    BYTE_TOKENIZER_SPECIALS, BYTE_TOKENIZER_VOCAB_SIZE, byte_tokenizer_json, generate_quick_texts,
};

fn generate(folder: &Path, seed: u64) -> Corpora {
    generate_quick_texts(folder, &demo_members(5, true).unwrap(), seed).unwrap()
}

fn training(path: &Path) -> HashSet<String> {
    fs::read_to_string(path).unwrap().split(DOCUMENT_SEPARATOR).map(str::to_owned).collect()
}

fn all_files(corpora: &Corpora) -> Vec<Vec<u8>> {
    let members = corpora.members.values().flat_map(|m| [&m.contributed, &m.private, &m.held_out]);
    let general = [&corpora.general_english_train, &corpora.open_held_out];
    let base = corpora.quick_base.as_ref().unwrap();
    let others = [&base.pretraining_mix, &base.tokenizer];
    members.chain(general).chain(others).map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn the_same_seed_gives_the_same_files_and_another_gives_others() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let first = all_files(&generate(folders[0].path(), 7));
    assert!(first == all_files(&generate(folders[1].path(), 7)));
    assert!(first != all_files(&generate(folders[2].path(), 8)));
}

#[test]
fn each_member_has_enough_text_and_nothing_of_held_out_is_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let corpora = generate(folder.path(), 1);
    assert_eq!(corpora.members.len(), 6);
    for (name, member) in &corpora.members {
        let (contributed, private) = (training(&member.contributed), training(&member.private));
        assert!(contributed.is_disjoint(&private));
        let held_out = fs::read_to_string(&member.held_out).unwrap();
        assert!(!held_out.contains(DOCUMENT_SEPARATOR));
        let size = |documents: &HashSet<String>| documents.iter().map(String::len).sum::<usize>();
        let total = size(&contributed) + size(&private) + held_out.len();
        assert!((100_000..200_000).contains(&total) && held_out.len() > 8_000, "{}: {total}", name);
        for document in contributed.union(&private) {
            assert!(!held_out.contains(document.as_str()), "{}: {document}", name);
        }
    }
    let open = fs::read_to_string(&corpora.open_held_out).unwrap();
    assert!(open.len() > 50_000);
    let seen = [&corpora.general_english_train, &corpora.quick_base.as_ref().unwrap().pretraining_mix];
    for document in seen.into_iter().flat_map(|path| training(path)) {
        assert!(!open.contains(&document), "{document}");
    }
}

#[test]
fn the_members_write_differently() {
    let folder = tempfile::tempdir().unwrap();
    let corpora = generate(folder.path(), 1);
    let text_of = |member: &str| {
        let texts = &corpora.members[&name(member)];
        fs::read_to_string(&texts.contributed).unwrap()
    };
    let share = |text: &str, script: std::ops::RangeInclusive<char>| {
        let letters = text.chars().filter(|c| c.is_alphanumeric());
        letters.clone().filter(|c| script.contains(c)).count() * 100 / letters.count()
    };
    assert!(share(&text_of("china"), '\u{4e00}'..='\u{9fff}') > 95);
    assert!(share(&text_of("iran"), '\u{600}'..='\u{6ff}') > 95);
    assert!(share(&text_of("india"), '\u{b80}'..='\u{bff}') > 95);
    assert!(text_of("france").contains("salarié") && text_of("usa").contains("Congress"));
}

#[test]
fn the_tokenizer_loads_and_gives_every_text_back_byte_for_byte() {
    let tokenizer: tokenizers::Tokenizer = byte_tokenizer_json().parse().unwrap();
    assert_eq!(tokenizer.get_vocab_size(true), BYTE_TOKENIZER_VOCAB_SIZE);
    for text in
        ["A line.\n\n  Two  spaces\t!", "l'employeur à 35 heures", "春風入西樓", "ای ساقی", "அன்பு", "\u{1e}\u{7f}\u{0}"]
    {
        let encoding = tokenizer.encode(text, false).unwrap();
        let expected: Vec<u32> = text.bytes().map(|b| 4 + u32::from(b)).collect();
        assert_eq!(encoding.get_ids(), expected, "{text}");
        assert_eq!(tokenizer.decode(encoding.get_ids(), false).unwrap(), text);
    }
    for (id, special) in BYTE_TOKENIZER_SPECIALS.iter().enumerate() {
        assert_eq!(tokenizer.token_to_id(special), u32::try_from(id).ok());
        assert_eq!(tokenizer.encode(*special, false).unwrap().len(), 1);
    }
}
