//! A sign of life: a small object that whoever uses a store writes anew now and then.

use crate::StoreError;
use crate::objects::Objects;
use bytes::Bytes;
use object_store::ObjectStore;
use object_store::path::Path as ObjectPath;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The longest sign that is read.
const MAX_BYTES: u64 = 4096;

/// The object `pulse` in a folder or bucket. Others see by its changing that its writer lives; nothing is decided by it
/// alone: a log's next entry is the decision.
#[derive(Clone)]
pub struct Pulse {
    objects: Objects,
}

impl fmt::Debug for Pulse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulse").field("place", &self.objects.place()).finish()
    }
}

impl Pulse {
    /// In `folder`, which exists.
    ///
    /// # Errors
    /// Where there is no such folder.
    pub fn open(folder: &Path) -> Result<Self, StoreError> {
        Ok(Self { objects: Objects::read_folder(folder)? })
    }

    /// In any store; `place` is what messages call it.
    #[must_use]
    pub fn on(store: Arc<dyn ObjectStore>, place: &str) -> Self {
        Self { objects: Objects::new(store, place) }
    }

    /// Gives a sign of life: `sign`, different from the one before.
    ///
    /// # Errors
    /// The store's failure.
    pub async fn beat(&self, sign: Bytes) -> Result<(), StoreError> {
        self.objects.put(&path(), sign).await
    }

    /// The last sign; none where there never was one.
    ///
    /// # Errors
    /// The store's failure.
    pub async fn last(&self) -> Result<Option<Bytes>, StoreError> {
        self.objects.read(&path(), MAX_BYTES).await
    }
}

fn path() -> ObjectPath {
    ObjectPath::from("pulse")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_sign_is_seen_by_others() {
        let dir = tempfile::tempdir().expect("a folder");
        let (one, other) = (Pulse::open(dir.path()).expect("opens"), Pulse::open(dir.path()).expect("opens"));
        assert_eq!(other.last().await.expect("reads"), None);
        for sign in ["1", "2"] {
            one.beat(Bytes::from(sign)).await.expect("writes");
            assert_eq!(other.last().await.expect("reads"), Some(Bytes::from(sign)));
        }
        one.beat(Bytes::from(vec![0; 5000])).await.expect("writes");
        assert!(other.last().await.is_err(), "too long to be a sign");
    }
}
