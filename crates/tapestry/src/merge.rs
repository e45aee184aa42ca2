//! Merging out of a blob store: memory does not depend on the size of the model.

use crate::progress::Working;
use crate::readers::Readers;
use anyhow::{Context as _, Result};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use tapestry_core::{MemberName, ModelManifest, WeightsManifest};
use tapestry_engine::{Input, Merge, Output, Progress, Request, TensorSource, on_threads, write_store};
use tapestry_merge::Method;
use tapestry_round::coordinator::MergeWork;
use tapestry_store::{BlobStore, WeightsReader};

/// Everything that a round's merge follows from, read from the store.
pub(crate) struct MergeInputs {
    method: Method,
    base: WeightsManifest,
    /// Member, weights, share.
    contributions: Vec<(MemberName, Arc<WeightsReader>, f64)>,
    states: Vec<WeightsManifest>,
}

/// A merge that is done.
pub(crate) struct Merged {
    pub(crate) weights: WeightsManifest,
    /// The method's state for the next round.
    pub(crate) states: Vec<WeightsManifest>,
}

impl MergeInputs {
    pub(crate) async fn read(blobs: &BlobStore, readers: &Readers, work: &MergeWork) -> Result<Self> {
        let base: ModelManifest = blobs.get_json(work.base).await?;
        let mut contributions = vec![];
        for input in &work.inputs {
            let weights =
                blobs.get_json(input.weights).await.with_context(|| format!("the weights of {}", input.member))?;
            contributions.push((input.member.clone(), readers.open(blobs, &weights)?, input.share));
        }
        let mut states = vec![];
        for state in &work.states {
            states.push(blobs.get_json(*state).await.context("the state of the merge before")?);
        }
        Ok(Self { method: work.method.clone(), base: base.weights, contributions, states })
    }
}

/// Merges; with `keep`, into the store, otherwise only to learn the digests.
pub(crate) async fn merge(blobs: &BlobStore, inputs: MergeInputs, keep: bool, working: Working) -> Result<Merged> {
    let blobs = blobs.clone();
    let merged =
        tokio::task::spawn_blocking(move || on_threads(None, || merge_blocking(&blobs, inputs, keep, working)));
    merged.await.context("merging was interrupted")??
}

fn merge_blocking(blobs: &BlobStore, inputs: MergeInputs, keep: bool, working: Working) -> Result<Merged> {
    let open = |manifest: &WeightsManifest| WeightsReader::open(blobs.clone(), manifest.clone());
    let base = open(&inputs.base)?;
    let states = inputs.states.iter().map(open).collect::<Result<Vec<_>, _>>()?;
    let request = Request {
        method: &inputs.method,
        base: Some(&base),
        inputs: inputs
            .contributions
            .iter()
            .map(|(member, source, share)| Input { name: member.to_string(), weight: *share, source: &**source })
            .collect(),
        states: states.iter().map(|state| state as &dyn TensorSource).collect(),
        dtype: None,
    };
    let (stop, working) = (AtomicBool::new(false), Mutex::new(working));
    let update = |progress: Progress| {
        working.lock().unwrap_or_else(PoisonError::into_inner).update(progress.done, progress.total);
    };
    let ready = Merge::prepare(request, &stop, &|_| {})?;
    let store = keep.then_some(blobs);
    let weights = write_store(&ready, Output::Model, store, &stop, &update)?;
    let states = (0..ready.num_states()).map(|state| write_store(&ready, Output::State(state), store, &stop, &update));
    let states = states.collect::<Result<_, _>>()?;
    working.into_inner().unwrap_or_else(PoisonError::into_inner).end();
    Ok(Merged { weights, states })
}
