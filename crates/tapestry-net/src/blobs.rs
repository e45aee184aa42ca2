//! Chunks over the wire: asked for by digest, checked on arrival, never sent twice.

use crate::{Dialer, ErrorBody, NetError, Peer, retry_forever};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use std::sync::Arc;
use tapestry_core::{CHUNK_BYTES, Digest, PublicKey};
use tapestry_store::{BlobStore, StoreError};

/// What a peer wants to do with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobAction {
    /// Have it.
    Read(Digest),
    /// Store it.
    Write(Digest),
}

/// Who may do what; the error is the reason, for the peer.
pub type BlobPolicy = Arc<dyn Fn(&PublicKey, BlobAction) -> Result<(), String> + Send + Sync>;

/// The longest body of a blob, with room for nothing else.
#[expect(clippy::cast_possible_truncation, reason = "8 MiB")]
const MAX_BLOB_BYTES: usize = CHUNK_BYTES as usize;
/// How many digests one question may name.
const MAX_DIGESTS: usize = 65_536;

#[derive(Clone)]
struct Shared {
    store: BlobStore,
    policy: BlobPolicy,
}

struct Failure(StatusCode, String, bool);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { error: self.1, retry: self.2 })).into_response()
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Missing { digest, .. } => Self(StatusCode::NOT_FOUND, format!("blob {digest} is not here"), false),
            StoreError::WrongContent { .. } | StoreError::TooLarge { .. } => {
                Self(StatusCode::BAD_REQUEST, error.to_string(), false)
            }
            _ => {
                tracing::error!(%error, "the blob store failed");
                Self(StatusCode::INSUFFICIENT_STORAGE, "the store cannot do that now; its operator knows why".into(), true)
            }
        }
    }
}

/// The routes `GET`, `HEAD` and `PUT /v1/blobs/{digest}`, and `POST /v1/blobs/missing`.
pub fn blob_routes(store: BlobStore, policy: BlobPolicy) -> Router {
    Router::new()
        .route("/v1/blobs/{digest}", get(read).put(write))
        .route("/v1/blobs/missing", post(missing))
        .layer(DefaultBodyLimit::max(MAX_BLOB_BYTES))
        .with_state(Shared { store, policy })
}

impl Shared {
    fn check(&self, peer: &PublicKey, action: BlobAction) -> Result<(), Failure> {
        (self.policy)(peer, action).map_err(|reason| Failure(StatusCode::FORBIDDEN, reason, false))
    }
}

fn parse(digest: &str) -> Result<Digest, Failure> {
    digest.parse().map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("{error}"), false))
}

async fn read(
    State(shared): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(digest): Path<String>,
) -> Result<Bytes, Failure> {
    let digest = parse(&digest)?;
    shared.check(&peer, BlobAction::Read(digest))?;
    Ok(shared.store.get(digest).await?)
}

async fn write(
    State(shared): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(digest): Path<String>,
    content: Bytes,
) -> Result<StatusCode, Failure> {
    let digest = parse(&digest)?;
    shared.check(&peer, BlobAction::Write(digest))?;
    shared.store.put_expected(digest, content).await?;
    Ok(StatusCode::CREATED)
}

async fn missing(
    State(shared): State<Shared>,
    Json(digests): Json<Vec<Digest>>,
) -> Result<Json<Vec<Digest>>, Failure> {
    if digests.len() > MAX_DIGESTS {
        let error = format!("{} digests are more than the {MAX_DIGESTS} of one question", digests.len());
        return Err(Failure(StatusCode::BAD_REQUEST, error, false));
    }
    Ok(Json(shared.store.missing(&digests).await?))
}

/// Sends the blobs that the other side lacks. Interrupted and called again, it sends only what is still missing; a broken
/// connection is retried for ever. `progress` hears of bytes done and bytes in all (as far as known).
///
/// # Errors
/// The first error that is not transient. Returns the bytes sent.
pub async fn push_blobs(
    dialer: &Dialer,
    store: &BlobStore,
    digests: &[Digest],
    parallel: usize,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<u64, NetError> {
    let mut wanted = vec![];
    for part in digests.chunks(MAX_DIGESTS) {
        let answer: Vec<Digest> =
            retry_forever(|| dialer.post_json("/v1/blobs/missing", &part), log_failure).await?;
        wanted.extend(answer.into_iter().filter(|digest| part.contains(digest)));
    }
    let total = wanted.len() as u64 * CHUNK_BYTES;
    let sending = stream::iter(wanted).map(|digest| async move {
        let content = store.get(digest).await?;
        let path = format!("/v1/blobs/{digest}");
        let sent = || dialer.put_bytes(&path, content.clone());
        retry_forever(sent, log_failure).await.map(|()| content.len() as u64)
    });
    finish(sending.buffer_unordered(parallel.max(1)), total, progress).await
}

/// Fetches the blobs that this side lacks, each checked before it is stored. As [`push_blobs`] in every other way.
///
/// # Errors
/// The first error that is not transient. Returns the bytes received.
pub async fn pull_blobs(
    dialer: &Dialer,
    store: &BlobStore,
    digests: &[Digest],
    parallel: usize,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<u64, NetError> {
    let wanted = store.missing(digests).await?;
    let total = wanted.len() as u64 * CHUNK_BYTES;
    let fetching = stream::iter(wanted).map(|digest| async move {
        let path = format!("/v1/blobs/{digest}");
        let content = retry_forever(|| dialer.get_bytes(&path, MAX_BLOB_BYTES), log_failure).await?;
        let size = content.len() as u64;
        store.put_expected(digest, content).await?;
        Ok(size)
    });
    finish(fetching.buffer_unordered(parallel.max(1)), total, progress).await
}

async fn finish(
    transfers: impl stream::Stream<Item = Result<u64, NetError>>,
    total: u64,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<u64, NetError> {
    let mut done = 0;
    tokio::pin!(transfers);
    while let Some(size) = transfers.next().await {
        done += size?;
        progress(done.min(total), total);
    }
    Ok(done)
}

fn log_failure(error: &NetError, pause: std::time::Duration) {
    tracing::warn!(%error, pause_ms = pause.as_millis(), "a transfer is tried again");
}
