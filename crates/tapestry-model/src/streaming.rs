//! Scoring with one layer in memory at a time.
//!
//! Weights are read once for a group of up to [`GROUP`] windows: embedding rows as the tokens ask for them, then layer by
//! layer, then the output matrix in blocks of rows. What is kept in between is the residual stream of the group. So memory
//! is a layer, a block and the streams, whatever the size of the text.
//!
//! Every window is computed on its own, by the same operations in the same order, so its scores do not depend on the
//! windows beside it or on how windows are batched.

use crate::batch::{check_tokens, check_windows};
use crate::parameters::{EMBEDDING, FINAL_NORM, Parameters, head_name, layer_name};
use crate::{LlamaConfig, ModelError};
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use tapestry_eval::TokenScorer;
use tapestry_kernels::AttentionPlan;
use tapestry_kernels::forward::{AttentionWeights, MlpWeights, NllAccumulator, attention_block, mlp_block, rms_norm};
use tapestry_weights::WeightSource;

/// Windows for which the weights are read once.
const GROUP: usize = 64;
/// Rows of the output matrix in memory at a time.
const HEAD_ROWS: usize = 4096;

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
    config: LlamaConfig,
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
    pub fn new(weights: &'a dyn WeightSource, config: &LlamaConfig) -> Result<Self, ModelError> {
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
        let plan = self.config.attention_plan(1, windows[0].len(), Arc::default());
        let mut streams = self.embed(windows)?;
        for layer in 0..self.config.num_hidden_layers {
            let layer = Layer::read(&self.parameters, layer)?;
            streams.par_iter_mut().for_each(|stream| *stream = layer.forward(stream, &plan));
            self.advance(windows.len());
        }
        self.surprises(windows, streams, plan.norm_eps)
    }

    /// The embeddings of each window's tokens. Rows are read in ascending order, so that a source of chunks reads each
    /// chunk once.
    fn embed(&self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, ModelError> {
        let mut rows: BTreeMap<u32, Vec<f32>> = windows.iter().copied().flatten().map(|id| (*id, vec![])).collect();
        for (id, row) in &mut rows {
            *row = self.parameters.read_rows(EMBEDDING, u64::from(*id), 1)?;
        }
        let embed = |window: &&[u32]| window.iter().flat_map(|id| &rows[id]).copied().collect();
        Ok(windows.iter().map(embed).collect())
    }

    /// The scores of a group of windows from their final streams.
    fn surprises(
        &mut self,
        windows: &[&[u32]],
        mut streams: Vec<Vec<f32>>,
        norm_eps: f32,
    ) -> Result<Vec<Vec<f32>>, ModelError> {
        let d = self.config.hidden_size;
        let norm = self.parameters.read(FINAL_NORM)?;
        streams.par_iter_mut().for_each(|stream| {
            // The last position of a window predicts a token that is not in it.
            stream.truncate(stream.len() - d);
            *stream = rms_norm(stream, &norm, norm_eps);
        });
        let mut surprises: Vec<_> = windows.iter().map(|window| NllAccumulator::new(window.len() - 1)).collect();
        for block in 0..self.num_blocks() {
            let first = block * HEAD_ROWS;
            let rows = self.parameters.read_rows(head_name(&self.config), first as u64, HEAD_ROWS as u64)?;
            let tasks = surprises.par_iter_mut().zip(&streams).zip(windows);
            tasks.for_each(|((surprise, stream), window)| surprise.add(stream, &rows, first, &window[1..]));
            self.advance(windows.len());
        }
        Ok(surprises.into_iter().map(NllAccumulator::finish).collect())
    }
}

/// The parameters of one layer.
struct Layer {
    norms: [Vec<f32>; 2],
    attention: [Vec<f32>; 4],
    mlp: [Vec<f32>; 3],
}

impl Layer {
    fn read(parameters: &Parameters<'_>, layer: usize) -> Result<Self, ModelError> {
        let read = |part: &str| parameters.read(&layer_name(layer, part));
        Ok(Self {
            norms: [read("input_layernorm")?, read("post_attention_layernorm")?],
            attention: [
                read("self_attn.q_proj")?,
                read("self_attn.k_proj")?,
                read("self_attn.v_proj")?,
                read("self_attn.o_proj")?,
            ],
            mlp: [read("mlp.gate_proj")?, read("mlp.up_proj")?, read("mlp.down_proj")?],
        })
    }

    fn forward(&self, stream: &[f32], plan: &AttentionPlan) -> Vec<f32> {
        let [q, k, v, o] = self.attention.each_ref().map(Vec::as_slice);
        let [gate, up, down] = self.mlp.each_ref().map(Vec::as_slice);
        let [before, between] = self.norms.each_ref().map(Vec::as_slice);
        let stream = attention_block(stream, &AttentionWeights { norm: before, q, k, v, o }, plan);
        mlp_block(&stream, &MlpWeights { norm: between, gate, up, down }, plan.norm_eps)
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
