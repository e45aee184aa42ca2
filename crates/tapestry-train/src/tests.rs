//! Whole jobs on a tiny model.

mod engine;
mod preferences;

use crate::{TrainError, TrainJob, TrainReport, run_job};
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tapestry_model::{DecoderConfig, init_model};
use tempfile::TempDir;

/// A tokenizer with one token for each byte and an end of text, in the form of the `tokenizers` library.
fn byte_tokenizer() -> String {
    // The library writes bytes as characters: printable ones as themselves, the others from U+0100 on.
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    let mut vocabulary = serde_json::Map::new();
    for byte in 0..256u32 {
        let code = if printable(byte) { byte } else { next };
        next += u32::from(!printable(byte));
        vocabulary.insert(char::from_u32(code).expect("a character").to_string(), byte.into());
    }
    vocabulary.insert("<|endoftext|>".into(), 256.into());
    let byte_level =
        serde_json::json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "post_processor": null,
        "added_tokens": [{"id": 256, "content": "<|endoftext|>", "special": true, "single_word": false,
                          "lstrip": false, "rstrip": false, "normalized": false}],
        "pre_tokenizer": byte_level, "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                  "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    })
    .to_string()
}

fn workshop() -> (TempDir, TrainJob) {
    let dir = TempDir::new().expect("a folder");
    let tokenizer = dir.path().join("tokenizer.json");
    fs::write(&tokenizer, byte_tokenizer()).expect("writes");
    let base_dir = dir.path().join("base");
    init_model(&base_dir, &DecoderConfig::tiny(257), &tokenizer, 1).expect("a base");
    let text = dir.path().join("text.txt");
    let sentence = |n: usize| format!("The weaver {} counts {} threads.\u{1e}", ["Ana", "Bo", "Chi"][n % 3], n % 7);
    fs::write(&text, (0..300).map(sentence).collect::<String>()).expect("writes");
    let job = TrainJob {
        contract: crate::TRAINER_CONTRACT,
        base_dir,
        out_dir: dir.path().join("out"),
        texts: vec![text],
        num_steps: 12,
        batch_windows: 4,
        window: 32,
        learning_rate: 5e-3,
        warmup_steps: 2,
        weight_decay: 0.01,
        clip_norm: 1.0,
        seed: 3,
        num_threads: Some(2),
        checkpoint_every: None,
        ..TrainJob::default()
    };
    (dir, job)
}

fn run(job: &TrainJob) -> Result<TrainReport, TrainError> {
    run_job(job, &mut |_| {}, &AtomicBool::new(false))
}

/// Runs a job until so many updates are done, and stops it.
fn stop_after(job: &TrainJob, num_steps: u64) {
    let stop = AtomicBool::new(false);
    let stopped = run_job(job, &mut |p| stop.store(p.step >= num_steps, Ordering::Relaxed), &stop);
    assert!(matches!(stopped, Err(TrainError::Stopped { step }) if step == num_steps), "{stopped:?}");
}

fn weights(dir: &Path) -> Vec<u8> {
    fs::read(dir.join("model.safetensors")).expect("weights")
}

#[test]
fn a_job_learns_and_repeats_to_the_bit() {
    let (dir, job) = workshop();
    let job = TrainJob { num_steps: 60, ..job };
    let report = run(&job).expect("trains");
    assert!(report.last_loss < 0.5 * report.first_loss, "{report:?}");
    assert_eq!(report.num_tokens, 60 * 4 * 32);
    let again = TrainJob { out_dir: dir.path().join("again"), ..job.clone() };
    run(&again).expect("trains");
    assert!(weights(&job.out_dir) == weights(&again.out_dir), "the same job gives the same bytes");
    let other = TrainJob { out_dir: dir.path().join("other"), seed: 4, ..job.clone() };
    run(&other).expect("trains");
    assert!(weights(&job.out_dir) != weights(&other.out_dir), "another seed gives others");
    let lines = fs::read_to_string(job.out_dir.join("metrics.jsonl")).expect("metrics");
    assert_eq!(lines.lines().count(), 60);
    for file in ["config.json", "tokenizer.json", "metrics.jsonl"] {
        assert!(job.out_dir.join(file).exists(), "{file}");
    }
    assert_eq!(run(&job).expect("is done"), report, "what is done is not done again");
    let changed = TrainJob { learning_rate: 1e-3, ..job };
    assert!(matches!(run(&changed), Err(TrainError::OtherJob { .. })));
}

#[test]
fn an_interrupted_job_reaches_the_same_weights() {
    let (dir, job) = workshop();
    run(&job).expect("trains");
    let second = TrainJob { out_dir: dir.path().join("second"), ..job.clone() };
    for stop_at in [3, 4, 9] {
        let stop = AtomicBool::new(false);
        let stopped = run_job(&second, &mut |p| stop.store(p.step >= stop_at, Ordering::Relaxed), &stop);
        assert!(matches!(stopped, Err(TrainError::Stopped { step }) if step == stop_at), "{stopped:?}");
    }
    // A crash between the two renames of a later checkpoint.
    fs::rename(second.out_dir.join("checkpoint"), second.out_dir.join("checkpoint.old")).expect("renames");
    fs::create_dir(second.out_dir.join("checkpoint.new")).expect("makes");
    run(&second).expect("goes on");
    assert!(weights(&job.out_dir) == weights(&second.out_dir));
    assert!(!second.out_dir.join("checkpoint").exists() && !second.out_dir.join("checkpoint.old").exists());
    let lines = fs::read_to_string(second.out_dir.join("metrics.jsonl")).expect("metrics");
    assert_eq!(lines.lines().count(), 12);
}

#[test]
fn texts_that_cannot_be_used_are_named() {
    let (dir, job) = workshop();
    let with = |name: &str, content: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, content).expect("writes");
        run(&TrainJob { texts: vec![path], out_dir: dir.path().join("bad"), ..job.clone() }).expect_err("refused")
    };
    assert!(matches!(with("empty.txt", "\u{1e} \n".as_bytes()), TrainError::EmptyCorpus { .. }));
    assert!(matches!(with("latin1.txt", b"caf\xe9"), TrainError::NotUtf8 { offset: 3, .. }));
    assert!(matches!(with("short.txt", b"a few"), TrainError::CorpusTooShort { found: 6, needed: 33 }));
    assert!(!dir.path().join("bad/model.safetensors").exists());
    let none = TrainJob { window: 1, ..job };
    assert!(matches!(run(&none), Err(TrainError::Setting { setting: "window", .. })));
}

#[test]
fn a_training_that_breaks_down_keeps_the_last_good_state() {
    let (_dir, job) = workshop();
    let base = job.base_dir.join("model.safetensors");
    let good = fs::read(&base).expect("reads");
    // The last tensor is the final norm. Its weights are finite, but what they make of the stream is not.
    let mut huge = good.clone();
    let at = huge.len() - 4 * DecoderConfig::tiny(257).hidden_size;
    huge[at..].chunks_exact_mut(4).for_each(|b| b.copy_from_slice(&f32::MAX.to_le_bytes()));
    fs::write(&base, huge).expect("writes");
    match run(&job) {
        Err(TrainError::Diverged { step: 1, checkpoint, .. }) => {
            let kept = fs::read_to_string(checkpoint.join("state.json")).expect("a state");
            assert_eq!(kept.matches("grad_norm").count(), 0, "the state before the first step");
            assert!(checkpoint.join("model.safetensors").exists() && !job.out_dir.join("model.safetensors").exists());
        }
        other => panic!("{other:?}"),
    }
    let mut bytes = good;
    let at = bytes.len() - 4;
    bytes[at..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&base, bytes).expect("writes");
    let bad = TrainJob { out_dir: job.out_dir.with_file_name("nan"), ..job };
    assert!(matches!(run(&bad), Err(TrainError::Model(_))), "a base that is not finite is refused");
}
