//! Readers of weights that are shared by what follows on one another: screening, measuring, merging, the gate. What one of them has checked
//! against its digests, the next need not check again so soon.

use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tapestry_core::{Digest, WeightsManifest};
use tapestry_store::{BlobStore, WeightsReader};

/// How long a check holds. Longer ago, and everything is read and checked anew: disks do forget.
const HOLDS_FOR: Duration = Duration::from_secs(300);

/// The readers of a few models, by the digests of their manifests of weights.
#[derive(Debug, Default)]
pub(crate) struct Readers(Mutex<BTreeMap<Digest, (Instant, Arc<WeightsReader>)>>);

impl Readers {
    /// A reader of these weights.
    pub(crate) fn open(&self, blobs: &BlobStore, weights: &WeightsManifest) -> Result<Arc<WeightsReader>> {
        let digest = Digest::of_json(weights).context("the manifest of weights has no canonical form")?;
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        readers.retain(|_, (since, _)| since.elapsed() < HOLDS_FOR);
        if let Some((_, reader)) = readers.get(&digest) {
            return Ok(Arc::clone(reader));
        }
        let reader = Arc::new(WeightsReader::open(blobs.clone(), weights.clone())?);
        readers.insert(digest, (Instant::now(), Arc::clone(&reader)));
        Ok(reader)
    }
}

/// Runs work that needs much memory on a thread of its own: the memory goes back to the system when it ends.
pub(crate) async fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let run = move || {
        // Whoever waited may be gone: the process ends.
        let _ = sender.send(work());
    };
    std::thread::Builder::new().name("heavy".into()).spawn(run).context("cannot start a thread")?;
    receiver.await.context("work on the weights was interrupted")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapestry_core::{Dtype, TensorSpec};
    use tapestry_store::WeightsWriter;

    #[tokio::test]
    async fn the_same_weights_have_one_reader_and_others_another() {
        let (blobs, readers) = (BlobStore::in_memory(), Readers::default());
        let manifest = |byte: u8| {
            let tensors = vec![TensorSpec { name: "a".into(), dtype: Dtype::F32, shape: vec![1] }];
            let mut writer = WeightsWriter::new(blobs.clone(), tensors).expect("possible");
            writer.write(&[byte; 4]).expect("room");
            writer.finish().expect("complete").1
        };
        let (one, other) = (manifest(1), manifest(2));
        let first = readers.open(&blobs, &one).expect("opens");
        assert!(Arc::ptr_eq(&first, &readers.open(&blobs, &one).expect("opens")));
        assert!(!Arc::ptr_eq(&first, &readers.open(&blobs, &other).expect("opens")));
        assert_eq!(on_own_thread(|| 7).await.expect("runs"), 7);
        assert!(on_own_thread(|| panic!("as expected")).await.map(|(): ()| ()).is_err());
    }
}
