//! What a role keeps of models: chunks under their digests, manifests that name them, and what a power loss leaves of both.

use std::collections::{BTreeMap, BTreeSet};

use tapestry_core::Digest;

use crate::model::{Chunk, Manifest, Vector};
use crate::random::Random;

/// Content-addressed chunks and manifests. What was written can be seen at once, also by the next process; it is durable once it was synced.
#[derive(Debug, Default)]
pub(crate) struct Store {
    chunks: BTreeMap<Digest, Chunk>,
    manifests: BTreeMap<Digest, Manifest>,
    unsynced: BTreeSet<Digest>,
}

impl Store {
    /// Writes a chunk under the name that it is said to have; the caller has compared.
    pub(crate) fn write_chunk(&mut self, digest: Digest, chunk: Chunk) {
        if self.chunks.insert(digest, chunk).is_none() {
            self.unsynced.insert(digest);
        }
    }

    pub(crate) fn write_manifest(&mut self, manifest: Manifest) {
        let digest = manifest.digest();
        if self.manifests.insert(digest, manifest).is_none() {
            self.unsynced.insert(digest);
        }
    }

    /// A model that is there from the beginning.
    pub(crate) fn adopt(&mut self, model: &Vector) {
        model.chunks().for_each(|chunk| self.write_chunk(chunk.digest(), chunk));
        self.write_manifest(model.manifest());
        self.sync();
    }

    /// Everything that was written is durable.
    pub(crate) fn sync(&mut self) {
        self.unsynced.clear();
    }

    /// Of what was not synced, any part is left.
    pub(crate) fn lose_power(&mut self, random: &mut Random) {
        for digest in std::mem::take(&mut self.unsynced) {
            if random.chance(0.5) {
                self.chunks.remove(&digest);
                self.manifests.remove(&digest);
            }
        }
    }

    pub(crate) fn chunk(&self, digest: &Digest) -> Option<Chunk> {
        self.chunks.get(digest).copied()
    }

    pub(crate) fn manifest(&self, model: &Digest) -> Option<&Manifest> {
        self.manifests.get(model)
    }

    /// The chunks of a manifest that are not here, each once.
    pub(crate) fn lacks(&self, manifest: &Manifest) -> Vec<Digest> {
        let lacking: BTreeSet<_> = manifest.0.iter().filter(|digest| !self.chunks.contains_key(digest)).collect();
        lacking.into_iter().copied().collect()
    }

    /// A whole model, if all of it is here.
    pub(crate) fn find(&self, model: &Digest) -> Option<Vector> {
        let chunks = self.manifests.get(model)?.0.iter();
        Vector::from_chunks(chunks.map(|digest| self.chunks.get(digest).copied()))
    }
}
