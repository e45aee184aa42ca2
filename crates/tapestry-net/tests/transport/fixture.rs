//! A server on loopback, and a link to it that can be cut.

use axum::Router;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tapestry_core::{PublicKey, SecretKey};
use tapestry_net::{Allow, Dialer, NetError, Server, ServerLimits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
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

pub(crate) fn members_only() -> Allow {
    let members = [key(MEMBER).public(), key(OTHER_MEMBER).public()];
    Arc::new(move |key: &PublicKey| members.contains(key))
}

/// A running server.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), NetError>>,
}

impl Running {
    pub(crate) async fn at(address: SocketAddr, allow: Allow, router: Router, limits: ServerLimits) -> Self {
        let server = Server::bind(address, &key(SERVER), allow, router).await.unwrap().with_limits(limits);
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(async move {
            let _ = stopped.await;
        }));
        Self { address, stop, task }
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

    pub(crate) fn dialer(&self, n: u8) -> Dialer {
        dialer(self.address, n)
    }
}

pub(crate) fn dialer(address: SocketAddr, n: u8) -> Dialer {
    Dialer::new(&address.to_string(), key(SERVER).public(), &key(n)).unwrap()
}

/// A link to a server that counts what goes towards it, and can be cut.
pub(crate) struct Link {
    pub(crate) address: SocketAddr,
    num_bytes: Arc<AtomicU64>,
    cut: watch::Sender<u64>,
    task: JoinHandle<()>,
}

impl Link {
    /// Connections break when `cut_after` bytes have gone through, all at once, and only that one time.
    pub(crate) async fn to(server: SocketAddr, cut_after: u64) -> Self {
        let listener = TcpListener::bind(ANY_PORT).await.unwrap();
        let address = listener.local_addr().unwrap();
        let num_bytes = Arc::new(AtomicU64::new(0));
        let (cut, cuts) = watch::channel(0);
        let (counter, cutter) = (Arc::clone(&num_bytes), cut.clone());
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let Ok(far) = TcpStream::connect(server).await else { continue };
                let (counter, cutter, mut cuts) = (Arc::clone(&counter), cutter.clone(), cuts.clone());
                tokio::spawn(async move {
                    cuts.mark_unchanged();
                    tokio::select! {
                        () = pass(near, far, &counter, cut_after, &cutter) => {}
                        _ = cuts.changed() => {}
                    }
                });
            }
        });
        Self { address, num_bytes, cut, task }
    }

    /// Bytes that have gone towards the server.
    pub(crate) fn num_bytes(&self) -> u64 {
        self.num_bytes.load(Ordering::SeqCst)
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

async fn pass(near: TcpStream, far: TcpStream, counter: &AtomicU64, cut_after: u64, cut: &watch::Sender<u64>) {
    let ((mut near_read, mut near_write), (mut far_read, mut far_write)) = (near.into_split(), far.into_split());
    let towards = async {
        let mut buffer = vec![0; 16 << 10];
        while let Ok(size @ 1..) = near_read.read(&mut buffer).await {
            let before = counter.fetch_add(size as u64, Ordering::SeqCst);
            if before < cut_after && before + size as u64 >= cut_after {
                cut.send_modify(|cuts| *cuts += 1);
            }
            if far_write.write_all(&buffer[..size]).await.is_err() {
                return;
            }
        }
    };
    let back = async {
        let _ = tokio::io::copy(&mut far_read, &mut near_write).await;
    };
    tokio::select! {
        () = towards => {}
        () = back => {}
    }
}
