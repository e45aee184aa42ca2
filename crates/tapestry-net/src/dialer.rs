//! The dialling side.

use crate::NetError;
use crate::answer::ErrorBody;
use crate::arriving::ArrivingBlob;
use crate::blobs::MAX_BLOB_BYTES;
use crate::driver::Driver;
use crate::identity::TLS_BUFFER_BYTES;
use crate::pace::{Activity, Totals, Watched};
use crate::planes::{self, BASE_HEADER, ENCODING_HEADER};
use crate::server::MAX_DISCARDED_BYTES;
use crate::servers::{ServerAddress, Servers};
use crate::throttle::Throttle;
use bytes::{Bytes, BytesMut};
use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Body as _, Frame, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::future::Future;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tapestry_core::{Digest, PublicKey, SecretKey};
use tapestry_store::{BlobStore, StoreError};
use tokio::net::TcpStream;

/// Another attempt is made where the other machine does not answer at all for so long; what follows has the idle timeout.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A request during which nothing moves for so long is given up; one that moves never is.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The longest JSON answer that is read.
const MAX_JSON_BYTES: usize = 16 << 20;
/// The longest refusal that is read.
const MAX_REFUSAL_BYTES: usize = 64 << 10;
/// The longest reason of a refusal that is kept.
const MAX_REASON_CHARS: usize = 1000;
/// Idle connections kept for the next request.
const MAX_KEPT: usize = 8;

/// Talks to the one server that has an expected key. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
    idle_timeout: Duration,
}

struct Shared {
    servers: Arc<Servers>,
    kept: Mutex<Vec<Connection>>,
    totals: Arc<Totals>,
    throttle: Option<Throttle>,
}

type OutBody = UnsyncBoxBody<Bytes, StoreError>;

struct Connection {
    sender: SendRequest<OutBody>,
    /// What moves its bytes. It ends with the connection, so that nothing goes on that nobody waits for.
    _driver: Driver,
    /// Which of the servers it leads to.
    server: usize,
    address: Arc<ServerAddress>,
    activity: Arc<Activity>,
}

/// What is asked for. Every request of this protocol may be repeated.
struct Question<'a> {
    method: Method,
    path: &'a str,
    body: Content<'a>,
    content_type: Option<&'static str>,
    /// How the body is encoded, if it is, and with which base.
    encoded_with: Option<Option<Digest>>,
}

/// What is sent with a question.
enum Content<'a> {
    Bytes(Bytes),
    /// A blob, read while it is sent.
    Blob(&'a BlobStore, Digest),
}

impl Content<'_> {
    async fn body(&self) -> Result<(OutBody, u64), StoreError> {
        match self {
            Self::Bytes(bytes) => {
                let size = bytes.len() as u64;
                Ok((Full::new(bytes.clone()).map_err(|never| match never {}).boxed_unsync(), size))
            }
            Self::Blob(store, digest) => {
                let departure = store.departure(*digest).await?;
                let size = departure.size_bytes();
                let pieces = stream::unfold(departure, async |mut departure| {
                    let piece = departure.next().await.transpose()?;
                    Some((piece.map(Frame::data), departure))
                });
                Ok((StreamBody::new(pieces).boxed_unsync(), size))
            }
        }
    }
}

/// What becomes of an answer that says yes.
enum Taker<'a> {
    /// It is read as a whole, up to so many bytes.
    Whole(usize),
    /// It is the rest of a blob.
    Blob(&'a mut ArrivingBlob),
    /// It is a blob, which may be encoded.
    MayBeEncoded(&'a mut bool),
}

impl fmt::Debug for Dialer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dialer").field("address", &self.address()).finish_non_exhaustive()
    }
}

impl Dialer {
    /// For the server at `address` (`HOST:PORT`) that has the key `expected`. Nothing is connected yet.
    ///
    /// # Errors
    /// [`NetError::Address`], [`NetError::Tls`].
    pub fn new(address: &str, expected: PublicKey, key: &SecretKey) -> Result<Self, NetError> {
        let shared = Shared {
            servers: Arc::new(Servers::new(address, expected, key)?),
            kept: Mutex::default(),
            totals: Arc::default(),
            throttle: None,
        };
        Ok(Self { shared: Arc::new(shared), idle_timeout: IDLE_TIMEOUT })
    }

    /// The same, with another time after which a request is given up when nothing moves (90 s where nothing is said): for a
    /// long poll, longer than the server waits.
    #[must_use]
    pub fn with_idle_timeout(&self, idle_timeout: Duration) -> Self {
        Self { shared: Arc::clone(&self.shared), idle_timeout }
    }

    /// The same server, on connections of their own that send at most so many bytes a second, and receive at most as many, at least
    /// [`MIN_BYTES_PER_SECOND`](crate::MIN_BYTES_PER_SECOND). Requests beside a transfer wait behind it, so ask small questions on
    /// another dialler.
    #[must_use]
    pub fn with_max_bytes_per_second(&self, max_bytes_per_second: u64) -> Self {
        let shared = Shared {
            servers: Arc::clone(&self.shared.servers),
            kept: Mutex::default(),
            totals: Arc::clone(&self.shared.totals),
            throttle: Some(Throttle::new(max_bytes_per_second)),
        };
        Self { shared: Arc::new(shared), idle_timeout: self.idle_timeout }
    }

    /// Another server that stands for the same role, and the key that it must prove: it is asked when the one before cannot be
    /// reached, and the other way round. Clones learn of it too.
    ///
    /// # Errors
    /// [`NetError::Address`], [`NetError::Tls`].
    pub fn add_server(&self, address: &str, expected: PublicKey) -> Result<(), NetError> {
        self.shared.servers.add(address, expected)
    }

    /// How many servers it knows.
    #[must_use]
    pub fn num_servers(&self) -> usize {
        self.shared.servers.num()
    }

    /// Asks the server with this key from now on, if it is known.
    pub fn prefer(&self, key: PublicKey) {
        self.shared.servers.prefer(key);
    }

    /// Asks the next of the servers from now on, if there are several.
    pub fn try_next(&self) {
        self.shared.servers.leave(self.shared.servers.current().0);
    }

    /// The address that is asked now.
    #[must_use]
    pub fn address(&self) -> String {
        self.shared.servers.current().1.address.clone()
    }

    /// Bytes sent and received so far, over all clones: on the wire, TLS and HTTP included.
    #[must_use]
    pub fn bytes_moved(&self) -> (u64, u64) {
        let totals = &self.shared.totals;
        (totals.sent.load(Ordering::Relaxed), totals.received.load(Ordering::Relaxed))
    }

    /// GET, answered with JSON of at most 16 MiB.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, NetError> {
        let question = Question {
            method: Method::GET,
            path,
            body: Content::Bytes(Bytes::new()),
            content_type: None,
            encoded_with: None,
        };
        self.parse(&self.ask(question, MAX_JSON_BYTES).await?)
    }

    /// POST of JSON, answered with JSON of at most 16 MiB.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn post_json<T: Serialize + Sync + ?Sized, R: DeserializeOwned>(
        &self,
        path: &str,
        value: &T,
    ) -> Result<R, NetError> {
        let body: Bytes = serde_json::to_vec(value).map_err(|error| self.unreadable(error))?.into();
        let body = Content::Bytes(body);
        let question =
            Question { method: Method::POST, path, body, content_type: Some("application/json"), encoded_with: None };
        self.parse(&self.ask(question, MAX_JSON_BYTES).await?)
    }

    /// GET, answered with at most `limit` bytes.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn get_bytes(&self, path: &str, limit: usize) -> Result<Bytes, NetError> {
        self.ask(
            Question {
                method: Method::GET,
                path,
                body: Content::Bytes(Bytes::new()),
                content_type: None,
                encoded_with: None,
            },
            limit,
        )
        .await
    }

    /// PUT of bytes.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn put_bytes(&self, path: &str, content: Bytes) -> Result<(), NetError> {
        let content_type = Some("application/octet-stream");
        let question =
            Question { method: Method::PUT, path, body: Content::Bytes(content), content_type, encoded_with: None };
        self.ask(question, MAX_REFUSAL_BYTES).await.map(|_| ())
    }

    /// PUT of a blob of `store`, which is not checked: the other side does that. Says how long it is, and what was answered.
    ///
    /// # Errors
    /// Where the blob cannot be opened.
    pub(crate) async fn put_blob(
        &self,
        path: &str,
        store: &BlobStore,
        digest: Digest,
    ) -> Result<(u64, Result<(), NetError>), NetError> {
        let size = store.departure(digest).await?.size_bytes();
        let body = Content::Blob(store, digest);
        let question = Question {
            method: Method::PUT,
            path,
            body,
            content_type: Some("application/octet-stream"),
            encoded_with: None,
        };
        Ok((size, self.ask(question, MAX_REFUSAL_BYTES).await.map(drop)))
    }

    /// HEAD: whether there is anything at `path`.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn exists(&self, path: &str) -> Result<bool, NetError> {
        match self
            .ask(
                Question {
                    method: Method::HEAD,
                    path,
                    body: Content::Bytes(Bytes::new()),
                    content_type: None,
                    encoded_with: None,
                },
                0,
            )
            .await
        {
            Ok(_) => Ok(true),
            Err(NetError::Refused { status: 404, .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// PUT of an encoded blob.
    pub(crate) async fn put_encoded(&self, path: &str, encoded: Bytes, base: Option<Digest>) -> Result<(), NetError> {
        let content_type = Some("application/octet-stream");
        let body = Content::Bytes(encoded);
        let question = Question { method: Method::PUT, path, body, content_type, encoded_with: Some(base) };
        self.ask(question, MAX_REFUSAL_BYTES).await.map(drop)
    }

    /// GET of a blob that may come encoded; says whether it did.
    pub(crate) async fn get_maybe_encoded(&self, path: &str) -> Result<(Bytes, bool), NetError> {
        let body = Content::Bytes(Bytes::new());
        let question = Question { method: Method::GET, path, body, content_type: None, encoded_with: None };
        let mut is_encoded = false;
        let content = self.ask_for(question, Taker::MayBeEncoded(&mut is_encoded)).await?;
        Ok((content, is_encoded))
    }

    /// GET of what is left of a blob: all of it if nothing has come yet, and otherwise from where it broke off.
    pub(crate) async fn get_blob(&self, path: &str, blob: &mut ArrivingBlob) -> Result<(), NetError> {
        let question = Question {
            method: Method::GET,
            path,
            body: Content::Bytes(Bytes::new()),
            content_type: None,
            encoded_with: None,
        };
        self.ask_for(question, Taker::Blob(blob)).await.map(drop)
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, NetError> {
        serde_json::from_slice(body).map_err(|error| self.unreadable(error))
    }

    async fn ask(&self, question: Question<'_>, limit: usize) -> Result<Bytes, NetError> {
        self.ask_for(question, Taker::Whole(limit)).await
    }

    async fn ask_for(&self, question: Question<'_>, mut taker: Taker<'_>) -> Result<Bytes, NetError> {
        let kept = self.take_kept();
        // A kept connection may have been closed by the other side in the meantime: then, once more on a new one.
        if let Some(connection) = kept {
            match self.ask_on(connection, &question, &mut taker).await {
                Err(NetError::Unreachable { .. }) => {}
                answered => return answered,
            }
        }
        self.ask_on(self.connect().await?, &question, &mut taker).await
    }

    fn take_kept(&self) -> Option<Connection> {
        let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.shared.servers.current().0;
        kept.retain(|connection| !connection.sender.is_closed() && connection.server == current);
        kept.pop()
    }

    /// One request on one connection, which is kept when it was answered in full and dropped otherwise.
    async fn ask_on(
        &self,
        mut connection: Connection,
        question: &Question<'_>,
        taker: &mut Taker<'_>,
    ) -> Result<Bytes, NetError> {
        let mut request = Request::builder()
            .method(&question.method)
            .uri(question.path)
            .header(header::HOST, &connection.address.address);
        if let Some(content_type) = question.content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        if let Some(base) = question.encoded_with {
            request = request.header(ENCODING_HEADER, planes::NAME);
            if let Some(base) = base {
                request = request.header(BASE_HEADER, base.to_string());
            }
        }
        if let Taker::Blob(blob) = taker
            && blob.size_bytes() > 0
        {
            request = request.header(header::RANGE, format!("bytes={}-", blob.size_bytes()));
        }
        let (body, size) = question.body.body().await?;
        if size > MAX_DISCARDED_BYTES {
            let address = self.address();
            return Err(NetError::QuestionTooLarge { address, path: question.path.to_owned(), found: size });
        }
        // What is read while it is sent does not know itself how long it is.
        if size > 0 {
            request = request.header(header::CONTENT_LENGTH, size);
        }
        let request = request
            .body(body)
            .map_err(|error| NetError::Address { address: format!("{}{}: {error}", self.address(), question.path) })?;
        let activity = Arc::clone(&connection.activity);
        let asking = async {
            connection.sender.ready().await.map_err(|error| self.failed(&error))?;
            let answer = connection.sender.send_request(request).await.map_err(|error| self.failed(&error))?;
            let status = answer.status();
            let content = match taker {
                _ if !status.is_success() => self.read(answer, MAX_REFUSAL_BYTES).await?,
                Taker::Whole(limit) => self.read(answer, *limit).await?,
                Taker::MayBeEncoded(is_encoded) => {
                    let encoding = answer.headers().get(ENCODING_HEADER);
                    **is_encoded = encoding.is_some_and(|name| name == planes::NAME);
                    self.read(answer, MAX_BLOB_BYTES).await?
                }
                Taker::Blob(blob) => self.read_blob(answer, blob, &activity).await?,
            };
            Ok((status, content))
        };
        let (status, content) = self.while_moving(&activity, asking).await?;
        // Who was refused before it had sent all is done with that connection.
        if status.is_success() || connection.sender.is_ready() {
            let mut kept = self.shared.kept.lock().unwrap_or_else(PoisonError::into_inner);
            if kept.len() < MAX_KEPT {
                kept.push(connection);
            }
        }
        if status.is_success() { Ok(content) } else { Err(self.refusal(status, &content)) }
    }

    /// Gives up when nothing has moved on the connection for the idle timeout, however long it takes otherwise.
    async fn while_moving<T>(
        &self,
        activity: &Activity,
        work: impl Future<Output = Result<T, NetError>>,
    ) -> Result<T, NetError> {
        activity.touch();
        tokio::pin!(work);
        loop {
            let left = self.idle_timeout.saturating_sub(activity.stillness());
            if left.is_zero() {
                return Err(NetError::Idle { address: self.address(), seconds: self.idle_timeout.as_secs() });
            }
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::time::sleep(left) => {}
            }
        }
    }

    async fn read(&self, answer: Response<Incoming>, limit: usize) -> Result<Bytes, NetError> {
        let too_large = || NetError::TooLarge { address: self.address(), limit };
        let mut body = answer.into_body();
        let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
        if announced > limit {
            return Err(too_large());
        }
        let mut content = BytesMut::with_capacity(announced);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.failed(&error))?;
            let Some(data) = frame.data_ref() else { continue };
            if data.len() > limit - content.len() {
                return Err(too_large());
            }
            content.extend_from_slice(data);
        }
        Ok(content.freeze())
    }

    async fn read_blob(
        &self,
        answer: Response<Incoming>,
        blob: &mut ArrivingBlob,
        activity: &Activity,
    ) -> Result<Bytes, NetError> {
        if answer.status() == StatusCode::PARTIAL_CONTENT {
            let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let expected = format!("bytes {}-", blob.size_bytes());
            if !range.is_some_and(|range| range.starts_with(&expected)) {
                return Err(self.unreadable(format!("{expected} was asked for, {range:?} came")));
            }
        } else {
            blob.restart();
        }
        let mut body = answer.into_body();
        if body.size_hint().lower() > (MAX_BLOB_BYTES as u64).saturating_sub(blob.size_bytes()) {
            return Err(NetError::TooLarge { address: self.address(), limit: MAX_BLOB_BYTES });
        }
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.failed(&error))?;
            if let Some(data) = frame.data_ref() {
                blob.take(data).await?;
                // What this side's disk takes is not the other side's standing still.
                activity.touch();
            }
        }
        Ok(Bytes::new())
    }

    async fn connect(&self) -> Result<Connection, NetError> {
        let (number, server) = self.shared.servers.current();
        let activity = Activity::new(Arc::clone(&self.shared.totals));
        let connecting = async {
            let late = |_| self.unreachable(format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()));
            let stream = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&server.address)).await;
            let stream = stream.map_err(late)?.map_err(|error| self.unreachable(error))?;
            let _ = stream.set_nodelay(true);
            let stream = Watched::new(stream, Arc::clone(&activity), None, self.shared.throttle.clone());
            // The name is not used: the key is the identity.
            let name = ServerName::try_from("tapestry.invalid").map_err(|error| self.unreachable(error))?;
            let mut stream = server.connector.connect(name, stream).await.map_err(|error| self.tls_failed(&error))?;
            stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
            let (sender, connection) =
                http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.failed(&error))?;
            let driving = tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection ended");
                }
            });
            Ok::<_, NetError>((sender, Driver::of(&driving)))
        };
        match self.while_moving(&activity, connecting).await {
            Ok((sender, driver)) => {
                Ok(Connection { sender, _driver: driver, server: number, address: server, activity })
            }
            Err(error) => {
                self.shared.servers.leave(number);
                Err(error)
            }
        }
    }

    fn unreadable(&self, reason: impl ToString) -> NetError {
        NetError::Unreadable { address: self.address(), reason: reason.to_string() }
    }

    fn unreachable(&self, reason: impl ToString) -> NetError {
        NetError::Unreachable { address: self.address(), reason: reason.to_string() }
    }

    fn refusal(&self, status: StatusCode, content: &[u8]) -> NetError {
        if status == StatusCode::UNAUTHORIZED {
            return NetError::NotAllowed { address: self.address() };
        }
        let ErrorBody { error, retry } = serde_json::from_slice(content).unwrap_or_else(|_| {
            let error = String::from_utf8_lossy(content).into_owned();
            ErrorBody { error, retry: status.is_server_error() }
        });
        // It goes to terminals and logs, so it must not be able to do anything there.
        let plain = error.chars().map(|c| if c.is_control() { ' ' } else { c });
        NetError::Refused { status: status.as_u16(), error: plain.take(MAX_REASON_CHARS).collect(), retry }
    }

    /// With TLS 1.3 a server's refusal of our key arrives after the handshake, with the first read.
    fn failed(&self, error: &hyper::Error) -> NetError {
        let mut source: Option<&dyn std::error::Error> = std::error::Error::source(error);
        while let Some(inner) = source {
            if let Some(io) = inner.downcast_ref::<std::io::Error>() {
                return self.tls_failed(io);
            }
            source = inner.source();
        }
        self.unreachable(error)
    }

    fn tls_failed(&self, error: &std::io::Error) -> NetError {
        use rustls::AlertDescription as Alert;
        use rustls::Error as Tls;
        let address = self.address();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>()) {
            Some(Tls::InvalidCertificate(_)) => {
                NetError::WrongServerKey { address, expected: self.shared.servers.current().1.expected }
            }
            Some(Tls::AlertReceived(
                Alert::AccessDenied
                | Alert::BadCertificate
                | Alert::CertificateUnknown
                | Alert::CertificateRequired
                | Alert::UnknownCA,
            )) => NetError::NotAllowed { address },
            Some(
                reason @ (Tls::InvalidMessage(_)
                | Tls::PeerIncompatible(_)
                | Tls::PeerMisbehaved(_)
                | Tls::InappropriateMessage { .. }
                | Tls::InappropriateHandshakeMessage { .. }
                | Tls::NoApplicationProtocol
                | Tls::AlertReceived(
                    Alert::HandshakeFailure
                    | Alert::ProtocolVersion
                    | Alert::UnsupportedCertificate
                    | Alert::UnsupportedExtension
                    | Alert::MissingExtension
                    | Alert::IllegalParameter
                    | Alert::DecodeError
                    | Alert::UnrecognisedName
                    | Alert::NoApplicationProtocol,
                )),
            ) => NetError::WrongProtocol { address, reason: reason.to_string() },
            _ => self.unreachable(error),
        }
    }
}
