//! The same inputs give the same bytes.

use crate::fixture::{Fixture, merge, names, tensors};
use tapestry_core::Digest;
use tapestry_weights::SafetensorsModel;
use tapestry_weights::WeightSource as _;

/// Every method, as it stands in a recipe, with whether weights may be given.
const METHODS: &[(&str, bool)] = &[
    ("method: fedavg", true),
    ("method: diloco", true),
    ("method: fedadam", true),
    ("method: fedyogi", true),
    ("method: task-arithmetic\nparameters: {scale: 0.7}", true),
    ("method: ties\nparameters: {density: 0.3}", true),
    ("method: dare\nparameters: {density: 0.4, seed: 3}", true),
    ("method: dare-ties\nparameters: {density: 0.4, seed: 3}", true),
    ("method: model-stock", false),
    ("method: median", false),
    ("method: trimmed-mean\nparameters: {trim: 2}", false),
    ("method: geometric-median", true),
    ("method: krum\nparameters: {faulty: 1}", false),
    ("method: multi-krum\nparameters: {faulty: 1, selected: 2}", false),
    ("method: norm-bounding", true),
    ("method: centred-clipping", false),
];

#[test]
fn threads_and_the_order_of_the_contributions_do_not_matter() {
    let fixture = Fixture::new();
    fixture.consortium(5);
    for (index, (method, weighted)) in METHODS.iter().enumerate() {
        let head = format!("{method}\nbase: base");
        let one = fixture.recipe(&head, &[0, 1, 2, 3, 4], *weighted, &format!("one-{index}"));
        let other = fixture.recipe(&head, &[3, 0, 4, 2, 1], *weighted, &format!("other-{index}"));
        let (one, other) = (merge(&one, 1).unwrap(), merge(&other, 7).unwrap());
        assert_eq!(one.weights, other.weights, "{method}");
        assert_eq!(one.states, other.states, "{method}");
        let content = fixture.merged(&format!("one-{index}"));
        assert_eq!(content, fixture.merged(&format!("other-{index}")), "{method}");
        assert_eq!(one.weights.blake3, Digest::of(&content), "the digest is that of the file");
    }
}

#[test]
fn the_mean_is_what_plain_arithmetic_gives() {
    let fixture = Fixture::new();
    fixture.consortium(3);
    merge(&fixture.recipe("method: fedavg\ndtype: f32", &[2, 0, 1], true, "out"), 2).unwrap();
    let open = |name: &str| SafetensorsModel::open(&fixture.path(name)).unwrap();
    let (members, merged) = ([open("a"), open("b"), open("c")], open("out"));
    for (tensor, spec) in tensors().iter().enumerate() {
        let read = |model: &SafetensorsModel| model.read_f32(tensor, 0, spec.num_elements().unwrap()).unwrap();
        let (rows, found) = (members.each_ref().map(read), read(&merged));
        for (index, found) in found.iter().enumerate() {
            let terms =
                rows.iter().zip([1.0, 2.0, 3.0]).map(|(row, weight)| weight / 3.0 / 2.0 * f64::from(row[index]));
            #[expect(clippy::cast_possible_truncation, reason = "rounded once")]
            let expected = terms.sum::<f64>() as f32;
            assert_eq!(found.to_bits(), expected.to_bits(), "{} [{index}]", spec.name);
        }
    }
}

#[test]
fn the_output_is_a_whole_model_and_nothing_else() {
    let fixture = Fixture::new();
    fixture.consortium(2);
    std::fs::write(fixture.path("base/README.md"), "about the base").unwrap();
    std::fs::write(fixture.path("base/generation_config.json"), "{}").unwrap();
    merge(&fixture.recipe("method: fedavg\nbase: base\ndtype: bf16", &[0, 1], false, "out"), 2).unwrap();
    let expected = ["config.json", "generation_config.json", "merge.json", "model.safetensors", "tokenizer.json"];
    assert_eq!(names(&fixture.path("out")), expected);
    assert!(!fixture.path("out.partial").exists());
    let config = std::fs::read_to_string(fixture.path("out/config.json")).unwrap();
    assert!(config.contains("bfloat16"), "{config}");
}
