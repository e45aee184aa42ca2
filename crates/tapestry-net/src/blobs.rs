//! The routes of blobs: asked for by digest, checked before they are stored.
//!
//! A blob is at most [`CHUNK_BYTES`] long and is held in memory while it moves, so a few move at once, in all and for each
//! peer; the rest wait in their connections.

use crate::Peer;
use crate::answer::refusal;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use futures::stream;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use tapestry_core::{CHUNK_BYTES, Digest, PublicKey};
use tapestry_store::{BlobStore, StoreError};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a peer wants to do with a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlobAction {
    /// Have it.
    Read(Digest),
    /// Store it.
    Write(Digest),
}

/// Who may do what; the error is the reason, for the peer. Asked once for each request, and before its body is read.
pub type BlobPolicy = Arc<dyn Fn(&PublicKey, BlobAction) -> Result<(), String> + Send + Sync>;

/// The longest body of a blob.
#[expect(clippy::cast_possible_truncation, reason = "8 MiB")]
pub(crate) const MAX_BLOB_BYTES: usize = CHUNK_BYTES as usize;
/// How many digests one question may name.
pub(crate) const MAX_DIGESTS: usize = 65_536;
/// The longest question: the digests as JSON, with room for white space.
const MAX_QUESTION_BYTES: usize = MAX_DIGESTS * 80;
/// Blobs on the way at once, which take `CHUNK_BYTES` of memory each.
const NUM_MOVING: usize = 8;
/// Blobs on the way at once to or from one peer.
const NUM_MOVING_PER_PEER: usize = 2;
/// How much of an answer is handed over at a time.
const PIECE_BYTES: usize = 64 << 10;

#[derive(Clone)]
struct Shared {
    store: BlobStore,
    policy: BlobPolicy,
    room: Arc<Room>,
}

/// The routes `GET`, `HEAD` and `PUT /v1/blobs/{digest}`, and `POST /v1/blobs/missing`, which is asked for a list of
/// at most 65,536 digests and answers with those that are not here. They run behind a [`Server`](crate::Server), which
/// says who the peer is.
pub fn blob_routes(store: BlobStore, policy: BlobPolicy) -> Router {
    Router::new()
        .route("/v1/blobs/{digest}", get(read).head(exists).put(write))
        .route("/v1/blobs/missing", post(missing).layer(DefaultBodyLimit::max(MAX_QUESTION_BYTES)))
        .with_state(Shared { store, policy, room: Arc::default() })
}

async fn read(
    State(shared): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(digest): Path<String>,
) -> Result<Response, Failure> {
    let digest = parse(&digest)?;
    shared.check(&peer, BlobAction::Read(digest))?;
    let held = shared.room.enter(peer).await;
    let content = shared.store.get(digest).await?;
    let head = [
        (header::CONTENT_TYPE, "application/octet-stream".to_owned()),
        (header::CONTENT_LENGTH, content.len().to_string()),
    ];
    // In pieces, so that the room is held until the last of them is on its way.
    let pieces = stream::unfold((content, held), async |(mut rest, held)| {
        let piece = rest.split_to(rest.len().min(PIECE_BYTES));
        (!piece.is_empty()).then_some((Ok::<Bytes, Infallible>(piece), (rest, held)))
    });
    Ok((head, Body::from_stream(pieces)).into_response())
}

async fn exists(
    State(shared): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(digest): Path<String>,
) -> Result<StatusCode, Failure> {
    let digest = parse(&digest)?;
    shared.check(&peer, BlobAction::Read(digest))?;
    Ok(if shared.store.has(digest).await? { StatusCode::OK } else { StatusCode::NOT_FOUND })
}

async fn write(
    State(shared): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(digest): Path<String>,
    mut body: Body,
) -> Result<StatusCode, Failure> {
    let written = shared.write(peer, &digest, &mut body).await;
    if written.is_err() {
        // Closing a socket with something unread in it resets the connection, and the peer would never read the reason.
        let _ = receive(&mut body, 2 * MAX_BLOB_BYTES, |_| ()).await;
    }
    written.map(|()| StatusCode::CREATED)
}

/// What the peer may not read is missing too, as far as it can tell.
async fn missing(
    State(shared): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    Json(digests): Json<Vec<Digest>>,
) -> Result<Json<Vec<Digest>>, Failure> {
    if digests.len() > MAX_DIGESTS {
        let reason = format!("{} digests are more than the {MAX_DIGESTS} of one question; ask in parts", digests.len());
        return Err(Failure(StatusCode::PAYLOAD_TOO_LARGE, reason, false));
    }
    let may_read = |digest: &Digest| (shared.policy)(&peer, BlobAction::Read(*digest)).is_ok();
    let (readable, mut missing): (Vec<_>, Vec<_>) = digests.into_iter().partition(may_read);
    missing.extend(shared.store.missing(&readable).await?);
    Ok(Json(missing))
}

impl Shared {
    fn check(&self, peer: &PublicKey, action: BlobAction) -> Result<(), Failure> {
        (self.policy)(peer, action).map_err(|reason| Failure(StatusCode::FORBIDDEN, reason, false))
    }

    async fn write(&self, peer: PublicKey, digest: &str, body: &mut Body) -> Result<(), Failure> {
        let digest = parse(digest)?;
        self.check(&peer, BlobAction::Write(digest))?;
        let announced = body.size_hint().lower();
        if announced > CHUNK_BYTES {
            return Err(too_large(announced));
        }
        let _held = self.room.enter(peer).await;
        let mut content = Vec::with_capacity(usize::try_from(announced).unwrap_or_default());
        receive(body, MAX_BLOB_BYTES, |piece| content.extend_from_slice(piece)).await?;
        Ok(self.store.put_expected(digest, content.into()).await?)
    }
}

/// Hands a body of at most `limit` bytes to `take`, as it comes.
async fn receive(body: &mut Body, limit: usize, mut take: impl FnMut(&[u8])) -> Result<(), Failure> {
    let mut size = 0;
    while let Some(frame) = body.frame().await {
        let late = |error| Failure(StatusCode::REQUEST_TIMEOUT, format!("the blob did not arrive: {error}"), true);
        let frame = frame.map_err(late)?;
        let Some(piece) = frame.data_ref() else { continue };
        size += piece.len();
        if size > limit {
            return Err(too_large(size as u64));
        }
        take(piece);
    }
    Ok(())
}

fn parse(digest: &str) -> Result<Digest, Failure> {
    digest.parse().map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("{error}"), false))
}

fn too_large(found: u64) -> Failure {
    StoreError::TooLarge { found }.into()
}

/// The memory for blobs on the way.
struct Room {
    all: Arc<Semaphore>,
    by_peer: Mutex<BTreeMap<PublicKey, Arc<Semaphore>>>,
}

impl Default for Room {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(NUM_MOVING)), by_peer: Mutex::default() }
    }
}

impl Room {
    /// Waits for room, which is given back when the permits are dropped. First among the peer's own, so that what waits
    /// for a slow peer stands in nobody else's way.
    async fn enter(&self, peer: PublicKey) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let own = {
            let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
            // Only who has something on the way is remembered.
            by_peer.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            let new = || Arc::new(Semaphore::new(NUM_MOVING_PER_PEER));
            Arc::clone(by_peer.entry(peer).or_insert_with(new))
        };
        // Neither is ever closed, so both are had.
        let own = own.acquire_owned().await.ok()?;
        Some((own, Arc::clone(&self.all).acquire_owned().await.ok()?))
    }
}

/// Status, reason, and whether it may pass.
struct Failure(StatusCode, String, bool);

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        refusal(self.0, self.1, self.2)
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Missing { digest, .. } => {
                Self(StatusCode::NOT_FOUND, format!("blob {digest} is not here"), false)
            }
            StoreError::WrongContent { .. } => Self(StatusCode::BAD_REQUEST, error.to_string(), false),
            StoreError::TooLarge { .. } => Self(StatusCode::PAYLOAD_TOO_LARGE, error.to_string(), false),
            _ => {
                // Where it is kept, and what the system says about it, is not for peers.
                tracing::error!(%error, "the blob store failed");
                let reason = "the store cannot do that now; its operator can read why";
                let is_full = matches!(error, StoreError::DiskFull { .. });
                let status = if is_full { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::INTERNAL_SERVER_ERROR };
                Self(status, reason.into(), error.is_retryable())
            }
        }
    }
}
