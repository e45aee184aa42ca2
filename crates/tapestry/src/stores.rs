//! Where a role's log and blobs are: in its home, or for a coordinator where `[store]` in its `coordinator.toml` says, so
//! that a standby on another machine can go on with them, or that a disk need not hold them.

use crate::home::Home;
use crate::settings::CoordinatorSettings;
use anyhow::{Context as _, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tapestry_store::{BlobStore, LogStore, ObjectStore, Pulse, S3Credentials, S3Settings};

/// The table `[store]` of a coordinator's `coordinator.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct StoreSettings {
    /// Where log and blobs are: `file:///a/folder/that/standbys/reach/too`, or `s3://BUCKET/PREFIX`. In the home, where nothing
    /// is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) url: Option<String>,
    /// A bucket's server, `https://HOST:PORT`; Amazon's where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) endpoint: Option<String>,
    /// A bucket's region; `us-east-1` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) region: Option<String>,
    /// Whether the endpoint may be plain HTTP although it is on another machine.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) allow_http: bool,
    /// Of what is in a bucket, copies of at most so many bytes are kept in the home after a round; 100 GB where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_copies_bytes: Option<u64>,
}

/// How much is kept of what is in a bucket, where nothing is said.
const MAX_COPIES_BYTES: u64 = 100_000_000_000;

/// The place of a role's log and blobs.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    /// The role's home, where copies are.
    home: PathBuf,
    max_copies_bytes: u64,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    Folder(PathBuf),
    Bucket(Box<S3Settings>),
}

impl Place {
    /// Of the role in `home`.
    pub(crate) fn of(home: &Home) -> Result<Self> {
        let settings = CoordinatorSettings::read(home)?;
        let idle = settings.transfer.idle_timeout();
        Self::new(home.dir(), settings.store, idle)
            .with_context(|| format!("in {}", home.path("coordinator.toml").display()))
    }

    fn new(home: &Path, settings: StoreSettings, idle: Duration) -> Result<Self> {
        let StoreSettings { url, endpoint, region, allow_http, max_copies_bytes } = settings;
        let of_bucket = endpoint.is_some() || region.is_some() || allow_http || max_copies_bytes.is_some();
        let url = url.as_deref();
        let kind = if let Some(rest) = url.and_then(|url| url.strip_prefix("s3://")) {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            ensure!(!bucket.is_empty(), "store.url is s3://BUCKET/PREFIX; found no bucket's name");
            Kind::Bucket(Box::new(S3Settings {
                bucket: bucket.into(),
                prefix: prefix.trim_matches('/').into(),
                endpoint,
                region: region.unwrap_or_else(|| "us-east-1".into()),
                allow_http,
                idle,
            }))
        } else {
            ensure!(
                !of_bucket,
                "endpoint, region, allow_http and max_copies_bytes are for store.url = \"s3://BUCKET/PREFIX\""
            );
            Kind::Folder(match url {
                None => home.to_path_buf(),
                Some(url) => {
                    let folder = url.strip_prefix("file://").map(Path::new).filter(|folder| folder.is_absolute());
                    let expected = "store.url is file:///AN/ABSOLUTE/PATH or s3://BUCKET/PREFIX";
                    folder.with_context(|| format!("{expected}; found {url:?}"))?.to_path_buf()
                }
            })
        };
        let max_copies_bytes = max_copies_bytes.unwrap_or(MAX_COPIES_BYTES);
        Ok(Self { home: home.to_path_buf(), max_copies_bytes, kind })
    }

    /// What messages call it.
    pub(crate) fn name(&self) -> String {
        match &self.kind {
            Kind::Folder(folder) => folder.display().to_string(),
            Kind::Bucket(settings) => settings.place(),
        }
    }

    /// The folder that holds the blobs, or the copies of those in a bucket.
    pub(crate) fn blobs_folder(&self) -> PathBuf {
        match &self.kind {
            Kind::Folder(folder) => folder.join("blobs"),
            Kind::Bucket(_) => self.home.join("copies"),
        }
    }

    /// A part of the bucket.
    async fn in_bucket(settings: &S3Settings, part: &str) -> Result<(Arc<dyn ObjectStore>, String)> {
        let prefix = if settings.prefix.is_empty() { part.to_owned() } else { format!("{}/{part}", settings.prefix) };
        let settings = S3Settings { prefix, ..settings.clone() };
        Ok((settings.open(S3Credentials::from_env()).await?, settings.place()))
    }

    /// The blobs, for the one process that writes there.
    pub(crate) async fn blobs(&self) -> Result<BlobStore> {
        let dir = self.blobs_folder();
        let opened = match &self.kind {
            Kind::Folder(_) => BlobStore::open_folder(&dir).await,
            Kind::Bucket(settings) => {
                let (bucket, place) = Self::in_bucket(settings, "blobs").await?;
                BlobStore::open_bucket(&dir, bucket, &place).await
            }
        };
        opened.with_context(|| format!("cannot open the blobs in {}", dir.display()))
    }

    /// The blobs, for reading.
    pub(crate) async fn blobs_to_read(&self) -> Result<BlobStore> {
        match &self.kind {
            Kind::Folder(_) => {
                let dir = self.blobs_folder();
                BlobStore::read_folder(&dir).with_context(|| format!("the blobs in {}", dir.display()))
            }
            // The copies belong to the process that writes.
            Kind::Bucket(settings) => {
                let (bucket, place) = Self::in_bucket(settings, "blobs").await?;
                Ok(BlobStore::on(bucket, &place))
            }
        }
    }

    /// The log, for the one process that writes there.
    pub(crate) async fn log(&self) -> Result<LogStore> {
        match &self.kind {
            Kind::Folder(folder) => {
                let dir = folder.join("log");
                LogStore::open(&dir).with_context(|| format!("in {}", dir.display()))
            }
            Kind::Bucket(settings) => Self::log_in_bucket(settings).await,
        }
    }

    /// The log, for reading, or for writing beside another process.
    pub(crate) async fn log_to_read(&self) -> Result<LogStore> {
        match &self.kind {
            Kind::Folder(folder) => {
                let dir = folder.join("log");
                if !dir.is_dir() {
                    bail!("{} holds no log; is it the home of a role?", folder.display());
                }
                LogStore::open_to_read(&dir).with_context(|| format!("in {}", dir.display()))
            }
            Kind::Bucket(settings) => Self::log_in_bucket(settings).await,
        }
    }

    async fn log_in_bucket(settings: &S3Settings) -> Result<LogStore> {
        let (bucket, place) = Self::in_bucket(settings, "log").await?;
        Ok(LogStore::on(bucket, &place))
    }

    /// The sign of life of whoever uses the log.
    pub(crate) async fn pulse(&self) -> Result<Pulse> {
        match &self.kind {
            Kind::Folder(folder) => Ok(Pulse::open(folder)?),
            Kind::Bucket(settings) => {
                let (bucket, place) = Self::in_bucket(settings, "life").await?;
                Ok(Pulse::on(bucket, &place))
            }
        }
    }

    /// Makes room: of what is in a bucket, no more copies are kept than the settings say.
    pub(crate) fn trim_copies(&self, blobs: &BlobStore) -> Result<()> {
        Ok(blobs.trim_copies(self.max_copies_bytes)?)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn place(toml: &str) -> Result<Place, String> {
        let settings: StoreSettings = toml::from_str(toml).map_err(|error| error.to_string())?;
        Place::new(Path::new("/home"), settings, Duration::from_secs(90)).map_err(|error| error.to_string())
    }

    #[test]
    fn settings_name_a_folder_or_a_bucket_and_nothing_in_between() {
        assert_eq!(place("").expect("in the home").name(), "/home");
        assert_eq!(place("url = \"file:///srv/store\"").expect("a folder").name(), "/srv/store");
        let bucket = place("url = \"s3://consortium/a/b/\"\nendpoint = \"https://s3.example:9000\"").expect("a bucket");
        assert_eq!(bucket.name(), "s3://consortium/a/b at https://s3.example:9000");
        assert_eq!(bucket.blobs_folder(), Path::new("/home/copies"));
        for (wrong, expected) in [
            ("url = \"file://srv\"", "ABSOLUTE"),
            ("url = \"/srv\"", "ABSOLUTE"),
            ("url = \"s3:///a\"", "no bucket"),
            ("endpoint = \"https://a\"", "are for store.url"),
            ("url = \"s3://a\"\nsecret_key = \"b\"", "unknown field"),
        ] {
            let error = place(wrong).expect_err(wrong);
            assert!(error.contains(expected), "{error}");
        }
    }
}
