//! Instruction tuning (SFT): conversations, of which the model learns its own answers.

use crate::corpus::{names, read_text};
use crate::sample::{Packing, Passes, Sample};
use crate::split::split;
use crate::{TrainError, TrainJob};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::path::PathBuf;
use tapestry_model::{Batch, ChatTemplate, Message, Tokenizer};

/// A line of a file of conversations. Other fields (a source, an id) are passed over.
#[derive(Debug, Deserialize)]
struct Conversation {
    messages: Vec<Said>,
}

/// A message; other fields are passed over.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Said {
    role: String,
    content: String,
}

impl From<Said> for Message {
    fn from(Said { role, content }: Said) -> Self {
        Self { role, content }
    }
}

/// The samples of a job.
pub(crate) struct Conversations {
    samples: Vec<Sample>,
    pub(crate) set_aside: Vec<Sample>,
    /// Conversations that are longer than a window.
    pub(crate) num_left_out: u64,
}

/// The JSON objects of files, each with its file and line.
pub(crate) fn read_lines<T: DeserializeOwned>(files: &[PathBuf]) -> Result<Vec<(T, PathBuf, u64)>, TrainError> {
    let mut items = vec![];
    for path in files {
        let text = read_text(path)?;
        for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
            let item = serde_json::from_str(line).map_err(|error| TrainError::Line {
                path: path.clone(),
                line: number,
                reason: error.to_string(),
            })?;
            items.push((item, path.clone(), number));
        }
    }
    if items.is_empty() {
        return Err(TrainError::EmptyCorpus { paths: names(files) });
    }
    Ok(items)
}

impl Conversations {
    pub(crate) fn read(job: &TrainJob, tokenizer: &Tokenizer) -> Result<Self, TrainError> {
        let template = ChatTemplate::read(&job.base_dir)?;
        let mut num_left_out = 0;
        let mut read = |files: &[PathBuf]| -> Result<Vec<Sample>, TrainError> {
            let mut samples = vec![];
            for (conversation, path, line) in read_lines::<Conversation>(files)? {
                let messages: Vec<Message> = conversation.messages.into_iter().map(Message::from).collect();
                let sample = sample(&messages, &template, tokenizer).map_err(|error| TrainError::Line {
                    path: path.clone(),
                    line,
                    reason: error.to_string(),
                })?;
                if !sample.has_answer() {
                    let reason = "no message of the assistant, or only empty ones: there is nothing to learn".into();
                    return Err(TrainError::Line { path, line, reason });
                }
                if sample.len() > job.window { num_left_out += 1 } else { samples.push(sample) }
            }
            Ok(samples)
        };
        let bytes = |sample: &Sample| sample.tokens.iter().flat_map(|id| id.to_le_bytes()).collect();
        let (samples, mut set_aside) = split(read(&job.conversations)?, job.validation.as_ref(), bytes);
        if let Some(validation) = job.validation.as_ref().filter(|validation| !validation.files.is_empty()) {
            set_aside = read(&validation.files)?;
        }
        check_split(&samples, &set_aside, num_left_out, job)?;
        Ok(Self { samples, set_aside, num_left_out })
    }

    pub(crate) fn stream(&self, seed: u64) -> ConversationBatches<'_> {
        ConversationBatches { samples: &self.samples, passes: Passes::new(self.samples.len(), seed) }
    }
}

/// Checks that there is something to train and to measure on.
pub(crate) fn check_split<T>(
    trained: &[T],
    set_aside: &[T],
    num_left_out: u64,
    job: &TrainJob,
) -> Result<(), TrainError> {
    if trained.is_empty() {
        return Err(TrainError::AllTooLong { num_left_out, window: job.window });
    }
    if set_aside.is_empty() && job.validation.is_some() {
        return Err(TrainError::NothingSetAside);
    }
    Ok(())
}

/// The tokens of a whole conversation as the model sees them; its answers, with the mark that ends each, count.
fn sample(messages: &[Message], template: &ChatTemplate, tokenizer: &Tokenizer) -> Result<Sample, TrainError> {
    let (text, answers) = template.render_with_answers(messages)?;
    let encoded = tokenizer.encode(&text)?;
    let mut at = 0;
    let counts = encoded.byte_lengths.iter().map(|length| {
        let first = at;
        at += *length as usize;
        answers.iter().any(|answer| answer.contains(&first))
    });
    Ok(Sample { counts: counts.collect(), tokens: encoded.ids })
}

/// An endless stream of batches. Its state follows from the seed and the number of batches taken.
pub(crate) struct ConversationBatches<'a> {
    samples: &'a [Sample],
    passes: Passes,
}

impl ConversationBatches<'_> {
    pub(crate) fn next(&mut self, num_windows: usize, window: usize) -> Result<Batch, TrainError> {
        let mut packing = Packing::default();
        loop {
            let sample = &self.samples[self.passes.peek()];
            if !packing.has_room(sample, window, num_windows) {
                return packing.finish(window);
            }
            packing.push(sample, window);
            self.passes.take();
        }
    }
}

/// All samples once, in their order.
pub(crate) fn in_order(
    samples: &[Sample],
    num_windows: usize,
    window: usize,
    limit: usize,
) -> Result<Vec<Batch>, TrainError> {
    let (mut batches, mut packing) = (vec![], Packing::default());
    for sample in samples {
        if !packing.has_room(sample, window, num_windows) {
            batches.push(std::mem::take(&mut packing).finish(window)?);
            if batches.len() == limit {
                return Ok(batches);
            }
        }
        packing.push(sample, window);
    }
    batches.push(packing.finish(window)?);
    Ok(batches)
}
