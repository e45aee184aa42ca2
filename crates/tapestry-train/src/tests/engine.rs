//! Mixtures, validation, accumulation, recomputation, conversations.

use super::{run, stop_after, weights, workshop};
use crate::{AdamWSettings, Part, Rehearsal, Schedule, TrainError, TrainJob, TrainReport, Validation};
use std::fs;
use tapestry_model::Tokenizer;

fn validation(every: u64) -> Option<Validation> {
    Some(Validation { share: Some(0.2), files: vec![], every, max_batches: None })
}

#[test]
fn parts_of_an_update_give_what_the_whole_gives() {
    let (dir, job) = workshop();
    let whole = run(&job).expect("trains");
    let parts = TrainJob { batch_windows: 1, accumulation: Some(4), out_dir: dir.path().join("parts"), ..job.clone() };
    let found = run(&parts).expect("trains");
    assert_eq!(found.num_tokens, whole.num_tokens);
    let difference = (found.last_loss - whole.last_loss).abs().max((found.first_loss - whole.first_loss).abs());
    assert!(difference < 1e-4, "{found:?} {whole:?}");
    // Resuming counts the parts.
    let again = TrainJob { out_dir: dir.path().join("again"), ..parts.clone() };
    stop_after(&again, 5);
    run(&again).expect("goes on");
    assert!(weights(&parts.out_dir) == weights(&again.out_dir));
}

#[test]
fn recomputation_changes_no_bit() {
    let (dir, job) = workshop();
    run(&job).expect("trains");
    let again = TrainJob { checkpoint_activations: Some(true), out_dir: dir.path().join("again"), ..job.clone() };
    run(&again).expect("trains");
    assert!(weights(&job.out_dir) == weights(&again.out_dir));
}

#[test]
fn settings_of_the_optimiser_and_the_schedule_reach_it() {
    let (dir, job) = workshop();
    run(&job).expect("trains");
    let default = AdamWSettings::default();
    let same = TrainJob {
        adamw: Some(default),
        schedule: Some(Schedule::default()),
        out_dir: dir.path().join("same"),
        ..job.clone()
    };
    run(&same).expect("trains");
    assert!(weights(&job.out_dir) == weights(&same.out_dir), "the defaults written out");
    for (name, changed) in [
        ("beta", TrainJob { adamw: Some(AdamWSettings { beta2: 0.999, ..default }), ..job.clone() }),
        ("wsd", TrainJob { schedule: Some(Schedule::Wsd { decay_steps: 3, final_share: 0.0 }), ..job.clone() }),
    ] {
        let changed = TrainJob { out_dir: dir.path().join(name), ..changed };
        run(&changed).expect("trains");
        assert!(weights(&job.out_dir) != weights(&changed.out_dir), "{name}");
    }
}

#[test]
fn what_is_set_aside_is_measured_on_and_never_trained_on() {
    let (dir, job) = workshop();
    // Documents with a word of their own each, so that the data shows which were seen.
    let text = dir.path().join("text.txt");
    fs::write(&text, (0..200).map(|n| format!("w{n:03} counts {} threads.\u{1e}", n % 7)).collect::<String>())
        .expect("writes");
    let job = TrainJob { texts: vec![text.clone()], validation: validation(6), num_steps: 12, ..job };
    let tokenizer = Tokenizer::read(&job.base_dir.join("tokenizer.json")).expect("a tokenizer");
    let corpus = crate::corpus::Corpus::read(&job.parts(), job.validation.as_ref()).expect("texts");
    let words = |text: &str| -> std::collections::BTreeSet<String> {
        text.split(['w', ' '])
            .filter(|word| word.len() == 3 && word.parse::<u16>().is_ok())
            .map(str::to_owned)
            .collect()
    };
    let mut batches = crate::corpus::Batches::new(&corpus, &tokenizer, job.seed, job.window);
    let mut trained = String::new();
    for _ in 0..60 {
        trained += &tokenizer.decode(batches.next(4).expect("a batch").tokens_of_windows());
    }
    let aside = crate::corpus::Corpus::read(&job.parts(), job.validation.as_ref()).expect("texts").into_set_aside();
    let measured = crate::corpus::Batches::new(&aside, &tokenizer, 0, job.window).of_one_pass(4, 99).expect("batches");
    let measured: String = measured.iter().map(|batch| tokenizer.decode(batch.tokens_of_windows())).collect();
    assert!(words(&measured).len() > 20 && words(&trained).len() > 120);
    assert!(words(&measured).is_disjoint(&words(&trained)), "{:?}", words(&measured));

    let report = run(&job).expect("trains");
    let TrainReport { validation: measurements, .. } = &report;
    assert_eq!(measurements.iter().map(|one| one.step).collect::<Vec<_>>(), [0, 6, 12]);
    assert!(measurements[2].loss < measurements[0].loss);
    let lines = fs::read_to_string(job.out_dir.join("validation.jsonl")).expect("measurements");
    assert_eq!(lines.lines().count(), 3);
    let chart = fs::read_to_string(job.out_dir.join("loss.svg")).expect("a chart");
    assert!(chart.matches("<polyline").count() == 2 && chart.ends_with("</svg>\n"));
    // Measuring changes nothing, and an interrupted job measures as often.
    let again = TrainJob { out_dir: dir.path().join("again"), ..job.clone() };
    stop_after(&again, 7);
    assert_eq!(run(&again).expect("goes on").validation, report.validation);
    // Files instead of a share.
    let other = dir.path().join("other.txt");
    fs::write(&other, "Something else is counted here, by another weaver, on another day.").expect("writes");
    let by_file = Some(Validation { share: None, files: vec![other], every: 100, max_batches: None });
    let by_file = TrainJob { validation: by_file, out_dir: dir.path().join("file"), ..job.clone() };
    assert_eq!(run(&by_file).expect("trains").validation.len(), 2);
    let nothing = Some(Validation { share: Some(1e-12), files: vec![], every: 1, max_batches: None });
    let nothing = TrainJob { validation: nothing, out_dir: dir.path().join("nothing"), ..job };
    assert!(matches!(run(&nothing), Err(TrainError::NothingSetAside)));
}

#[test]
fn mixtures_and_rehearsal_have_their_shares() {
    let (dir, job) = workshop();
    let text = |name: &str, letter: char| {
        let path = dir.path().join(name);
        let document = format!("{}\u{1e}", String::from(letter).repeat(30));
        fs::write(&path, document.repeat(50)).expect("writes");
        path
    };
    let (a, b, general) = (text("a.txt", 'a'), text("b.txt", 'b'), text("g.txt", 'g'));
    let job = TrainJob {
        texts: vec![],
        mixture: vec![Part { texts: vec![a], weight: 3.0 }, Part { texts: vec![b], weight: 1.0 }],
        rehearsal: Some(Rehearsal { texts: vec![general], share: 0.2 }),
        ..job
    };
    let tokenizer = Tokenizer::read(&job.base_dir.join("tokenizer.json")).expect("a tokenizer");
    let corpus = crate::corpus::Corpus::read(&job.parts(), None).expect("texts");
    let mut batches = crate::corpus::Batches::new(&corpus, &tokenizer, 1, 64);
    let seen: String =
        (0..40).map(|_| tokenizer.decode(batches.next(4).expect("a batch").tokens_of_windows())).collect();
    #[expect(clippy::cast_precision_loss, reason = "a small count")]
    let share = |letter: char| seen.matches(letter).count() as f64 / seen.len() as f64;
    for (letter, expected) in [('a', 0.6), ('b', 0.2), ('g', 0.2)] {
        assert!((share(letter) - expected).abs() < 0.01, "{letter}: {}", share(letter));
    }
    run(&job).expect("trains");
}

fn conversations(job: &TrainJob) -> TrainJob {
    let template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% if m.role == 'assistant' %}<|endoftext|>{% endif %}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}";
    fs::write(job.base_dir.join("chat_template.jinja"), template).expect("writes");
    let line = |n: usize| {
        let (question, answer) = (format!("How many? {}", "?".repeat(n % 5)), format!("Seven threads, {n}."));
        serde_json::json!({"source": "ours", "messages": [
            {"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
    };
    let path = job.base_dir.with_file_name("conversations.jsonl");
    fs::write(&path, (0..60).map(|n| line(n).to_string() + "\n").collect::<String>()).expect("writes");
    TrainJob {
        texts: vec![],
        conversations: vec![path],
        validation: validation(20),
        num_steps: 40,
        window: 96,
        batch_windows: 2,
        ..job.clone()
    }
}

#[test]
fn instruction_tuning_learns_answers_only() {
    let (dir, job) = workshop();
    let job = conversations(&job);
    let report = run(&job).expect("trains");
    let (first, last) = (&report.validation[0], report.validation.last().expect("measured"));
    assert!(last.loss < 0.6 * first.loss, "{report:?}");
    let tokenizer = Tokenizer::read(&job.base_dir.join("tokenizer.json")).expect("a tokenizer");
    let all = crate::conversations::Conversations::read(&job, &tokenizer).expect("conversations");
    let batch = all.stream(1).next(2, job.window).expect("a batch");
    let counts = batch.counts();
    let targets: Vec<u32> =
        batch.targets_of_windows().iter().zip(&counts).filter(|(_, counts)| **counts).map(|(id, _)| *id).collect();
    let bytes: Vec<u8> = targets.iter().flat_map(|id| tokenizer.bytes_of(*id)).copied().collect();
    let learnt = String::from_utf8(bytes).expect("whole answers");
    assert!(learnt.starts_with("Seven threads, ") && learnt.ends_with(".<|endoftext|>"), "{learnt}");
    assert!(!learnt.contains("How many") && !learnt.contains("<assistant>"), "{learnt}");
    // Interrupted, it reaches the same weights.
    let again = TrainJob { out_dir: dir.path().join("again"), ..job.clone() };
    stop_after(&again, 9);
    run(&again).expect("goes on");
    assert!(weights(&job.out_dir) == weights(&again.out_dir));
    // What is longer than a window is left out, and said.
    let narrow = TrainJob { window: 46, validation: None, out_dir: dir.path().join("narrow"), ..job };
    let found = run(&narrow).expect("trains").num_left_out;
    assert!((1..60).contains(&found), "{found}");
}

#[test]
fn conversations_that_cannot_be_used_are_named() {
    let (dir, job) = workshop();
    let job = TrainJob { validation: None, ..conversations(&job) };
    let with = |content: &str| {
        let path = dir.path().join("bad.jsonl");
        fs::write(&path, content).expect("writes");
        let job = TrainJob { conversations: vec![path], out_dir: dir.path().join("bad"), ..job.clone() };
        run(&job).expect_err("refused").to_string()
    };
    assert!(with("{\"messages\": []}").contains("line 1: no message of the assistant"));
    assert!(with("{\"messages\": [{\"role\": \"user\"}]}").contains("line 1: missing field `content`"));
    assert!(with("{}").contains("missing field `messages`"));
    fs::remove_file(job.base_dir.join("chat_template.jinja")).expect("removes");
    assert!(with("{\"messages\": []}").contains("has no chat template"));
}

#[test]
fn what_cannot_be_trained_is_refused_before_anything_is_written() {
    let (dir, job) = workshop();
    let refused = |job: TrainJob| {
        let error = run(&job).expect_err("refused");
        assert!(!job.out_dir.join("metrics.jsonl").exists() && !job.out_dir.join("model.safetensors").exists());
        error.to_string()
    };
    let out_dir = dir.path().join("refused");
    let base = TrainJob { out_dir: out_dir.clone(), ..job.clone() };
    assert!(refused(TrainJob { window: 2000, ..base.clone() }).contains("context of 1024"));
    let message = refused(TrainJob { batch_windows: 60_000, window: 1024, ..base.clone() });
    assert!(message.contains("available") && message.contains("accumulation"), "{message}");
    let file = dir.path().join("file");
    fs::write(&file, "").expect("writes");
    assert!(refused(TrainJob { out_dir: file.join("out"), ..base.clone() }).contains("cannot make"));
    // A tokenizer of another model.
    let path = job.base_dir.join("tokenizer.json");
    let mut tokenizer: serde_json::Value = serde_json::from_slice(&fs::read(&path).expect("reads")).expect("JSON");
    tokenizer["model"]["vocab"]["zz"] = 299.into();
    fs::write(&path, tokenizer.to_string()).expect("writes");
    let message = refused(base);
    assert!(message.contains("the tokenizer has 300 tokens, the model a vocabulary of 257"), "{message}");
}
