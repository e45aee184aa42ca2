//! The listening side.

use crate::identity::{server_config, shown_key};
use crate::{NetError, Peer};
use axum::Router;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::BTreeMap;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tapestry_core::{PublicKey, SecretKey};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_rustls::TlsAcceptor;
use tower_service::Service as _;

/// Whether a key may connect; asked at each handshake.
pub type Allow = Arc<dyn Fn(&PublicKey) -> bool + Send + Sync>;

/// Whoever has not proved its key by then is disconnected.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Whoever has not sent the head of a request by then is disconnected.
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
/// Connections at once, those in their handshake included.
const MAX_CONNECTIONS: usize = 1024;
/// Connections at once with one key: what a member's parallel transfer, long poll and status need, with room.
const MAX_CONNECTIONS_PER_KEY: usize = 32;

/// A server that is bound to its address and not yet serving.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    allow: Allow,
    router: Router,
}

impl Server {
    /// Listens on `address` (port 0: any free one), proving `key`.
    ///
    /// # Errors
    /// [`NetError::Listen`] where the port is in use; [`NetError::Tls`].
    pub async fn bind(address: SocketAddr, key: &SecretKey, allow: Allow, router: Router) -> Result<Self, NetError> {
        let listen = |source| NetError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(listen)?;
        let bound = listener.local_addr().map_err(listen)?;
        let acceptor = TlsAcceptor::from(Arc::new(server_config(key, Arc::clone(&allow))?));
        Ok(Self { listener, address: bound, acceptor, allow, router })
    }

    /// The address that it listens on.
    #[must_use]
    pub const fn local_addr(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`; requests under way get a moment to end.
    ///
    /// # Errors
    /// None at present: what fails on one connection ends that connection.
    pub async fn serve(self, shutdown: impl Future<Output = ()> + Send) -> Result<(), NetError> {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let per_key: PerKey = Arc::default();
        let (stop, stopped) = watch::channel(false);
        tokio::pin!(shutdown);
        loop {
            let permit = tokio::select! {
                () = &mut shutdown => break,
                permit = Arc::clone(&slots).acquire_owned() => permit,
            };
            let Ok(permit) = permit else { break };
            let accepted = tokio::select! {
                () = &mut shutdown => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok((stream, from)) => {
                    let connection = Connection {
                        acceptor: self.acceptor.clone(),
                        allow: Arc::clone(&self.allow),
                        router: self.router.clone(),
                        per_key: Arc::clone(&per_key),
                        stopped: stopped.clone(),
                    };
                    tokio::spawn(async move {
                        if let Err(reason) = connection.run(stream, permit).await {
                            tracing::debug!(%from, reason, "connection ended");
                        }
                    });
                }
                Err(error) => {
                    // Out of file descriptors, or the like: it passes.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        }
        let _ = stop.send(true);
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(Duration::from_secs(1), slots.acquire_many(all)).await;
        Ok(())
    }
}

type PerKey = Arc<Mutex<BTreeMap<PublicKey, usize>>>;

/// One of the connections that a key may have; given back when dropped.
struct KeySlot(PerKey, PublicKey);

impl KeySlot {
    fn take(per_key: &PerKey, key: PublicKey) -> Option<Self> {
        let mut counts = per_key.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(key).or_default();
        if *count >= MAX_CONNECTIONS_PER_KEY {
            return None;
        }
        *count += 1;
        Some(Self(Arc::clone(per_key), key))
    }
}

impl Drop for KeySlot {
    fn drop(&mut self) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

struct Connection {
    acceptor: TlsAcceptor,
    allow: Allow,
    router: Router,
    per_key: PerKey,
    stopped: watch::Receiver<bool>,
}

impl Connection {
    async fn run(mut self, stream: TcpStream, _permit: OwnedSemaphorePermit) -> Result<(), String> {
        let _ = stream.set_nodelay(true);
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, self.acceptor.accept(stream)).await;
        let stream = handshake.map_err(|_| "the handshake took too long")?.map_err(|e| format!("handshake: {e}"))?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|list| list.first());
        let peer = shown.ok_or("no key")?;
        let peer = shown_key(peer).map_err(|e| e.to_string())?;
        let _slot = KeySlot::take(&self.per_key, peer).ok_or_else(|| format!("too many connections of {peer}"))?;
        let (router, allow) = (self.router, self.allow);
        let service = service_fn(move |mut request: hyper::Request<Incoming>| {
            let mut router = router.clone();
            // A key may have left the charter since the handshake.
            let is_allowed = allow(&peer);
            async move {
                if !is_allowed {
                    let body = axum::body::Body::from(r#"{"error":"this key is no longer accepted","retry":false}"#);
                    let mut answer = hyper::Response::new(body);
                    *answer.status_mut() = hyper::StatusCode::UNAUTHORIZED;
                    return Ok(answer);
                }
                request.extensions_mut().insert(Peer(peer));
                router.call(request.map(axum::body::Body::new)).await
            }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(64 << 10)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            served = &mut connection => return served.map_err(|e| e.to_string()),
            _ = self.stopped.wait_for(|stopped| *stopped) => connection.as_mut().graceful_shutdown(),
        }
        connection.await.map_err(|e| e.to_string())
    }
}
