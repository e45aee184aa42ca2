//! A server on loopback, and a link to it that can be cut.

use crate::raw::Shown;
use axum::Router;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tapestry_core::{PublicKey, SecretKey};
use tapestry_net::{Allow, Dialer, NetError, Refusals, Rule, Server, ServerLimits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

pub(crate) const SERVER: u8 = 1;
pub(crate) const MEMBER: u8 = 2;
pub(crate) const OTHER_MEMBER: u8 = 3;
pub(crate) const STRANGER: u8 = 9;
pub(crate) const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

pub(crate) fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&Zeroizing::new([n; 32]))
}

impl Shown {
    /// A party's own key.
    pub(crate) fn honest(n: u8) -> Self {
        Self::own(key(n))
    }
}

pub(crate) fn members_only() -> Allow {
    let members = [key(MEMBER).public(), key(OTHER_MEMBER).public()];
    Arc::new(move |key: &PublicKey| members.contains(key))
}

/// A running server.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    refusals: Arc<Refusals>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), NetError>>,
}

impl Running {
    pub(crate) async fn at(address: SocketAddr, allow: Allow, router: Router, limits: ServerLimits) -> Self {
        let server = Server::bind(address, &key(SERVER), allow, router).await.unwrap().with_limits(limits);
        let (address, refusals) = (server.local_addr(), server.refusals());
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(async move {
            let _ = stopped.await;
        }));
        Self { address, refusals, stop, task }
    }

    pub(crate) async fn with_limits(router: Router, limits: ServerLimits) -> Self {
        Self::at(ANY_PORT, members_only(), router, limits).await
    }

    pub(crate) async fn new(router: Router) -> Self {
        Self::with_limits(router, ServerLimits::default()).await
    }

    pub(crate) async fn stop(self) {
        self.stop.send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }

    /// The rules that were broken so far.
    pub(crate) fn broken(&self) -> Vec<Rule> {
        self.refusals.counts().into_iter().filter(|(_, num)| *num > 0).map(|(rule, _)| rule).collect()
    }

    pub(crate) fn dialer(&self, n: u8) -> Dialer {
        dialer(self.address, n)
    }
}

pub(crate) fn dialer(address: SocketAddr, n: u8) -> Dialer {
    Dialer::new(&address.to_string(), key(SERVER).public(), &key(n)).unwrap()
}

/// A link to a server that counts what goes through it, and can be cut.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    num_bytes: Arc<AtomicU64>,
    num_bytes_back: Arc<AtomicU64>,
    cut: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Link {
    /// Connections break when `cut_after` bytes have gone towards the server, all at once, and only that one time.
    pub(crate) async fn to(server: SocketAddr, cut_after: u64) -> Self {
        Self::between(server, cut_after, u64::MAX).await
    }

    /// They break when so many have come from the server.
    pub(crate) async fn from(server: SocketAddr, cut_after: u64) -> Self {
        Self::between(server, u64::MAX, cut_after).await
    }

    async fn between(server: SocketAddr, cut_after: u64, cut_after_back: u64) -> Self {
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (num_bytes, num_bytes_back) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (cut, cuts) = watch::channel(0);
        let (counter, back_counter, cutter) = (Arc::clone(&num_bytes), Arc::clone(&num_bytes_back), cut.clone());
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(server).await else { continue };
                let counters = (Arc::clone(&counter), Arc::clone(&back_counter));
                let (cutter, mut cuts) = (cutter.clone(), cuts.clone());
                tokio::spawn(async move {
                    cuts.mark_unchanged();
                    tokio::select! {
                        () = pass(near, far, (&counters.0, cut_after), (&counters.1, cut_after_back), &cutter) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, num_bytes, num_bytes_back, cut, task }
    }

    /// Bytes that have gone towards the server.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.num_bytes.load(Ordering::SeqCst)
    }

    /// Bytes that have come from the server.
    pub(crate) fn num_bytes_back(&self) -> u64 {
        self.num_bytes_back.load(Ordering::SeqCst)
    }

    pub(crate) fn was_cut(&self) -> bool {
        *self.cut.borrow() > 0
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(
    near: TcpStream,
    far: TcpStream,
    towards: (&AtomicU64, u64),
    back: (&AtomicU64, u64),
    cut: &watch::Sender<u64>,
) {
    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
    tokio::select! {
        () = pass_on(near_read, far_write, towards, cut) => {}
        () = pass_on(far_read, near_write, back, cut) => {}
    }
}

async fn pass_on(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (counter, cut_after): (&AtomicU64, u64),
    cut: &watch::Sender<u64>,
) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(size @ 1..) = from.read(&mut buffer).await {
        let before = counter.fetch_add(size as u64, Ordering::SeqCst);
        if before < cut_after && before + size as u64 >= cut_after {
            cut.send_modify(|cuts| *cuts += 1);
        }
        if to.write_all(&buffer[..size]).await.is_err() {
            return;
        }
    }
}
