//! Content-addressed blobs of at most [`CHUNK_BYTES`].

use crate::StoreError;
use crate::blocking::wait;
use crate::bucket::Bucket;
use crate::filling::PackSlot;
use crate::folder::{self, Commits, StagedFile};
use crate::objects::Objects;
use crate::pack::Packs;
use crate::stream::on_blocking_thread;
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::any::type_name;
use std::collections::HashSet;
use std::fmt;
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
    pub(crate) objects: Objects,
    /// Where blobs are files.
    pub(crate) packs: Option<Arc<Packs>>,
    /// Bytes of the file system that are never filled.
    reserve: u64,
    /// What is written is read several times soon, and there is memory for it.
    is_read_soon: bool,
    /// Where the blobs really are, where the folder holds copies only.
    pub(crate) bucket: Option<Arc<Bucket>>,
}

/// What is left free where nothing else is said.
const RESERVE_BYTES: u64 = 64 << 20;

impl BlobStore {
    /// The blobs in `folder`, which is made where it is missing. What a crash left half-written there is removed, so
    /// only one process may write to a folder at a time.
    ///
    /// # Errors
    /// Where the folder cannot be made, cleaned or read.
    #[expect(clippy::unused_async, reason = "opening a bucket will have to wait; callers are ready for it")]
    pub async fn open_folder(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self::of(Objects::open_folder(folder)?))
    }

    /// The blobs in `folder`, for reading: nothing is made or cleaned, and another process may write there meanwhile.
    ///
    /// # Errors
    /// Where there is no such folder.
    pub fn read_folder(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self::of(Objects::read_folder(folder)?))
    }

    /// The blobs in any store, such as a bucket; `place` is what messages call it. The store must be durable on return
    /// from a write.
    #[must_use]
    pub fn on(store: Arc<dyn ObjectStore>, place: &str) -> Self {
        Self::of(Objects::new(store, place))
    }

    /// An empty set that lives as long as its clones.
    #[must_use]
    pub fn in_memory() -> Self {
        Self::of(Objects::in_memory())
    }

    fn of(objects: Objects) -> Self {
        let packs = objects.folder().map(|folder| Arc::new(Packs::new(folder)));
        Self { objects, packs, reserve: RESERVE_BYTES, is_read_soon: false, bucket: None }
    }

    /// Stores `content` and gives its name. Does nothing where it is stored already, and repairs it where what is stored
    /// is damaged.
    ///
    /// # Errors
    /// Where the content is longer than [`CHUNK_BYTES`], or the store fails; then nothing was changed.
    pub async fn put(&self, content: Bytes) -> Result<Digest, StoreError> {
        let staged = self.stage_as(None, content).await?;
        self.commit(vec![staged]).await.map(|digests| digests[0])
    }

    /// As [`Self::put`], from ordinary synchronous code; waits for the store.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn put_blocking(&self, content: Bytes) -> Result<Digest, StoreError> {
        let staged = self.stage_blocking(content)?;
        self.commit_blocking(vec![staged]).map(|digests| digests[0])
    }

    /// Stores content that somebody sent as the blob `expected`.
    ///
    /// # Errors
    /// [`StoreError::WrongContent`] where it is something else; otherwise as [`Self::put`].
    pub async fn put_expected(&self, expected: Digest, content: Bytes) -> Result<(), StoreError> {
        let staged = self.stage(expected, content).await?;
        self.commit(vec![staged]).await.map(drop)
    }

    /// The first half of [`Self::put_expected`]: the content is checked and out of memory, and not yet durable. It becomes so
    /// with [`Self::commit`], which costs less for several at once. Until then it is not here.
    ///
    /// # Errors
    /// As [`Self::put_expected`].
    pub async fn stage(&self, expected: Digest, content: Bytes) -> Result<Staged, StoreError> {
        self.stage_as(Some(expected), content).await
    }

    async fn stage_as(&self, expected: Option<Digest>, content: Bytes) -> Result<Staged, StoreError> {
        if self.objects.folder().is_some() {
            let store = self.clone();
            return on_blocking_thread(move || store.stage_file(expected, &content)).await;
        }
        let digest = check(expected, &content)?;
        self.put_named(digest, content).await?;
        Ok(Staged { digest, kept: Kept::Durably })
    }

    /// The first half of [`Self::put_blocking`]: the content is out of memory and not yet durable. Several that are committed together cost
    /// less.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub fn stage_blocking(&self, content: Bytes) -> Result<Staged, StoreError> {
        if self.objects.folder().is_some() {
            return self.stage_file(None, &content);
        }
        let store = self.clone();
        wait(async move { store.stage_as(None, content).await })
    }

    fn stage_file(&self, expected: Option<Digest>, content: &Bytes) -> Result<Staged, StoreError> {
        let digest = check(expected, content)?;
        let found = match self.open_blob(digest) {
            Ok(Some(blob)) => Some(folder::read(&blob)?),
            Ok(None) | Err(StoreError::Oversized { .. }) => None,
            Err(error) => return Err(error),
        };
        if found.is_some_and(|found| found == content) {
            self.objects.commits().settle();
            return Ok(Staged { digest, kept: Kept::Durably });
        }
        if let Some(slot) = self.slot(digest) {
            slot.write_bytes(content, 0)?;
            return Ok(Staged { digest, kept: Kept::InSlot(slot) });
        }
        // Anything else that is there under this name is damaged; whole content is about to take its place.
        let name = self.file(digest).unwrap_or_default();
        Ok(Staged { digest, kept: Kept::InFile(self.objects.commits().stage(&name, content, self.is_read_soon)?) })
    }

    /// Makes staged blobs durable, all in one go, and gives their names.
    ///
    /// # Errors
    /// Where the store fails; then some of them may be here, and each of those is whole and durable.
    pub async fn commit(&self, staged: Vec<Staged>) -> Result<Vec<Digest>, StoreError> {
        let store = self.clone();
        let digests: Vec<Digest> = staged.iter().map(|staged| staged.digest).collect();
        if !staged.iter().all(|staged| matches!(staged.kept, Kept::Durably)) {
            on_blocking_thread(move || store.commit_in_folder(staged)).await?;
        }
        self.upload(&digests).await?;
        Ok(digests)
    }

    /// As [`Self::commit`], from ordinary synchronous code.
    ///
    /// # Errors
    /// As [`Self::commit`].
    pub fn commit_blocking(&self, staged: Vec<Staged>) -> Result<Vec<Digest>, StoreError> {
        let digests: Vec<Digest> = staged.iter().map(|staged| staged.digest).collect();
        self.commit_in_folder(staged)?;
        if self.bucket.is_some() {
            let (store, digests) = (self.clone(), digests.clone());
            wait(async move { store.upload(&digests).await })?;
        }
        Ok(digests)
    }

    pub(crate) fn commit_in_folder(&self, staged: Vec<Staged>) -> Result<(), StoreError> {
        let mut files: Vec<StagedFile> = vec![];
        for staged in staged {
            match staged.kept {
                Kept::Durably => {}
                Kept::InFile(file) => files.push(file),
                Kept::InSlot(slot) => slot.commit()?,
            }
        }
        if files.is_empty() { Ok(()) } else { self.objects.commits().commit(&files) }
    }

    /// Where blobs are no files.
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
        let content = self.get_unverified(digest).await?;
        let store = self.clone();
        let check = move || store.check_read(digest, content);
        if self.objects.folder().is_some() { on_blocking_thread(check).await } else { check() }
    }

    pub(crate) fn check_read(&self, digest: Digest, content: Bytes) -> Result<Bytes, StoreError> {
        let found = Digest::of(&content);
        if found != digest {
            let (size_bytes, object) = (content.len() as u64, self.objects.describe(&object_path(digest)));
            return Err(StoreError::Damaged { digest, found, size_bytes, object });
        }
        Ok(content)
    }

    /// The content of a blob, not checked, for one who will check it: the receiver of a transfer.
    ///
    /// # Errors
    /// As [`Self::get`], but for [`StoreError::Damaged`].
    pub async fn get_unverified(&self, digest: Digest) -> Result<Bytes, StoreError> {
        self.fetch(digest).await?;
        let read = if self.is_in_files() {
            let store = self.clone();
            on_blocking_thread(move || store.open_blob(digest)?.map(|blob| folder::read(&blob)).transpose()).await?
        } else {
            self.objects.read(&object_path(digest), CHUNK_BYTES).await?
        };
        read.ok_or_else(|| StoreError::Missing { digest, place: self.objects.place().to_owned() })
    }

    /// Whether blobs are files, so that they can be read and written in pieces.
    #[must_use]
    pub fn is_in_files(&self) -> bool {
        self.objects.folder().is_some()
    }

    /// Where blobs are files.
    pub(crate) fn packs(&self) -> Option<&Packs> {
        self.packs.as_deref()
    }

    pub(crate) fn commits(&self) -> Option<&Commits> {
        self.objects.folder().map(|_| &**self.objects.commits())
    }

    /// Whether the blob is stored. It is not read, so damage shows only on [`Self::get`].
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn has(&self, digest: Digest) -> Result<bool, StoreError> {
        if self.objects.folder().is_some() {
            return self.missing(&[digest]).await.map(|missing| missing.is_empty());
        }
        self.is_object(digest).await
    }

    /// Asks the bucket, where there is one; otherwise the store, which is no folder.
    async fn is_object(&self, digest: Digest) -> Result<bool, StoreError> {
        let objects = self.bucket.as_ref().map_or(&self.objects, |bucket| bucket.objects());
        let is_there = objects.size(&object_path(digest)).await?.is_some();
        if let Some(bucket) = self.bucket.as_ref().filter(|_| is_there) {
            bucket.know(&[digest]);
        }
        Ok(is_there)
    }

    /// Those of `digests` that are not stored, each once, in the order given.
    ///
    /// # Errors
    /// Where the store fails.
    pub async fn missing(&self, digests: &[Digest]) -> Result<Vec<Digest>, StoreError> {
        let mut seen = HashSet::new();
        let mut asked: Vec<Digest> = digests.iter().copied().filter(|digest| seen.insert(*digest)).collect();
        if let Some(bucket) = &self.bucket {
            asked = bucket.unknown(&asked);
        } else if self.objects.folder().is_some() {
            let store = self.clone();
            let look = move || {
                asked.retain(|digest| !store.holds(*digest));
                // What has its name may be about to be synced; what is said to be here has been.
                store.objects.commits().settle();
                Ok(asked)
            };
            return on_blocking_thread(look).await;
        }
        let ask = |digest| {
            let store = self.clone();
            async move { Ok::<_, StoreError>((!store.is_object(digest).await?).then_some(digest)) }
        };
        let answers: Vec<Option<Digest>> =
            stream::iter(asked.into_iter().map(ask)).buffered(NUM_PARALLEL).try_collect().await?;
        Ok(answers.into_iter().flatten().collect())
    }

    /// Looks before a transfer whether `needed` more bytes fit, where that can be asked: on the file system of a folder.
    ///
    /// # Errors
    /// [`StoreError::NoRoom`], or where the system does not say.
    pub fn check_room(&self, needed: u64) -> Result<(), StoreError> {
        let Some(folder) = self.objects.folder().filter(|_| needed > 0) else { return Ok(()) };
        let (free, reserve) = (folder::free_bytes(folder)?, self.reserve);
        if needed.saturating_add(reserve) <= free {
            return Ok(());
        }
        Err(StoreError::NoRoom { needed, free, reserve, place: self.place().to_owned() })
    }

    /// The same blobs, with so many bytes of the file system that [`Self::check_room`] does not give away (64 MiB where nothing is said).
    #[must_use]
    pub fn with_reserve(mut self, reserve_bytes: u64) -> Self {
        self.reserve = reserve_bytes;
        self
    }

    /// The blobs that are here and whose digests begin with the byte `first`, in the order of their digests. Those of all 256
    /// first bytes are all that are here.
    ///
    /// # Errors
    /// The store's failure.
    pub async fn digests(&self, first: u8) -> Result<Vec<Digest>, StoreError> {
        let objects = self.bucket.as_ref().map_or(&self.objects, |bucket| bucket.objects());
        let names = objects.names_in(&format!("{first:02x}")).await?;
        // What is no digest is a file that is still being written, or somebody else's.
        let mut digests: Vec<Digest> = names.iter().filter_map(|name| name.parse().ok()).collect();
        digests.sort_unstable();
        Ok(digests)
    }

    /// The same blobs, for one who reads what is written several times soon, about so many bytes of it: they stay in the page cache if they
    /// take at most half of the machine's memory.
    #[must_use]
    pub fn with_much_read(mut self, bytes: u64) -> Self {
        self.is_read_soon = folder::memory_bytes().is_some_and(|memory| bytes <= memory / 2);
        self
    }

    pub(crate) const fn is_read_soon(&self) -> bool {
        self.is_read_soon
    }

    /// What messages call the place where blobs are.
    #[must_use]
    pub fn place(&self) -> &str {
        self.bucket.as_ref().map_or(&self.objects, |bucket| bucket.objects()).place()
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

    /// As [`Self::chunk`], from ordinary synchronous code; where blobs are files, on the calling thread.
    pub(crate) fn chunk_blocking(&self, blob: &Blob, index: usize) -> Result<Bytes, StoreError> {
        let digest = blob.chunks[index];
        self.fetch_blocking(digest)?;
        if !self.is_in_files() {
            let (store, blob) = (self.clone(), blob.clone());
            return wait(async move { store.chunk(&blob, index).await });
        }
        let missing = || StoreError::Missing { digest, place: self.place().to_owned() };
        let content = self.check_read(digest, folder::read(&self.open_blob(digest)?.ok_or_else(missing)?)?)?;
        let (expected, found) = (blob.chunk_size(index), content.len() as u64);
        if expected != found {
            return Err(StoreError::ChunkSize { index, digest, expected, found });
        }
        Ok(content)
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

/// A blob that is written and not yet durable; [`BlobStore::commit`] makes it so. Dropped before that, it is gone.
#[must_use]
pub struct Staged {
    pub(crate) digest: Digest,
    pub(crate) kept: Kept,
}

pub(crate) enum Kept {
    Durably,
    InFile(StagedFile),
    InSlot(PackSlot),
}

impl fmt::Debug for Staged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Staged").field("digest", &self.digest).finish_non_exhaustive()
    }
}

/// The name of `content`, which is the one expected.
fn check(expected: Option<Digest>, content: &Bytes) -> Result<Digest, StoreError> {
    let size = content.len() as u64;
    if size > CHUNK_BYTES {
        return Err(StoreError::TooLarge { found: size });
    }
    let found = Digest::of(content);
    match expected.filter(|expected| *expected != found) {
        Some(expected) => Err(StoreError::WrongContent { expected, found }),
        None => Ok(found),
    }
}

/// The first two digits make a folder, so that none has more than a 256th of the blobs.
pub(crate) fn object_path(digest: Digest) -> ObjectPath {
    let name = digest.to_string();
    ObjectPath::from(format!("{}/{name}", &name[..2]))
}
