//! `results.json`: what is derived, and that the file round-trips.

use crate::fixture::{held_out, measured, name, results};
use tapestry_demo::results::{ModelName, Results, ResultsError, TextName};

fn close(a: Option<f64>, b: f64) -> bool {
    a.is_some_and(|a| (a - b).abs() < 1e-9)
}

#[test]
fn the_file_round_trips_and_says_what_follows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/results.json");
    results().write(&path).unwrap();
    assert_eq!(Results::read(&path).unwrap(), results());
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(json["retention"].as_array().unwrap().len(), 6);
    assert_eq!(json["effect"]["is_shown"], true);
    assert_eq!(json["logs_verified"], true);
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn retention_is_the_share_of_the_own_gain_that_the_merge_keeps() {
    let found = results().retention();
    assert_eq!(found.len(), 6, "three honest members, two rounds");
    assert!(found.iter().all(|r| close(r.retention, 0.5)), "{found:?}");
}

#[test]
fn without_a_gain_there_is_no_retention() {
    let mut results = results();
    let own = ModelName::OwnCpt { member: name("china"), round: 1 };
    let base = results.bpb(&ModelName::AdoptedBase, &held_out("china")).unwrap();
    results.measurements.retain(|m| m.model != own);
    results.measurements.push(measured(own, held_out("china"), base));
    let found = results.retention();
    let of_china: Vec<_> = found.iter().filter(|r| r.member == name("china")).map(|r| r.retention).collect();
    assert_eq!(of_china[0], None);
    assert!(close(of_china[1], 0.5));
}

#[test]
fn the_effect_needs_every_member_better_and_english_unharmed() {
    assert!(results().effect().is_shown);
    let with = |model: ModelName, text: TextName, bpb| {
        let mut results = results();
        results.measurements.retain(|m| !(m.model == model && m.text == text));
        results.measurements.push(measured(model, text, bpb));
        results.effect()
    };
    let last = ModelName::SharedBase { round: 2 };
    assert!(!with(last.clone(), held_out("iran"), 2.19).is_shown);
    assert!(with(last.clone(), TextName::GeneralEnglish, 0.9269).is_shown);
    let effect = with(last, TextName::GeneralEnglish, 0.9272);
    assert!(!effect.is_shown && close(effect.general_english_change, 0.9272 / 0.9 - 1.0));
}

#[test]
fn what_was_not_measured_shows_no_effect() {
    let mut results = results();
    results.measurements.retain(|m| m.text != held_out("france"));
    assert!(!results.effect().is_shown);
    assert_eq!(results.effect().member_changes[&name("france")], None);
    results.measurements.clear();
    assert!(!results.effect().is_shown);
}

#[test]
fn one_bad_log_or_no_log_is_not_verified() {
    let mut results = results();
    results.logs[1].problem = Some("entry 4 does not follow from entry 3".into());
    assert!(!results.logs_verified());
    results.logs.clear();
    assert!(!results.logs_verified());
}

#[test]
fn another_schema_and_other_content_are_refused_with_the_file_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("results.json");
    assert!(matches!(Results::read(&path), Err(ResultsError::File(_))));
    std::fs::write(&path, r#"{"schema": 99, "new": true}"#).unwrap();
    assert!(matches!(Results::read(&path), Err(ResultsError::Schema { found: 99, .. })));
    std::fs::write(&path, r#"{"schema": 1}"#).unwrap();
    let error = Results::read(&path).unwrap_err();
    assert!(error.to_string().contains("results.json") && error.to_string().contains("--fresh"), "{error}");
}
