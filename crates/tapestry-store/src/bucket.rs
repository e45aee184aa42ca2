//! Blobs in a bucket, with a folder of copies on this machine.
//!
//! The bucket is the truth: a blob is confirmed when the bucket has it, and asked for there. The folder holds copies of what was
//! used lately, so that everything that works on files (arriving in pieces, reading in place, many threads at once) works
//! the same; it may be emptied at any time, and is filled again.

use crate::blocking::wait;
use crate::objects::Objects;
use crate::stream::on_blocking_thread;
use crate::{BlobStore, StoreError, folder};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _, TryStreamExt as _};
use object_store::ObjectStore;
use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tapestry_core::{CHUNK_BYTES, Digest};
use tokio::sync::Semaphore;

/// Blobs on their way to or from the bucket at once: each takes the memory of a chunk.
const NUM_ON_THE_WAY: usize = 4;

/// Where blobs are when they are in a bucket.
#[derive(Debug)]
pub(crate) struct Bucket {
    objects: Objects,
    /// Blobs that this process has seen in the bucket. Nothing is ever deleted there.
    known: Mutex<HashSet<Digest>>,
    /// Held by each blob on its way.
    ways: Semaphore,
}

impl BlobStore {
    /// The blobs in a bucket (or any store that is durable on return from a write), with copies in `folder`, which is this
    /// process's alone. `place` is what messages call the bucket.
    ///
    /// # Errors
    /// Where the folder cannot be made, cleaned or read.
    pub async fn open_bucket(folder: &Path, bucket: Arc<dyn ObjectStore>, place: &str) -> Result<Self, StoreError> {
        let objects = Objects::new(bucket, place);
        let bucket = Bucket { objects, known: Mutex::default(), ways: Semaphore::new(NUM_ON_THE_WAY) };
        let mut copies = Self::open_folder(folder).await?;
        copies.bucket = Some(Arc::new(bucket));
        // A pack has no chunks that could be sent one by one when they come.
        copies.packs = None;
        Ok(copies)
    }

    /// Makes sure that a blob is among the copies, where there is a bucket that has it; otherwise does nothing.
    pub(crate) async fn fetch(&self, digest: Digest) -> Result<(), StoreError> {
        let (Some(bucket), Some(file)) = (&self.bucket, self.file(digest)) else { return Ok(()) };
        if file.is_file() {
            return Ok(());
        }
        let _way = bucket.ways.acquire().await.map_err(|_| StoreError::Interrupted)?;
        // Several may have waited for the same one.
        if file.is_file() {
            return Ok(());
        }
        let Some(content) = bucket.objects.read(&crate::blob::object_path(digest), CHUNK_BYTES).await? else {
            return Ok(());
        };
        bucket.know(&[digest]);
        let store = self.clone();
        on_blocking_thread(move || {
            let found = Digest::of(&content);
            if found != digest {
                let object = store.place().to_owned();
                return Err(StoreError::Damaged { digest, found, size_bytes: content.len() as u64, object });
            }
            store.commit_in_folder(vec![store.stage_blocking(content)?])
        })
        .await
    }

    /// As [`Self::fetch`], from ordinary synchronous code.
    pub(crate) fn fetch_blocking(&self, digest: Digest) -> Result<(), StoreError> {
        if self.bucket.is_none() || self.file(digest).is_some_and(|file| file.is_file()) {
            return Ok(());
        }
        let store = self.clone();
        wait(async move { store.fetch(digest).await })
    }

    /// Sends what is among the copies to the bucket, where there is one that lacks it. All of it is there on return.
    pub(crate) async fn upload(&self, digests: &[Digest]) -> Result<(), StoreError> {
        let Some(bucket) = &self.bucket else { return Ok(()) };
        let upload = |digest: Digest| async move {
            let _way = bucket.ways.acquire().await.map_err(|_| StoreError::Interrupted)?;
            let missing = || StoreError::Missing { digest, place: self.place().to_owned() };
            let store = self.clone();
            let read = move || {
                let Some(blob) = store.open_blob(digest)? else { return Ok(None) };
                let content = folder::read(&blob)?;
                // What is in the bucket is confirmed, and believed to be whole without being read again.
                store.check_read(digest, content).map(Some)
            };
            let content: Option<Bytes> = on_blocking_thread(read).await?;
            bucket.objects.put(&crate::blob::object_path(digest), content.ok_or_else(missing)?).await?;
            bucket.know(&[digest]);
            Ok::<_, StoreError>(())
        };
        let unknown = bucket.unknown(digests);
        stream::iter(unknown.into_iter().map(upload)).buffer_unordered(NUM_ON_THE_WAY).try_collect().await
    }

    /// Removes the copies that were used least lately until at most `max_bytes` are left. The bucket has them all.
    ///
    /// # Errors
    /// Where the folder cannot be read.
    pub fn trim_copies(&self, max_bytes: u64) -> Result<(), StoreError> {
        let (Some(_), Some(root)) = (&self.bucket, self.objects.folder()) else { return Ok(()) };
        let failed = |error| StoreError::file("look through", root, error);
        let mut copies: Vec<(SystemTime, u64, PathBuf)> = vec![];
        for folder in fs::read_dir(root).map_err(failed)?.flatten().filter(|entry| entry.path().is_dir()) {
            for file in fs::read_dir(folder.path()).map_err(failed)?.flatten() {
                let Ok(about) = file.metadata() else { continue };
                let used = about.accessed().or_else(|_| about.modified()).unwrap_or(SystemTime::UNIX_EPOCH);
                let is_blob = file.file_name().to_str().is_some_and(|name| name.parse::<Digest>().is_ok());
                if is_blob {
                    copies.push((used, about.len(), file.path()));
                }
            }
        }
        copies.sort();
        let mut size_bytes: u64 = copies.iter().map(|(_, size, _)| size).sum();
        for (_, size, path) in copies {
            if size_bytes <= max_bytes {
                break;
            }
            // Whoever reads it has it open, and keeps it.
            fs::remove_file(&path).map_err(|error| StoreError::file("remove", &path, error))?;
            size_bytes -= size;
        }
        Ok(())
    }
}

impl Bucket {
    pub(crate) const fn objects(&self) -> &Objects {
        &self.objects
    }

    /// Those that this process has not seen in the bucket yet.
    pub(crate) fn unknown(&self, digests: &[Digest]) -> Vec<Digest> {
        let known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        digests.iter().copied().filter(|digest| !known.contains(digest)).collect()
    }

    pub(crate) fn know(&self, digests: &[Digest]) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).extend(digests);
    }
}
