//! The trainer contract: another program than ours trains one of two members of a round, and trainers end as they should.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::{Workshop, free_port};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The trainer in the examples, which is not our engine. It needs Python and nothing else.
fn stand_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/trainer/stand_in.py").canonicalize().unwrap()
}

#[test]
fn two_trainers_in_one_round() {
    let workshop = Workshop::new();
    workshop.make_nodes(&["france", "china"]);
    for name in ["france", "china"] {
        workshop.shorten_training(&format!("{name}-node"));
    }
    let settings = workshop.path("china-node/node.toml");
    let text = std::fs::read_to_string(&settings).unwrap();
    let trainer = format!("[machine]\ntrainer = [\"python3\", {:?}]\n", stand_in());
    let changed = if text.contains("[machine]\n") { text.replace("[machine]\n", &trainer) } else { text + &trainer };
    std::fs::write(&settings, changed).unwrap();
    workshop.shell(
        "tapestry charter draft --home coordinator --consortium Two --rounds 1 --member france=$(cat france.key) \
         --member china=$(cat china.key) --base base --open-text open.txt --open-text-max-tokens 600 \
         --max-relative-change 10 --max-contribution-rise 10 --max-merged-rise 10
         for name in france china; do tapestry charter sign charter.json --home $name-node --yes; done
         tapestry charter publish charter.json --home coordinator",
    );
    let address = format!("127.0.0.1:{}", free_port());
    let _coordinator = workshop.start(&format!("tapestry coordinator run --home coordinator --listen {address}"));
    workshop.wait_for("the coordinator listens", || workshop.path("coordinator/address").exists());
    workshop.shell(&format!(
        "for name in france china; do tapestry node join \"https://{address}#$(cat coordinator/key.pub)\" --home $name-node; done"
    ));
    let nodes = ["france", "china"].map(|name| workshop.start(&format!("tapestry node run --home {name}-node")));
    for mut node in nodes {
        node.wait_for_success(Duration::from_secs(120));
    }
    let log = workshop.shell("tapestry log show --home coordinator --json");
    let entries: Vec<serde_json::Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let contributions = entries.iter().filter_map(|entry| entry.pointer("/event/contribution/document"));
    let mut metrics: Vec<_> = contributions.map(|c| (c["member"].as_str().unwrap(), c["metrics"].clone())).collect();
    metrics.sort_by_key(|(member, _)| *member);
    let [("china", stand_in), ("france", engine)] = &metrics[..] else { panic!("both have contributed: {log}") };
    for metrics in [stand_in, engine] {
        assert_eq!((&metrics["num_steps"], &metrics["num_tokens"]), (&3.into(), &(3 * 2 * 256).into()), "{log}");
    }
    // The stand-in says nothing of the processor, and its loss is made up: 3 / step.
    assert_eq!((stand_in["first_loss"].as_f64(), stand_in["last_loss"].as_f64()), (Some(3.0), Some(1.0)));
    assert_eq!(stand_in["cpu_seconds"].as_f64(), Some(0.0));
    assert!(engine["cpu_seconds"].as_f64().unwrap() > 0.0);
    let verified = workshop.shell("tapestry verify round 1 --home coordinator");
    assert!(verified.contains("Round 1 holds"), "{verified}");
}

/// A job for `trainer` in a folder of its own.
fn write_job(workshop: &Workshop, num_steps: u64, text: &str) -> PathBuf {
    workshop.write_inputs(&["france"]);
    let job = serde_json::json!({
        "contract": 1, "base_dir": workshop.path("base"), "out_dir": workshop.path("out"), "texts": [workshop.path(text)],
        "num_steps": num_steps, "batch_windows": 2, "window": 64, "learning_rate": 1e-4, "warmup_steps": 1, "weight_decay": 0.01,
        "clip_norm": 1.0, "seed": 1
    });
    let path = workshop.path("job.json");
    std::fs::write(&path, job.to_string()).unwrap();
    path
}

/// Runs a trainer; asks it to end after `asked` where given. Its exit code.
fn run(program: &mut Command, workshop: &Workshop, asked: Option<u64>) -> Option<i32> {
    let mut child = program.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    if let Some(num_steps) = asked {
        let metrics = workshop.path("out/metrics.jsonl");
        let lines = || std::fs::read_to_string(&metrics).unwrap_or_default().lines().count() as u64;
        workshop.wait_for("some steps are done", || lines() >= num_steps);
        assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    }
    child.wait().unwrap().code()
}

/// What the contract asks of a trainer when it is interrupted, started again, done, and given nonsense.
fn keeps_the_contract(trainer: impl Fn(&Path) -> Command) {
    let workshop = Workshop::new();
    let job = write_job(&workshop, 300, "france/contributed.txt");
    assert_eq!(run(&mut trainer(&job), &workshop, Some(3)), Some(75), "interrupted");
    assert!(!workshop.path("out/model.safetensors").exists(), "no weights before the end");
    assert_eq!(run(&mut trainer(&job), &workshop, None), Some(0), "done");
    let record = tapestry_train::read_metrics(&workshop.path("out")).unwrap();
    assert_eq!((record.num_steps, record.num_tokens), (300, 300 * 2 * 64));
    let weights = std::fs::read(workshop.path("out/model.safetensors")).unwrap();
    assert_eq!(run(&mut trainer(&job), &workshop, None), Some(0), "done before");
    assert_eq!(std::fs::read(workshop.path("out/model.safetensors")).unwrap(), weights);

    let workshop = Workshop::new();
    let job = write_job(&workshop, 3, "empty.txt");
    std::fs::write(workshop.path("empty.txt"), "").unwrap();
    assert_eq!(run(&mut trainer(&job), &workshop, None), Some(65), "an empty text");
    let text = std::fs::read_to_string(&job).unwrap();
    std::fs::write(&job, text.replace("\"contract\":1", "\"contract\":2")).unwrap();
    assert_eq!(run(&mut trainer(&job), &workshop, None), Some(65), "another contract");
}

#[test]
fn our_engine_keeps_the_contract() {
    keeps_the_contract(|job| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_tapestry"));
        command.args(["train", "cpt"]).arg(job);
        command
    });
}

#[test]
fn the_stand_in_keeps_the_contract() {
    keeps_the_contract(|job| {
        let mut command = Command::new("python3");
        command.arg(stand_in()).arg(job).env("STAND_IN_SECONDS_PER_STEP", "0.01");
        command
    });
}
