//! A folder or bucket of small objects: bounded reads, atomic and durable writes, errors that name the object.

use crate::StoreError;
pub(crate) use crate::disk::sync_folder;
use crate::folder::Commits;
use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path as ObjectPath;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutOptions, PutPayload};
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How often an object is created in a bucket before it is given up; the client repeats what the bucket refused for a time, too.
const NUM_ATTEMPTS: u32 = 3;

/// Where objects are kept, and what to call the place in a message.
#[derive(Debug, Clone)]
pub(crate) struct Objects {
    store: Arc<dyn ObjectStore>,
    place: Arc<str>,
    /// Where the objects are files.
    folder: Option<Arc<Path>>,
    /// Where the writers of a folder of blobs meet.
    commits: Arc<Commits>,
}

impl Objects {
    pub(crate) fn new(store: Arc<dyn ObjectStore>, place: &str) -> Self {
        Self { store, place: place.into(), folder: None, commits: Arc::default() }
    }

    pub(crate) fn in_memory() -> Self {
        Self::new(Arc::new(InMemory::new()), "memory")
    }

    /// Opens a folder for writing: makes it where it is missing, and removes what a crash left half-written.
    pub(crate) fn open_folder(folder: &Path) -> Result<Self, StoreError> {
        fs::create_dir_all(folder).map_err(|e| StoreError::file("make the folder", folder, e))?;
        remove_partial(folder, 1).map_err(|e| StoreError::file("clean up in", folder, e))?;
        // A name that an earlier process published just before it was killed may not have reached the disk yet, here or in a sub-folder. Once
        // it is seen it is believed, so it is made durable first: a power loss after that must not take it away again.
        sync_folders(folder, 1).map_err(|e| StoreError::file("sync", folder, e))?;
        Self::read_folder(folder)
    }

    /// Opens a folder without changing it.
    pub(crate) fn read_folder(folder: &Path) -> Result<Self, StoreError> {
        let place = folder.display().to_string();
        // `with_fsync`: a write returns after content and folder entry are on stable storage. Content is written under
        // another name first and then linked or renamed, so that no name ever shows half of it.
        let store = LocalFileSystem::new_with_prefix(folder)
            .map_err(|e| StoreError::backend("open", place.clone(), e))?
            .with_fsync(true);
        Ok(Self { folder: Some(folder.into()), ..Self::new(Arc::new(store), &place) })
    }

    pub(crate) fn place(&self) -> &str {
        &self.place
    }

    pub(crate) const fn commits(&self) -> &Arc<Commits> {
        &self.commits
    }

    /// The folder, where objects are files.
    pub(crate) fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }

    /// The object's file, where objects are files.
    pub(crate) fn file(&self, path: &ObjectPath) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(path.as_ref()))
    }

    /// The object's name for a message: for a folder, the path of the file.
    pub(crate) fn describe(&self, path: &ObjectPath) -> String {
        format!("{}/{path}", self.place)
    }

    /// The content, or `None` where there is no such object. An object longer than `limit` is not read.
    pub(crate) async fn read(&self, path: &ObjectPath, limit: u64) -> Result<Option<Bytes>, StoreError> {
        let failed = |e| StoreError::backend("read", self.describe(path), e);
        let found = match self.store.get(path).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        if found.meta.size > limit {
            return Err(StoreError::Oversized { object: self.describe(path), found: found.meta.size, limit });
        }
        found.bytes().await.map(Some).map_err(failed)
    }

    /// Bytes of the object, or `None` where there is none.
    pub(crate) async fn size(&self, path: &ObjectPath) -> Result<Option<u64>, StoreError> {
        match self.store.head(path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(StoreError::backend("look for", self.describe(path), error)),
        }
    }

    /// Writes or replaces the object: all of it or nothing, durable on return.
    pub(crate) async fn put(&self, path: &ObjectPath, content: Bytes) -> Result<(), StoreError> {
        let written = self.store.put(path, PutPayload::from(content)).await;
        written.map(drop).map_err(|e| StoreError::backend("write", self.describe(path), e))
    }

    /// Writes the object if there is none, as one atomic step; `false` where there is another one already.
    ///
    /// What is created here is signed, so that equal bytes in a bucket are these: an earlier attempt wrote them, and its answer was
    /// lost.
    pub(crate) async fn create(&self, path: &ObjectPath, content: Bytes) -> Result<bool, StoreError> {
        let attempt = async || {
            let options = PutOptions::from(PutMode::Create);
            self.store.put_opts(path, PutPayload::from(content.clone()), options).await
        };
        let failed = |error| StoreError::backend("write", self.describe(path), error);
        if self.folder.is_some() {
            return match attempt().await {
                Ok(_) => Ok(true),
                Err(object_store::Error::AlreadyExists { .. }) => Ok(false),
                Err(error) => Err(failed(error)),
            };
        }
        let mut num_attempts = 0;
        loop {
            num_attempts += 1;
            let error = match attempt().await {
                Ok(_) => return Ok(true),
                Err(error @ object_store::Error::AlreadyExists { .. }) => {
                    match self.read(path, content.len() as u64).await {
                        Ok(Some(found)) => return Ok(found == content),
                        Err(StoreError::Oversized { .. }) => return Ok(false),
                        // A bucket may say so, too, when it is busy with another writer whose attempt then fails.
                        Ok(None) => error,
                        Err(error) => return Err(error),
                    }
                }
                Err(error) => error,
            };
            // Whether it was written is not known: the client does not repeat a creation whose answer did not come. Here it can be
            // repeated, and whoever did not would find its own entry in the place of the next.
            if num_attempts == NUM_ATTEMPTS {
                return Err(failed(error));
            }
        }
    }

    /// The names of the objects in a sub-folder; none where there is no such folder.
    pub(crate) async fn names_in(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let prefix = ObjectPath::from(folder);
        let listed = self.store.list_with_delimiter(Some(&prefix)).await;
        let listed = listed.map_err(|e| StoreError::backend("list", self.describe(&prefix), e))?;
        Ok(listed.objects.iter().filter_map(|o| o.location.filename().map(str::to_owned)).collect())
    }

    /// The names of all objects, not of those in sub-folders.
    pub(crate) async fn names(&self) -> Result<Vec<String>, StoreError> {
        let listed = self.store.list_with_delimiter(None).await;
        let listed = listed.map_err(|e| StoreError::backend("list", self.place.to_string(), e))?;
        Ok(listed.objects.iter().filter_map(|o| o.location.filename().map(str::to_owned)).collect())
    }
}

/// Removes the files under which the local store keeps content until it is complete: `NAME#1`, `NAME#2`, and so on.
fn remove_partial(folder: &Path, depth: usize) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && depth > 0 {
            remove_partial(&entry.path(), depth - 1)?;
        } else if kind.is_file() && is_partial(&entry.file_name()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Makes the entries of a folder and of its sub-folders durable.
fn sync_folders(folder: &Path, depth: usize) -> io::Result<()> {
    if depth > 0 {
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                sync_folders(&entry.path(), depth - 1)?;
            }
        }
    }
    sync_folder(folder)
}

fn is_partial(name: &OsStr) -> bool {
    let parts = name.to_str().and_then(|n| n.rsplit_once('#'));
    parts.is_some_and(|(_, number)| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}
