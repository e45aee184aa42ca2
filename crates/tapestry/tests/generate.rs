//! `tapestry generate` and `tapestry chat` as their users run them.
#![expect(clippy::unwrap_used, reason = "a test")]

mod common;

use common::Workshop;
use serde_json::Value;
use std::fs;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn tapestry(shop: &Workshop, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tapestry"));
    command.args(args).arg("--model").arg(shop.path("base"));
    command
}

fn run(command: &mut Command) -> (String, String, bool) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap(), status.success())
}

fn shop() -> Workshop {
    let shop = Workshop::new();
    shop.write_inputs(&["ana"]);
    let template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    fs::write(shop.path("base/tokenizer_config.json"), serde_json::json!({ "chat_template": template }).to_string())
        .unwrap();
    shop
}

#[test]
fn prompts_are_answered_alone_as_beside_each_other() {
    let shop = shop();
    let ask = |prompts: &[&str], more: &[&str]| -> Vec<Value> {
        let mut command = tapestry(&shop, &["generate", "--json", "--max-tokens", "12"]);
        command.args(prompts.iter().flat_map(|prompt| ["--prompt", prompt])).args(more);
        let (out, error, is_good) = run(&mut command);
        assert!(is_good, "{error}");
        out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let both = ask(&["The weaver counts", "The weaver sings"], &[]);
    assert_eq!(both.len(), 2);
    for (prompt, together) in ["The weaver counts", "The weaver sings"].iter().zip(&both) {
        let alone = &ask(&[prompt], &[])[0];
        assert_eq!(alone["tokens"], together["tokens"]);
        assert_eq!(together["prompt"], **prompt);
        let (ids, log_probs) = (together["prompt_tokens"].as_array().unwrap(), &together["prompt_log_probs"]);
        assert_eq!(log_probs.as_array().unwrap().len(), ids.len() - 1);
        assert!(log_probs.as_array().unwrap().iter().all(|p| p.as_f64().unwrap() <= 0.0));
        assert_eq!(together["end"], "length");
    }
    let drawn =
        |seed: &str| ask(&["The"], &["--temperature", "1.5", "--top-p", "0.9", "--seed", seed])[0]["tokens"].clone();
    assert_eq!(drawn("1"), drawn("1"));
    assert_ne!(drawn("1"), drawn("2"));
    // A stop is found in the text, wherever tokens end.
    let whole = both[0]["text"].as_str().unwrap();
    let middle: String = whole.chars().skip(2).take(3).collect();
    let stopped = &ask(&["The weaver counts"], &["--stop", &middle])[0];
    assert_eq!((stopped["text"].as_str(), &stopped["end"]), (whole.split(&middle).next(), &Value::from("stop")));
}

#[test]
fn one_answer_is_plain_text_and_a_file_gives_many() {
    let shop = shop();
    let args = ["generate", "--max-tokens", "5"];
    let (plain, error, is_good) = run(tapestry(&shop, &args).args(["--prompt", "The weaver"]));
    assert!(is_good && !plain.trim().is_empty(), "{error}");
    let prompts = shop.path("prompts.jsonl");
    fs::write(&prompts, "\"The weaver\"\n\n{\"prompt\": \"A thread\"}\n").unwrap();
    let (many, error, is_good) = run(tapestry(&shop, &args).arg("--prompts").arg(&prompts));
    assert!(is_good, "{error}");
    assert!(many.starts_with(&format!("--- 1\n{plain}--- 2\n")), "{many}");
}

#[test]
fn a_conversation_goes_on_from_line_to_line() {
    let shop = shop();
    let chat = |said: &str, more: &[&str]| {
        let mut command = tapestry(&shop, &["chat", "--max-tokens", "6", "--temperature", "1", "--seed", "5"]);
        let mut child =
            command.args(more).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(said.as_bytes()).unwrap();
        let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
        assert!(status.success(), "{}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    };
    let first = chat("Who?\n", &[]);
    assert!(first.contains("[cut off: --max-tokens]"), "{first}");
    let both = chat("Who?\n\nWhy?\n", &[]);
    assert!(both.starts_with(&first) && both.len() > first.len(), "{both}");
    // A new conversation is as the first.
    assert_eq!(chat("Who?\n/new\nWho?\n", &[]), first.repeat(2));
    assert_ne!(chat("Who?\n", &["--system", "Speak of looms."]), first);
}

#[test]
fn what_cannot_be_answered_is_said() {
    let shop = shop();
    let refused = |args: &[&str], expected: &str| {
        let (out, error, is_good) = run(&mut tapestry(&shop, args));
        assert!(!is_good && error.contains(expected), "{expected}: {out} {error}");
    };
    refused(&["generate", "--prompt", ""], "prompt 1 has no token");
    refused(&["generate", "--prompt", "a", "--temperature=-1"], "temperature is -1; 0 or more");
    refused(&["generate", "--prompt", "a", "--top-p", "0"], "top-p is 0; above 0, at most 1");
    refused(&["generate", "--prompt", "a b c d e f g h i", "--context", "3"], "context of 3");
    fs::remove_file(shop.path("base/tokenizer_config.json")).unwrap();
    refused(&["chat"], "has no chat template");
}
