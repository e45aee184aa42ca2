//! Screening a contribution out of a blob store: finite values, and the size of the change to the base. One pass over both, on all
//! threads, in memory that does not depend on the size of the model.

use crate::progress::Working;
use anyhow::{Context as _, Result};
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
    let screened = tokio::task::spawn_blocking(move || match screen(&base, &weights, working) {
        Ok(screening) => Ok(screening),
        Err(Stop::Bad(screening)) => Ok(screening),
        // Its member made the manifest; that its chunks do not fit is the member's doing.
        Err(Stop::Failed(error, true)) if matches!(error, StoreError::ChunkSize { .. }) => {
            Ok(Screening::Malformed { what: error.to_string() })
        }
        Err(Stop::Failed(error, _)) => Err(error.into()),
    });
    screened.await.context("screening was interrupted")?
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
    let total = manifest.data.size_bytes;
    let mut change = DeltaNorm::new();
    // The blocks in which changes are summed are those of chunks where all elements are of one type; the last chunk may end anywhere.
    let num_whole = uniform_dtype(manifest).map_or(0, |_| total / CHUNK_BYTES);
    let dtype = uniform_dtype(manifest).unwrap_or(Dtype::F32);
    let num_whole = usize::try_from(num_whole).expect("chunks of a manifest in memory");
    for first in (0..num_whole).step_by(BATCH) {
        let batch = first..num_whole.min(first + BATCH);
        let parts: Vec<_> =
            batch.clone().into_par_iter().map(|index| screen_chunk(base, weights, dtype, index)).collect();
        for part in parts {
            change.append(&part?);
        }
        working.update(batch.end as u64 * CHUNK_BYTES, total);
    }
    let rest = pieces(manifest).filter(|piece| piece.start + piece.len > num_whole as u64 * CHUNK_BYTES);
    for Piece { tensor, start, len } in rest {
        // A piece may begin in the last of the chunks that are done.
        let end = start + len;
        let start = start.max(num_whole as u64 * CHUNK_BYTES);
        let of_base = base.read_bytes(start, end - start).map_err(|error| Stop::Failed(error, false))?;
        let found = weights.read_bytes(start, end - start).map_err(|error| Stop::Failed(error, true))?;
        let dtype = manifest.tensors[tensor].dtype;
        if let Some(index) = first_non_finite(dtype, &found) {
            return Err(Stop::Bad(not_finite(manifest, start + index * dtype.size_bytes())));
        }
        change.add(dtype, &of_base, &found);
        working.update(end, total);
    }
    working.end();
    Ok(Screening::Measured { relative_change: change.relative_change(), bpb: None, community_bpb: None })
}

/// The type of all elements, where it is one.
fn uniform_dtype(manifest: &WeightsManifest) -> Option<Dtype> {
    let first = manifest.tensors.first()?.dtype;
    manifest.tensors.iter().all(|tensor| tensor.dtype == first).then_some(first)
}

/// One whole chunk of both.
fn screen_chunk(base: &WeightsReader, weights: &WeightsReader, dtype: Dtype, index: usize) -> Result<ChangePart, Stop> {
    let [of_base, of_weights] = [false, true].map(|is_contribution| move |error| Stop::Failed(error, is_contribution));
    let mut part = ChangePart::default();
    let mut not_finite_at = None;
    let (mut base, mut scan) = (base.scan(index).map_err(of_base)?, weights.scan(index).map_err(of_weights)?);
    let mut at = index as u64 * CHUNK_BYTES;
    // Both have whole chunks here, so they end together.
    while let (Some(base), Some(found)) = (base.window().map_err(of_base)?, scan.window().map_err(of_weights)?) {
        if not_finite_at.is_none() {
            not_finite_at = first_non_finite(dtype, found).map(|element| at + element * dtype.size_bytes());
        }
        part.add(dtype, base, found);
        at += found.len() as u64;
    }
    // Only now is it known that these are the bytes that the member sent.
    not_finite_at.map_or(Ok(part), |at| Err(Stop::Bad(not_finite(weights.manifest(), at))))
}

/// The value at byte `at` of the data is not finite.
fn not_finite(manifest: &WeightsManifest, at: u64) -> Screening {
    let tensor = manifest.offsets().filter(|(_, start)| *start <= at).last();
    let found = tensor.map(|(spec, start)| (spec.name.clone(), (at - start) / spec.dtype.size_bytes()));
    let (tensor, index) = found.unwrap_or_default();
    Screening::NotFinite { tensor, index }
}
