//! How blobs move: what an operator sets, whom a node asks, and what it gives to other members.
//!
//! What others may have from a node or a mirror are the chunks of published bases, and nothing else that lies among its blobs: the list is
//! made from the manifests of bases that the coordinator has published, so neither a contribution nor a Sovereign Model can be on it.

use crate::clock::now;
use crate::home::Home;
use crate::progress::Reporter;
use crate::settings::CoordinatorSettings;
use crate::stores::read_blobs;
use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tapestry_core::{Digest, ModelManifest, PublicKey, SecretKey, Signed, WeightsManifest};
use tapestry_governance::Charter;
use tapestry_net::{
    BlobAction, Dialer, Hints, MIN_BYTES_PER_SECOND, Mirrors, NetError, Server, ServerLimits, blob_routes,
    pull_blobs_from, push_blobs_like,
};
use tapestry_store::{BlobStore, chunk_digests};
use tokio::task::JoinSet;

/// The idle timeout, where nothing is said.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// The table `[transfer]` of a node's `node.toml` and of a coordinator's `coordinator.toml`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TransferSettings {
    /// A transfer during which nothing moves for so many seconds is given up and tried again; one that moves never is. 90 where nothing
    /// is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) idle_timeout_seconds: Option<u64>,
    /// So many bytes a second are sent, and so many received, at most; 65,536 or more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) max_bytes_per_second: Option<u64>,
    /// Bytes of the file system that a transfer leaves free; 64 MiB where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) keep_free_bytes: Option<u64>,
    /// Node: chunks on the way at once, each on a connection of its own, 1 to 16; 4 where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) num_streams: Option<usize>,
    /// Node: where other members may fetch the chunks of published bases from this one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) serve_base: Option<SocketAddr>,
    /// Node: who is asked for the chunks of a base before the coordinator is.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mirrors: Vec<MirrorAddress>,
}

/// A mirror, or a member that serves bases, and the key that it must prove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct MirrorAddress {
    pub(crate) address: String,
    pub(crate) key: PublicKey,
}

impl TransferSettings {
    /// A coordinator's, from its home.
    pub(crate) fn of_coordinator(home: &Home) -> Result<Self> {
        let (settings, path) = (CoordinatorSettings::read(home)?, home.path("coordinator.toml"));
        let Self { num_streams, serve_base, mirrors, .. } = &settings.transfer;
        ensure!(
            num_streams.is_none() && serve_base.is_none() && mirrors.is_empty(),
            "{}: num_streams, serve_base and mirrors are settings of a node, not of a coordinator",
            path.display()
        );
        settings.transfer.check().with_context(|| format!("in {}", path.display()))?;
        Ok(settings.transfer)
    }

    fn check(&self) -> Result<()> {
        let Self { idle_timeout_seconds, max_bytes_per_second, num_streams, .. } = *self;
        ensure!(
            idle_timeout_seconds.is_none_or(|seconds| (5..=86_400).contains(&seconds)),
            "transfer.idle_timeout_seconds is from 5 to 86400"
        );
        ensure!(
            max_bytes_per_second.is_none_or(|rate| rate >= MIN_BYTES_PER_SECOND),
            "transfer.max_bytes_per_second is {MIN_BYTES_PER_SECOND} or more: slower, and the other side would take the limit for a \
             connection that stands still"
        );
        ensure!(num_streams.is_none_or(|num| (1..=16).contains(&num)), "transfer.num_streams is from 1 to 16");
        Ok(())
    }

    /// After how long a connection is given up on which nothing moves.
    pub(crate) fn idle_timeout(&self) -> Duration {
        self.idle_timeout_seconds.map_or(IDLE_TIMEOUT, Duration::from_secs)
    }

    /// What they mean for a server.
    pub(crate) fn server_limits(&self) -> ServerLimits {
        let limits = ServerLimits { max_bytes_per_second: self.max_bytes_per_second, ..ServerLimits::default() };
        match self.idle_timeout_seconds {
            Some(seconds) => {
                let idle_timeout = Duration::from_secs(seconds);
                // Between two requests a connection may stand still as long, and then a head has to come.
                ServerLimits { idle_timeout, head_timeout: idle_timeout * 4 / 3, ..limits }
            }
            None => limits,
        }
    }

    /// What they mean for a store.
    pub(crate) fn reserved(&self, blobs: BlobStore) -> BlobStore {
        self.keep_free_bytes.map_or(blobs.clone(), |bytes| blobs.with_reserve(bytes))
    }

    fn dialer(&self, dialer: &Dialer) -> Dialer {
        let dialer = dialer.with_idle_timeout(self.idle_timeout());
        self.max_bytes_per_second.map_or(dialer.clone(), |rate| dialer.with_max_bytes_per_second(rate))
    }
}

/// A node's transfers.
pub(crate) struct Transfer {
    blobs: BlobStore,
    dialer: Dialer,
    mirrors: Mirrors,
    num_streams: usize,
    offered: Arc<RwLock<Offered>>,
    /// The base that was here last.
    last_base: Mutex<Option<Digest>>,
    /// Ends with this.
    _serving: JoinSet<()>,
}

impl Transfer {
    /// Gets ready: listens where the settings say so.
    pub(crate) async fn open(
        settings: &TransferSettings,
        dialer: &Dialer,
        key: &SecretKey,
        blobs: &BlobStore,
        reporter: &Reporter,
    ) -> Result<Self> {
        settings.check().context("in node.toml")?;
        let mirrors = settings.mirrors.iter().map(|mirror| {
            let dialer = Dialer::new(&mirror.address, mirror.key, key);
            dialer.map(|dialer| settings.dialer(&dialer)).context("in node.toml, transfer.mirrors")
        });
        let offered = Arc::default();
        let mut serving = JoinSet::new();
        if let Some(listen) = settings.serve_base {
            let server = server(listen, key, blobs, &offered, settings).await?;
            let address = server.local_addr();
            reporter.say(format!("published bases are served on {address}, key {}", key.public()));
            serving.spawn(async move {
                if let Err(error) = server.serve(std::future::pending()).await {
                    tracing::error!(%error, "bases are not served any more");
                }
            });
        }
        Ok(Self {
            blobs: settings.reserved(blobs.clone()),
            dialer: settings.dialer(dialer),
            mirrors: Mirrors::new(mirrors.collect::<Result<_>>()?),
            num_streams: settings.num_streams.unwrap_or(4),
            offered,
            last_base: Mutex::default(),
            _serving: serving,
        })
    }

    /// Fetches what is missing of a published base, from mirrors or from the coordinator.
    pub(crate) async fn pull_base(
        &self,
        charter: &Signed<Charter>,
        base: Digest,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<u64> {
        let first = [base, charter.document.open_held_out.text];
        let last = *self.last_base.lock().unwrap_or_else(PoisonError::into_inner);
        let mut size_bytes = self.pull(&first, &Hints::default(), &mut |_, _| {}).await?;
        let manifest: ModelManifest = self.blobs.get_json(base).await?;
        manifest.check().context("the base's manifest")?;
        // What is here already may be fetched by others while the rest comes.
        self.offer(charter, base).await?;
        let hints = self.hints(&manifest.weights, last).await;
        // Into one file, which the trainer gets as it is.
        self.blobs.begin_pack(&manifest.weights).await?;
        size_bytes += self.pull(&chunk_digests(&manifest), &hints, progress).await?;
        self.blobs.finish_pack().await?;
        Ok(size_bytes)
    }

    async fn pull(
        &self,
        digests: &[Digest],
        hints: &Hints,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<u64, NetError> {
        pull_blobs_from(&self.dialer, &self.mirrors, &self.blobs, digests, hints, self.num_streams, progress).await
    }

    /// Sends what the coordinator lacks of weights, which were trained from `base`.
    pub(crate) async fn push(
        &self,
        weights: Digest,
        base: Option<Digest>,
        progress: &mut (dyn FnMut(u64, u64) + Send),
    ) -> Result<u64, NetError> {
        let manifest: WeightsManifest = self.blobs.get_json(weights).await?;
        let hints = self.hints(&manifest, base).await;
        let mut digests = manifest.data.chunks;
        digests.push(weights);
        push_blobs_like(&self.dialer, &self.blobs, &digests, &hints, self.num_streams, progress).await
    }

    /// What is known of the chunks of weights: their elements, and the chunks at the same places in a model of the same shape.
    async fn hints(&self, weights: &WeightsManifest, base: Option<Digest>) -> Hints {
        let mut sizes = BTreeMap::<u8, u64>::new();
        for tensor in &weights.tensors {
            let element_bytes = u8::try_from(tensor.dtype.size_bytes()).unwrap_or_default();
            *sizes.entry(element_bytes).or_default() += tensor.size_bytes().unwrap_or_default();
        }
        let element_bytes = sizes.into_iter().max_by_key(|(_, size)| *size).map(|(element_bytes, _)| element_bytes);
        let mut bases = HashMap::new();
        if let Some(base) = base
            && let Ok(base) = self.blobs.get_json::<ModelManifest>(base).await
            && base.weights.tensors == weights.tensors
        {
            let pairs = weights.data.chunks.iter().copied().zip(base.weights.data.chunks);
            bases.extend(pairs.filter(|(chunk, base)| chunk != base));
        }
        Hints { element_bytes, bases: Arc::new(bases), ..Hints::default() }
    }

    /// Lets the members fetch a published base from here, if its manifest is here, instead of any earlier one.
    pub(crate) async fn offer(&self, charter: &Signed<Charter>, base: Digest) -> Result<()> {
        let offered = Offered::new(&self.blobs, charter, base).await?;
        *self.offered.write().unwrap_or_else(PoisonError::into_inner) = offered;
        *self.last_base.lock().unwrap_or_else(PoisonError::into_inner) = Some(base);
        Ok(())
    }
}

/// What may be fetched, and by whom.
#[derive(Debug, Default)]
struct Offered {
    members: HashSet<PublicKey>,
    blobs: HashSet<Digest>,
}

impl Offered {
    async fn new(blobs: &BlobStore, charter: &Signed<Charter>, base: Digest) -> Result<Self> {
        let members = charter.document.members.values().copied().collect();
        let mut offered = HashSet::from([base, charter.document.open_held_out.text]);
        if blobs.has(base).await? {
            let manifest: ModelManifest = blobs.get_json(base).await?;
            offered.extend(chunk_digests(&manifest));
        }
        Ok(Self { members, blobs: offered })
    }
}

async fn server(
    listen: SocketAddr,
    key: &SecretKey,
    blobs: &BlobStore,
    offered: &Arc<RwLock<Offered>>,
    settings: &TransferSettings,
) -> Result<Server> {
    let (members, readable) = (Arc::clone(offered), Arc::clone(offered));
    let allow =
        Arc::new(move |peer: &PublicKey| members.read().unwrap_or_else(PoisonError::into_inner).members.contains(peer));
    let policy = Arc::new(move |_: &PublicKey, action: BlobAction| match action {
        BlobAction::Read(digest) if readable.read().unwrap_or_else(PoisonError::into_inner).blobs.contains(&digest) => {
            Ok(())
        }
        BlobAction::Read(_) => Err("only published bases are served here".into()),
        BlobAction::Write(_) => Err("nothing is taken here; weights go to the coordinator".into()),
    });
    let server = Server::bind(listen, key, allow, blob_routes(blobs.clone(), policy)).await?;
    Ok(server.with_limits(settings.server_limits()))
}

/// How often a mirror looks for a new base.
const MIRROR_PAUSE: Duration = Duration::from_secs(2);

/// Serves the newest base of a home, or of a copy of one, to the members of its charter until it is told to stop. Changes nothing there, and
/// may run while the role does.
pub(crate) async fn mirror(home: &Home, listen: SocketAddr, reporter: &Reporter) -> Result<()> {
    let key = home.key()?;
    let blobs = read_blobs(home).await?;
    let offered = Arc::default();
    let server = server(listen, &key, &blobs, &offered, &TransferSettings::default()).await?;
    reporter.say(format!("published bases are served on {}, key {}", server.local_addr(), key.public()));
    let following = async {
        let mut last = None;
        loop {
            // A log that is being written is read again.
            match crate::command::log::published(home).await {
                Ok((charter, base)) if last != Some(base) && blobs.has(base).await? => {
                    let new = Offered::new(&blobs, &charter, base).await?;
                    reporter.say(format!("serving base {} at {}", base.short(), now()));
                    *offered.write().unwrap_or_else(PoisonError::into_inner) = new;
                    last = Some(base);
                }
                Ok(_) => {}
                Err(error) if last.is_none() => return Err(error),
                Err(error) => tracing::warn!("the log cannot be read now: {error:#}"),
            }
            tokio::time::sleep(MIRROR_PAUSE).await;
        }
    };
    tokio::select! {
        served = server.serve(std::future::pending()) => served.map_err(Into::into),
        failed = following => failed,
        signal = crate::coordinator::stop_signal() => signal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_what_cannot_be_meant_is_refused() {
        let check = |text: &str| {
            let settings: TransferSettings = toml::from_str(text).map_err(|error| error.to_string())?;
            settings.check().map_err(|error| error.to_string())
        };
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let full = format!(
            "idle_timeout_seconds = 30\nmax_bytes_per_second = 1000000\nkeep_free_bytes = 0\nnum_streams = 8\n\
             serve_base = \"0.0.0.0:7444\"\n[[mirrors]]\naddress = \"mirror.example:7444\"\nkey = \"{key}\"\n"
        );
        assert_eq!((check(""), check(&full)), (Ok(()), Ok(())));
        for (wrong, expected) in [
            ("idle_timeout_seconds = 1", "from 5"),
            ("max_bytes_per_second = 1000", "65536 or more"),
            ("num_streams = 0", "from 1 to 16"),
            ("speed = 1", "unknown field"),
        ] {
            let error = check(wrong).expect_err(wrong);
            assert!(error.contains(expected), "{error}");
        }
    }
}
