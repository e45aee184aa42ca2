//! One merge: checked, surveyed, and ready to give any part of its result.

use crate::layout::{Layout, Span};
use crate::others::Others;
use crate::survey::survey;
use crate::{EngineError, TensorSource};
use std::sync::atomic::{AtomicBool, Ordering};
use tapestry_core::{Dtype, TensorSpec};
use tapestry_merge::{
    Block, Contributor, GRAM_BLOCK_ELEMENTS, Method, Rule, Setting, SurveyKind, all_finite, decode_row, encode_row,
};
use tapestry_weights::OtherTensor;

/// Bytes of rows that one thread works on at a time; they stay in its own cache.
const WORKING_SET_BYTES: usize = 1 << 20;
/// The most elements of one row.
const MAX_ROW: usize = 16_384;

/// A contribution to merge.
pub struct Input<'a> {
    /// The member's name, or what stands for it. Decides the order of arithmetic.
    pub name: String,
    /// How much it counts, above zero. Only the ratio to the others matters: the weights are divided by their sum.
    pub weight: f64,
    /// Its values.
    pub source: &'a dyn TensorSource,
}

/// What to merge and how.
pub struct Request<'a> {
    /// The method.
    pub method: &'a Method,
    /// What the contributions were trained from.
    pub base: Option<&'a dyn TensorSource>,
    /// The contributions, in any order.
    pub inputs: Vec<Input<'a>>,
    /// The method's state after the merge before; empty in the first round.
    pub states: Vec<&'a dyn TensorSource>,
    /// The type of the result; without it, that of the contributions.
    pub dtype: Option<Dtype>,
}

/// Which result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// The merged model.
    Model,
    /// One vector of the method's next state, in `f32`.
    State(usize),
}

/// A merge that is ready. Shared by all threads.
pub struct Merge<'a> {
    base: Option<&'a dyn TensorSource>,
    sources: Vec<&'a dyn TensorSource>,
    states: Vec<&'a dyn TensorSource>,
    num_states: usize,
    needs_survey: bool,
    contributors: Vec<Contributor>,
    tensors: Vec<TensorSpec>,
    model: Layout,
    state: Layout,
    others: Others<'a>,
    rule: Box<dyn Rule>,
}

/// What one thread needs to work, kept from one range to the next.
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Rows,
    merged: Vec<f64>,
    next_states: Vec<Vec<f64>>,
    edge: Vec<u8>,
}

/// The same run of elements of several models.
#[derive(Debug, Default)]
pub(crate) struct Rows {
    pub(crate) base: Vec<f32>,
    pub(crate) inputs: Vec<Vec<f32>>,
    states: Vec<Vec<f32>>,
    bytes: Vec<u8>,
}

impl<'a> Merge<'a> {
    /// Checks everything that can be checked before the first value is merged, and makes the method's survey.
    ///
    /// `looked_at` is told how many bytes the survey has read.
    ///
    /// # Errors
    /// [`EngineError`] naming model, tensor, what was expected and what was found.
    pub fn prepare(
        request: Request<'a>,
        stop: &AtomicBool,
        looked_at: &(dyn Fn(u64) + Sync),
    ) -> Result<Self, EngineError> {
        let Request { method, base, mut inputs, states, dtype } = request;
        inputs.sort_by(|a, b| a.name.cmp(&b.name));
        let contributors = shares(&inputs)?;
        let first = inputs.first().ok_or(EngineError::Empty)?;
        let equal = contributors.iter().all(|c| (c.share - contributors[0].share).abs() < 1e-12);
        method.check_setting(inputs.len(), base.is_some(), equal)?;
        let sources: Vec<_> = inputs.iter().map(|input| input.source).collect();
        let reference = base.unwrap_or(first.source);
        for source in &sources {
            check_same(reference, *source)?;
        }
        let others = Others::new(reference, &sources)?;
        let demands = method.demands();
        for state in &states {
            check_state(reference, *state)?;
        }
        // An origin that the method does not ask for would change what the survey finds.
        let base = base.filter(|_| demands.base);
        let tensors = reference.tensors().to_vec();
        let setting = Setting { tensors: &tensors, contributors: &contributors };
        let survey = survey(demands.survey, base, &sources, &tensors, stop, looked_at)?;
        let rule = method.rule(&setting, &survey)?;
        let (model, state) = (Layout::new(&tensors, dtype), Layout::new(&tensors, Some(Dtype::F32)));
        let (num_states, needs_survey) = (demands.num_states, demands.survey != SurveyKind::Nothing);
        Ok(Self { base, sources, states, num_states, needs_survey, contributors, tensors, model, state, others, rule })
    }

    /// The contributions with their shares, in the order of arithmetic.
    #[must_use]
    pub fn contributors(&self) -> &[Contributor] {
        &self.contributors
    }

    /// How many vectors of state the method leaves for the next merge.
    #[must_use]
    pub const fn num_states(&self) -> usize {
        self.num_states
    }

    /// The tensors of a result, in the order of their names.
    #[must_use]
    pub fn tensors(&self, output: Output) -> &[TensorSpec] {
        &self.layout(output).tensors
    }

    /// The tensors of a result that are copied, not merged. Their bytes lie behind the others'.
    #[must_use]
    pub fn other_tensors(&self, output: Output) -> &[OtherTensor] {
        if output == Output::Model { self.others.tensors() } else { &[] }
    }

    /// Bytes of the merged tensors of a result.
    #[must_use]
    pub fn size_bytes(&self, output: Output) -> u64 {
        self.layout(output).size_bytes()
    }

    /// Bytes of memory that `num_threads` threads need at most, whatever the size of the model.
    #[must_use]
    pub fn memory_bytes(&self, num_threads: usize) -> u64 {
        let num_rows = self.sources.len() + 1 + self.num_states;
        // Rows, the part that is being written, and for a survey one block of each contribution; and the program itself.
        let one_thread = self.row_len() * (4 * num_rows + 8 * (1 + self.num_states)) + (2 << 20);
        let survey = if self.needs_survey { GRAM_BLOCK_ELEMENTS * 4 * num_rows } else { 0 };
        (num_threads * one_thread.max(survey) + (24 << 20)) as u64
    }

    /// Bytes that are read for all of a result.
    #[must_use]
    pub fn input_bytes(&self) -> u64 {
        let one: u64 = self.tensors.iter().filter_map(TensorSpec::size_bytes).sum();
        let state = if self.states.is_empty() { 0 } else { self.state.size_bytes() * self.num_states as u64 };
        one * (self.sources.len() + usize::from(self.base.is_some())) as u64 + state
    }

    const fn layout(&self, output: Output) -> &Layout {
        match output {
            Output::Model => &self.model,
            Output::State(_) => &self.state,
        }
    }

    /// Writes the bytes of a result from `start` on. The same range gives the same bytes, always and on any thread.
    ///
    /// # Errors
    /// Where a value is not finite, a result does not fit its type, or something cannot be read.
    ///
    /// # Panics
    /// Where the range ends beyond the result.
    pub fn fill(&self, output: Output, start: u64, bytes: &mut [u8], scratch: &mut Scratch) -> Result<(), EngineError> {
        let layout = self.layout(output);
        assert!(start + bytes.len() as u64 <= layout.size_bytes(), "a range within the result");
        let mut bytes = bytes;
        for span in layout.spans(start, bytes.len()) {
            let (now, later) = bytes.split_at_mut(span.len);
            self.fill_span(output, layout.tensors[span.tensor].dtype, span, now, scratch)?;
            bytes = later;
        }
        Ok(())
    }

    /// Writes the bytes of the tensors that are copied, from `start` on, counted from the first of them.
    pub(crate) fn fill_others(&self, start: u64, bytes: &mut [u8]) -> Result<(), EngineError> {
        self.others.fill(start, bytes)
    }

    /// Bytes of the tensors that are copied.
    pub(crate) fn other_bytes(&self, output: Output) -> u64 {
        if output == Output::Model { self.others.size_bytes() } else { 0 }
    }

    fn fill_span(
        &self,
        output: Output,
        dtype: Dtype,
        span: Span,
        bytes: &mut [u8],
        scratch: &mut Scratch,
    ) -> Result<(), EngineError> {
        let size = dtype.size_bytes();
        let end = span.start + span.len as u64;
        let row_len = self.row_len();
        let mut bytes = bytes;
        let mut at = span.start;
        while at < end {
            let first = at / size;
            let last = (first + row_len as u64).min(end.div_ceil(size));
            let row_end = (last * size).min(end);
            let (now, later) = bytes.split_at_mut(usize::try_from(row_end - at).expect("within a buffer"));
            self.fill_row(span.tensor, first, usize::try_from(last - first).expect("a row"), scratch)?;
            let row = output.row(scratch);
            let is_finite = if at == first * size && row_end == last * size {
                encode_row(dtype, row, now)
            } else {
                // The range begins or ends within an element: possible where 2-byte tensors lie before 4-byte ones.
                let mut edge = std::mem::take(&mut scratch.edge);
                edge.resize(usize::try_from((last - first) * size).expect("a row"), 0);
                let is_finite = encode_row(dtype, output.row(scratch), &mut edge);
                let skip = usize::try_from(at - first * size).expect("less than an element");
                now.copy_from_slice(&edge[skip..skip + now.len()]);
                scratch.edge = edge;
                is_finite
            };
            if !is_finite {
                return Err(self.overflow(span.tensor, first, dtype, output.row(scratch)));
            }
            (bytes, at) = (later, row_end);
        }
        Ok(())
    }

    /// Merges `len` elements of a tensor into `scratch`.
    fn fill_row(&self, tensor: usize, first: u64, len: usize, scratch: &mut Scratch) -> Result<(), EngineError> {
        scratch.rows.read(self.base, &self.sources, tensor, first, len)?;
        scratch.rows.read_states(&self.states, self.num_states, tensor, first, len)?;
        let Scratch { rows, merged, next_states, .. } = scratch;
        merged.resize(len, 0.0);
        next_states.resize_with(self.num_states, Vec::new);
        next_states.iter_mut().for_each(|state| state.resize(len, 0.0));
        let inputs: Vec<&[f32]> = rows.inputs.iter().map(|row| &row[..]).collect();
        let states: Vec<&[f32]> = rows.states.iter().map(|row| &row[..]).collect();
        let mut states_out: Vec<&mut [f64]> = next_states.iter_mut().map(|row| &mut row[..]).collect();
        let block = Block { tensor, first, base: &rows.base, inputs: &inputs, states: &states };
        self.rule.merge(&block, merged, &mut states_out);
        Ok(())
    }

    /// Elements of a row, so that all rows together stay in a thread's own cache.
    fn row_len(&self) -> usize {
        // Four bytes for each row that is read, eight for each that is written.
        let bytes = 4 * (self.sources.len() + 1 + self.num_states) + 8 * (1 + self.num_states);
        (WORKING_SET_BYTES / bytes / 1024 * 1024).clamp(1024, MAX_ROW)
    }

    fn overflow(&self, tensor: usize, first: u64, dtype: Dtype, row: &[f64]) -> EngineError {
        let fits = |value: &f64| {
            let mut bytes = [0; 4];
            let size = usize::try_from(dtype.size_bytes()).expect("2 or 4");
            encode_row(dtype, std::slice::from_ref(value), &mut bytes[..size])
        };
        let place = row.iter().position(|value| !fits(value)).unwrap_or(0);
        let tensor = self.tensors[tensor].name.clone();
        EngineError::Overflow { tensor, index: first + place as u64, value: row[place], dtype }
    }
}

impl Output {
    fn row(self, scratch: &Scratch) -> &[f64] {
        match self {
            Self::Model => &scratch.merged,
            Self::State(state) => &scratch.next_states[state],
        }
    }
}

impl Rows {
    /// Reads `len` elements of base and inputs, and refuses what is not finite.
    pub(crate) fn read(
        &mut self,
        base: Option<&dyn TensorSource>,
        inputs: &[&dyn TensorSource],
        tensor: usize,
        first: u64,
        len: usize,
    ) -> Result<(), EngineError> {
        self.inputs.resize_with(inputs.len(), Vec::new);
        match base {
            Some(base) => read_row(base, tensor, first, len, &mut self.base, &mut self.bytes)?,
            None => self.base.clear(),
        }
        for (source, row) in inputs.iter().zip(&mut self.inputs) {
            read_row(*source, tensor, first, len, row, &mut self.bytes)?;
        }
        Ok(())
    }

    fn read_states(
        &mut self,
        states: &[&dyn TensorSource],
        num_states: usize,
        tensor: usize,
        first: u64,
        len: usize,
    ) -> Result<(), EngineError> {
        self.states.resize_with(num_states, Vec::new);
        for (index, row) in self.states.iter_mut().enumerate() {
            match states.get(index) {
                Some(state) => read_row(*state, tensor, first, len, row, &mut self.bytes)?,
                None => {
                    row.clear();
                    row.resize(len, 0.0);
                }
            }
        }
        Ok(())
    }
}

/// Reads `len` elements of one tensor.
fn read_row(
    source: &dyn TensorSource,
    tensor: usize,
    first: u64,
    len: usize,
    row: &mut Vec<f32>,
    bytes: &mut Vec<u8>,
) -> Result<(), EngineError> {
    let spec = &source.tensors()[tensor];
    let size = spec.dtype.size_bytes();
    row.resize(len, 0.0);
    if spec.dtype == Dtype::F32 {
        // Files are little-endian, and so is every machine that this is built for.
        const { assert!(cfg!(target_endian = "little"), "weights are read in place") };
        source.read_into(tensor, first * size, bytemuck::cast_slice_mut(row))?;
    } else {
        bytes.resize(len * usize::try_from(size).expect("2 or 4"), 0);
        source.read_into(tensor, first * size, bytes)?;
        decode_row(spec.dtype, bytes, row);
    }
    if all_finite(row) {
        return Ok(());
    }
    let place = row.iter().position(|value| !value.is_finite()).unwrap_or(0);
    let (tensor, place_of) = (spec.name.clone(), source.place_of(tensor));
    Err(EngineError::NotFinite { tensor, index: first + place as u64, found: row[place], place: place_of })
}

/// The contributions with weights that sum to one.
fn shares(inputs: &[Input<'_>]) -> Result<Vec<Contributor>, EngineError> {
    if let Some(pair) = inputs.windows(2).find(|pair| pair[0].name == pair[1].name) {
        return Err(EngineError::DuplicateName { name: pair[0].name.clone() });
    }
    if let Some(bad) = inputs.iter().find(|input| !(input.weight > 0.0 && input.weight.is_finite())) {
        return Err(EngineError::Weight { name: bad.name.clone(), found: bad.weight });
    }
    // Divided by the largest first, so that no sum overflows.
    let largest = inputs.iter().map(|input| input.weight).fold(0.0, f64::max);
    let sum: f64 = inputs.iter().map(|input| input.weight / largest).sum();
    let share = |input: &Input<'_>| Contributor { name: input.name.clone(), share: input.weight / largest / sum };
    Ok(inputs.iter().map(share).collect())
}

/// Both models have the same tensors.
fn check_same(first: &dyn TensorSource, second: &dyn TensorSource) -> Result<(), EngineError> {
    check_names(first, second)?;
    for (index, (a, b)) in first.tensors().iter().zip(second.tensors()).enumerate() {
        check_shape(first, second, index, a, b)?;
        if a.dtype != b.dtype {
            return Err(EngineError::ElementType {
                tensor: a.name.clone(),
                first: first.place_of(index),
                expected: a.dtype,
                second: second.place_of(index),
                found: b.dtype,
            });
        }
    }
    Ok(())
}

/// A vector of state belongs to the model.
fn check_state(model: &dyn TensorSource, state: &dyn TensorSource) -> Result<(), EngineError> {
    check_names(model, state)?;
    for (index, (a, b)) in model.tensors().iter().zip(state.tensors()).enumerate() {
        check_shape(model, state, index, a, b)?;
    }
    Ok(())
}

fn check_shape(
    first: &dyn TensorSource,
    second: &dyn TensorSource,
    index: usize,
    a: &TensorSpec,
    b: &TensorSpec,
) -> Result<(), EngineError> {
    if a.shape == b.shape {
        return Ok(());
    }
    Err(EngineError::Shape {
        tensor: a.name.clone(),
        first: first.place_of(index),
        expected: a.shape.clone(),
        second: second.place_of(index),
        found: b.shape.clone(),
    })
}

fn check_names(first: &dyn TensorSource, second: &dyn TensorSource) -> Result<(), EngineError> {
    let has = |source: &dyn TensorSource, name: &str| {
        source.tensors().binary_search_by(|spec| spec.name.as_str().cmp(name)).is_ok()
    };
    let missing = |a: &dyn TensorSource, b: &dyn TensorSource| {
        let index = a.tensors().iter().position(|spec| !has(b, &spec.name))?;
        let lacks = if b.tensors().is_empty() { "a model without tensors".into() } else { b.place_of(0) };
        Some(EngineError::MissingTensor { tensor: a.tensors()[index].name.clone(), has: a.place_of(index), lacks })
    };
    missing(first, second).or_else(|| missing(second, first)).map_or(Ok(()), Err)
}

/// Stops where somebody asked for it.
pub(crate) fn check_stop(stop: &AtomicBool, done: u64, total: u64) -> Result<(), EngineError> {
    if stop.load(Ordering::Relaxed) { Err(EngineError::Stopped { done, total }) } else { Ok(()) }
}
