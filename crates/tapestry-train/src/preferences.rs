//! Alignment: answers that somebody preferred to others.

use crate::conversations::{Said, check_split, read_lines};
use crate::job::{Preference, PreferenceMethod};
use crate::sample::{Packing, Passes, Sample};
use crate::split::split;
use crate::{TrainError, TrainJob};
use serde::Deserialize;
use std::path::PathBuf;
use tapestry_model::{Batch, ChatTemplate, Message, Tokenizer};

/// A prompt: a message of the user, or a whole conversation.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Prompt {
    Text(String),
    Messages(Vec<Said>),
}

/// A line of a file of preferences. Other fields are passed over.
#[derive(Debug, Deserialize)]
struct Line {
    prompt: Prompt,
    chosen: Option<String>,
    rejected: Option<String>,
    completion: Option<String>,
    label: Option<bool>,
}

/// What one preference is made of: the answers that are scored.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Choice {
    /// Pairs: the chosen and the rejected answer. KTO: the answer, and another prompt's answer to the same prompt, which tells how far the
    /// model has moved in general.
    pub(crate) answers: [Sample; 2],
    /// KTO: whether the answer is wanted.
    pub(crate) is_wanted: bool,
    /// Log-probabilities of the two answers under the model that training starts from; not known until they are computed.
    pub(crate) reference: [f32; 2],
}

/// The preferences of a job.
pub(crate) struct Preferences {
    pub(crate) choices: Vec<Choice>,
    pub(crate) set_aside: Vec<Choice>,
    pub(crate) num_left_out: u64,
}

impl Preferences {
    pub(crate) fn read(job: &TrainJob, tokenizer: &Tokenizer) -> Result<Self, TrainError> {
        let method = job.preference.as_ref().map_or(PreferenceMethod::Dpo, |preference| preference.method);
        let writer = Writer::of(job, tokenizer)?;
        let mut num_left_out = 0;
        let mut read = |files: &[PathBuf]| -> Result<Vec<Choice>, TrainError> {
            let choices = match method {
                PreferenceMethod::Kto => writer.labelled(files)?,
                PreferenceMethod::Dpo | PreferenceMethod::Ipo | PreferenceMethod::SimPo => writer.pairs(files)?,
            };
            let fits = |choice: &Choice| choice.answers.iter().all(|answer| answer.len() <= job.window);
            let (fitting, too_long): (Vec<_>, Vec<_>) = choices.into_iter().partition(fits);
            num_left_out += too_long.len() as u64;
            Ok(fitting)
        };
        let bytes = |choice: &Choice| {
            let ids = choice.answers.iter().flat_map(|answer| &answer.tokens);
            ids.flat_map(|id| id.to_le_bytes()).chain([u8::from(choice.is_wanted)]).collect()
        };
        let (choices, mut set_aside) = split(read(&job.preferences)?, job.validation.as_ref(), bytes);
        if let Some(validation) = job.validation.as_ref().filter(|validation| !validation.files.is_empty()) {
            set_aside = read(&validation.files)?;
        }
        check_split(&choices, &set_aside, num_left_out, job)?;
        Ok(Self { choices, set_aside, num_left_out })
    }
}

/// Writes prompts and answers as tokens.
struct Writer<'a> {
    tokenizer: &'a Tokenizer,
    /// Without one, an answer follows its prompt as it is.
    template: Option<ChatTemplate>,
}

impl<'a> Writer<'a> {
    fn of(job: &TrainJob, tokenizer: &'a Tokenizer) -> Result<Self, TrainError> {
        let template = match ChatTemplate::read(&job.base_dir) {
            Ok(template) => Some(template),
            Err(tapestry_model::ChatError::NoTemplate { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        Ok(Self { tokenizer, template })
    }

    fn pairs(&self, files: &[PathBuf]) -> Result<Vec<Choice>, TrainError> {
        let choice = |(line, path, number): (Line, PathBuf, u64)| {
            let broken = |reason: String| TrainError::Line { path: path.clone(), line: number, reason };
            let (Some(chosen), Some(rejected)) = (&line.chosen, &line.rejected) else {
                return Err(broken("`chosen` and `rejected` are due beside `prompt`".into()));
            };
            let answer = |text: &str| self.answer(&line.prompt, text).map_err(|error| broken(error.to_string()));
            let answers = [answer(chosen)?, answer(rejected)?];
            if answers[0] == answers[1] {
                return Err(broken("the chosen and the rejected answer are the same".into()));
            }
            Ok(Choice { answers, is_wanted: true, reference: [0.0; 2] })
        };
        read_lines(files)?.into_iter().map(choice).collect()
    }

    fn labelled(&self, files: &[PathBuf]) -> Result<Vec<Choice>, TrainError> {
        let lines: Vec<(Line, PathBuf, u64)> = read_lines(files)?;
        let mut choices = vec![];
        for (at, (line, path, number)) in lines.iter().enumerate() {
            let broken = |reason: String| TrainError::Line { path: path.clone(), line: *number, reason };
            let (Some(completion), Some(is_wanted)) = (&line.completion, line.label) else {
                return Err(broken("`completion` and `label` (true or false) are due beside `prompt`".into()));
            };
            let other = lines[(at + 1) % lines.len()].0.completion.as_deref().unwrap_or_default();
            let answer = |text: &str| self.answer(&line.prompt, text).map_err(|error| broken(error.to_string()));
            choices.push(Choice { answers: [answer(completion)?, answer(other)?], is_wanted, reference: [0.0; 2] });
        }
        Ok(choices)
    }

    /// A prompt with an answer, of which the answer counts.
    fn answer(&self, prompt: &Prompt, answer: &str) -> Result<Sample, TrainError> {
        let (before, answer) = match &self.template {
            Some(template) => {
                let mut messages: Vec<Message> = match prompt {
                    Prompt::Text(text) => vec![Message { role: "user".into(), content: text.clone() }],
                    Prompt::Messages(messages) => messages.iter().cloned().map(Message::from).collect(),
                };
                let before = template.render(&messages, true)?;
                messages.push(Message { role: "assistant".into(), content: answer.to_owned() });
                let (text, answers) = template.render_with_answers(&messages)?;
                let last = answers.last().cloned().unwrap_or(before.len()..text.len());
                (text[..last.start].to_owned(), text[last].to_owned())
            }
            None => match prompt {
                Prompt::Text(text) => (text.clone(), answer.to_owned()),
                Prompt::Messages(_) => return Err(TrainError::MessagesWithoutTemplate),
            },
        };
        // Apart, so that prompts have the same tokens whatever follows.
        let (mut tokens, answer) = (self.tokenizer.encode(&before)?.ids, self.tokenizer.encode(&answer)?.ids);
        let end = self.tokenizer.eos_id().filter(|_| self.template.is_none());
        let num_before = tokens.len();
        if num_before == 0 || answer.is_empty() {
            return Err(TrainError::EmptyAnswer);
        }
        tokens.extend(answer.into_iter().chain(end));
        let counts = (0..tokens.len()).map(|at| at >= num_before).collect();
        Ok(Sample { tokens, counts })
    }
}

/// Preferences of one step, packed into windows: the first answers of all, then the second.
#[derive(Debug, Clone)]
pub(crate) struct ChoiceBatch {
    pub(crate) batch: Batch,
    /// Where each answer lies in the batch, row-major.
    pub(crate) places: Vec<std::ops::Range<usize>>,
    pub(crate) reference: Vec<f32>,
    pub(crate) is_wanted: Vec<bool>,
}

impl ChoiceBatch {
    pub(crate) fn of(choices: &[&Choice], window: usize) -> Result<Self, TrainError> {
        let mut packing = Packing::default();
        let all = || (0..2).flat_map(|side| choices.iter().map(move |choice| (side, choice)));
        let places = all().map(|(side, choice)| packing.push(&choice.answers[side], window)).collect();
        Ok(Self {
            places,
            reference: all().map(|(side, choice)| choice.reference[side]).collect(),
            is_wanted: choices.iter().map(|choice| choice.is_wanted).collect(),
            batch: packing.finish(window)?,
        })
    }

    pub(crate) fn num_choices(&self) -> usize {
        self.is_wanted.len()
    }
}

/// An endless stream of batches.
pub(crate) struct ChoiceBatches<'a> {
    choices: &'a [Choice],
    passes: Passes,
}

impl<'a> ChoiceBatches<'a> {
    pub(crate) fn new(choices: &'a [Choice], seed: u64) -> Self {
        Self { choices, passes: Passes::new(choices.len(), seed) }
    }

    pub(crate) fn next(&mut self, num_choices: usize, window: usize) -> Result<ChoiceBatch, TrainError> {
        let mut taken = vec![];
        for _ in 0..num_choices {
            taken.push(&self.choices[self.passes.peek()]);
            self.passes.take();
        }
        ChoiceBatch::of(&taken, window)
    }
}

impl Preference {
    pub(crate) fn needs_reference(&self) -> bool {
        self.method != PreferenceMethod::SimPo
    }
}
