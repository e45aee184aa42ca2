//! Conversations as a model's own template writes them.
//!
//! A template is a program that came with the model, in the language of Jinja as `transformers` runs it. It can read the messages and nothing else, and
//! is stopped after a bounded number of steps.

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind};
use serde::{Deserialize, Serialize};
use serde_json::Value as Json;
use std::ops::Range;
use std::path::{Path, PathBuf};
use tapestry_core::Timestamp;

/// The longest template; the longest in use have about 20 KB.
const MAX_TEMPLATE_BYTES: usize = 1 << 20;
/// The longest `tokenizer_config.json`: those of Llama 3 and Qwen list hundreds of special tokens.
const MAX_CONFIG_BYTES: u64 = 64 << 20;
/// Steps of a template, so that one that loops for ever ends.
const MAX_STEPS: u64 = 5_000_000;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    /// Who speaks: `system`, `user` or `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

/// Why a conversation cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ChatError {
    /// The model has no template.
    #[error(
        "{folder} has no chat template (chat_template.jinja, or chat_template in tokenizer_config.json): the model was not made for conversations; use `tapestry generate`"
    )]
    NoTemplate {
        /// The model's folder.
        folder: PathBuf,
    },
    /// A file beside the model cannot be used.
    #[error("{path} cannot be used: {reason}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The template is no program, or refuses the conversation.
    #[error("the model's chat template does not take this conversation: {reason}")]
    Template {
        /// What the template, or its interpreter, said.
        reason: String,
    },
    /// Where answers begin and end cannot be told.
    #[error(
        "the model's chat template rewrites earlier messages when later ones are added (message {message}), so it cannot be told which part of the text is the answer; train on conversations with one answer"
    )]
    Rewrites {
        /// The message, from 1.
        message: usize,
    },
}

/// A model's template.
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// `bos_token`, `eos_token` and the like, as the template may use them.
    special: Vec<(String, String)>,
    /// Year, month, day.
    date: Option<(i64, u32, u32)>,
}

impl ChatTemplate {
    /// Reads the template of a model's folder.
    ///
    /// # Errors
    /// [`ChatError::NoTemplate`], [`ChatError::File`], [`ChatError::Template`].
    pub fn read(folder: &Path) -> Result<Self, ChatError> {
        let config_path = folder.join("tokenizer_config.json");
        let unusable = |path: &Path, reason: String| ChatError::File { path: path.to_path_buf(), reason };
        let config = match std::fs::metadata(&config_path) {
            Err(_) => Json::Null,
            Ok(found) if found.len() > MAX_CONFIG_BYTES => {
                return Err(unusable(
                    &config_path,
                    format!("it has {} bytes, more than {MAX_CONFIG_BYTES}", found.len()),
                ));
            }
            Ok(_) => {
                let bytes = std::fs::read(&config_path).map_err(|e| unusable(&config_path, e.to_string()))?;
                serde_json::from_slice(&bytes).map_err(|e| unusable(&config_path, e.to_string()))?
            }
        };
        let own_file = folder.join("chat_template.jinja");
        let text = match std::fs::metadata(&own_file) {
            Ok(found) if found.len() <= MAX_TEMPLATE_BYTES as u64 => {
                Some(std::fs::read_to_string(&own_file).map_err(|e| unusable(&own_file, e.to_string()))?)
            }
            Ok(found) => {
                let reason = format!("it has {} bytes; at most {MAX_TEMPLATE_BYTES} are read", found.len());
                return Err(unusable(&own_file, reason));
            }
            Err(_) => named_template(&config["chat_template"]),
        };
        let text = text.ok_or_else(|| ChatError::NoTemplate { folder: folder.to_path_buf() })?;
        let special = ["bos_token", "eos_token", "unk_token", "pad_token"].into_iter().filter_map(|name| {
            let token = &config[name];
            let text = token.as_str().or_else(|| token["content"].as_str())?;
            Some((name.to_owned(), text.to_owned()))
        });
        Self::new(&text, special)
    }

    /// A template with the texts of special tokens by name (`bos_token`, ...).
    ///
    /// # Errors
    /// [`ChatError::Template`] where it is no template.
    pub fn new(text: &str, special: impl IntoIterator<Item = (String, String)>) -> Result<Self, ChatError> {
        if text.len() > MAX_TEMPLATE_BYTES {
            let reason = format!("it has {} bytes; at most {MAX_TEMPLATE_BYTES} are read", text.len());
            return Err(ChatError::Template { reason });
        }
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|e| refused(&e))?);
        environment.set_fuel(Some(MAX_STEPS));
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_filter("tojson", to_json);
        environment.add_template_owned("chat", without_generation_marks(text)).map_err(|e| refused(&e))?;
        Ok(Self { environment, special: special.into_iter().collect(), date: None })
    }

    /// Gives the template the date, which some put into the system message; without it they are refused, so that a text never depends
    /// on the clock unnoticed.
    #[must_use]
    pub fn with_date(self, year: i64, month: u32, day: u32) -> Self {
        Self { date: Some((year, month, day)), ..self }
    }

    /// [`ChatTemplate::with_date`], the day in UTC.
    #[must_use]
    pub fn with_date_of(self, now: Timestamp) -> Self {
        // A timestamp is written as RFC 3339 has it: year, month and day come first.
        let text = now.to_string();
        let mut parts = text.split(['-', 'T']).map(str::parse::<i64>);
        let mut next = || parts.next().and_then(Result::ok).unwrap_or(1);
        let (year, month, day) = (next(), next(), next());
        self.with_date(year, u32::try_from(month).unwrap_or(1), u32::try_from(day).unwrap_or(1))
    }

    /// The text of a conversation; with `asks`, followed by what begins the model's answer.
    ///
    /// # Errors
    /// [`ChatError::Template`] where the template refuses the conversation, or does not end.
    pub fn render(&self, messages: &[Message], asks: bool) -> Result<String, ChatError> {
        let mut context: Vec<(&str, Value)> =
            vec![("messages", Value::from(Serde(messages))), ("add_generation_prompt", Value::from(asks))];
        context.extend(self.special.iter().map(|(name, text)| (name.as_str(), Value::from(text.as_str()))));
        if let Some(date) = self.date {
            let now = Value::from_function(move |format: String| strftime(&format, date));
            context.push(("strftime_now", now));
        }
        let context = Value::from_pairs(context);
        let template = self.environment.get_template("chat").map_err(|e| refused(&e))?;
        template.render(context).map_err(|e| refused(&e))
    }

    /// The text of a conversation, and which ranges of its bytes the model has to answer, from the first byte after what begins an answer to
    /// the mark that ends it.
    ///
    /// # Errors
    /// [`ChatError::Template`]; [`ChatError::Rewrites`] where the template writes a beginning of the conversation otherwise than the whole.
    pub fn render_with_answers(&self, messages: &[Message]) -> Result<(String, Vec<Range<usize>>), ChatError> {
        let text = self.render(messages, false)?;
        let mut answers = vec![];
        for (at, _) in messages.iter().enumerate().filter(|(_, message)| message.role == "assistant") {
            let (before, after) = (self.render(&messages[..at], true)?, self.render(&messages[..=at], false)?);
            if !text.starts_with(&after) || !after.starts_with(&before) {
                return Err(ChatError::Rewrites { message: at + 1 });
            }
            // Between the mark that ends an answer and the next message there is only layout.
            answers.push(before.len()..after.trim_end().len().max(before.len()));
        }
        Ok((text, answers))
    }
}

/// The template itself, or the one that is called "default" among several.
fn named_template(value: &Json) -> Option<String> {
    if let Some(text) = value.as_str() {
        return Some(text.to_owned());
    }
    let named = value.as_array()?.iter().find(|entry| entry["name"] == "default")?;
    named["template"].as_str().map(str::to_owned)
}

/// `{% generation %}` marks answers for other programs; here it is a block like any other.
fn without_generation_marks(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        let end = tag.find("%}").map_or(tag.len(), |end| end + 2);
        let (tag, after) = tag.split_at(end);
        out.push_str(before);
        match tag.trim_start_matches("{%").trim_end_matches("%}").trim_matches(['-', '+', ' ', '\n', '\t']) {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = after;
    }
    out + rest
}

fn refused(error: &Error) -> ChatError {
    ChatError::Template { reason: format!("{error:#}") }
}

/// JSON as Python writes it, characters as they are.
fn to_json(value: Value, options: Kwargs) -> Result<Value, Error> {
    let indent: Option<usize> = options.get("indent")?;
    let _: Option<bool> = options.get("ensure_ascii")?;
    options.assert_all_used()?;
    let mut text = String::new();
    write_json(&value, indent.map(|indent| indent.min(16)), 0, &mut text)?;
    Ok(Value::from_safe_string(text))
}

/// Lists and maps deeper than this are no messages.
const MAX_DEPTH: usize = 64;

fn write_json(value: &Value, indent: Option<usize>, depth: usize, out: &mut String) -> Result<(), Error> {
    let (open, close) = match value.kind() {
        ValueKind::Seq | ValueKind::Iterable => ('[', ']'),
        ValueKind::Map => ('{', '}'),
        _ => {
            let unable = |e: serde_json::Error| Error::new(ErrorKind::BadSerialization, e.to_string());
            out.push_str(&serde_json::to_string(value).map_err(unable)?);
            return Ok(());
        }
    };
    if depth == MAX_DEPTH {
        return Err(Error::new(ErrorKind::BadSerialization, "the value is nested too deeply"));
    }
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    out.push(open);
    let mut is_empty = true;
    // Of a map these are its keys, in their order.
    for item in value.try_iter()? {
        if !is_empty {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        is_empty = false;
        line(out, depth + 1);
        if open == '{' {
            write_json(&Value::from(item.to_string()), None, depth + 1, out)?;
            out.push_str(": ");
            write_json(&value.get_item(&item)?, indent, depth + 1, out)?;
        } else {
            write_json(&item, indent, depth + 1, out)?;
        }
    }
    if !is_empty {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];

/// The parts of a date that templates use.
fn strftime(format: &str, (year, month, day): (i64, u32, u32)) -> Result<String, Error> {
    let name = MONTHS.get(month.wrapping_sub(1) as usize).copied().unwrap_or_default();
    let mut out = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            out.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => out.push_str(&year.to_string()),
            Some('m') => out.push_str(&format!("{month:02}")),
            Some('d') => out.push_str(&format!("{day:02}")),
            Some('B') => out.push_str(name),
            Some('b') => out.push_str(name.get(..3).unwrap_or(name)),
            Some('%') => out.push('%'),
            other => {
                let what = format!("strftime_now: %{} is not supported", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, what));
            }
        }
    }
    Ok(out)
}
