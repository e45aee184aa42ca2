//! Measuring a model out of a blob store, layer by layer.

use crate::progress::Working;
use crate::readers::on_own_thread;
use anyhow::{Context as _, Result};
use rayon::prelude::*;
use std::sync::Arc;
use tapestry_core::{Blob, ModelManifest};
use tapestry_eval::BitsPerByte;
use tapestry_model::{LlamaConfig, Tokenizer, measure_bpb};
use tapestry_store::{BlobStore, StoreError, WeightsReader};

/// Bits per byte of `text` under the model of `manifest`. Reads the weights a layer at a time.
pub(crate) async fn measure_model(
    blobs: &BlobStore,
    manifest: &ModelManifest,
    text: String,
    max_tokens: usize,
    working: Working,
) -> Result<BitsPerByte> {
    let weights = Arc::new(WeightsReader::open(blobs.clone(), manifest.weights.clone())?);
    measure_read(blobs, manifest, weights, text, max_tokens, working).await
}

/// A model up to this size stays in the page cache between two readings.
const READ_AHEAD_BYTES: u64 = 4 << 30;

/// Reads and checks all chunks on all threads: measuring asks for one layer after the other, and would wait for the disk each time.
fn check_all(weights: &WeightsReader) -> Result<(), StoreError> {
    (0..weights.manifest().data.chunks.len()).into_par_iter().try_for_each(|index| {
        if weights.is_checked(index) {
            return Ok(());
        }
        let mut scan = weights.scan(index)?;
        while scan.window()?.is_some() {}
        Ok(())
    })
}

/// As [`measure_model`], where a reader of the weights is at hand: what that has checked is not checked again.
pub(crate) async fn measure_read(
    blobs: &BlobStore,
    manifest: &ModelManifest,
    weights: Arc<WeightsReader>,
    text: String,
    max_tokens: usize,
    mut working: Working,
) -> Result<BitsPerByte> {
    let is_read_ahead = blobs.is_in_files() && manifest.weights.data.size_bytes <= READ_AHEAD_BYTES;
    let config = read_file(blobs, manifest, "config.json").await?;
    let config = LlamaConfig::from_json(std::str::from_utf8(&config).context("config.json is not UTF-8")?)?;
    let tokenizer = Tokenizer::from_bytes(&read_file(blobs, manifest, "tokenizer.json").await?)?;
    let measured = on_own_thread(move || {
        if is_read_ahead {
            check_all(&weights)?;
        }
        let mut progress = |p: tapestry_eval::BpbProgress| working.update(p.tokens_scored, p.tokens_total);
        let result = measure_bpb(&*weights, &config, &tokenizer, &text, Some(max_tokens), &mut progress);
        working.end();
        Ok::<_, anyhow::Error>(result?)
    });
    measured.await?
}

/// A small file of a model that is longer than this is refused.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// One of a model's small files.
pub(crate) async fn read_file(blobs: &BlobStore, manifest: &ModelManifest, name: &str) -> Result<Vec<u8>> {
    let blob: &Blob = manifest.files.get(name).with_context(|| format!("the model has no {name}"))?;
    Ok(blobs.read_blob(blob, MAX_FILE_BYTES).await?)
}
