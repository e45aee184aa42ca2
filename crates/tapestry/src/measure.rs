//! Measuring a model out of a blob store, layer by layer.

use crate::progress::Working;
use crate::readers::on_own_thread;
use anyhow::{Context as _, Result};
use rayon::prelude::*;
use std::sync::Arc;
use tapestry_core::{Blob, ModelManifest};
use tapestry_eval::BitsPerByte;
use tapestry_model::{DecoderConfig, ModelError, Tokenizer, measure_bpb};
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
    let config = DecoderConfig::from_json(std::str::from_utf8(&config).context("config.json is not UTF-8")?)?;
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

/// The value, where the model gives a finite one. Any other failure is this machine's, and must not become anybody's verdict: a disk that
/// cannot be read says nothing about a member's weights.
pub(crate) fn value_if_finite(measured: Result<BitsPerByte>) -> Result<Option<f64>> {
    match measured {
        Ok(measured) => Ok(Some(measured.bpb()).filter(|bpb| bpb.is_finite())),
        Err(error) if error.downcast_ref::<ModelError>().is_some_and(ModelError::is_no_value) => Ok(None),
        Err(error) => Err(error),
    }
}

/// A small file of a model that is longer than this is refused.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// One of a model's small files.
pub(crate) async fn read_file(blobs: &BlobStore, manifest: &ModelManifest, name: &str) -> Result<Vec<u8>> {
    let blob: &Blob = manifest.files.get(name).with_context(|| format!("the model has no {name}"))?;
    Ok(blobs.read_blob(blob, MAX_FILE_BYTES).await?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::{Form, Reporter};
    use std::fs;
    use std::path::Path;
    use tapestry_store::WeightsWriter;

    /// A tiny model of which nothing is known but that it runs, in a folder's store.
    async fn model(dir: &Path) -> (BlobStore, ModelManifest) {
        let members = tapestry_demo::demo_members(3, false).expect("members");
        let texts = tapestry_demo::generate_quick_texts(&dir.join("texts"), &members, 7).expect("texts");
        let quick = texts.quick_base.expect("a quick base");
        let config = DecoderConfig::tiny(quick.vocab_size);
        tapestry_model::init_model(&dir.join("model"), &config, &quick.tokenizer, 1).expect("a model");
        let blobs = BlobStore::open_folder(&dir.join("blobs")).await.expect("a store");
        let (_, manifest) = blobs.import_model(&dir.join("model")).await.expect("imported");
        (blobs, manifest)
    }

    async fn measured(blobs: &BlobStore, manifest: &ModelManifest, text: &str) -> Result<Option<f64>> {
        let working = Reporter::new(Form::Json).start("measure", "test", "tokens");
        value_if_finite(measure_model(blobs, manifest, text.into(), 100, working).await)
    }

    #[tokio::test]
    async fn a_disk_that_fails_is_nobodys_verdict() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let (blobs, manifest) = model(dir.path()).await;
        let text = "a text that is long enough to be scored, and then some more of it";
        assert!(measured(&blobs, &manifest, text).await.expect("measured").is_some_and(f64::is_finite));
        assert_eq!(measured(&blobs, &manifest, "").await.expect("nothing to score"), None);
        // Weights that give no value.
        let mut writer = WeightsWriter::new(blobs.clone(), manifest.weights.tensors.clone()).expect("possible");
        for _ in 0..manifest.weights.data.size_bytes / 4 {
            writer.write(&[0, 0, 0xc0, 0x7f]).expect("room");
        }
        let weights = writer.finish().expect("complete").1;
        let poisoned = ModelManifest { files: manifest.files.clone(), weights };
        assert_eq!(measured(&blobs, &poisoned, text).await.expect("run"), None);
        // The disk has lost the weights, and then everything.
        let folder = dir.path().join("blobs");
        for path in files_in(&folder) {
            if fs::metadata(&path).expect("there").len() >= manifest.weights.data.size_bytes.min(1 << 16) {
                fs::write(&path, "").expect("truncated");
            }
        }
        measured(&blobs, &manifest, text).await.expect_err("weights are gone");
        fs::remove_dir_all(&folder).expect("removed");
        measured(&blobs, &manifest, text).await.expect_err("everything is gone");
    }

    fn files_in(folder: &Path) -> Vec<std::path::PathBuf> {
        let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        entries.flat_map(|path| if path.is_dir() { files_in(&path) } else { vec![path] }).collect()
    }
}
