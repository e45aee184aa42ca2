//! A result as content-addressed chunks, in a store or only as their digests.

use crate::file::Progress;
use crate::merge::{Merge, Output, Scratch, check_stop};
use crate::{EngineError, TensorSource};
use rayon::prelude::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::ScopedJoinHandle;
use tapestry_core::{Blob, CHUNK_BYTES, Digest, TensorSpec, WeightsManifest};
use tapestry_store::{BlobStore, ChunkBuffer, Staged, StoreError, WeightsReader};

/// Chunks between two looks at whether to stop, which are made durable together while the next are computed. Each thread holds one chunk.
const BATCH: usize = 12;

impl TensorSource for WeightsReader {
    fn tensors(&self) -> &[TensorSpec] {
        &self.manifest().tensors
    }

    fn read_into(&self, tensor: usize, start: u64, buffer: &mut [u8]) -> Result<(), EngineError> {
        Ok(self.read_into(tensor, start, buffer)?)
    }

    fn place_of(&self, tensor: usize) -> String {
        let chunk = self.tensor_start(tensor).and_then(|start| usize::try_from(start / CHUNK_BYTES).ok());
        let digest = chunk.and_then(|chunk| self.manifest().data.chunks.get(chunk));
        digest.map_or_else(
            || "weights without content".into(),
            |digest| format!("the weights that begin in chunk {digest}"),
        )
    }
}

/// The digests of a batch that was being made durable.
fn ended(batch: Option<ScopedJoinHandle<'_, Result<Vec<Digest>, StoreError>>>) -> Result<Vec<Digest>, EngineError> {
    let joined = batch.map(|batch| batch.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
    Ok(joined.transpose()?.unwrap_or_default())
}

/// A chunk of the result.
enum Made {
    Hashed(Digest),
    /// To be made durable, with the others of its batch.
    Staged(Staged),
}

/// Merges into a store: chunks that are durable, and the manifest that lists them. Without a store, nothing is kept, and the manifest
/// says what would have been: that is how a published merge is checked.
///
/// # Errors
/// [`EngineError`]. Whole chunks may be left in the store; they cost space and nothing else.
pub fn write_store(
    merge: &Merge<'_>,
    output: Output,
    store: Option<&BlobStore>,
    stop: &AtomicBool,
    progress: &(dyn Fn(Progress) + Sync),
) -> Result<WeightsManifest, EngineError> {
    // A manifest lists only what can be merged; the readers of a store have nothing else.
    assert!(merge.other_tensors(output).is_empty(), "weights out of a store");
    let total = merge.size_bytes(output);
    let num_chunks = usize::try_from(total.div_ceil(CHUNK_BYTES)).expect("chunks of a model that fits a disk");
    let done = AtomicU64::new(0);
    let one = |index: usize, scratch: &mut Scratch| -> Result<Made, EngineError> {
        let start = index as u64 * CHUNK_BYTES;
        let len = (total - start).min(CHUNK_BYTES);
        let mut content = ChunkBuffer::new(usize::try_from(len).expect("a chunk"));
        merge.fill(output, start, content.room_for_all(), scratch)?;
        let made = match store {
            Some(store) => Made::Staged(store.stage_blocking(content.into_bytes())?),
            None => Made::Hashed(Digest::of(content.as_slice())),
        };
        let done = done.fetch_add(len, Ordering::Relaxed) + len;
        progress(Progress { done, total });
        Ok(made)
    };
    let mut chunks = vec![];
    std::thread::scope(|scope| -> Result<(), EngineError> {
        let mut before: Option<ScopedJoinHandle<'_, Result<Vec<Digest>, StoreError>>> = None;
        for first in (0..num_chunks).step_by(BATCH) {
            check_stop(stop, first as u64 * CHUNK_BYTES, total)?;
            let made: Vec<Made> = (first..num_chunks.min(first + BATCH))
                .into_par_iter()
                .map_init(Scratch::default, |scratch, index| one(index, scratch))
                .collect::<Result<_, _>>()?;
            let mut staged = vec![];
            for made in made {
                match made {
                    Made::Hashed(digest) => chunks.push(digest),
                    Made::Staged(chunk) => staged.push(chunk),
                }
            }
            if let Some(store) = store {
                chunks.extend(ended(before.take())?);
                before = Some(scope.spawn(move || store.commit_blocking(staged)));
            }
        }
        chunks.extend(ended(before)?);
        Ok(())
    })?;
    Ok(WeightsManifest { tensors: merge.tensors(output).to_vec(), data: Blob { size_bytes: total, chunks } })
}
