//! Where a role's log and blobs are: in its home, or for a coordinator where `[store]` in its `coordinator.toml` says, so
//! that a standby on another machine can go on with them.

use crate::home::Home;
use crate::settings::CoordinatorSettings;
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use tapestry_store::{BlobStore, LogStore, Pulse};

/// The table `[store]` of a coordinator's `coordinator.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoreSettings {
    /// Where log and blobs are: `file:///a/folder/that/standbys/reach/too`. In the home, where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
}

/// The place of a role's log and blobs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    folder: PathBuf,
}

impl Place {
    /// Of the role in `home`.
    pub(crate) fn of(home: &Home) -> Result<Self> {
        let settings = CoordinatorSettings::read(home)?;
        let Some(url) = settings.store.url else { return Ok(Self { folder: home.dir().to_path_buf() }) };
        let file = home.path("coordinator.toml");
        let Some(folder) = url.strip_prefix("file://").map(Path::new).filter(|folder| folder.is_absolute()) else {
            bail!("in {}: store.url is file:///AN/ABSOLUTE/PATH; found {url:?}", file.display());
        };
        Ok(Self { folder: folder.to_path_buf() })
    }

    /// What messages call it.
    pub(crate) fn name(&self) -> String {
        self.folder.display().to_string()
    }

    /// The folder that holds the blobs, where they are files.
    pub(crate) fn blobs_folder(&self) -> PathBuf {
        self.folder.join("blobs")
    }

    /// The blobs, for the one process that writes there.
    pub(crate) async fn blobs(&self) -> Result<BlobStore> {
        let dir = self.blobs_folder();
        BlobStore::open_folder(&dir).await.with_context(|| format!("cannot open the blobs in {}", dir.display()))
    }

    /// The blobs, for reading.
    #[expect(clippy::unused_async, reason = "opening a bucket will have to wait; callers are ready for it")]
    pub(crate) async fn blobs_to_read(&self) -> Result<BlobStore> {
        let dir = self.blobs_folder();
        BlobStore::read_folder(&dir).with_context(|| format!("the blobs in {}", dir.display()))
    }

    /// The log, for the one process that writes there.
    #[expect(clippy::unused_async, reason = "opening a bucket will have to wait; callers are ready for it")]
    pub(crate) async fn log(&self) -> Result<LogStore> {
        let dir = self.folder.join("log");
        LogStore::open(&dir).with_context(|| format!("in {}", dir.display()))
    }

    /// The log, for reading, or for writing beside another process.
    #[expect(clippy::unused_async, reason = "opening a bucket will have to wait; callers are ready for it")]
    pub(crate) async fn log_to_read(&self) -> Result<LogStore> {
        let dir = self.folder.join("log");
        if !dir.is_dir() {
            bail!("{} holds no log; is it the home of a role?", self.folder.display());
        }
        LogStore::open_to_read(&dir).with_context(|| format!("in {}", dir.display()))
    }

    /// The sign of life of whoever uses the log.
    #[expect(clippy::unused_async, reason = "opening a bucket will have to wait; callers are ready for it")]
    pub(crate) async fn pulse(&self) -> Result<Pulse> {
        Ok(Pulse::open(&self.folder)?)
    }
}

/// The blobs of a role, for the one process that writes there.
pub(crate) async fn open_blobs(home: &Home) -> Result<BlobStore> {
    Place::of(home)?.blobs().await
}

/// The blobs of a role, for reading.
pub(crate) async fn read_blobs(home: &Home) -> Result<BlobStore> {
    Place::of(home)?.blobs_to_read().await
}
