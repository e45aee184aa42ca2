//! Real sockets on loopback.

use super::*;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tapestry_core::{CHUNK_BYTES, Digest, SecretKey};
use tapestry_store::BlobStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::oneshot;
use zeroize::Zeroizing;

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&Zeroizing::new([n; 32]))
}

const SERVER: u8 = 1;
const MEMBER: u8 = 2;
const STRANGER: u8 = 3;

struct Running {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    task: tokio::task::JoinHandle<Result<(), NetError>>,
}

impl Running {
    async fn start(address: SocketAddr, router: Router) -> Self {
        let member = key(MEMBER).public();
        let server = Server::bind(address, &key(SERVER), Arc::new(move |k| *k == member), router).await.expect("binds");
        let address = server.local_addr();
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(server.serve(async move {
            let _ = stopped.await;
        }));
        Self { address, stop: Some(stop), task }
    }

    async fn on_loopback(router: Router) -> Self {
        Self::start(SocketAddr::from(([127, 0, 0, 1], 0)), router).await
    }

    async fn stop(mut self) {
        let _ = self.stop.take().expect("stopped once").send(());
        self.task.await.expect("ends").expect("serves");
    }

    fn dialer(&self, n: u8) -> Dialer {
        Dialer::new(&self.address.to_string(), key(SERVER).public(), &key(n)).expect("a dialer")
    }
}

fn who() -> Router {
    Router::new()
        .route("/who", get(async |Extension(Peer(key)): Extension<Peer>| Json(key)))
        .route("/echo", post(async |Json(text): Json<String>| Json(text)))
}

#[tokio::test]
async fn both_sides_prove_their_keys() {
    let server = Running::on_loopback(who()).await;
    let found: tapestry_core::PublicKey = server.dialer(MEMBER).get_json("/who").await.expect("answers");
    assert_eq!(found, key(MEMBER).public());
    let echoed: String = server.dialer(MEMBER).post_json("/echo", &"text").await.expect("answers");
    assert_eq!(echoed, "text");
    let refused = server.dialer(STRANGER).get_json::<String>("/who").await.expect_err("refused");
    assert!(matches!(refused, NetError::NotAllowed { .. }), "{refused:?}");
    let wrong = Dialer::new(&server.address.to_string(), key(STRANGER).public(), &key(MEMBER)).expect("a dialer");
    let refused = wrong.get_json::<String>("/who").await.expect_err("refused");
    assert!(matches!(refused, NetError::WrongKey { .. }), "{refused:?}");
    server.stop().await;
}

#[tokio::test]
async fn plaintext_and_nameless_clients_get_nothing() {
    let server = Running::on_loopback(who()).await;
    let mut plain = tokio::net::TcpStream::connect(server.address).await.expect("connects");
    plain.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").await.expect("writes");
    let mut answer = vec![];
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
    // TLS 1.3 with the right server key, but no key of its own.
    let mut config = identity::client_config(&key(MEMBER), key(SERVER).public()).expect("a configuration");
    config.client_auth_cert_resolver = Arc::new(NoKey);
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = tokio::net::TcpStream::connect(server.address).await.expect("connects");
    let name = rustls::pki_types::ServerName::try_from("tapestry.invalid").expect("a name");
    let mut answer = vec![];
    if let Ok(mut stream) = connector.connect(name, stream).await {
        let _ = stream.write_all(b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let _ = stream.read_to_end(&mut answer).await;
    }
    assert!(answer.is_empty(), "{answer:?}");
    server.stop().await;
}

#[derive(Debug)]
struct NoKey;

impl rustls::client::ResolvesClientCert for NoKey {
    fn resolve(
        &self,
        _: &[&[u8]],
        _: &[rustls::SignatureScheme],
    ) -> Option<Arc<rustls::sign::CertifiedKey>> {
        None
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let server = Running::on_loopback(who()).await;
    let again = Server::bind(server.address, &key(SERVER), Arc::new(|_| true), who()).await;
    let message = again.err().expect("refused").to_string();
    assert!(message.contains(&server.address.to_string()) && message.contains("in use"), "{message}");
    server.stop().await;
}

fn stored(policy: BlobPolicy) -> (BlobStore, Router) {
    let store = BlobStore::in_memory();
    (store.clone(), blob_routes(store, policy))
}

async fn some_blobs(store: &BlobStore, count: u8) -> Vec<Digest> {
    let mut digests = vec![];
    for n in 0..count {
        digests.push(store.put(vec![n; 1000].into()).await.expect("stores"));
    }
    digests
}

#[tokio::test]
async fn chunks_move_once_and_are_checked() {
    let (there, router) = stored(Arc::new(|_, _| Ok(())));
    let server = Running::on_loopback(router).await;
    let dialer = server.dialer(MEMBER);
    let here = BlobStore::in_memory();
    let digests = some_blobs(&here, 20).await;
    let sent = push_blobs(&dialer, &here, &digests, 4, &mut |_, _| {}).await.expect("pushes");
    assert_eq!(sent, 20_000);
    assert!(there.missing(&digests).await.expect("asks").is_empty());
    assert_eq!(push_blobs(&dialer, &here, &digests, 4, &mut |_, _| {}).await.expect("pushes"), 0);
    let other = BlobStore::in_memory();
    assert_eq!(pull_blobs(&dialer, &other, &digests, 4, &mut |_, _| {}).await.expect("pulls"), 20_000);
    assert_eq!(pull_blobs(&dialer, &other, &digests, 4, &mut |_, _| {}).await.expect("pulls"), 0);
    // Content that is not what its name says, and content that is too long.
    let lie = dialer.put_bytes(&format!("/v1/blobs/{}", digests[0]), Bytes::from_static(b"other")).await;
    assert!(matches!(lie, Err(NetError::Refused { status: 400, retry: false, .. })), "{lie:?}");
    let long = vec![0; usize::try_from(CHUNK_BYTES).expect("8 MiB") + 1];
    let refused = dialer.put_bytes(&format!("/v1/blobs/{}", Digest::of(&long)), long.into()).await;
    assert!(refused.is_err());
    let missing = dialer.get_bytes(&format!("/v1/blobs/{}", Digest::of(b"nowhere")), 100).await;
    assert!(matches!(missing, Err(NetError::Refused { status: 404, .. })), "{missing:?}");
    server.stop().await;
}

#[tokio::test]
async fn the_policy_decides() {
    let (_, router) = stored(Arc::new(|_, action| match action {
        BlobAction::Read(_) => Ok(()),
        BlobAction::Write(_) => Err("no round takes weights now".into()),
    }));
    let server = Running::on_loopback(router).await;
    let here = BlobStore::in_memory();
    let digests = some_blobs(&here, 1).await;
    let error = push_blobs(&server.dialer(MEMBER), &here, &digests, 4, &mut |_, _| {}).await.expect_err("refused");
    assert!(error.is_refusal() && error.to_string().contains("no round takes weights"), "{error}");
    server.stop().await;
}

/// The server goes away in the middle and comes back on the same port; only what is missing is sent again.
#[tokio::test]
async fn a_restart_in_the_middle_costs_no_more_than_it_must() {
    let store = BlobStore::in_memory();
    let writes = Arc::new(AtomicUsize::new(0));
    let broken = Arc::new(AtomicBool::new(false));
    let router = || {
        let (writes, broken) = (Arc::clone(&writes), Arc::clone(&broken));
        let policy: BlobPolicy = Arc::new(move |_, action| {
            if matches!(action, BlobAction::Write(_)) && writes.fetch_add(1, Ordering::SeqCst) >= 10 {
                broken.store(true, Ordering::SeqCst);
            }
            Ok(())
        });
        blob_routes(store.clone(), policy)
    };
    let server = Running::on_loopback(router()).await;
    let (address, dialer) = (server.address, server.dialer(MEMBER));
    let here = BlobStore::in_memory();
    let digests = some_blobs(&here, 40).await;
    let pushing = {
        let (dialer, here, digests) = (dialer.clone(), here.clone(), digests.clone());
        tokio::spawn(async move { push_blobs(&dialer, &here, &digests, 2, &mut |_, _| {}).await })
    };
    while !broken.load(Ordering::SeqCst) {
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
    server.stop().await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let server = Running::start(address, router()).await;
    let sent = pushing.await.expect("ends").expect("pushes");
    assert_eq!(sent, 40_000);
    assert!(store.missing(&digests).await.expect("asks").is_empty());
    let written = writes.load(Ordering::SeqCst);
    assert!(written <= 42, "at most one chunk of each of the two streams goes again, but {written} were written");
    server.stop().await;
}
