//! The look at all values that some methods ask for before the first one is merged.

use crate::merge::{Rows, check_stop};
use crate::{EngineError, TensorSource};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tapestry_core::TensorSpec;
use tapestry_merge::{GRAM_BLOCK_ELEMENTS, Gram, Survey, SurveyKind};

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
        SurveyKind::Thresholds { .. } => Ok(Survey::default()),
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

/// A tensor cut into runs of at most `max_len` elements: (tensor, first element, length).
fn blocks(tensor: usize, spec: &TensorSpec, max_len: usize) -> impl Iterator<Item = (usize, u64, usize)> + use<> {
    let num_elements = spec.num_elements().expect("readers refuse shapes that overflow");
    (0..num_elements).step_by(max_len).map(move |first| {
        let len = usize::try_from((num_elements - first).min(max_len as u64)).expect("at most max_len");
        (tensor, first, len)
    })
}
