//! Who may talk to whom.

use crate::fixture::{ANY_PORT, MEMBER, Running, SERVER, STRANGER, dialer, key, members_only};
use crate::raw::{Shown, certified, raw_tls, raw_tls_by, tls12_hello};
use axum::routing::get;
use axum::{Extension, Json, Router};
use rustls::NamedGroup;
use rustls::crypto::CryptoProvider;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use tapestry_core::PublicKey;
use tapestry_net::{Dialer, NetError, Peer, Rule, ServerLimits};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const REQUEST: &[u8] = b"GET /who HTTP/1.1\r\nhost: x\r\n\r\n";

/// Answers with the key that the peer has proved, and counts the requests that get as far as that.
fn who() -> (Router, Arc<AtomicUsize>) {
    let reached = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&reached);
    let who = async move |Extension(Peer(key)): Extension<Peer>| {
        counter.fetch_add(1, Ordering::SeqCst);
        Json(key)
    };
    (Router::new().route("/who", get(who)), reached)
}

#[tokio::test]
async fn the_key_that_was_proved_reaches_the_handler() {
    let server = Running::new(who().0).await;
    let dialer = server.dialer(MEMBER);
    for _ in 0..3 {
        assert_eq!(dialer.get_json::<PublicKey>("/who").await.unwrap(), key(MEMBER).public());
    }
    server.stop().await;
}

#[tokio::test]
async fn a_key_that_is_not_allowed_is_told_so_every_time() {
    let (router, reached) = who();
    let server = Running::new(router).await;
    for _ in 0..30 {
        let error = server.dialer(STRANGER).get_json::<PublicKey>("/who").await.unwrap_err();
        assert!(matches!(error, NetError::NotAllowed { .. }) && !error.is_transient(), "{error:?}");
    }
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    server.stop().await;
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_before_it_hears_anything() {
    let (router, reached) = who();
    let server = Running::new(router).await;
    let dialer = Dialer::new(&server.address.to_string(), key(STRANGER).public(), &key(MEMBER)).unwrap();
    let error = dialer.get_json::<PublicKey>("/who").await.unwrap_err();
    assert!(
        matches!(error, NetError::WrongServerKey { expected, .. } if expected == key(STRANGER).public()),
        "{error:?}"
    );
    assert!(!error.is_transient());
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    server.stop().await;
}

#[tokio::test]
async fn who_leaves_the_charter_is_cut_off_on_an_open_connection() {
    let is_member = Arc::new(AtomicBool::new(true));
    let flag = Arc::clone(&is_member);
    let allow = Arc::new(move |_: &PublicKey| flag.load(Ordering::SeqCst));
    let (router, reached) = who();
    let server = Running::at(ANY_PORT, allow, router, ServerLimits::default()).await;
    let dialer = server.dialer(MEMBER);
    dialer.get_json::<PublicKey>("/who").await.unwrap();
    is_member.store(false, Ordering::SeqCst);
    let error = dialer.get_json::<PublicKey>("/who").await.unwrap_err();
    assert!(matches!(error, NetError::NotAllowed { .. }), "{error:?}");
    assert_eq!(reached.load(Ordering::SeqCst), 1);
    server.stop().await;
}

#[tokio::test]
async fn plaintext_gets_an_alert_and_no_answer() {
    let (router, reached) = who();
    let server = Running::new(router).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[REQUEST, &[0; 40_000]].concat()).await.unwrap();
    // One alert record and an end, but no reset, which could overtake the alert: the server still takes what it throws away.
    let mut answer = vec![];
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!((answer.len(), answer[0]), (7, 21), "{answer:?}");
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    stream.write_all(REQUEST).await.unwrap();
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    server.stop().await;
}

#[tokio::test]
async fn tls_1_2_is_refused_by_its_version() {
    let server = Running::new(who().0).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&tls12_hello()).await.unwrap();
    let mut answer = vec![];
    let _ = stream.read_to_end(&mut answer).await;
    // One alert record: fatal (2), protocol_version (70).
    assert_eq!(answer, [21, 3, 3, 0, 2, 2, 70]);
    assert_eq!(server.broken(), [Rule::TlsVersion]);
    server.stop().await;
}

/// What the server answers to a request of somebody who shows a key, or none.
async fn answer_to(server: &Running, shown: Shown) -> String {
    let mut answer = vec![];
    if let Ok(mut stream) = raw_tls(server.address, shown).await {
        let _ = stream.write_all(REQUEST).await;
        let _ = tokio::time::timeout(std::time::Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
    }
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn only_who_has_the_secret_key_speaks_for_the_public_one() {
    let (router, reached) = who();
    let server = Running::new(router).await;
    assert_eq!(answer_to(&server, Shown(None)).await, "");
    assert_eq!(server.broken(), [Rule::KeyShown]);
    let impostor = Shown(Some((key(MEMBER).public(), key(STRANGER))));
    assert_eq!(answer_to(&server, impostor).await, "");
    assert_eq!(server.broken(), [Rule::KeyShown, Rule::KeyProved]);
    // Not even HTTP's "unauthorized": the handshake does not complete.
    assert_eq!(answer_to(&server, Shown::honest(STRANGER)).await, "");
    assert_eq!(server.broken(), [Rule::KeyShown, Rule::KeyProved, Rule::KeyListed]);
    assert_eq!(reached.load(Ordering::SeqCst), 0);
    // The same by hand with the right key does get through, so it is the key that was refused above.
    let answer = answer_to(&server, Shown::honest(MEMBER)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn another_program_at_the_address_is_recognised() {
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 512]).await;
        let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
    });
    let error = dialer(address, MEMBER).get_json::<String>("/who").await.unwrap_err();
    assert!(matches!(error, NetError::WrongProtocol { .. }) && !error.is_transient(), "{error:?}");
    answering.await.unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named_with_what_to_do() {
    let server = Running::new(Router::new()).await;
    let again = tapestry_net::Server::bind(server.address, &key(SERVER), members_only(), Router::new()).await;
    let message = again.err().unwrap().to_string();
    assert!(message.contains(&server.address.to_string()) && message.contains("If the port is in use"), "{message}");
    server.stop().await;
}

/// Whether the handshake with these groups completes, and what is served afterwards.
async fn answer_by(server: &Running, provider: CryptoProvider) -> std::io::Result<(Option<NamedGroup>, String)> {
    let mut stream = raw_tls_by(server.address, Shown::honest(MEMBER), provider).await?;
    let group = stream.get_ref().1.negotiated_key_exchange_group().map(|group| group.name());
    let mut answer = vec![];
    stream.write_all(REQUEST).await?;
    let _ = tokio::time::timeout(std::time::Duration::from_secs(1), stream.read_to_end(&mut answer)).await;
    Ok((group, String::from_utf8(answer).unwrap()))
}

#[tokio::test]
async fn no_connection_is_made_by_a_key_exchange_that_a_quantum_computer_undoes() {
    let (router, reached) = who();
    let server = Running::new(router).await;
    // Whatever else a client offers: the hybrid is taken.
    let (group, answer) = answer_by(&server, tapestry_tls::to_foreign_servers()).await.unwrap();
    assert_eq!(group, Some(NamedGroup::X25519MLKEM768));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!((server.broken(), reached.load(Ordering::SeqCst)), (vec![], 1));
    // An older version, or somebody in between who strikes the hybrid out: the server ends it.
    let error = answer_by(&server, rustls::crypto::ring::default_provider()).await.unwrap_err();
    assert!(error.to_string().contains("HandshakeFailure"), "{error}");
    assert_eq!((server.broken(), reached.load(Ordering::SeqCst)), (vec![Rule::KeyExchange], 1));
    server.stop().await;
}

#[tokio::test]
async fn a_server_without_the_hybrid_is_told_nothing_and_the_message_says_what_to_do() {
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(
            &key(SERVER).public(),
            &key(SERVER),
        ))));
    let listener = TcpListener::bind(ANY_PORT).await.unwrap();
    let address = listener.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        acceptor.accept(listener.accept().await.unwrap().0).await.err().unwrap().to_string()
    });
    let error = dialer(address, MEMBER).get_json::<String>("/who").await.unwrap_err();
    assert!(matches!(error, NetError::WrongProtocol { .. }) && !error.is_transient(), "{error:?}");
    assert!(error.to_string().contains("an older Tapestry"), "{error}");
    assert!(answering.await.unwrap().contains("NoKxGroupsInCommon"));
}
