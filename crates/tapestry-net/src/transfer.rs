//! Moving many blobs: never one that the other side has, and through any number of broken connections.

use crate::arriving::ArrivingBlob;
use crate::blobs::MAX_DIGESTS;
use crate::lean::Lean;
use crate::{Dialer, Hints, Mirrors, NetError};
use futures::stream::{self, Stream, StreamExt as _};
use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;
use tapestry_core::{CHUNK_BYTES, Digest};
use tapestry_store::{BlobStore, StoreError};

/// The pause before the first and the longest pause before a later repetition.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

/// Sends the blobs that the other side lacks, `parallel` at a time. Interrupted and called again, it sends only what is
/// still missing; within one call, a broken connection is made anew for ever. `progress` hears of the bytes done and the
/// bytes in all, which are an estimate until the end: a whole chunk for each blob.
///
/// # Errors
/// The first error that is not transient. Returns the bytes of the blobs sent.
pub async fn push_blobs(
    dialer: &Dialer,
    store: &BlobStore,
    digests: &[Digest],
    parallel: usize,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<u64, NetError> {
    push_blobs_like(dialer, store, digests, &Hints::default(), parallel, progress).await
}

/// As [`push_blobs`], of blobs of which something is known: they are compressed where a measured sample says that it pays.
///
/// # Errors
/// As [`push_blobs`].
pub async fn push_blobs_like(
    dialer: &Dialer,
    store: &BlobStore,
    digests: &[Digest],
    hints: &Hints,
    parallel: usize,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<u64, NetError> {
    let mut wanted = vec![];
    for part in digests.chunks(MAX_DIGESTS) {
        let answer: Vec<Digest> = retry_forever(|| dialer.post_json("/v1/blobs/missing", part), log_failure).await?;
        // Whatever else it asks for, it gets what was offered, once.
        let mut offered: HashSet<Digest> = part.iter().copied().collect();
        wanted.extend(answer.into_iter().filter(|digest| offered.remove(digest)));
    }
    let num_blobs = wanted.len();
    let lean = Arc::new(Lean::new(dialer, store, hints));
    let sending = stream::iter(wanted).map(|digest| push(Arc::clone(&lean), digest)).buffer_unordered(parallel.max(1));
    finish(sending, num_blobs, progress).await
}

/// Fetches the blobs that this side lacks, each checked before it is stored. As [`push_blobs`] in every other way; a blob of which
/// a part has come goes on from there.
///
/// # Errors
/// [`StoreError::NoRoom`], before anything moves, where there is too little space for what is missing; otherwise the first error that
/// is not transient. Returns the bytes of the blobs received.
pub async fn pull_blobs(
    dialer: &Dialer,
    store: &BlobStore,
    digests: &[Digest],
    parallel: usize,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<u64, NetError> {
    pull_blobs_from(dialer, &Mirrors::default(), store, digests, &Hints::default(), parallel, progress).await
}

/// As [`pull_blobs`], with others that are asked for each blob before `dialer` is, and with what is known of the blobs, as in
/// [`push_blobs_like`].
///
/// # Errors
/// As [`pull_blobs`]; what a mirror does wrong is no error.
pub async fn pull_blobs_from(
    dialer: &Dialer,
    mirrors: &Mirrors,
    store: &BlobStore,
    digests: &[Digest],
    hints: &Hints,
    parallel: usize,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<u64, NetError> {
    let wanted = store.missing(digests).await?;
    let num_blobs = wanted.len();
    store.check_room(least_bytes(num_blobs))?;
    let lean = Arc::new(Lean::new(dialer, store, hints));
    let fetching = stream::iter(wanted)
        .map(|digest| pull(Arc::clone(&lean), mirrors.clone(), digest))
        .buffer_unordered(parallel.max(1));
    finish(fetching, num_blobs, progress).await
}

async fn push(lean: Arc<Lean>, digest: Digest) -> Result<u64, NetError> {
    let (dialer, store) = (&lean.dialer, &lean.store);
    let path = path_of(digest);
    if let Some(size) = lean.push(&path, digest).await? {
        return Ok(size);
    }
    let mut backoff = Backoff::new();
    loop {
        let (size, answer) = dialer.put_blob(&path, store, digest).await?;
        let error = match answer {
            Ok(()) => return Ok(size),
            Err(error) if error.is_transient() => error,
            Err(error) => {
                // If it is damaged here, that is the reason: whoever receives it checks it, and not this side.
                store.get(digest).await?;
                return Err(error);
            }
        };
        backoff.pause(&error, &mut log_failure).await;
        // The connection may have broken between the storing and the answer. A question costs less than a chunk; who may
        // write but not read is refused it, and sends again.
        if let Ok(true) = dialer.exists(&path).await {
            return Ok(size);
        }
    }
}

async fn pull(lean: Arc<Lean>, mirrors: Mirrors, digest: Digest) -> Result<u64, NetError> {
    let (dialer, store) = (&lean.dialer, &lean.store);
    let mut path = path_of(digest);
    let mut blob = match mirrors.pull(store, digest, &path).await? {
        Ok(size) => return Ok(size),
        Err(begun) => begun,
    };
    if blob.size_bytes() == 0
        && let Some(size) = lean.pull(&path, digest).await?
    {
        return Ok(size);
    }
    loop {
        let mut backoff = Backoff::new();
        loop {
            let before = blob.size_bytes();
            match dialer.get_blob(&path, &mut blob).await {
                Ok(()) => break,
                Err(error) if error.is_transient() => {
                    // What has come is kept; whoever gets on need not wait longer and longer.
                    if blob.size_bytes() > before {
                        backoff = Backoff::new();
                    }
                    backoff.pause(&error, &mut log_failure).await;
                }
                Err(error) => return Err(error),
            }
        }
        let size = blob.size_bytes();
        match blob.finish().await {
            Ok(()) => {
                lean.came_plain(digest).await;
                return Ok(size);
            }
            // Once more, checked by the sender: it then says so if its own copy is damaged.
            Err(StoreError::WrongContent { .. }) if !path.ends_with(CHECKED) => path.push_str(CHECKED),
            Err(error) => return Err(error.into()),
        }
        blob = ArrivingBlob::new(store, digest);
    }
}

/// Asks the sender to check a blob before it sends it.
const CHECKED: &str = "?check=true";

/// What so many blobs need at least, as far as their size is known: a whole chunk for each, but for the one that may be shorter.
pub(crate) const fn least_bytes(num_blobs: usize) -> u64 {
    (num_blobs as u64).saturating_sub(1).saturating_mul(CHUNK_BYTES)
}

fn path_of(digest: Digest) -> String {
    format!("/v1/blobs/{digest}")
}

async fn finish(
    transfers: impl Stream<Item = Result<u64, NetError>>,
    num_blobs: usize,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<u64, NetError> {
    let (mut done, mut num_left) = (0, num_blobs as u64);
    tokio::pin!(transfers);
    while let Some(size) = transfers.next().await {
        done += size?;
        num_left -= 1;
        progress(done, done + num_left * CHUNK_BYTES);
    }
    Ok(done)
}

fn log_failure(error: &NetError, pause: Duration) {
    tracing::warn!(%error, pause_ms = pause.as_millis(), "a transfer is tried again");
}

/// Repeats a request until it succeeds or fails for good, with growing, jittered pauses (0.1 to 30 s). `on_failure` hears of
/// each failure and of the pause that follows.
///
/// # Errors
/// The first error that is not transient.
pub async fn retry_forever<T, F: Future<Output = Result<T, NetError>>>(
    mut request: impl FnMut() -> F,
    mut on_failure: impl FnMut(&NetError, Duration),
) -> Result<T, NetError> {
    let mut backoff = Backoff::new();
    loop {
        match request().await {
            Err(error) if error.is_transient() => backoff.pause(&error, &mut on_failure).await,
            other => return other,
        }
    }
}

/// Pauses that grow.
struct Backoff(Duration);

impl Backoff {
    const fn new() -> Self {
        Self(BACKOFF.0)
    }

    async fn pause(&mut self, error: &NetError, on_failure: &mut impl FnMut(&NetError, Duration)) {
        // Not all nodes at once after a coordinator's restart: between half and the whole of the pause.
        let mut random = [0; 2];
        let share = getrandom::fill(&mut random).map_or(1.0, |()| f64::from(u16::from_le_bytes(random)) / 65535.0);
        let jittered = self.0.mul_f64(0.5 + 0.5 * share);
        self.0 = (self.0 * 2).min(BACKOFF.1);
        on_failure(error, jittered);
        tokio::time::sleep(jittered).await;
    }
}
