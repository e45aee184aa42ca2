//! The look at all values that some methods ask for before the first one is merged.

use crate::merge::{Rows, check_stop};
use crate::{EngineError, TensorSource};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tapestry_core::TensorSpec;
use tapestry_merge::{Counts, GRAM_BLOCK_ELEMENTS, Gram, Selection, Survey, SurveyKind, select_in_memory};

/// A tensor of at most so many elements is held in memory to find a threshold.
const SMALL_TENSOR: u64 = 1 << 20;
/// Elements that a thread counts before it goes on to its next run.
const COUNTED_AT_ONCE: u64 = 1 << 15;
/// Blocks that are worked on before their results are added up.
const BATCH: usize = 64;

/// Finds out what `kind` asks for.
pub(crate) fn survey(
    kind: SurveyKind,
    base: Option<&dyn TensorSource>,
    inputs: &[&dyn TensorSource],
    tensors: &[TensorSpec],
    stop: &AtomicBool,
    looked_at: &(dyn Fn(u64) + Sync),
) -> Result<Survey, EngineError> {
    match kind {
        SurveyKind::Nothing => Ok(Survey::default()),
        SurveyKind::Grams => grams(base, inputs, tensors, stop, looked_at),
        SurveyKind::Thresholds { density } => thresholds(density, base, inputs, tensors, stop, looked_at),
    }
}

fn grams(
    base: Option<&dyn TensorSource>,
    inputs: &[&dyn TensorSource],
    tensors: &[TensorSpec],
    stop: &AtomicBool,
    looked_at: &(dyn Fn(u64) + Sync),
) -> Result<Survey, EngineError> {
    let mut grams = vec![Gram::zero(inputs.len()); tensors.len()];
    let blocks: Vec<(usize, u64, usize)> =
        tensors.iter().enumerate().flat_map(|(tensor, spec)| blocks(tensor, spec, GRAM_BLOCK_ELEMENTS)).collect();
    let num_sources = inputs.len() + usize::from(base.is_some());
    let (read, total) =
        (AtomicU64::new(0), tensors.iter().filter_map(TensorSpec::size_bytes).sum::<u64>() * num_sources as u64);
    for batch in blocks.chunks(BATCH) {
        check_stop(stop, 0, total)?;
        let parts: Vec<Gram> = batch
            .par_iter()
            .map_init(Rows::default, |rows, &(tensor, first, len)| {
                rows.read(base, inputs, tensor, first, len)?;
                let inputs: Vec<&[f32]> = rows.inputs.iter().map(|row| &row[..]).collect();
                let bytes = tensors[tensor].dtype.size_bytes() * (len * num_sources) as u64;
                looked_at(read.fetch_add(bytes, Ordering::Relaxed) + bytes);
                Ok(Gram::of_block(&rows.base, &inputs))
            })
            .collect::<Result<_, EngineError>>()?;
        // In the order of the blocks, whoever computed them.
        batch.iter().zip(&parts).for_each(|(&(tensor, ..), part)| grams[tensor].add(part));
    }
    Ok(Survey { grams, ..Survey::default() })
}

/// For each tensor and contribution, the smallest magnitude of a change that is kept.
fn thresholds(
    density: f64,
    base: Option<&dyn TensorSource>,
    inputs: &[&dyn TensorSource],
    tensors: &[TensorSpec],
    stop: &AtomicBool,
    looked_at: &(dyn Fn(u64) + Sync),
) -> Result<Survey, EngineError> {
    let base = base.expect("a method that looks at changes demands a base");
    let sizes: Vec<u64> =
        tensors.iter().map(|spec| spec.num_elements().expect("readers refuse shapes that overflow")).collect();
    let bytes_of = |tensor: usize| tensors[tensor].dtype.size_bytes() * sizes[tensor] * (inputs.len() as u64 + 1);
    let (read, total) = (AtomicU64::new(0), (0..tensors.len()).map(bytes_of).sum());
    let mut thresholds = vec![vec![]; tensors.len()];
    // Small tensors many at a time, each held by one thread; large ones one at a time, by all threads.
    let (small, large): (Vec<usize>, Vec<usize>) =
        (0..tensors.len()).partition(|tensor| sizes[*tensor] <= SMALL_TENSOR);
    for batch in small.chunks(BATCH) {
        check_stop(stop, 0, total)?;
        let found: Vec<Vec<f32>> = batch
            .par_iter()
            .map_init(Rows::default, |rows, &tensor| {
                let len = usize::try_from(sizes[tensor]).expect("a small tensor");
                let one = |input: &&dyn TensorSource| {
                    rows.read(Some(base), &[*input], tensor, 0, len)?;
                    Ok(select_in_memory(&rows.base, &rows.inputs[0], density))
                };
                let found = inputs.iter().map(one).collect::<Result<_, EngineError>>()?;
                looked_at(read.fetch_add(bytes_of(tensor), Ordering::Relaxed) + bytes_of(tensor));
                Ok(found)
            })
            .collect::<Result<_, EngineError>>()?;
        batch.iter().zip(found).for_each(|(tensor, found)| thresholds[*tensor] = found);
    }
    for tensor in large {
        for input in inputs {
            let mut selection = Selection::new(sizes[tensor], density);
            while !selection.is_done() {
                check_stop(stop, 0, total)?;
                for counts in count(&selection, base, *input, tensor, sizes[tensor])? {
                    selection.absorb(&counts);
                }
                selection.end_pass();
            }
            thresholds[tensor].push(selection.threshold());
        }
        looked_at(read.fetch_add(bytes_of(tensor), Ordering::Relaxed) + bytes_of(tensor));
    }
    Ok(Survey { thresholds, ..Survey::default() })
}

/// One pass of a search over a tensor: what each thread has counted.
fn count(
    selection: &Selection,
    base: &dyn TensorSource,
    input: &dyn TensorSource,
    tensor: usize,
    num_elements: u64,
) -> Result<Vec<Counts>, EngineError> {
    let num_threads = rayon::current_num_threads() as u64;
    let stride = COUNTED_AT_ONCE * num_threads;
    (0..num_threads)
        .into_par_iter()
        .map(|thread| {
            let (mut rows, mut counts) = (Rows::default(), selection.counts());
            let mut first = thread * COUNTED_AT_ONCE;
            while first < num_elements {
                let len = usize::try_from((num_elements - first).min(COUNTED_AT_ONCE)).expect("a row");
                rows.read(Some(base), &[input], tensor, first, len)?;
                counts.add(&rows.base, &rows.inputs[0]);
                first += stride;
            }
            Ok(counts)
        })
        .collect()
}

/// A tensor cut into runs of at most `max_len` elements: (tensor, first element, length).
fn blocks(tensor: usize, spec: &TensorSpec, max_len: usize) -> impl Iterator<Item = (usize, u64, usize)> + use<> {
    let num_elements = spec.num_elements().expect("readers refuse shapes that overflow");
    (0..num_elements).step_by(max_len).map(move |first| {
        let len = usize::try_from((num_elements - first).min(max_len as u64)).expect("at most max_len");
        (tensor, first, len)
    })
}
