//! The dialling side.

use crate::identity::client_config;
use crate::{ErrorBody, NetError};
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, Response, StatusCode, body::Incoming, header};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tapestry_core::{PublicKey, SecretKey};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A connection must be made within this time.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// A transfer in which nothing moves for so long is given up; one that moves never is.
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// The longest JSON answer that is read.
const MAX_JSON_BYTES: usize = 16 << 20;
/// Idle connections kept for the next request.
const MAX_IDLE: usize = 8;
/// The pause before the first and the longest pause before a later repetition.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));

type Sender = SendRequest<Full<Bytes>>;

/// Talks to the one server that has an expected key. Cheap to clone; clones share their connections.
#[derive(Clone)]
pub struct Dialer(Arc<Inner>);

struct Inner {
    address: String,
    expected: PublicKey,
    connector: TlsConnector,
    idle: Mutex<Vec<Sender>>,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

impl Dialer {
    /// For the server at `address` (`HOST:PORT`) that has the key `expected`. Nothing is connected yet.
    ///
    /// # Errors
    /// [`NetError::Address`], [`NetError::Tls`].
    pub fn new(address: &str, expected: PublicKey, key: &SecretKey) -> Result<Self, NetError> {
        let has_port = address.rsplit_once(':').is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
        if !has_port {
            return Err(NetError::Address { address: address.to_owned() });
        }
        let connector = TlsConnector::from(Arc::new(client_config(key, expected)?));
        Ok(Self(Arc::new(Inner {
            address: address.to_owned(),
            expected,
            connector,
            idle: Mutex::default(),
            bytes_sent: AtomicU64::new(0),
            bytes_received: AtomicU64::new(0),
        })))
    }

    /// The address.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.0.address
    }

    /// Bytes of bodies sent and received so far, over all clones.
    #[must_use]
    pub fn bytes_moved(&self) -> (u64, u64) {
        (self.0.bytes_sent.load(Ordering::Relaxed), self.0.bytes_received.load(Ordering::Relaxed))
    }

    /// GET, answered with JSON.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn get_json<T: DeserializeOwned>(&self, path: &str) -> Result<T, NetError> {
        let body = self.request(Method::GET, path, Bytes::new(), None, MAX_JSON_BYTES).await?;
        self.parse(&body)
    }

    /// POST of JSON, answered with JSON.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn post_json<T: Serialize + Sync, R: DeserializeOwned>(&self, path: &str, value: &T) -> Result<R, NetError> {
        let body = serde_json::to_vec(value).map_err(|error| self.unreadable(&error))?;
        let answer = self.request(Method::POST, path, body.into(), Some("application/json"), MAX_JSON_BYTES).await?;
        self.parse(&answer)
    }

    /// GET, answered with at most `limit` bytes.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn get_bytes(&self, path: &str, limit: usize) -> Result<Bytes, NetError> {
        self.request(Method::GET, path, Bytes::new(), None, limit).await
    }

    /// PUT of bytes.
    ///
    /// # Errors
    /// [`NetError`].
    pub async fn put_bytes(&self, path: &str, content: Bytes) -> Result<(), NetError> {
        self.request(Method::PUT, path, content, Some("application/octet-stream"), MAX_JSON_BYTES).await.map(|_| ())
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, NetError> {
        serde_json::from_slice(body).map_err(|error| self.unreadable(&error))
    }

    fn unreadable(&self, error: &serde_json::Error) -> NetError {
        NetError::Unreadable { address: self.0.address.clone(), reason: error.to_string() }
    }

    fn unreachable(&self, reason: impl ToString) -> NetError {
        NetError::Unreachable { address: self.0.address.clone(), reason: reason.to_string() }
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        content_type: Option<&str>,
        limit: usize,
    ) -> Result<Bytes, NetError> {
        let size = body.len() as u64;
        // A kept connection may have been closed by the other side in the meantime: then, once more on a new one. Every
        // request of this protocol may be repeated.
        let kept = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut sent = None;
        if let Some(mut sender) = kept.filter(|sender| !sender.is_closed()) {
            let request = self.build(&method, path, &body, content_type)?;
            if let Ok(answer) = self.answer_of(&mut sender, request).await {
                sent = Some((sender, answer));
            }
        }
        let (sender, answer) = match sent {
            Some(sent) => sent,
            None => {
                let mut sender = self.connect().await?;
                let request = self.build(&method, path, &body, content_type)?;
                let answer = self.answer_of(&mut sender, request).await?;
                (sender, answer)
            }
        };
        self.0.bytes_sent.fetch_add(size, Ordering::Relaxed);
        let status = answer.status();
        let limit = if status.is_success() { limit } else { MAX_JSON_BYTES };
        let content = self.read(answer, limit).await?;
        self.0.bytes_received.fetch_add(content.len() as u64, Ordering::Relaxed);
        let mut idle = self.0.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < MAX_IDLE {
            idle.push(sender);
        }
        drop(idle);
        if status.is_success() {
            return Ok(content);
        }
        Err(self.refusal(status, &content))
    }

    fn refusal(&self, status: StatusCode, content: &[u8]) -> NetError {
        if status == StatusCode::UNAUTHORIZED {
            return NetError::NotAllowed { address: self.0.address.clone() };
        }
        let ErrorBody { error, retry } = serde_json::from_slice(content).unwrap_or_else(|_| {
            let text = String::from_utf8_lossy(content);
            ErrorBody { error: text.chars().take(300).collect(), retry: status.is_server_error() }
        });
        NetError::Refused { status: status.as_u16(), error, retry }
    }

    fn build(
        &self,
        method: &Method,
        path: &str,
        body: &Bytes,
        content_type: Option<&str>,
    ) -> Result<Request<Full<Bytes>>, NetError> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, &self.0.address);
        if let Some(content_type) = content_type {
            request = request.header(header::CONTENT_TYPE, content_type);
        }
        request.body(Full::new(body.clone())).map_err(|error| self.unreachable(error))
    }

    /// Waits for the head of the answer. A long poll says in its query how long it waits; that is below the idle timeout.
    async fn answer_of(
        &self,
        sender: &mut Sender,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, NetError> {
        let answer = async {
            sender.ready().await?;
            sender.send_request(request).await
        };
        let answered = tokio::time::timeout(IDLE_TIMEOUT, answer).await;
        answered.map_err(|_| self.idle())?.map_err(|error| self.failed(&error))
    }

    fn idle(&self) -> NetError {
        NetError::Idle { address: self.0.address.clone(), seconds: IDLE_TIMEOUT.as_secs() }
    }

    async fn read(&self, answer: Response<Incoming>, limit: usize) -> Result<Bytes, NetError> {
        let mut body = answer.into_body();
        let mut content = BytesMut::new();
        loop {
            let frame = tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await.map_err(|_| self.idle())?;
            let Some(frame) = frame else { return Ok(content.freeze()) };
            let frame = frame.map_err(|error| self.failed(&error))?;
            if let Some(data) = frame.data_ref() {
                if content.len() + data.len() > limit {
                    return Err(NetError::TooLong { address: self.0.address.clone(), limit });
                }
                content.extend_from_slice(data);
            }
        }
    }

    async fn connect(&self) -> Result<Sender, NetError> {
        let connecting = async {
            let stream = TcpStream::connect(&self.0.address).await.map_err(|error| self.unreachable(error))?;
            let _ = stream.set_nodelay(true);
            // The name is not used: the key is the identity.
            let name = ServerName::try_from("tapestry.invalid").map_err(|error| self.unreachable(error))?;
            let stream = self.0.connector.connect(name, stream).await.map_err(|error| self.tls_failed(&error))?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.failed(&error))?;
            tokio::spawn(async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "connection ended");
                }
            });
            Ok(sender)
        };
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, connecting).await;
        connected.map_err(|_| self.unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs())))?
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
        let address = self.0.address.clone();
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(rustls::Error::InvalidCertificate(_)) => NetError::WrongKey { address, expected: self.0.expected },
            Some(rustls::Error::AlertReceived(
                rustls::AlertDescription::AccessDenied
                | rustls::AlertDescription::BadCertificate
                | rustls::AlertDescription::CertificateUnknown
                | rustls::AlertDescription::CertificateRequired
                | rustls::AlertDescription::UnknownCA,
            )) => NetError::NotAllowed { address },
            _ => self.unreachable(error),
        }
    }
}

/// Repeats a request until it succeeds or fails for good, with growing, jittered pauses. `on_failure` hears of each.
///
/// # Errors
/// The first error that is not transient.
pub async fn retry_forever<T, F: Future<Output = Result<T, NetError>>>(
    mut request: impl FnMut() -> F,
    mut on_failure: impl FnMut(&NetError, Duration),
) -> Result<T, NetError> {
    let (mut pause, longest) = BACKOFF;
    loop {
        match request().await {
            Err(error) if error.is_transient() => {
                // Not all nodes at once after a coordinator's restart: between half and the whole of the pause.
                let mut random = [0; 2];
                let share = getrandom::fill(&mut random).map_or(1.0, |()| f64::from(u16::from_le_bytes(random)) / 65535.0);
                let jittered = pause.mul_f64(0.5 + 0.5 * share);
                on_failure(&error, jittered);
                tokio::time::sleep(jittered).await;
                pause = (pause * 2).min(longest);
            }
            other => return other,
        }
    }
}
