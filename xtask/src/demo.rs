//! `cargo xtask demo`: the quick demo as a newcomer runs it, in a temporary folder, and a check of what it wrote.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::run::{cargo, step};

/// Runs the quick demo and checks its results.
///
/// # Errors
/// Where it fails, or its results are not those of two rounds and three Sovereign Models.
pub(crate) fn demo() -> Result<()> {
    let folder = std::env::temp_dir().join(format!("tapestry-xtask-demo-{}", std::process::id()));
    let arguments = ["demo", "--", "--quick", "--fresh", "--dir"];
    step(cargo().args(arguments).arg(&folder))?;
    check(&folder)?;
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// Checks what the demo says it did.
fn check(folder: &Path) -> Result<()> {
    let path = folder.join("results.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let results: Value = serde_json::from_str(&text).context("results.json is no JSON")?;
    check_results(&results)?;
    let members = list(&results, "members")?.iter().filter_map(|member| member["name"].as_str());
    let models = members.chain(["shared-base"]).map(|name| format!("models/{name}/model.safetensors"));
    for file in models.chain(["report.html".into()]) {
        let size = std::fs::metadata(folder.join(&file)).with_context(|| format!("the demo left no {file}"))?.len();
        if size == 0 {
            bail!("the demo left an empty {file}");
        }
    }
    Ok(())
}

/// What every quick demo shows: two rounds, three members with a Sovereign Model each, logs that hold together.
///
/// Not whether the Shared Base became better: that is a question of the texts, and the full demo answers it.
fn check_results(results: &Value) -> Result<()> {
    let rounds = list(results, "rounds")?;
    if rounds.len() != 2 {
        bail!("results.json: {} rounds; expected 2", rounds.len());
    }
    for round in rounds {
        let outcome = &round["outcome"];
        let sum: f64 = list(outcome, "weights")?.iter().filter_map(|record| record["weight"].as_f64()).sum();
        if outcome["result"].get("published").is_none() || (sum - 1.0).abs() > 1e-9 {
            bail!("results.json: round {} was not published with weights that sum to one", outcome["round"]);
        }
    }
    if results["logs_verified"] != Value::Bool(true) {
        bail!("results.json: the logs do not hold together: {}", results["logs"]);
    }
    let num_sovereign =
        list(results, "models")?.iter().filter(|model| model["model"].get("sovereign").is_some()).count();
    let num_members = list(results, "members")?.len();
    if num_sovereign != 3 || num_members != 3 {
        bail!("results.json: {num_members} members and {num_sovereign} Sovereign Models; expected 3 of each");
    }
    let measurements = list(results, "measurements")?;
    let is_positive = |measurement: &Value| measurement["bpb"].as_f64().is_some_and(|bpb| bpb > 0.0);
    if measurements.is_empty() || !measurements.iter().all(is_positive) {
        bail!("results.json: a measurement that is no positive number of bits per byte");
    }
    Ok(())
}

fn list<'a>(value: &'a Value, name: &str) -> Result<&'a Vec<Value>> {
    value[name].as_array().with_context(|| format!("results.json lacks the list `{name}`"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn results() -> Value {
        let round = |number: u32| {
            let weights = json!([{"weight": 0.25}, {"weight": 0.75}]);
            json!({"outcome": {"round": number, "result": {"published": {"bpb": 1.0}}, "weights": weights}})
        };
        let sovereign = |name| json!({"model": {"sovereign": {"member": name}}});
        json!({
            "rounds": [round(1), round(2)],
            "logs_verified": true,
            "members": [{}, {}, {}],
            "models": [{"model": "adopted_base"}, sovereign("a"), sovereign("b"), sovereign("c")],
            "measurements": [{"bpb": 1.5}],
        })
    }

    #[test]
    fn whole_results_pass_and_every_fault_is_named() {
        check_results(&results()).expect("whole");
        let check_fault = |pointer: &str, value: Value, expected: &str| {
            let mut broken = results();
            *broken.pointer_mut(pointer).expect("there") = value;
            let message = check_results(&broken).expect_err("broken").to_string();
            assert!(message.contains(expected), "{message}");
        };
        check_fault("/rounds", json!([]), "0 rounds");
        check_fault("/rounds/1/outcome/result", json!({"abandoned": {"reason": "x"}}), "round 2");
        check_fault("/rounds/0/outcome/weights/0/weight", json!(0.3), "round 1");
        check_fault("/logs_verified", json!(false), "logs do not hold");
        check_fault("/models/3", json!({}), "2 Sovereign Models");
        check_fault("/measurements/0/bpb", json!(null), "no positive number");
    }
}
