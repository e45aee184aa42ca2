//! `tapestry generate` and `tapestry chat`.

use crate::cli::{ChatArgs, DrawArgs, GenerateArgs};
use crate::clock::now;
use crate::files;
use anyhow::{Context as _, Result};
use serde::Deserialize;
use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use tapestry_model::{
    Answer, AnswerEnd, ChatTemplate, DecoderConfig, GenerateOptions, Generator, Message, ModelError, Sampling,
    StopStrings, TextStream, Tokenizer, end_ids,
};
use tapestry_weights::{HfDir, SafetensorsModel};

/// A model with its tokenizer, ready to answer.
struct Ready {
    generator: Generator,
    tokenizer: Tokenizer,
    options: GenerateOptions,
    stops: Vec<String>,
}

impl Ready {
    fn load(model: &Path, draw: DrawArgs) -> Result<Self> {
        let sampling = Sampling { temperature: draw.temperature, top_p: draw.top_p, seed: draw.seed };
        sampling.check()?;
        let files = HfDir::open(model)?;
        let config = DecoderConfig::try_from(files.shape)?;
        let tokenizer = Tokenizer::read(&files.tokenizer_path)?;
        tokenizer.check_fits(&config)?;
        let options =
            GenerateOptions { max_new_tokens: draw.max_tokens, sampling, end_ids: end_ids(model, &tokenizer)? };
        let weights = SafetensorsModel::open(&files.weights_path)?;
        let generator = Generator::new(&weights, &config, draw.context)?;
        Ok(Self { generator, tokenizer, options, stops: draw.stops })
    }

    fn listener(&self) -> Listener<'_> {
        let stops = StopStrings::new(self.stops.iter().cloned());
        Listener { tokenizer: &self.tokenizer, stream: TextStream::default(), stops, text: String::new() }
    }
}

/// The text of one answer as it grows.
struct Listener<'a> {
    tokenizer: &'a Tokenizer,
    stream: TextStream,
    stops: StopStrings,
    text: String,
}

impl Listener<'_> {
    /// What one more token adds, and whether the answer goes on.
    fn push(&mut self, token: u32) -> (String, ControlFlow<()>) {
        let piece = self.stops.push(&self.stream.push(self.tokenizer, token));
        self.text.push_str(&piece);
        let flow = if self.stops.is_found() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        (piece, flow)
    }

    /// What was held back, and the whole text.
    fn finish(mut self) -> (String, String) {
        let rest = self.stops.push(&self.stream.finish()) + &self.stops.finish();
        self.text.push_str(&rest);
        (rest, self.text)
    }
}

/// Writes at once, so that an answer is seen as it grows.
fn show(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("cannot write the answer")
}

pub(crate) fn run(args: GenerateArgs) -> Result<()> {
    let prompts = match &args.prompts {
        Some(path) => read_prompts(path)?,
        None => args.given,
    };
    let ready = Ready::load(&args.model, args.draw)?;
    let encode = |prompt: &String| ready.tokenizer.encode_prompt(prompt);
    let ids: Vec<Vec<u32>> = prompts.iter().map(encode).collect::<Result<_, _>>()?;
    let slices: Vec<&[u32]> = ids.iter().map(Vec::as_slice).collect();
    let mut listeners: Vec<Listener<'_>> = prompts.iter().map(|_| ready.listener()).collect();
    // One answer is shown as it grows; several would run into each other.
    let is_shown = prompts.len() == 1 && !args.json;
    let mut failure = None;
    let answers = ready.generator.generate(&slices, &ready.options, &mut |number, drawn| {
        let (piece, flow) = listeners[number].push(drawn.token);
        if is_shown && let Err(error) = show(&piece) {
            failure = Some(error);
            return ControlFlow::Break(());
        }
        flow
    })?;
    if let Some(error) = failure {
        return Err(error);
    }
    for (number, (answer, listener)) in answers.iter().zip(listeners).enumerate() {
        let (rest, text) = listener.finish();
        if args.json {
            show(&format!("{}\n", object(&prompts[number], &ids[number], answer, &text)))?;
        } else if is_shown {
            show(&format!("{rest}\n"))?;
        } else {
            show(&format!("--- {}\n{text}\n", number + 1))?;
        }
    }
    Ok(())
}

fn object(prompt: &str, ids: &[u32], answer: &Answer, text: &str) -> serde_json::Value {
    let end = match answer.end {
        AnswerEnd::EndOfText => "end_of_text",
        AnswerEnd::Length => "length",
        AnswerEnd::Context => "context",
        AnswerEnd::Stopped => "stop",
    };
    serde_json::json!({
        "prompt": prompt, "prompt_tokens": ids, "prompt_log_probs": answer.prompt_log_probs,
        "text": text, "end": end,
        "tokens": answer.tokens.iter().map(|drawn| drawn.token).collect::<Vec<_>>(),
        "log_probs": answer.tokens.iter().map(|drawn| drawn.log_prob).collect::<Vec<_>>(),
    })
}

fn read_prompts(path: &Path) -> Result<Vec<String>> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Line {
        Text(String),
        Object { prompt: String },
    }
    let text = files::read_long_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    let prompts: Vec<String> = lines
        .map(|(number, line)| {
            let line: Line = serde_json::from_str(line).with_context(|| {
                format!("{} line {}: expected a JSON string, or an object with `prompt`", path.display(), number + 1)
            })?;
            Ok(match line {
                Line::Text(prompt) | Line::Object { prompt } => prompt,
            })
        })
        .collect::<Result<_>>()?;
    anyhow::ensure!(!prompts.is_empty(), "{} has no prompt; write one on each line", path.display());
    Ok(prompts)
}

/// Set by Ctrl-C: the answer under way ends.
static STOP: AtomicBool = AtomicBool::new(false);
/// Whether there is one; otherwise Ctrl-C ends the program.
static ANSWERING: AtomicBool = AtomicBool::new(false);

fn watch_ctrl_c() {
    std::thread::spawn(|| {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            while tokio::signal::ctrl_c().await.is_ok() {
                // A second one while the first is not yet heard ends the program, too.
                if !ANSWERING.load(Ordering::SeqCst) || STOP.swap(true, Ordering::SeqCst) {
                    std::process::exit(130);
                }
            }
        });
    });
}

pub(crate) fn chat(args: ChatArgs) -> Result<()> {
    let template = ChatTemplate::read(&args.model)?.with_date_of(now());
    let ready = Ready::load(&args.model, args.draw)?;
    watch_ctrl_c();
    let system = args.system.map(|content| Message { role: "system".into(), content });
    let mut messages: Vec<Message> = system.iter().cloned().collect();
    let mut session = ready.generator.session();
    let is_asked = std::io::stdin().is_terminal();
    if is_asked {
        eprintln!("Ctrl-C stops an answer, /new begins another conversation, Ctrl-D ends.");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if is_asked {
            show("> ")?;
        }
        let Some(line) = lines.next().transpose().context("cannot read what you say")? else { return Ok(()) };
        match line.trim() {
            "" => continue,
            "/new" => {
                messages = system.iter().cloned().collect();
                continue;
            }
            said => messages.push(Message { role: "user".into(), content: said.to_owned() }),
        }
        let text = template.render(&messages, true)?;
        let prompt = ready.tokenizer.encode(&text)?.ids;
        let mut listener = ready.listener();
        let mut failure = None;
        STOP.store(false, Ordering::SeqCst);
        ANSWERING.store(true, Ordering::SeqCst);
        let answer = ready.generator.answer(&mut session, &prompt, &ready.options, &mut |drawn| {
            let (piece, flow) = listener.push(drawn.token);
            if let Err(error) = show(&piece) {
                failure = Some(error);
                return ControlFlow::Break(());
            }
            if STOP.load(Ordering::SeqCst) { ControlFlow::Break(()) } else { flow }
        });
        ANSWERING.store(false, Ordering::SeqCst);
        if let Some(error) = failure {
            return Err(error);
        }
        match answer {
            Ok(answer) => {
                let (rest, text) = listener.finish();
                let note = match answer.end {
                    AnswerEnd::Length => " [cut off: --max-tokens]",
                    AnswerEnd::Context => " [cut off: the context is full; /new begins another conversation]",
                    AnswerEnd::Stopped if STOP.load(Ordering::SeqCst) => " [stopped]",
                    AnswerEnd::EndOfText | AnswerEnd::Stopped => "",
                };
                show(&format!("{rest}{note}\n"))?;
                messages.push(Message { role: "assistant".into(), content: text });
            }
            Err(ModelError::ContextOverflow { tokens, limit }) if is_asked => {
                eprintln!("the conversation has {tokens} tokens and the context holds {limit}; /new begins another");
                messages.pop();
            }
            Err(error) => return Err(error.into()),
        }
    }
}
