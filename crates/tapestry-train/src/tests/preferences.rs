//! Losses on preferences against `trl`. `golden/preferences.py` makes the values.

use crate::{Answers, Preference, PreferenceMethod, TrainError, TrainJob, preference_loss};
use burn::tensor::{Device, Tensor};
use serde::Deserialize;
use std::fs;

#[derive(Deserialize)]
struct Golden {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    settings: Preference,
    first: Vec<f32>,
    second: Vec<f32>,
    reference_first: Vec<f32>,
    reference_second: Vec<f32>,
    lengths_first: Vec<f32>,
    lengths_second: Vec<f32>,
    is_wanted: Vec<bool>,
    loss: f32,
    gradient_first: Vec<f32>,
    gradient_second: Vec<f32>,
}

#[test]
fn losses_and_gradients_are_those_of_trl() {
    let golden: Golden = serde_json::from_str(include_str!("../golden/preferences.json")).expect("golden values");
    assert!(golden.cases.len() >= 14);
    let device = Device::flex().autodiff();
    let tensor = |values: &[f32]| Tensor::<1>::from_floats(values, &device);
    for case in golden.cases {
        let leaves = [&case.first, &case.second].map(|values| tensor(values).require_grad());
        let answers = |at: usize, reference: &[f32], lengths: &[f32]| Answers {
            policy: leaves[at].clone(),
            reference: tensor(reference),
            lengths: tensor(lengths),
        };
        let first = answers(0, &case.reference_first, &case.lengths_first);
        let second = answers(1, &case.reference_second, &case.lengths_second);
        let result = preference_loss(&case.settings, &first, &second, &case.is_wanted);
        let what = format!("{:?}", case.settings);
        let loss = result.loss.clone().into_scalar::<f32>();
        assert!((loss - case.loss).abs() <= 2e-5 * case.loss.abs().max(1.0), "{what}: {loss} {}", case.loss);
        let gradients = result.loss.backward();
        for (leaf, expected) in leaves.iter().zip([&case.gradient_first, &case.gradient_second]) {
            let found: Vec<f32> = match leaf.grad(&gradients) {
                Some(gradient) => gradient.try_into_vec_as().expect("f32"),
                None => vec![0.0; expected.len()],
            };
            for (found, expected) in found.iter().zip(expected) {
                assert!((found - expected).abs() <= 1e-4 * expected.abs() + 1e-7, "{what}: {found} {expected}");
            }
        }
    }
}

/// A base whose answers have no chat template, and pairs that prefer one word to another.
fn preferring(method: PreferenceMethod) -> (tempfile::TempDir, TrainJob) {
    let (dir, job) = super::workshop();
    let line = |n: usize| {
        let prompt = format!("The weaver {} says ", ["Ana", "Bo", "Chi"][n % 3]);
        match method {
            PreferenceMethod::Kto => {
                let (word, label) = if n.is_multiple_of(2) { ("thread", true) } else { ("stone", false) };
                serde_json::json!({"prompt": prompt, "completion": word, "label": label})
            }
            _ => {
                serde_json::json!({"prompt": prompt, "chosen": format!("thread {n}"), "rejected": format!("stone {n}"), "id": n})
            }
        }
    };
    let path = dir.path().join("preferences.jsonl");
    let lines: Vec<String> = (0..40).map(|n| line(n).to_string()).collect();
    fs::write(&path, lines.join("\n\n")).expect("writes");
    let gamma = (method == PreferenceMethod::SimPo).then_some(0.3);
    let preference = Preference { method, beta: 0.3, gamma, label_smoothing: None };
    let validation = crate::Validation { share: Some(0.2), files: vec![], every: 20, max_batches: None };
    let job = TrainJob {
        texts: vec![],
        preferences: vec![path],
        preference: Some(preference),
        validation: Some(validation),
        num_steps: 40,
        learning_rate: 2e-3,
        window: 48,
        ..job
    };
    (dir, job)
}

#[test]
fn every_method_learns_what_is_preferred() {
    let methods = [PreferenceMethod::Dpo, PreferenceMethod::Ipo, PreferenceMethod::SimPo, PreferenceMethod::Kto];
    for method in methods {
        let (_dir, job) = preferring(method);
        let report = super::run(&job).expect("trains");
        let (first, last) = (&report.validation[0], report.validation.last().expect("measured"));
        assert_eq!(report.validation.iter().map(|one| one.step).collect::<Vec<_>>(), [0, 20, 40]);
        assert!(last.loss < first.loss, "{method:?}: {report:?}");
        assert!(last.margin > Some(0.05) && last.accuracy > Some(0.9), "{method:?}: {last:?}");
        let steps = fs::read_to_string(job.out_dir.join("metrics.jsonl")).expect("metrics");
        assert_eq!(steps.matches("\"accuracy\"").count(), 40);
        crate::read_metrics(&job.out_dir).expect("keeps the trainer contract");
    }
}

#[test]
fn an_interrupted_alignment_reaches_the_same_weights() {
    let (dir, job) = preferring(PreferenceMethod::Dpo);
    let job = TrainJob { num_steps: 8, ..job };
    super::run(&job).expect("trains");
    let second = TrainJob { out_dir: dir.path().join("second"), ..job.clone() };
    super::stop_after(&second, 3);
    assert!(second.out_dir.join("reference.json").exists());
    super::run(&second).expect("goes on");
    assert!(super::weights(&job.out_dir) == super::weights(&second.out_dir));
}

#[test]
fn preferences_that_cannot_be_used_are_named() {
    let (dir, job) = preferring(PreferenceMethod::Dpo);
    let with = |content: &str| {
        let path = dir.path().join("bad.jsonl");
        fs::write(&path, content).expect("writes");
        let job =
            TrainJob { preferences: vec![path], out_dir: dir.path().join("bad"), validation: None, ..job.clone() };
        super::run(&job).expect_err("refused").to_string()
    };
    assert!(with("{\"prompt\": \"a\", \"chosen\": \"b\"}").contains("line 1: `chosen` and `rejected` are due"));
    assert!(
        with("\n{\"prompt\": \"a\", \"chosen\": \"b\", \"rejected\": \"b\"}")
            .contains("line 2: the chosen and the rejected")
    );
    assert!(
        with("{\"prompt\": \"a\", \"chosen\": \"\", \"rejected\": \"b\"}")
            .contains("the prompt or the answer is empty")
    );
    assert!(with("[").contains("line 1"));
    assert!(with("\n").contains("the files are empty"));
    let long = "x".repeat(60);
    let none = with(&format!("{{\"prompt\": \"{long}\", \"chosen\": \"b\", \"rejected\": \"c\"}}"));
    assert!(none.contains("1 are longer than a window of 48 tokens"), "{none}");
    let both = TrainJob { texts: vec![dir.path().join("text.txt")], ..job.clone() };
    assert!(matches!(super::run(&both), Err(TrainError::Setting { .. })));
    let no_method = TrainJob { preference: None, ..job };
    assert!(matches!(super::run(&no_method), Err(TrainError::Setting { setting: "preference", .. })));
}
