//! The recipes in `examples/merge` merge real models, and mutated they do no harm.

use crate::fixture::{Fixture, Numbers, merge, tensors};
use std::path::{Path, PathBuf};
use tapestry_engine::Recipe;
use tapestry_weights::{SafetensorsFile, WeightSource as _};

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/merge");
    let mut paths: Vec<PathBuf> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(paths.len() >= 17, "{paths:?}");
    paths
}

#[test]
fn every_example_merges_models_and_is_named_for_its_method() {
    let fixture = Fixture::new();
    fixture.model("models/base", &tensors(), 0, 0.0);
    for (seed, member) in ["university", "hospital", "ministry", "library", "archive"].into_iter().enumerate() {
        fixture.model(&format!("models/{member}"), &tensors(), seed as u64 + 1, 0.05);
    }
    for path in examples() {
        let text = std::fs::read_to_string(&path).unwrap();
        let recipe = Recipe::parse(&text, &fixture.path("recipe.yaml")).unwrap();
        assert_eq!(Some(recipe.method.name()), path.file_stem().and_then(|name| name.to_str()));
        let report = merge(&recipe, 2).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let states: Vec<_> = report.states.iter().map(|state| state.blake3).collect();
        assert_eq!(states.len(), recipe.method.demands().num_states);
        let merged = SafetensorsFile::open(&recipe.output.join("model.safetensors")).unwrap();
        assert!(merged.first_non_finite().unwrap().is_none(), "{}", path.display());
        if !states.is_empty() {
            // The next round goes on from the state of this one.
            let next = format!("{text}previous: merged\n").replace("output: merged", "output: next");
            let next = merge(&Recipe::parse(&next, &fixture.path("recipe.yaml")).unwrap(), 2).unwrap();
            assert_ne!(next.weights.blake3, report.weights.blake3, "momentum moves the base further");
            std::fs::remove_dir_all(fixture.path("next")).unwrap();
        }
        std::fs::remove_dir_all(&recipe.output).unwrap();
    }
}

#[test]
fn a_spoiled_recipe_is_refused_or_still_a_recipe() {
    let texts: Vec<Vec<u8>> = examples().iter().map(|path| std::fs::read(path).unwrap()).collect();
    let mut numbers = Numbers::new(17);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a choice")]
    let mut choose =
        move |below: usize| ((f64::from(numbers.next()) + 1.0) / 2.0 * below as f64) as usize % below.max(1);
    let alphabet = b"\n\t :-{}[]&*!|>'\"%@`#,?~<=0123456789abcdeNaN.\xff\xc3";
    let mut num_taken = 0;
    for round in 0..20_000 {
        let mut text = texts[choose(texts.len())].clone();
        for _ in 0..=choose(4) {
            let at = choose(text.len());
            match choose(4) {
                0 => text[at] = alphabet[choose(alphabet.len())],
                1 => text.insert(at, alphabet[choose(alphabet.len())]),
                2 => text.truncate(at.max(1)),
                _ => {
                    let other = &texts[choose(texts.len())];
                    let from = choose(other.len());
                    text.splice(at..at, other[from..].iter().copied().take(40)).for_each(drop);
                }
            }
        }
        let text = String::from_utf8_lossy(&text);
        match Recipe::parse(&text, Path::new("r.yaml")) {
            Ok(recipe) => {
                num_taken += 1;
                let shares: f64 = recipe.shares().iter().map(|c| c.share).sum();
                assert!((shares - 1.0).abs() < 1e-12, "round {round}: {text}");
            }
            Err(error) => assert!(error.to_string().contains("r.yaml"), "round {round}: {error}"),
        }
    }
    assert!(num_taken > 100, "some spoiled recipes are still recipes: {num_taken}");
}

#[test]
fn aliases_that_multiply_are_refused_at_once() {
    let mut text = String::from("method: fedavg\na: &a [x, x, x, x, x, x, x, x, x, x]\n");
    for (this, last) in ["b", "c", "d", "e", "f", "g", "h", "i"].iter().zip(["a", "b", "c", "d", "e", "f", "g", "h"]) {
        text.push_str(&format!("{this}: &{this} [{}]\n", vec![format!("*{last}"); 10].join(", ")));
    }
    text.push_str("contributions: *i\noutput: o\n");
    assert!(Recipe::parse(&text, Path::new("r.yaml")).is_err());
    let deep = format!("method: fedavg\nparameters: {}1{}\n", "{a: ".repeat(50_000), "}".repeat(50_000));
    assert!(Recipe::parse(&deep, Path::new("r.yaml")).is_err());
}
