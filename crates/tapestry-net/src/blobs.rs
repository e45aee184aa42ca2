//! The routes of blobs: asked for by digest, checked before they are stored.
//!
//! In a folder a blob moves in pieces, and takes the memory of two of them for as long as it needs; so a slow peer costs little and
//! stands in nobody's way. Where blobs are no files, they are held in memory while they move, so a few move at once, in all and for
//! each peer; the rest wait in their connections.

use crate::Peer;
use crate::answer::refusal;
use crate::arriving::ArrivingBlob;
use crate::planes::{self, BASE_HEADER, ENCODING_HEADER, MAX_ENCODED_BYTES};
use crate::transfer::least_bytes;
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use futures::stream;
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use hyper::header::HeaderValue;
use serde::Deserialize;
use std::collections::BTreeMap;
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
/// Whole blobs in memory at once, which take `CHUNK_BYTES` each.
const NUM_MOVING: usize = 8;
/// Whole blobs in memory at once to or from one peer.
const NUM_MOVING_PER_PEER: usize = 2;

#[derive(Clone)]
struct Shared {
    store: BlobStore,
    policy: BlobPolicy,
    room: Arc<Room>,
    /// For what comes encoded, and has to be whole before it can be decoded.
    encoded_room: Arc<Room>,
    /// What is encoded for a peer costs this side's processors; when these are busy, a blob goes as it is.
    encoders: Arc<Semaphore>,
    decoders: Arc<Semaphore>,
}

/// Encoded blobs in memory at once, in all and from one peer. They come over slow links, so they stay long; a busy machine looks like a slow
/// link, too, and then all members send them at once.
const NUM_ENCODED: (usize, usize) = (8, 2);
/// Blobs that are decoded at once, each with its base beside it.
const NUM_DECODERS: usize = 2;
/// Blobs that are encoded for peers at once.
const NUM_ENCODERS: usize = 2;

/// The routes `GET` (of all or, with `Range: bytes=N-`, of the rest), `HEAD` and `PUT /v1/blobs/{digest}`, and
/// `POST /v1/blobs/missing`, which is asked for a list of at most 65,536 digests and answers with those that are not here. They run
/// behind a [`Server`](crate::Server), which says who the peer is.
///
/// A blob may go encoded (`planes`): `PUT` names the encoding, and the base where there is one, in headers; `GET` asks for it with
/// `?planes=N`, the bytes of an element, and `&base=`, and gets it if that makes the blob smaller and nobody else is being served so.
/// `GET /v1/blobs/encodings` says which encodings are known.
///
/// What `GET` sends is checked by whoever receives it. With `?check=true` it is checked here first, which tells a damaged store from
/// a damaged transfer.
pub fn blob_routes(store: BlobStore, policy: BlobPolicy) -> Router {
    Router::new()
        .route("/v1/blobs/{digest}", get(read).head(exists).put(write))
        .route("/v1/blobs/missing", post(missing).layer(DefaultBodyLimit::max(MAX_QUESTION_BYTES)))
        .route("/v1/blobs/encodings", get(async || Json([planes::NAME])))
        .with_state(Shared {
            store,
            policy,
            room: Arc::new(Room::new(NUM_MOVING, NUM_MOVING_PER_PEER)),
            encoded_room: Arc::new(Room::new(NUM_ENCODED.0, NUM_ENCODED.1)),
            encoders: Arc::new(Semaphore::new(NUM_ENCODERS)),
            decoders: Arc::new(Semaphore::new(NUM_DECODERS)),
        })
}

#[derive(Deserialize)]
struct ReadQuery {
    #[serde(default)]
    check: bool,
    planes: Option<u8>,
    base: Option<Digest>,
}

async fn read(
    State(shared): State<Shared>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(digest): Path<String>,
    Query(query): Query<ReadQuery>,
    headers: HeaderMap,
) -> Result<Response, Failure> {
    let digest = parse(&digest)?;
    shared.check(&peer, BlobAction::Read(digest))?;
    let store = shared.store.clone();
    let held = if store.is_in_files() { None } else { shared.room.enter(peer).await };
    if query.check {
        store.get(digest).await?;
    }
    if let Some(element_bytes) = query.planes {
        if let Some(base) = query.base {
            shared.check(&peer, BlobAction::Read(base))?;
        }
        if let Ok(_permit) = shared.encoders.try_acquire()
            && let Some(encoded) = planes::encode_blob(&store, digest, element_bytes, query.base).await?.encoded
        {
            return Ok(([(ENCODING_HEADER, planes::NAME)], encoded).into_response());
        }
    }
    let mut departure = store.departure(digest).await?;
    let size = departure.size_bytes();
    let from = match headers.get(header::RANGE) {
        Some(range) => {
            Some(range.to_str().ok().and_then(range_start).filter(|from| *from < size).ok_or_else(|| {
                let reason =
                    format!("the range is none of blob {digest}, which has {size} bytes; `bytes=N-` is expected");
                Failure(StatusCode::RANGE_NOT_SATISFIABLE, reason, false)
            })?)
        }
        None => None,
    };
    let start = from.unwrap_or(0);
    departure.skip_to(start);
    // The room is held until the last piece is on its way.
    let pieces = Body::from_stream(stream::unfold((departure, held), async |(mut departure, held)| {
        // The answer has begun, so nobody but the log can be told.
        let next = departure.next().await.inspect_err(|error| tracing::error!(%error, "a blob could not be sent"));
        Some((next.transpose()?, (departure, held)))
    }));
    let mut answer = pieces.into_response();
    let head = answer.headers_mut();
    head.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    head.insert(header::CONTENT_LENGTH, HeaderValue::from(size - start));
    head.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if from.is_some() {
        *answer.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {start}-{}/{size}", size - 1);
        answer.headers_mut().insert(header::CONTENT_RANGE, HeaderValue::try_from(range).map_err(|_| internal())?);
    }
    Ok(answer)
}

/// The start of a range that goes to the end.
fn range_start(range: &str) -> Option<u64> {
    range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
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
    headers: HeaderMap,
    mut body: Body,
) -> Result<StatusCode, Failure> {
    let written = match headers.get(ENCODING_HEADER) {
        None => shared.write(peer, &digest, &mut body).await,
        Some(name) if name == planes::NAME => shared.write_encoded(peer, &digest, &headers, &mut body).await,
        Some(name) => {
            let reason = format!("encoding {name:?} is not known here; send the blob as it is");
            Err(Failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, reason, false))
        }
    };
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
    // Who asks is about to send these; better to say now that they do not fit.
    shared.store.check_room(least_bytes(missing.len()))?;
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
        let _held = if self.store.is_in_files() { None } else { self.room.enter(peer).await };
        let mut blob = ArrivingBlob::new(&self.store, digest);
        let late = |error| Failure(StatusCode::REQUEST_TIMEOUT, format!("the blob did not arrive: {error}"), true);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(late)?.into_data() else { continue };
            blob.take(&data).await?;
        }
        Ok(blob.finish().await?)
    }
}

impl Shared {
    async fn write_encoded(
        &self,
        peer: PublicKey,
        digest: &str,
        headers: &HeaderMap,
        body: &mut Body,
    ) -> Result<(), Failure> {
        let digest = parse(digest)?;
        self.check(&peer, BlobAction::Write(digest))?;
        let base = headers.get(BASE_HEADER).map(|base| parse(base.to_str().unwrap_or_default())).transpose()?;
        if let Some(base) = base {
            // What may not be read may not be guessed at either.
            self.check(&peer, BlobAction::Read(base))?;
        }
        let announced = body.size_hint().lower();
        if announced > MAX_ENCODED_BYTES as u64 {
            return Err(too_large(announced));
        }
        let _held = self.encoded_room.enter(peer).await;
        let mut encoded = Vec::with_capacity(usize::try_from(announced).unwrap_or_default());
        let late = |error| Failure(StatusCode::REQUEST_TIMEOUT, format!("the blob did not arrive: {error}"), true);
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(late)?.into_data() else { continue };
            if data.len() > MAX_ENCODED_BYTES - encoded.len() {
                return Err(too_large((encoded.len() + data.len()) as u64));
            }
            encoded.extend_from_slice(&data);
        }
        let _decoding = self.decoders.acquire().await.map_err(|_| internal())?;
        let content = planes::decode_blob(&self.store, encoded.into(), base).await?;
        let content = content.map_err(|error| Failure(StatusCode::BAD_REQUEST, error.to_string(), false))?;
        Ok(self.store.put_expected(digest, content).await?)
    }
}

fn parse(digest: &str) -> Result<Digest, Failure> {
    digest.parse().map_err(|error| Failure(StatusCode::BAD_REQUEST, format!("{error}"), false))
}

fn internal() -> Failure {
    Failure(StatusCode::INTERNAL_SERVER_ERROR, "the answer cannot be made".into(), true)
}

fn too_large(found: u64) -> Failure {
    StoreError::TooLarge { found }.into()
}

/// The memory for blobs on the way.
struct Room {
    num_per_peer: usize,
    all: Arc<Semaphore>,
    by_peer: Mutex<BTreeMap<PublicKey, Arc<Semaphore>>>,
}

impl Room {
    fn new(num: usize, num_per_peer: usize) -> Self {
        Self { num_per_peer, all: Arc::new(Semaphore::new(num)), by_peer: Mutex::default() }
    }

    /// Waits for room, which is given back when the permits are dropped. First among the peer's own, so that what waits
    /// for a slow peer stands in nobody else's way.
    async fn enter(&self, peer: PublicKey) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let own = {
            let mut by_peer = self.by_peer.lock().unwrap_or_else(PoisonError::into_inner);
            // Only who has something on the way is remembered.
            by_peer.retain(|_, semaphore| Arc::strong_count(semaphore) > 1);
            let new = || Arc::new(Semaphore::new(self.num_per_peer));
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
                let reason = match error {
                    StoreError::NoRoom { needed, free, .. } => {
                        format!("{needed} bytes are missing here and {free} are free; the operator has to make room")
                    }
                    _ => "the store cannot do that now; its operator can read why".into(),
                };
                let is_full = matches!(error, StoreError::DiskFull { .. } | StoreError::NoRoom { .. });
                let status = if is_full { StatusCode::INSUFFICIENT_STORAGE } else { StatusCode::INTERNAL_SERVER_ERROR };
                Self(status, reason, error.is_retryable())
            }
        }
    }
}
