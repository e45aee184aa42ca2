//! What cannot be merged is refused before anything is written, with file, tensor, what was expected and what was found.

use crate::fixture::{Fixture, merge, names, spec, tensors};
use tapestry_core::Dtype;

const FEDAVG: &str = "method: fedavg\nbase: base";

/// Merges members `a` and `b`, after `spoil` has changed something, and expects all of `expected` in the message and nothing left.
fn refused(head: &str, spoil: impl Fn(&Fixture), expected: &[&str]) {
    let fixture = Fixture::new();
    fixture.consortium(2);
    spoil(&fixture);
    let before = names(fixture.dir.path());
    let error = merge(&fixture.recipe(head, &[0, 1], true, "out"), 2).expect_err(expected[0]);
    let message = error.to_string();
    for part in expected {
        assert!(message.contains(part), "{part:?} is not in: {message}");
    }
    assert_eq!(names(fixture.dir.path()), before, "nothing is left after: {message}");
}

#[test]
fn a_missing_tensor() {
    let fewer = |f: &Fixture| f.model("b", &tensors()[..5], 2, 0.05);
    refused(FEDAVG, fewer, &["f.wide", "base/model.safetensors", "b/model.safetensors"]);
}

#[test]
fn an_extra_tensor() {
    let more = |f: &Fixture| f.model("b", &[tensors(), vec![spec("z", Dtype::F32, &[1])]].concat(), 2, 0.05);
    refused(FEDAVG, more, &["`z`", "is in", "b/model.safetensors", "not in"]);
}

#[test]
fn another_shape_of_the_same_size() {
    let mut other = tensors();
    other[2].shape = vec![1201, 300];
    refused(
        FEDAVG,
        |f| f.model("b", &other, 2, 0.05),
        &["c.large", "[300, 1201]", "[1201, 300]", "b/model.safetensors"],
    );
}

#[test]
fn another_type() {
    let mut other = tensors();
    other[2].dtype = Dtype::BF16;
    refused(FEDAVG, |f| f.model("b", &other, 2, 0.05), &["c.large", "F32", "BF16", "b/model.safetensors"]);
}

#[test]
fn values_that_are_no_numbers_are_named_with_tensor_and_index() {
    for (tensor, at, value, shown) in [
        ("c.large", 300_000, f32::NAN, "NaN"),
        ("f.wide", 209_000, f32::INFINITY, "inf"),
        ("d.half", 0, f32::NEG_INFINITY, "-inf"),
    ] {
        let poison = |f: &Fixture| {
            f.model_with("b", &tensors(), 2, 0.05, |name, index| (name == tensor && index == at).then_some(value));
        };
        refused(FEDAVG, poison, &[tensor, &format!("element {at} "), shown, "b/model.safetensors"]);
    }
}

#[test]
fn a_model_that_was_not_trained_from_the_base() {
    // As large as the base and independent of it: the distance is about the square root of two times the base's length.
    let stranger = |f: &Fixture| {
        f.model_with("b", &tensors(), 2, 0.05, |_, index| Some(if index % 2 == 0 { 0.57 } else { -0.57 }));
    };
    refused(FEDAVG, stranger, &["`b` was not trained from this base", "at most 1 is taken"]);
}

#[test]
fn another_architecture_or_tokenizer() {
    let config =
        |f: &Fixture| std::fs::write(f.path("b/config.json"), r#"{"model_type":"llama","hidden_size":16}"#).unwrap();
    refused(FEDAVG, config, &["config.json", "`hidden_size` is 8 there and 16 here", "/b"]);
    let tokenizer = |f: &Fixture| std::fs::write(f.path("b/tokenizer.json"), "{}").unwrap();
    refused(FEDAVG, tokenizer, &["tokenizer.json", "/b"]);
}

#[test]
fn an_output_that_exists() {
    refused(FEDAVG, |f| std::fs::create_dir(f.path("out")).unwrap(), &["out exists", "never replaces"]);
}

#[test]
fn a_file_that_is_cut_off_or_lies_about_itself() {
    let cut = |f: &Fixture| {
        let file = std::fs::OpenOptions::new().write(true).open(f.path("b/model.safetensors")).unwrap();
        file.set_len(100_000).unwrap();
    };
    refused(FEDAVG, cut, &["b/model.safetensors"]);
    let bomb = |f: &Fixture| std::fs::write(f.path("b/model.safetensors"), [0xff; 64]).unwrap();
    refused(FEDAVG, bomb, &["b/model.safetensors"]);
    refused(FEDAVG, |f| std::fs::remove_dir_all(f.path("b")).unwrap(), &["/b"]);
}

#[test]
fn a_result_that_its_type_cannot_hold() {
    let large = |f: &Fixture| {
        for member in ["base", "a", "b"] {
            f.model_with(member, &tensors(), 0, 0.0, |name, index| (name == "c.large" && index == 77).then_some(1e30));
        }
    };
    refused("method: fedavg\ndtype: f16", large, &["c.large", "element 77", "e30 does not fit", "F16"]);
}
