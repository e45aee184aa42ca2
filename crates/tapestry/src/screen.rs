//! Screening a contribution out of a blob store: finite values, and the size of the change to the base. One pass over both, on all
//! threads, in memory that does not depend on the size of the model.

use crate::progress::Working;
use crate::readers::on_own_thread;
use anyhow::Result;
use rayon::prelude::*;
use std::sync::Arc;
use tapestry_core::{CHUNK_BYTES, Dtype, WeightsManifest};
use tapestry_merge::{ChangePart, DeltaNorm, first_non_finite};
use tapestry_round::Screening;
use tapestry_store::{Piece, StoreError, WeightsReader, pieces};

/// Chunks between two reports of progress.
const BATCH: usize = 16;

/// Screens what `weights` reads, which has the tensors of what `base` reads. What was read there counts as checked from then on.
pub(crate) async fn screen_weights(
    base: Arc<WeightsReader>,
    weights: Arc<WeightsReader>,
    working: Working,
) -> Result<Screening> {
    let screened = on_own_thread(move || match screen(&base, &weights, working) {
        Ok(screening) => Ok(screening),
        Err(Stop::Bad(screening)) => Ok(screening),
        // Its member made the manifest; that its chunks do not fit is the member's doing.
        Err(Stop::Failed(error, true)) if matches!(error, StoreError::ChunkSize { .. }) => {
            Ok(Screening::Malformed { what: error.to_string() })
        }
        Err(Stop::Failed(error, _)) => Err(error.into()),
    });
    screened.await?
}

/// Why screening ends early.
enum Stop {
    /// The contribution is no good.
    Bad(Screening),
    /// Something cannot be read; whether it is the contribution.
    Failed(StoreError, bool),
}

fn screen(base: &WeightsReader, weights: &WeightsReader, mut working: Working) -> Result<Screening, Stop> {
    let manifest = weights.manifest();
    let mut change = DeltaNorm::new();
    match uniform_dtype(manifest) {
        Some(dtype) => screen_chunks(base, weights, dtype, &mut change, &mut working)?,
        None => screen_pieces(base, weights, &mut change, &mut working)?,
    }
    working.end();
    Ok(Screening::Measured { relative_change: change.relative_change(), bpb: None, community_bpb: None })
}

/// Where all elements are of one type: a chunk then consists of whole blocks of the sum, but for the last one.
fn screen_chunks(
    base: &WeightsReader,
    weights: &WeightsReader,
    dtype: Dtype,
    change: &mut DeltaNorm,
    working: &mut Working,
) -> Result<(), Stop> {
    let total = weights.manifest().data.size_bytes;
    let num_whole = usize::try_from(total / CHUNK_BYTES).expect("chunks of a manifest in memory");
    let screen_whole = |index| {
        let mut part = ChangePart::default();
        screen_chunk(base, weights, dtype, index, |base, found| part.add(dtype, base, found)).map(|()| part)
    };
    for first in (0..num_whole).step_by(BATCH) {
        let batch = first..num_whole.min(first + BATCH);
        let parts: Vec<_> = batch.clone().into_par_iter().map(screen_whole).collect();
        for part in parts {
            change.append(&part?);
        }
        working.update(batch.end as u64 * CHUNK_BYTES, total);
    }
    if total.is_multiple_of(CHUNK_BYTES) {
        return Ok(());
    }
    screen_chunk(base, weights, dtype, num_whole, |base, found| change.add(dtype, base, found))
}

/// Where elements are of several types, which may lie across the borders of chunks.
fn screen_pieces(
    base: &WeightsReader,
    weights: &WeightsReader,
    change: &mut DeltaNorm,
    working: &mut Working,
) -> Result<(), Stop> {
    let manifest = weights.manifest();
    for Piece { tensor, start, len } in pieces(manifest) {
        let of_base = base.read_bytes(start, len).map_err(|error| Stop::Failed(error, false))?;
        let found = weights.read_bytes(start, len).map_err(|error| Stop::Failed(error, true))?;
        let dtype = manifest.tensors[tensor].dtype;
        if let Some(index) = first_non_finite(dtype, &found) {
            return Err(Stop::Bad(not_finite(manifest, start + index * dtype.size_bytes())));
        }
        change.add(dtype, &of_base, &found);
        working.update(start + len, manifest.data.size_bytes);
    }
    Ok(())
}

/// The type of all elements, where it is one.
fn uniform_dtype(manifest: &WeightsManifest) -> Option<Dtype> {
    let first = manifest.tensors.first()?.dtype;
    manifest.tensors.iter().all(|tensor| tensor.dtype == first).then_some(first)
}

/// One chunk of both, window by window; `take` gets what the base and the contribution have there.
fn screen_chunk(
    base: &WeightsReader,
    weights: &WeightsReader,
    dtype: Dtype,
    index: usize,
    mut take: impl FnMut(&[u8], &[u8]),
) -> Result<(), Stop> {
    let [of_base, of_weights] = [false, true].map(|is_contribution| move |error| Stop::Failed(error, is_contribution));
    let mut not_finite_at = None;
    let (mut base, mut scan) = (base.scan(index).map_err(of_base)?, weights.scan(index).map_err(of_weights)?);
    let mut at = index as u64 * CHUNK_BYTES;
    // The two data are of one length, so they end together.
    while let (Some(base), Some(found)) = (base.window().map_err(of_base)?, scan.window().map_err(of_weights)?) {
        if not_finite_at.is_none() {
            not_finite_at = first_non_finite(dtype, found).map(|element| at + element * dtype.size_bytes());
        }
        take(base, found);
        at += found.len() as u64;
    }
    // Only now is it known that these are the bytes that the member sent.
    not_finite_at.map_or(Ok(()), |at| Err(Stop::Bad(not_finite(weights.manifest(), at))))
}

/// The value at byte `at` of the data is not finite.
fn not_finite(manifest: &WeightsManifest, at: u64) -> Screening {
    let tensor = manifest.offsets().filter(|(_, start)| *start <= at).last();
    let found = tensor.map(|(spec, start)| (spec.name.clone(), (at - start) / spec.dtype.size_bytes()));
    let (tensor, index) = found.unwrap_or_default();
    Screening::NotFinite { tensor, index }
}
