//! Conversations against `transformers`. `tests/golden/chat.py` makes the values.

use serde::Deserialize;
use std::collections::BTreeMap;
use tapestry_model::{ChatError, ChatTemplate, Message};

#[derive(Deserialize)]
struct Golden {
    special: BTreeMap<String, String>,
    templates: BTreeMap<String, String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    template: String,
    messages: Vec<Message>,
    asks: bool,
    /// None where the template refuses the conversation.
    text: Option<String>,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../golden/chat.json")).unwrap()
}

impl Golden {
    fn template(&self, name: &str) -> ChatTemplate {
        ChatTemplate::new(&self.templates[name], self.special.clone()).unwrap().with_date(2026, 11, 4)
    }
}

fn say(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into() }
}

#[test]
fn conversations_are_written_as_transformers_writes_them() {
    let golden = golden();
    assert!(golden.cases.len() >= 70);
    for Case { template, messages, asks, text } in &golden.cases {
        let found = golden.template(template).render(messages, *asks);
        match text {
            Some(text) => assert_eq!(&found.unwrap(), text, "{template}"),
            None => assert!(matches!(found, Err(ChatError::Template { .. })), "{template}"),
        }
    }
}

#[test]
fn answers_are_what_the_model_has_to_say_with_the_mark_that_ends_it() {
    let golden = golden();
    let messages = [say("user", "a?"), say("assistant", "b é"), say("user", "c?"), say("assistant", "d")];
    for (name, expected) in [
        ("chatml", ["b é<|im_end|>", "d<|im_end|>"]),
        ("llama", ["b é<|eot_id|>", "d<|eot_id|>"]),
        ("mistral", [" b é</s>", " d</s>"]),
    ] {
        let (text, answers) = golden.template(name).render_with_answers(&messages).unwrap();
        let found: Vec<&str> = answers.iter().map(|range| &text[range.clone()]).collect();
        assert_eq!(found, expected, "{name}");
    }
    let thinks =
        [say("user", "a"), say("assistant", "<think>\nhm\n</think>\n\nb"), say("user", "c"), say("assistant", "d")];
    let error = golden.template("qwen3").render_with_answers(&thinks).unwrap_err();
    assert!(matches!(error, ChatError::Rewrites { message: 2 }), "{error}");
}

#[test]
fn hostile_templates_are_refused() {
    let refused = |text: &str| {
        let rendered = ChatTemplate::new(text, []).and_then(|template| template.render(&[say("user", "x")], true));
        rendered.expect_err(text).to_string()
    };
    assert!(refused("{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}").contains("fuel"));
    let _ = refused("{{ messages.__class__.__mro__[1] }}");
    let _ = refused("{% include '/etc/passwd' %}");
    let _ = refused("{% if %}");
    let _ = refused(&"x".repeat((1 << 20) + 1));
    let _ = refused(&"{% if true %}".repeat(10_000));
    let _ = refused(&format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000)));
    let _ = refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
    assert!(refused("{{ strftime_now('%Y') }}").contains("strftime_now"), "without a date there is none");
}

#[test]
fn a_folder_says_where_its_template_is() {
    let folder = tempfile::tempdir().unwrap();
    let read = || ChatTemplate::read(folder.path());
    assert!(matches!(read(), Err(ChatError::NoTemplate { .. })));
    let config = folder.path().join("tokenizer_config.json");
    std::fs::write(&config, r#"{"eos_token": {"content": "<e>"}, "chat_template": [
        {"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages[0].content }}{{ eos_token }}"}]}"#)
    .unwrap();
    assert_eq!(read().unwrap().render(&[say("user", "x")], false).unwrap(), "x<e>");
    // A file of its own is the newer way.
    std::fs::write(folder.path().join("chat_template.jinja"), "own\n{{ eos_token }}\n").unwrap();
    assert_eq!(read().unwrap().render(&[say("user", "x")], false).unwrap(), "own\n<e>");
    std::fs::write(&config, "{").unwrap();
    assert!(matches!(read(), Err(ChatError::File { .. })));
}
