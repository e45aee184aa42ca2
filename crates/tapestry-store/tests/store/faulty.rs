//! A store whose disk can be full: it leaves half of the content behind under a temporary name, as a kill would, and
//! fails as the operating system does.

use async_trait::async_trait;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path as ObjectPath;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, Result,
};
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

#[derive(Debug)]
pub(crate) struct SmallDisk {
    inner: LocalFileSystem,
    free_bytes: AtomicI64,
}

impl SmallDisk {
    pub(crate) fn new(folder: &Path, free_bytes: i64) -> Arc<Self> {
        let inner = LocalFileSystem::new_with_prefix(folder).unwrap().with_fsync(true);
        Arc::new(Self { inner, free_bytes: free_bytes.into() })
    }

    pub(crate) fn set_free(&self, free_bytes: i64) {
        self.free_bytes.store(free_bytes, Ordering::SeqCst);
    }
}

impl fmt::Display for SmallDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a small disk")
    }
}

#[async_trait]
impl ObjectStore for SmallDisk {
    async fn put_opts(&self, location: &ObjectPath, payload: PutPayload, options: PutOptions) -> Result<PutResult> {
        let size_bytes = i64::try_from(payload.content_length()).unwrap();
        if self.free_bytes.fetch_sub(size_bytes, Ordering::SeqCst) >= size_bytes {
            return self.inner.put_opts(location, payload, options).await;
        }
        self.free_bytes.fetch_add(size_bytes, Ordering::SeqCst);
        let mut partial = self.inner.path_to_filesystem(location)?.into_os_string();
        partial.push("#1");
        std::fs::create_dir_all(Path::new(&partial).parent().unwrap()).unwrap();
        let content: Vec<u8> = payload.iter().flat_map(|part| part.to_vec()).collect();
        std::fs::write(&partial, &content[..content.len() / 2]).unwrap();
        let full = io::Error::from(io::ErrorKind::StorageFull);
        Err(object_store::Error::Generic { store: "SmallDisk", source: Box::new(io::Error::other(full)) })
    }

    async fn put_multipart_opts(
        &self,
        location: &ObjectPath,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.inner.put_multipart_opts(location, options).await
    }

    async fn get_opts(&self, location: &ObjectPath, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(location, options).await
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<ObjectPath>>,
    ) -> BoxStream<'static, Result<ObjectPath>> {
        self.inner.delete_stream(locations)
    }

    fn list(&self, prefix: Option<&ObjectPath>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&ObjectPath>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &ObjectPath, to: &ObjectPath, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}
