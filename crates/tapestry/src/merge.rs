//! Screening and merging, chunk by chunk out of a blob store: memory does not depend on the size of the model.

use crate::progress::Working;
use anyhow::{Context as _, Result, ensure};
use tapestry_core::{Dtype, WeightsManifest};
use tapestry_merge::{DeltaNorm, first_non_finite, merge_chunk};
use tapestry_round::Screening;
use tapestry_store::{BlobStore, Piece, StoreError, WeightsReader, WeightsWriter, pieces};

/// Finite values, and the size of the change to the base. `weights` has the base's tensors.
pub(crate) async fn screen_weights(
    blobs: &BlobStore,
    base: &WeightsManifest,
    weights: &WeightsManifest,
    mut working: Working,
) -> Result<Screening> {
    let (base_reader, reader) =
        (WeightsReader::open(blobs.clone(), base.clone())?, WeightsReader::open(blobs.clone(), weights.clone())?);
    let manifest = weights.clone();
    let screened = tokio::task::spawn_blocking(move || -> Result<Screening> {
        let total = manifest.data.size_bytes;
        let mut change = DeltaNorm::new();
        for Piece { tensor, start, len: size_bytes } in pieces(&manifest) {
            let spec = &manifest.tensors[tensor];
            let base = base_reader.read_bytes(start, size_bytes)?;
            let found = match reader.read_bytes(start, size_bytes) {
                Ok(found) => found,
                // Its member made the manifest; that its chunks do not fit is the member's doing.
                Err(error @ StoreError::ChunkSize { .. }) => {
                    return Ok(Screening::Malformed { what: error.to_string() });
                }
                Err(error) => return Err(error.into()),
            };
            if let Some(index) = first_non_finite(spec.dtype, &found) {
                let tensor_start = manifest.offsets().nth(tensor).map_or(0, |(_, start)| start);
                let index = (start - tensor_start) / spec.dtype.size_bytes() + index;
                return Ok(Screening::NotFinite { tensor: spec.name.clone(), index });
            }
            change.add(spec.dtype, &base, &found);
            working.update(start + size_bytes, total);
        }
        working.end();
        Ok(Screening::Measured { relative_change: change.relative_change(), bpb: None })
    });
    screened.await.context("screening was interrupted")?
}

/// The weighted mean of the inputs, written to the store.
///
/// Order of arithmetic: for each element, the inputs in the given order (that of the members' names), summed in `f64`.
pub(crate) async fn merge_weights(
    blobs: &BlobStore,
    inputs: Vec<(WeightsManifest, f64)>,
    mut working: Working,
) -> Result<WeightsManifest> {
    let (first, _) = inputs.first().context("nothing to merge")?;
    let manifest = first.clone();
    for (other, _) in &inputs {
        other.check_matches(&manifest)?;
    }
    let mut readers = vec![];
    for (input, share) in inputs {
        readers.push((WeightsReader::open(blobs.clone(), input)?, share));
    }
    let mut writer = WeightsWriter::new(blobs.clone(), manifest.tensors.clone())?;
    let merged = tokio::task::spawn_blocking(move || -> Result<WeightsManifest> {
        let total = manifest.data.size_bytes;
        let mut out = vec![];
        for Piece { tensor, start, len: size_bytes } in pieces(&manifest) {
            let dtype: Dtype = manifest.tensors[tensor].dtype;
            let parts: Vec<_> = readers
                .iter()
                .map(|(reader, share)| Ok((reader.read_bytes(start, size_bytes)?, *share)))
                .collect::<Result<_>>()?;
            let views: Vec<(&[u8], f64)> = parts.iter().map(|(bytes, share)| (bytes.as_ref(), *share)).collect();
            merge_chunk(dtype, &views, &mut out)?;
            ensure!(out.len() as u64 == size_bytes, "the merge of {} bytes gave {}", size_bytes, out.len());
            writer.write(&out)?;
            working.update(start + size_bytes, total);
        }
        let (_, weights) = writer.finish()?;
        working.end();
        Ok(weights)
    });
    merged.await.context("merging was interrupted")?
}
