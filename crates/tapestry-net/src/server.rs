//! The listening side.
//!
//! # Threat model
//! Strangers reach the handshake and nothing behind it. They compete for handshakes only among themselves: those under way
//! are bounded in number, by network and in time, and a connection that has proved its key no longer counts among them.
//! Members are known, but may be broken or malicious: connections by key, the time of a head, the pace of a body and of
//! reading an answer, and the size of bodies are bounded.
//!
//! Not covered: somebody who fills the network itself, or has many networks at hand, can keep others from connecting.

use crate::answer::{explained, reason_of, refusal};
use crate::crowd::{Crowd, Place, network_of};
use crate::identity::{TLS_BUFFER_BYTES, server_config, shown_key};
use crate::pace::{Activity, Pace, PacedBody, Totals, Unread, Watched, discard};
use crate::rules::{self, MINUTE, Refusals, Rule};
use crate::throttle::Throttle;
use crate::traffic::Traffic;
use crate::{NetError, Peer};
use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tapestry_core::{PublicKey, SecretKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tower_service::Service as _;

/// Whether a key may connect; asked at each handshake and at each request.
pub type Allow = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// The longest JSON body of a request, where a route sets no other bound.
const MAX_JSON_BYTES: usize = 1 << 20;
/// The longest head of a request.
const MAX_HEAD_BYTES: usize = 64 << 10;
/// So much of a refused body is read, so that the refusal arrives; no dialer sends more.
pub(crate) const MAX_DISCARDED_BYTES: u64 = 16 << 20;

/// What strangers and members may take of a server.
#[derive(Debug, Clone)]
pub struct ServerLimits {
    /// Whoever has not proved its key by then is disconnected.
    pub handshake_timeout: Duration,
    /// Handshakes under way; more wait in the system's queue.
    pub num_handshakes: usize,
    /// Handshakes under way from one IPv4 address or one IPv6 /64; more are disconnected.
    pub num_handshakes_per_network: usize,
    /// Connections at once that have proved their keys; more are told to come back.
    pub num_connections: usize,
    /// Those with one key: what a member's parallel transfer, long poll and status need, with room.
    pub num_connections_per_key: usize,
    /// The longest time to the end of the next request's head, the idle time before it included.
    pub head_timeout: Duration,
    /// The longest time in which nothing of a body comes, or nothing of an answer is taken.
    pub idle_timeout: Duration,
    /// The least mean rate of a body, and of the taking of an answer. So low that no link is slower, and only who wants to keep a
    /// connection busy is: a transfer that makes progress does not fail.
    pub min_bytes_per_second: u64,
    /// So much is sent, and so much received, at most, over all connections; at least
    /// [`MIN_BYTES_PER_SECOND`](crate::MIN_BYTES_PER_SECOND).
    pub max_bytes_per_second: Option<u64>,
    /// What requests under way have to end after the shutdown began; then they are cut off.
    pub shutdown_grace: Duration,
}

impl Default for ServerLimits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            num_handshakes: 256,
            num_handshakes_per_network: 64,
            num_connections: 1024,
            num_connections_per_key: 32,
            head_timeout: Duration::from_secs(120),
            idle_timeout: Duration::from_secs(90),
            min_bytes_per_second: 64,
            max_bytes_per_second: None,
            shutdown_grace: Duration::from_secs(1),
        }
    }
}

/// A server that is bound to its address and not yet serving.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    allow: Allow,
    router: Router,
    limits: ServerLimits,
    traffic: Arc<Traffic>,
    refusals: Arc<Refusals>,
}

impl Server {
    /// Listens on `address` (port 0: any free one), proving `key`, for those whose keys `allow` accepts. Each request that
    /// reaches `router` carries the [`Peer`] that sent it. JSON bodies have at most 1 MiB where a route says nothing else.
    ///
    /// # Errors
    /// [`NetError::Listen`] where the port is in use; [`NetError::Tls`].
    pub async fn bind(address: SocketAddr, key: &SecretKey, allow: Allow, router: Router) -> Result<Self, NetError> {
        let listen = |source| NetError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let bound = listener.local_addr().map_err(listen)?;
        let acceptor = TlsAcceptor::from(Arc::new(server_config(key, Arc::clone(&allow))?));
        let router = router.layer(DefaultBodyLimit::max(MAX_JSON_BYTES));
        Ok(Self {
            listener,
            address: bound,
            acceptor,
            allow,
            router,
            limits: ServerLimits::default(),
            traffic: Arc::default(),
            refusals: Arc::default(),
        })
    }

    /// With other than the default limits.
    #[must_use]
    pub fn with_limits(mut self, limits: ServerLimits) -> Self {
        self.limits = limits;
        self
    }

    /// What moves with whom, from now on.
    #[must_use]
    pub fn traffic(&self) -> Arc<Traffic> {
        Arc::clone(&self.traffic)
    }

    /// What is refused, from now on.
    #[must_use]
    pub fn refusals(&self) -> Arc<Refusals> {
        Arc::clone(&self.refusals)
    }

    /// The address that it listens on.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`; requests under way get [`ServerLimits::shutdown_grace`] to end.
    ///
    /// # Errors
    /// None at present: what fails on one connection ends that connection.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), NetError> {
        let (stop, stopped) = watch::channel(false);
        let limits = self.limits;
        let shared = Arc::new(Shared {
            acceptor: self.acceptor,
            allow: self.allow,
            router: self.router,
            connections: Arc::new(Semaphore::new(limits.num_connections)),
            by_key: Crowd::new(limits.num_connections_per_key),
            pace: Pace { idle: limits.idle_timeout, min_bytes_per_second: limits.min_bytes_per_second },
            stopped,
            throttle: limits.max_bytes_per_second.map(Throttle::new),
            traffic: self.traffic,
            refusals: self.refusals,
            limits,
        });
        let handshakes = Arc::new(Semaphore::new(shared.limits.num_handshakes));
        let by_network = Crowd::new(shared.limits.num_handshakes_per_network);
        let mut running = JoinSet::new();
        let listener = self.listener;
        let accepting = async {
            // The semaphore is never closed.
            while let Ok(permit) = Arc::clone(&handshakes).acquire_owned().await {
                while running.try_join_next().is_some() {}
                match listener.accept().await {
                    Ok((stream, from)) => {
                        let Some(place) = by_network.enter(network_of(from.ip())) else {
                            let what = "one handshake more than its network may have under way";
                            shared.refusals.note(Rule::HandshakesOfNetwork, from, None, what);
                            continue;
                        };
                        let shared = Arc::clone(&shared);
                        running.spawn(async move { shared.run(stream, from, (permit, place)).await });
                    }
                    Err(error) => {
                        // Out of file descriptors, or the like: it passes.
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                }
            }
        };
        let telling = async {
            loop {
                tokio::time::sleep(MINUTE).await;
                shared.refusals.end_minute();
            }
        };
        tokio::select! {
            () = shutdown => {}
            () = accepting => {}
            () = telling => {}
        }
        drop(listener);
        let _ = stop.send(true);
        let ended = async { while running.join_next().await.is_some() {} };
        if tokio::time::timeout(shared.limits.shutdown_grace, ended).await.is_err() {
            running.shutdown().await;
        }
        shared.refusals.end_minute();
        Ok(())
    }
}

/// What a connection takes up until it has proved its key.
type Newcomer = (OwnedSemaphorePermit, Place<IpAddr>);
/// What it takes up from then on.
type Admission = (OwnedSemaphorePermit, Place<PublicKey>);
type Stream = TlsStream<Watched<TcpStream>>;

/// What all connections share.
struct Shared {
    acceptor: TlsAcceptor,
    allow: Allow,
    router: Router,
    connections: Arc<Semaphore>,
    by_key: Arc<Crowd<PublicKey>>,
    pace: Pace,
    stopped: watch::Receiver<bool>,
    throttle: Option<Throttle>,
    traffic: Arc<Traffic>,
    refusals: Arc<Refusals>,
    limits: ServerLimits,
}

/// One connection that has proved its key.
struct Proved<'a> {
    from: SocketAddr,
    peer: PublicKey,
    activity: &'a Arc<Activity>,
}

impl Shared {
    async fn run(self: Arc<Self>, stream: TcpStream, from: SocketAddr, newcomer: Newcomer) {
        let _ = stream.set_nodelay(true);
        let totals = Arc::new(Totals::default());
        let activity = Activity::new(Arc::clone(&totals));
        let stream = Watched::new(stream, Arc::clone(&activity), Some(self.pace), self.throttle.clone());
        let handshake = tokio::time::timeout(self.limits.handshake_timeout, self.handshake(stream, from)).await;
        let Ok(handshake) = handshake else {
            return self.refusals.note(Rule::HandshakeTime, from, None, "the handshake did not end in time");
        };
        let Some((peer, stream)) = handshake else { return };
        let ended = match self.admit(peer) {
            Ok(admission) => {
                drop(newcomer);
                self.traffic.admit(peer, &totals);
                let ended = self.serve(stream, &Proved { from, peer, activity: &activity }).await;
                drop(admission);
                ended
            }
            Err(reason) => {
                // It stays among the newcomers: saying no must not take what was refused.
                self.refusals.note(Rule::Connections, from, Some(&peer), reason);
                self.turn_away(stream, reason).await;
                return;
            }
        };
        let (sent, received) = (totals.sent.load(Ordering::Relaxed), totals.received.load(Ordering::Relaxed));
        match ended {
            Ok(()) => tracing::debug!(%from, peer = peer.short(), sent, received, "connection ended"),
            Err(error) => tracing::debug!(%from, peer = peer.short(), sent, received, %error, "connection broke"),
        }
    }

    async fn handshake(&self, stream: Watched<TcpStream>, from: SocketAddr) -> Option<(PublicKey, Stream)> {
        let mut stream = match self.acceptor.accept(stream).into_fallible().await {
            Ok(stream) => stream,
            Err((error, mut stream)) => {
                match rules::of_handshake(&error) {
                    Some(rule) => self.refusals.note(rule, from, None, &error.to_string()),
                    // Who goes away in the middle breaks no rule.
                    None => tracing::debug!(%from, %error, "no handshake"),
                }
                // Closing a socket with something unread in it resets the connection, and the other side might never
                // read the alert that says why. So what it still sends is read for a moment.
                let _ = stream.shutdown().await;
                let mut rest = stream.take(MAX_HEAD_BYTES as u64);
                let mut sink = tokio::io::sink();
                let linger = tokio::io::copy(&mut rest, &mut sink);
                let _ = tokio::time::timeout(Duration::from_secs(1), linger).await;
                return None;
            }
        };
        stream.get_mut().1.set_buffer_limit(Some(TLS_BUFFER_BYTES));
        let shown = stream.get_ref().1.peer_certificates().and_then(|list| list.first());
        match shown.map(shown_key) {
            Some(Ok(peer)) => Some((peer, stream)),
            _ => {
                self.refusals.note(Rule::KeyShown, from, None, "no key was shown");
                None
            }
        }
    }

    fn admit(&self, peer: PublicKey) -> Result<Admission, &'static str> {
        let place = self.by_key.enter(peer).ok_or("this key has too many connections open already; close some")?;
        let permit = Arc::clone(&self.connections).try_acquire_owned();
        let permit = permit.map_err(|_| "too many connections are open already; try again later")?;
        Ok((permit, place))
    }

    fn http() -> hyper::server::conn::http1::Builder {
        let mut http = hyper::server::conn::http1::Builder::new();
        http.timer(TokioTimer::new()).max_buf_size(MAX_HEAD_BYTES);
        http
    }

    /// Answers the first request with the reason, and ends.
    async fn turn_away(&self, stream: Stream, reason: &'static str) {
        let service = service_fn(move |_: Request<Incoming>| {
            std::future::ready(Ok::<_, Infallible>(refusal(StatusCode::SERVICE_UNAVAILABLE, reason, true)))
        });
        let serving = Self::http().keep_alive(false).serve_connection(TokioIo::new(stream), service);
        let _ = tokio::time::timeout(self.limits.handshake_timeout, serving).await;
    }

    async fn serve(&self, stream: Stream, proved: &Proved<'_>) -> Result<(), hyper::Error> {
        // What has come up to here belongs to requests that were answered.
        let (answered_bytes, is_answering) = (AtomicU64::new(0), AtomicBool::new(false));
        let service = service_fn(|request: Request<Incoming>| async {
            is_answering.store(true, Ordering::Relaxed);
            let answer = self.answer_in_full(request, proved).await;
            answered_bytes.store(proved.activity.received(), Ordering::Relaxed);
            is_answering.store(false, Ordering::Relaxed);
            Ok::<_, Infallible>(answer)
        });
        let mut http = Self::http();
        http.header_read_timeout(self.limits.head_timeout);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let mut stopped = self.stopped.clone();
        let ended = tokio::select! {
            served = &mut connection => Some(served),
            _ = stopped.wait_for(|stopped| *stopped) => None,
        };
        let Some(ended) = ended else {
            connection.as_mut().graceful_shutdown();
            return connection.await;
        };
        let Err(error) = &ended else { return ended };
        let since_answer = proved.activity.received() - answered_bytes.load(Ordering::Relaxed);
        // Who goes away as soon as it is told that its head is too long ends the connection before the parser's error does.
        let is_long = !is_answering.load(Ordering::Relaxed) && since_answer > MAX_HEAD_BYTES as u64;
        match rules::of_connection(error).or(is_long.then_some(Rule::HeadSize)) {
            // Who is done and keeps its connection for a while has begun no head.
            Some(Rule::HeadTime) if since_answer == 0 => {}
            Some(rule) => self.refusals.note(rule, proved.from, Some(&proved.peer), &error.to_string()),
            None => {}
        }
        ended
    }

    /// Answers; what is refused is accounted for, and what is left of its body is taken, so that the refusal arrives.
    async fn answer_in_full(&self, request: Request<Incoming>, proved: &Proved<'_>) -> Response<Body> {
        let unread = Unread::default();
        let asked = format!("{} {}", request.method(), request.uri().path());
        let activity = proved.activity;
        let request = request.map(|body| Body::new(PacedBody::new(body, self.pace, Arc::clone(activity), &unread)));
        let answer = self.answer(request, proved.peer).await;
        let status = answer.status();
        if !(status.is_client_error() || status.is_server_error()) {
            return answer;
        }
        // The routes say what is not there in a form of their own; without it, there is no such route.
        let is_no_route = status == StatusCode::NOT_FOUND && !answer.headers().contains_key(CONTENT_TYPE);
        let mut answer = explained(answer).await;
        // A mirror may not have a base yet that is asked for.
        let is_blob_asked_for = status == StatusCode::FORBIDDEN && asked.starts_with("GET /v1/blobs/");
        if let Some(rule) = broken_rule(status, is_no_route, activity).filter(|_| !is_blob_asked_for) {
            let reason;
            (reason, answer) = reason_of(answer).await;
            let what = format!("{asked:.100} was answered with {}: {reason}", status.as_u16());
            self.refusals.note(rule, proved.from, Some(&proved.peer), &what);
        }
        discard(&unread, MAX_DISCARDED_BYTES, self.pace, activity).await;
        answer
    }

    async fn answer(&self, mut request: Request<Body>, peer: PublicKey) -> Response<Body> {
        // A key may have left the charter since the handshake.
        if !(self.allow)(&peer) {
            return refusal(StatusCode::UNAUTHORIZED, "this key is no longer accepted", false);
        }
        request.extensions_mut().insert(Peer(peer));
        let Ok(answer) = self.router.clone().call(request).await;
        answer
    }
}

/// The rule that a refused request broke. What is asked too early, too late, or is not here, breaks none.
fn broken_rule(status: StatusCode, is_no_route: bool, activity: &Activity) -> Option<Rule> {
    if activity.is_body_too_slow.load(Ordering::Relaxed) {
        return Some(Rule::BodyPace);
    }
    match status {
        StatusCode::UNAUTHORIZED => Some(Rule::KeyListed),
        StatusCode::FORBIDDEN => Some(Rule::Permission),
        StatusCode::PAYLOAD_TOO_LARGE => Some(Rule::BodySize),
        StatusCode::BAD_REQUEST
        | StatusCode::METHOD_NOT_ALLOWED
        | StatusCode::UNSUPPORTED_MEDIA_TYPE
        | StatusCode::UNPROCESSABLE_ENTITY => Some(Rule::Request),
        StatusCode::NOT_FOUND if is_no_route => Some(Rule::Request),
        _ => None,
    }
}
