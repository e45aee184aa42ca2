//! Content-addressed blobs of at most [`CHUNK_BYTES`].

use crate::StoreError;
use crate::blocking::wait;
use crate::objects::Objects;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::type_name;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tapestry_core::{Blob, CHUNK_BYTES, Digest, ModelManifest, to_canonical_json};

/// Questions on the way to the underlying store at once.
const NUM_PARALLEL: usize = 16;

/// A set of blobs, each under its digest. Cheap to clone; all clones are the same set.
///
/// In a folder, blob `ab12…` is the file `ab/ab12…`. Every read is checked against the digest, so neither a bad disk nor
/// whoever can write to the folder can change a model unnoticed.
#[derive(Debug, Clone)]
pub struct BlobStore {
    objects: Objects,
}

impl BlobStore {
    /// The blobs in `folder`, which is made where it is missing. What a crash left half-written there is removed, so
    /// only one process may write to a folder at a time.
    ///
    /// # Errors
    /// Where the folder cannot be made, cleaned or read.
    #[expect(clippy::unused_async, reason = "opening a bucket will have to wait; callers are ready for it")]
    pub async fn open_folder(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self { objects: Objects::open_folder(folder)? })
    }

    /// The blobs in `folder`, for reading: nothing is made or cleaned, and another process may write there meanwhile.
    ///
    /// # Errors
    /// Where there is no such folder.
    pub fn read_folder(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self { objects: Objects::read_folder(folder)? })
    }

    /// The blobs in any store, such as a bucket; `place` is what messages call it. The store must be durable on return
    /// from a write.
    #[must_use]
    pub fn on(store: Arc<dyn ObjectStore>, place: &str) -> Self {
        Self { objects: Objects::new(store, place) }
    }

    /// An empty set that lives as long as its clones.
    #[must_use]
    pub fn in_memory() -> Self {
        Self { objects: Objects::in_memory() }
    }

    /// Stores `content` and gives its name. Does nothing where it is stored already, and repairs it where what is stored
    /// is damaged.
    ///
    /// # Errors
    /// Where the content is longer than [`CHUNK_BYTES`], or the store fails; then nothing was changed.
    pub async fn put(&self, content: Bytes) -> Result<Digest, StoreError> {
        check_size(&content)?;
        let digest = Digest::of(&content);
        self.put_named(digest, content).await?;
        Ok(digest)
    }

    /// As [`Self::put`], from ordinary synchronous code; waits for the store.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn put_blocking(&self, content: Bytes) -> Result<Digest, StoreError> {
        let store = self.clone();
        wait(async move { store.put(content).await })
    }

    /// Stores content that somebody sent as the blob `expected`.
    ///
    /// # Errors
    /// [`StoreError::WrongContent`] where it is something else; otherwise as [`Self::put`].
    pub async fn put_expected(&self, expected: Digest, content: Bytes) -> Result<(), StoreError> {
        check_size(&content)?;
        let found = Digest::of(&content);
        if found != expected {
            return Err(StoreError::WrongContent { expected, found });
        }
        self.put_named(expected, content).await
    }

    async fn put_named(&self, digest: Digest, content: Bytes) -> Result<(), StoreError> {
        let path = object_path(digest);
        match self.objects.read(&path, CHUNK_BYTES).await {
            Ok(Some(found)) if found == content => Ok(()),
            // Anything else that is there under this name is damaged; whole content is about to take its place.
            Ok(_) | Err(StoreError::Oversized { .. }) => self.objects.put(&path, content).await,
            Err(error) => Err(error),
        }
    }

    /// The content of a blob, checked.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Damaged`], [`StoreError::Oversized`], or the store's own failure.
    pub async fn get(&self, digest: Digest) -> Result<Bytes, StoreError> {
        let path = object_path(digest);
        let missing = || StoreError::Missing { digest, place: self.objects.place().to_owned() };
        let content = self.objects.read(&path, CHUNK_BYTES).await?.ok_or_else(missing)?;
        let found = Digest::of(&content);
        if found != digest {
            let (size_bytes, object) = (content.len() as u64, self.objects.describe(&path));
            return Err(StoreError::Damaged { digest, found, size_bytes, object });
        }
        Ok(content)
    }

    /// Whether the blob is stored. It is not read, so damage shows only on [`Self::get`].
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn has(&self, digest: Digest) -> Result<bool, StoreError> {
        Ok(self.objects.size(&object_path(digest)).await?.is_some())
    }

    /// Those of `digests` that are not stored, each once, in the order given.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let mut seen = HashSet::new();
        let asked: Vec<Digest> = digests.iter().copied().filter(|digest| seen.insert(*digest)).collect();
        let ask = |digest| {
            let store = self.clone();
            async move { Ok::<_, StoreError>((!store.has(digest).await?).then_some(digest)) }
        };
        let answers: Vec<Option<Digest>> =
            stream::iter(asked.into_iter().map(ask)).buffered(NUM_PARALLEL).try_collect().await?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Stores the canonical JSON form of `value`; its digest is the value's name.
    ///
    /// # Errors
    /// Where the value has no canonical form or one longer than [`CHUNK_BYTES`], or the store fails.
    pub async fn put_json<T: Serialize + Sync>(&self, value: &T) -> Result<Digest, StoreError> {
        self.put(to_canonical_json(value)?.into()).await
    }

    /// Reads a value that was stored as canonical JSON. Only the one canonical form is taken, so a value has one name.
    /// What the value means is not checked: for a manifest, call its `check`.
    ///
    /// # Errors
    /// [`StoreError::NotJson`]; otherwise as [`Self::get`].
    pub async fn get_json<T: DeserializeOwned + Serialize>(&self, digest: Digest) -> Result<T, StoreError> {
        let content = self.get(digest).await?;
        let kind = type_name::<T>().rsplit("::").next().unwrap_or("document");
        let wrong = |reason: String| StoreError::NotJson { digest, kind, reason };
        let value: T = serde_json::from_slice(&content).map_err(|e| wrong(e.to_string()))?;
        if to_canonical_json(&value)? != content {
            return Err(wrong("its bytes are not the canonical form of what they say".into()));
        }
        Ok(value)
    }

    /// The whole content of a small file of a model, such as `config.json`, put together from its chunks.
    ///
    /// # Errors
    /// [`StoreError::Oversized`] where it has more than `limit` bytes, before anything is read; otherwise as [`Self::get`].
    pub async fn read_blob(&self, blob: &Blob, limit: u64) -> Result<Vec<u8>, StoreError> {
        if blob.size_bytes > limit {
            let object = format!("the content of {} chunks", blob.chunks.len());
            return Err(StoreError::Oversized { object, found: blob.size_bytes, limit });
        }
        let mut content = vec![];
        for index in 0..blob.chunks.len() {
            content.extend_from_slice(&self.chunk(blob, index).await?);
        }
        if content.len() as u64 != blob.size_bytes {
            return Err(StoreError::WrittenSize { expected: blob.size_bytes, found: content.len() as u64 });
        }
        Ok(content)
    }

    /// The file of a blob, where blobs are files; whether it is there and whole is not looked at.
    pub(crate) fn file(&self, digest: Digest) -> Option<PathBuf> {
        self.objects.file(&object_path(digest))
    }

    /// One chunk of a longer content, with the size that its place asks for.
    pub(crate) async fn chunk(&self, blob: &Blob, index: usize) -> Result<Bytes, StoreError> {
        let digest = blob.chunks[index];
        let content = self.get(digest).await?;
        let (expected, found) = (blob.chunk_size(index), content.len() as u64);
        if expected != found {
            return Err(StoreError::ChunkSize { index, digest, expected, found });
        }
        Ok(content)
    }
}

/// The digests of all chunks of a model, files first, each once.
#[must_use]
pub fn chunk_digests(model: &ModelManifest) -> Vec<Digest> {
    let mut seen = HashSet::new();
    let files = model.files.values().flat_map(|file| &file.chunks);
    files.chain(&model.weights.data.chunks).copied().filter(|digest| seen.insert(*digest)).collect()
}

fn check_size(content: &Bytes) -> Result<(), StoreError> {
    let found = content.len() as u64;
    if found > CHUNK_BYTES { Err(StoreError::TooLarge { found }) } else { Ok(()) }
}

/// The first two digits make a folder, so that none has more than a 256th of the blobs.
fn object_path(digest: Digest) -> ObjectPath {
    let name = digest.to_string();
    ObjectPath::from(format!("{}/{name}", &name[..2]))
}
