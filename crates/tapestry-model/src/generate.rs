//! Generation: tokens after tokens, with a cache of keys and values.
//!
//! A [`Generator`] holds the weights, a [`Sequence`] what one text has left in the caches. Prompts of a batch that begin alike are read
//! once up to where they part.

use crate::block::norm_order;
use crate::layer::Layer;
use crate::parameters::{EMBEDDING, FINAL_NORM, HEAD, Parameters};
use crate::sampler::{Drawn, Sampler, Sampling};
use crate::{DecoderConfig, ModelError, Tokenizer};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use tapestry_kernels::decode::{KvCache, StepPlan, attention_step, linear_rows, mlp_step};
use tapestry_kernels::forward::{rms_norm, token_nll};
use tapestry_weights::WeightSource;

/// Tokens of a prompt that go through the layers together.
const PIECE: usize = 256;

/// A model that generates.
pub struct Generator {
    config: DecoderConfig,
    /// `[v, d]`
    embedding: Vec<f32>,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    /// `[v, d]`, where the output is not tied to the embedding.
    head: Option<Vec<f32>>,
    plans: Vec<Arc<StepPlan>>,
    context: usize,
}

/// What one text has left in the caches of every layer. A clone goes on by itself.
#[derive(Debug, Clone)]
pub struct Sequence {
    caches: Vec<KvCache>,
}

impl Sequence {
    /// How many tokens were read.
    #[must_use]
    pub fn len(&self) -> usize {
        self.caches.first().map_or(0, KvCache::len)
    }

    /// Whether none was.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A text that is gone on with again and again, as a conversation is: what was read is not read again.
#[derive(Debug, Clone)]
pub struct Session {
    sequence: Sequence,
    /// What the sequence holds.
    tokens: Vec<u32>,
}

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// The most tokens that are added to a prompt.
    pub max_new_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
    /// Tokens that end a text. They are not part of the answer.
    pub end_ids: Vec<u32>,
}

/// Why an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnswerEnd {
    /// The model ended it.
    EndOfText,
    /// It has as many tokens as were asked for.
    Length,
    /// The model's context is full.
    Context,
    /// Whoever listens wanted no more.
    Stopped,
}

/// What a model answered to one prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The new tokens with their log-probabilities.
    pub tokens: Vec<Drawn>,
    /// The natural logarithm of the probability of each token of the prompt but the first, given those before it.
    pub prompt_log_probs: Vec<f32>,
    /// Why it ends.
    pub end: AnswerEnd,
}

impl Generator {
    /// Reads all weights into memory. Sequences may have up to `max_context` tokens, or as many as the model was made for where that is less.
    ///
    /// # Errors
    /// [`ModelError`] naming the tensor that is missing, of another shape, or not finite.
    pub fn new(source: &dyn WeightSource, config: &DecoderConfig, max_context: usize) -> Result<Self, ModelError> {
        let parameters = Parameters::check(config, source)?;
        let context = config.max_position_embeddings.min(max_context);
        let plans = config.per_layer(|layer| StepPlan {
            num_heads: config.num_attention_heads,
            num_kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            norm_eps: config.norm_eps(),
            norm_order: norm_order(config),
            window: config.layer_windows[layer],
            rope: Arc::new(config.rope_tables(layer, context)),
        });
        let layers = (0..config.num_hidden_layers).map(|layer| Layer::read(&parameters, config, layer));
        let has_head = !config.tie_word_embeddings;
        Ok(Self {
            embedding: parameters.read(EMBEDDING)?,
            layers: layers.collect::<Result<_, _>>()?,
            norm: parameters.read(FINAL_NORM)?,
            head: has_head.then(|| parameters.read(HEAD)).transpose()?,
            plans,
            context,
            config: config.clone(),
        })
    }

    /// The configuration.
    #[must_use]
    pub const fn config(&self) -> &DecoderConfig {
        &self.config
    }

    /// The most tokens that a sequence can have.
    #[must_use]
    pub const fn context(&self) -> usize {
        self.context
    }

    /// An empty sequence.
    #[must_use]
    pub fn sequence(&self) -> Sequence {
        Sequence {
            caches: vec![KvCache::new(self.config.num_key_value_heads, self.config.head_dim); self.layers.len()],
        }
    }

    /// Reads tokens into sequences, each its own list; returns the hidden state after each token behind the final norm, `[n, d]`,
    /// all sequences one after another.
    ///
    /// # Errors
    /// [`ModelError::TokenOutsideVocabulary`], [`ModelError::ContextOverflow`]; nothing was read then.
    pub fn read(&self, sequences: &mut [&mut Sequence], tokens: &[&[u32]]) -> Result<Vec<f32>, ModelError> {
        for (sequence, tokens) in sequences.iter().zip(tokens) {
            let total = sequence.len() + tokens.len();
            if total > self.context {
                return Err(ModelError::ContextOverflow { tokens: total, limit: self.context });
            }
            if let Some(id) = tokens.iter().find(|id| **id as usize >= self.config.vocab_size) {
                return Err(ModelError::TokenOutsideVocabulary { id: *id, vocabulary: self.config.vocab_size });
            }
        }
        let d = self.config.hidden_size;
        let row = |id: &u32| &self.embedding[*id as usize * d..][..d];
        let mut stream: Vec<f32> = tokens.iter().copied().flatten().flat_map(row).copied().collect();
        let counts: Vec<usize> = tokens.iter().map(|tokens| tokens.len()).collect();
        for (number, (layer, plan)) in self.layers.iter().zip(&self.plans).enumerate() {
            let mut caches: Vec<_> = sequences.iter_mut().map(|sequence| &mut sequence.caches[number]).collect();
            stream = attention_step(&stream, &layer.attention(), plan, &mut caches, &counts);
            stream = mlp_step(&stream, &layer.mlp(), plan.norm_eps, plan.norm_order);
        }
        Ok(rms_norm(&stream, &self.norm, self.config.norm_eps()))
    }

    /// Logits of hidden states: x `[n, d]`, the result `[n, v]`.
    #[must_use]
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let (d, v) = (self.config.hidden_size, self.config.vocab_size);
        linear_rows(hidden, self.head(), hidden.len() / d, d, v)
    }

    fn head(&self) -> &[f32] {
        self.head.as_deref().unwrap_or(&self.embedding)
    }

    /// Answers prompts beside each other. `listen` gets each new token with the number of its prompt, as it is drawn, and may end that answer; a
    /// token that ends a text is not passed on.
    ///
    /// Prompts do not influence each other, and with the same options each is answered as it would be alone, up to the rounding of products whose
    /// shape differs.
    ///
    /// # Errors
    /// [`ModelError::EmptyPrompt`], [`ModelError::Sampling`]; as [`Generator::read`]; [`ModelError::LogitsNotFinite`].
    pub fn generate(
        &self,
        prompts: &[&[u32]],
        options: &GenerateOptions,
        listen: &mut dyn FnMut(usize, Drawn) -> ControlFlow<()>,
    ) -> Result<Vec<Answer>, ModelError> {
        options.sampling.check()?;
        if let Some(number) = prompts.iter().position(|prompt| prompt.is_empty()) {
            return Err(ModelError::EmptyPrompt { number });
        }
        let mut started: Vec<Option<Started>> = prompts.iter().map(|_| None).collect();
        let all: Vec<usize> = (0..prompts.len()).collect();
        let nothing = Started { sequence: self.sequence(), log_probs: vec![], logits: vec![] };
        self.read_prompts(prompts, &all, &nothing, &mut started)?;
        let started: Vec<Started> = started.into_iter().map(|one| one.expect("every prompt was read")).collect();
        self.go_on_drawing(started, options, listen).map(|(answers, _)| answers)
    }

    /// An empty session.
    #[must_use]
    pub fn session(&self) -> Session {
        Session { sequence: self.sequence(), tokens: vec![] }
    }

    /// Answers a prompt; what it shares with the beginning of the session's text is not read again. The answer has no log-probabilities of the
    /// prompt.
    ///
    /// # Errors
    /// As [`Generator::generate`]; the session is as it was.
    pub fn answer(
        &self,
        session: &mut Session,
        prompt: &[u32],
        options: &GenerateOptions,
        listen: &mut dyn FnMut(Drawn) -> ControlFlow<()>,
    ) -> Result<Answer, ModelError> {
        options.sampling.check()?;
        if prompt.is_empty() {
            return Err(ModelError::EmptyPrompt { number: 0 });
        }
        let alike = session.tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
        // The last token is read in any case: its logits are what the answer begins with.
        let kept = alike.min(prompt.len() - 1);
        let mut sequence = session.sequence.clone();
        sequence.caches.iter_mut().for_each(|cache| cache.truncate(kept));
        let before = Started { sequence, log_probs: vec![], logits: vec![] };
        let started = Started { log_probs: vec![], ..self.go_on(before, &prompt[kept..])? };
        let (mut answers, mut sequences) = self.go_on_drawing(vec![started], options, &mut |_, drawn| listen(drawn))?;
        let answer = answers.pop().expect("one prompt, one answer");
        session.sequence = sequences.pop().expect("one prompt, one sequence");
        session.tokens = prompt.iter().copied().chain(answer.tokens.iter().map(|drawn| drawn.token)).collect();
        session.tokens.truncate(session.sequence.len());
        Ok(answer)
    }

    /// Draws tokens after prompts that were read; the answers and what the caches hold at their ends.
    fn go_on_drawing(
        &self,
        started: Vec<Started>,
        options: &GenerateOptions,
        listen: &mut dyn FnMut(usize, Drawn) -> ControlFlow<()>,
    ) -> Result<(Vec<Answer>, Vec<Sequence>), ModelError> {
        let (mut answers, mut sequences, mut open) = (vec![], vec![], vec![]);
        for (number, Started { sequence, log_probs, logits }) in started.into_iter().enumerate() {
            answers.push(Answer { tokens: vec![], prompt_log_probs: log_probs, end: AnswerEnd::Length });
            sequences.push(sequence);
            open.push((number, logits, Sampler::new(options.sampling, number as u64)));
        }
        for made in 1..=options.max_new_tokens {
            let mut going = vec![];
            for (number, logits, mut sampler) in open {
                let drawn = sampler.draw(&logits)?;
                let answer = &mut answers[number];
                if options.end_ids.contains(&drawn.token) {
                    answer.end = AnswerEnd::EndOfText;
                    continue;
                }
                answer.tokens.push(drawn);
                if listen(number, drawn).is_break() {
                    answer.end = AnswerEnd::Stopped;
                } else if made < options.max_new_tokens {
                    // Otherwise nobody wants the logits after it.
                    match sequences[number].len() == self.context {
                        true => answer.end = AnswerEnd::Context,
                        false => going.push((number, drawn.token, sampler)),
                    }
                }
            }
            if going.is_empty() {
                break;
            }
            let tokens: Vec<[u32; 1]> = going.iter().map(|(_, token, _)| [*token]).collect();
            let tokens: Vec<&[u32]> = tokens.iter().map(<[u32; 1]>::as_slice).collect();
            let is_going = |number: usize| going.iter().any(|(going, ..)| *going == number);
            let each = sequences.iter_mut().enumerate().filter(|(number, _)| is_going(*number));
            let hidden = self.read(&mut each.map(|(_, sequence)| sequence).collect::<Vec<_>>(), &tokens)?;
            let logits = self.logits(&hidden);
            let rows = logits.chunks_exact(self.config.vocab_size).map(<[f32]>::to_vec);
            open = going.into_iter().zip(rows).map(|((number, _, sampler), row)| (number, row, sampler)).collect();
        }
        Ok((answers, sequences))
    }

    /// Reads the prompts `group`, which begin alike as far as `before` has read, and which are not all read yet.
    fn read_prompts(
        &self,
        prompts: &[&[u32]],
        group: &[usize],
        before: &Started,
        started: &mut [Option<Started>],
    ) -> Result<(), ModelError> {
        let from = before.sequence.len();
        let (ended, going): (Vec<usize>, Vec<usize>) = group.iter().partition(|number| prompts[**number].len() == from);
        for number in ended {
            started[number] = Some(before.clone());
        }
        let mut left = going;
        while let Some(first) = left.first().copied() {
            let next = prompts[first][from];
            let (alike, others): (Vec<usize>, Vec<usize>) =
                left.into_iter().partition(|number| prompts[*number][from] == next);
            left = others;
            let common = |number: &usize| {
                let pairs = prompts[*number][from..].iter().zip(&prompts[first][from..]);
                pairs.take_while(|(a, b)| a == b).count()
            };
            let length = alike.iter().map(common).min().unwrap_or(0);
            let read = self.go_on(before.clone(), &prompts[first][from..from + length])?;
            self.read_prompts(prompts, &alike, &read, started)?;
        }
        Ok(())
    }

    /// Reads tokens of a prompt in pieces.
    fn go_on(&self, mut started: Started, tokens: &[u32]) -> Result<Started, ModelError> {
        let d = self.config.hidden_size;
        if !started.logits.is_empty() {
            started.log_probs.push(log_prob(&started.logits, tokens[0]));
        }
        let limit = self.context;
        if started.sequence.len() + tokens.len() > limit {
            return Err(ModelError::ContextOverflow { tokens: started.sequence.len() + tokens.len(), limit });
        }
        for (number, piece) in tokens.chunks(PIECE).enumerate() {
            let hidden = self.read(&mut [&mut started.sequence], &[piece])?;
            let after = tokens.get((number + 1) * PIECE);
            let targets: Vec<u32> = piece[1..].iter().chain(after).copied().collect();
            if !targets.is_empty() {
                let nll = token_nll(&hidden[..targets.len() * d], self.head(), &targets);
                started.log_probs.extend(nll.into_iter().map(|nats| -nats));
            }
            started.logits = self.logits(&hidden[hidden.len() - d..]);
        }
        Ok(started)
    }
}

/// The tokens that end a text, as a model's folder names them: `eos_token_id` of `generation_config.json` and of `config.json`, and the
/// tokenizer's own.
///
/// # Errors
/// [`ModelError::Config`] where one of the files is no JSON.
pub fn end_ids(dir: &Path, tokenizer: &Tokenizer) -> Result<Vec<u32>, ModelError> {
    let mut ids: Vec<u32> = tokenizer.eos_id().into_iter().collect();
    for name in ["generation_config.json", "config.json"] {
        let Ok(text) = std::fs::read(dir.join(name)) else { continue };
        let json: serde_json::Value = serde_json::from_slice(&text)
            .map_err(|error| ModelError::Config { reason: format!("{name} cannot be read: {error}") })?;
        let named = match &json["eos_token_id"] {
            serde_json::Value::Array(ids) => ids.as_slice(),
            other => std::slice::from_ref(other),
        };
        ids.extend(named.iter().filter_map(serde_json::Value::as_u64).filter_map(|id| u32::try_from(id).ok()));
    }
    ids.sort_unstable();
    ids.dedup();
    Ok(ids)
}

/// A prompt, or the beginning of some, that was read.
#[derive(Clone)]
struct Started {
    sequence: Sequence,
    /// Of every token but the first.
    log_probs: Vec<f32>,
    /// After the last token; empty where none was read.
    logits: Vec<f32>,
}

#[expect(clippy::cast_possible_truncation, reason = "the result is as exact as the logits")]
fn log_prob(logits: &[f32], token: u32) -> f32 {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let total: f64 = logits.iter().map(|logit| f64::from(logit - largest).exp()).sum();
    (f64::from(logits[token as usize] - largest) - total.ln()) as f32
}
