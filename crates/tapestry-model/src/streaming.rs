//! Scoring with one layer in memory at a time.
//!
//! Weights are read once for a group of up to [`GROUP`] windows: embedding rows as the tokens ask for them, then layer by
//! layer, then the output matrix in blocks of rows. What is kept in between is the residual stream of the group. So memory
//! is a layer, a block and the streams, whatever the size of the text.
//!
//! Windows go through a layer a few at a time, which is what the matrix products need to be fast. No sum runs over tokens of
//! different windows, so a window's scores do not depend on the windows beside it or on how windows are batched.

use crate::batch::{check_tokens, check_windows};
use crate::layer::Layer;
use crate::parameters::{EMBEDDING, FINAL_NORM, Parameters, head_name};
use crate::{DecoderConfig, ModelError};
use std::collections::BTreeMap;
use std::sync::Arc;
use tapestry_eval::TokenScorer;
use tapestry_kernels::AttentionPlan;
use tapestry_kernels::forward::{NllAccumulator, rms_norm};
use tapestry_weights::WeightSource;

/// Windows for which the weights are read once.
const GROUP: usize = 64;
/// Windows that go through a layer together.
const TOGETHER: usize = 8;
/// Rows of the output matrix in memory at a time: twice as many, as the next are read while these are used.
const HEAD_ROWS: usize = 2048;

/// How far a call of [`StreamingScorer::score`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScoreProgress {
    /// Tokens scored, counted in proportion to the steps that they have passed.
    pub tokens_done: u64,
    /// Tokens that this call will have scored at its end.
    pub tokens_total: u64,
}

/// Gives the surprise of tokens under a model whose weights stay where they are.
pub struct StreamingScorer<'a> {
    config: DecoderConfig,
    parameters: Parameters<'a>,
    progress: Option<&'a mut dyn FnMut(ScoreProgress)>,
    /// Steps done in this call: layers and blocks of the output matrix, each for every window.
    steps_done: u64,
    steps_total: u64,
    tokens_total: u64,
}

impl<'a> StreamingScorer<'a> {
    /// Checks that the weights are those of the configuration; nothing else is read yet.
    ///
    /// # Errors
    /// [`ModelError::MissingTensor`], [`ModelError::UnexpectedTensor`] or [`ModelError::Shape`].
    pub fn new(weights: &'a dyn WeightSource, config: &DecoderConfig) -> Result<Self, ModelError> {
        let parameters = Parameters::check(config, weights)?;
        Ok(Self { config: config.clone(), parameters, progress: None, steps_done: 0, steps_total: 1, tokens_total: 0 })
    }

    /// Tells how far a call has come, a few times for each group of windows.
    #[must_use]
    pub fn with_progress(self, progress: &'a mut dyn FnMut(ScoreProgress)) -> Self {
        Self { progress: Some(progress), ..self }
    }

    fn num_blocks(&self) -> usize {
        self.config.vocab_size.div_ceil(HEAD_ROWS)
    }

    fn advance(&mut self, num_windows: usize) {
        self.steps_done += num_windows as u64;
        if let Some(progress) = &mut self.progress {
            let tokens_done = self.tokens_total * self.steps_done / self.steps_total;
            progress(ScoreProgress { tokens_done, tokens_total: self.tokens_total });
        }
    }

    fn score_group(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, ModelError> {
        let plans =
            |windows: &[&[u32]]| self.config.attention_plans(windows.len(), windows[0].len(), &Arc::default(), false);
        let plans: Vec<Vec<Arc<AttentionPlan>>> = windows.chunks(TOGETHER).map(plans).collect();
        let mut streams = self.embed(windows)?;
        for number in 0..self.config.num_hidden_layers {
            let layer = Layer::read(&self.parameters, &self.config, number)?;
            for (stream, plans) in streams.iter_mut().zip(&plans) {
                *stream = layer.forward(stream, &plans[number]);
                self.advance(plans[number].batch);
            }
        }
        self.surprises(windows, streams, self.config.norm_eps())
    }

    /// The embeddings of the tokens, a stream for each [`TOGETHER`] windows. Rows are read in ascending order, so that a source of chunks reads each
    /// chunk once.
    fn embed(&self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut rows: BTreeMap<u32, Vec<f32>> = windows.iter().copied().flatten().map(|id| (*id, vec![])).collect();
        for (id, row) in &mut rows {
            *row = self.parameters.read_rows(EMBEDDING, u64::from(*id), 1)?;
        }
        let embed = |windows: &[&[u32]]| windows.iter().copied().flatten().flat_map(|id| &rows[id]).copied().collect();
        Ok(windows.chunks(TOGETHER).map(embed).collect())
    }

    /// The scores of a group of windows from their final streams.
    fn surprises(
        &mut self,
        windows: &[&[u32]],
        mut streams: Vec<Vec<f32>>,
        norm_eps: f32,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let (time, d) = (windows[0].len(), self.config.hidden_size);
        let norm = self.parameters.read(FINAL_NORM)?;
        for stream in &mut streams {
            // The last position of a window predicts a token that is not in it.
            let scored: Vec<f32> =
                stream.chunks(time * d).flat_map(|window| &window[..(time - 1) * d]).copied().collect();
            *stream = rms_norm(&scored, &norm, norm_eps);
        }
        let targets = |windows: &[&[u32]]| windows.iter().flat_map(|window| &window[1..]).copied().collect();
        let targets: Vec<Vec<u32>> = windows.chunks(TOGETHER).map(targets).collect();
        let mut surprises: Vec<_> = targets.iter().map(|targets| NllAccumulator::new(targets.len())).collect();
        let head = head_name(&self.config);
        let mut rows = self.parameters.read_rows(head, 0, HEAD_ROWS as u64)?;
        for block in 0..self.num_blocks() {
            let first = block * HEAD_ROWS;
            let add = || {
                for ((surprise, stream), targets) in surprises.iter_mut().zip(&streams).zip(&targets) {
                    surprise.add(stream, &rows, first, targets);
                }
            };
            // The next block is read meanwhile.
            let (parameters, next) = (&self.parameters, first + HEAD_ROWS);
            let read = || match next < self.config.vocab_size {
                true => parameters.read_rows(head, next as u64, HEAD_ROWS as u64),
                false => Ok(vec![]),
            };
            let ((), next) = rayon::join(add, read);
            for targets in &targets {
                self.advance(targets.len() / (time - 1));
            }
            rows = next?;
        }
        let surprises = surprises.into_iter().map(NllAccumulator::finish);
        Ok(surprises.flat_map(|nats| nats.chunks(time - 1).map(<[f32]>::to_vec).collect::<Vec<_>>()).collect())
    }
}

impl TokenScorer for StreamingScorer<'_> {
    type Error = ModelError;

    fn score(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, ModelError> {
        let time = check_windows(windows)?;
        check_tokens(&self.config, windows.iter().copied().flatten(), time)?;
        let steps = self.config.num_hidden_layers + self.num_blocks();
        self.steps_done = 0;
        self.steps_total = (steps * windows.len()) as u64;
        self.tokens_total = ((time - 1) * windows.len()) as u64;
        let mut scores = Vec::with_capacity(windows.len());
        for group in windows.chunks(GROUP) {
            scores.extend(self.score_group(group)?);
        }
        Ok(scores)
    }
}
