//! What the slow and the greedy get.

use crate::fixture::{MEMBER, OTHER_MEMBER, Running, STRANGER};
use crate::raw::{Shown, raw_tls};
use axum::Router;
use axum::routing::{get, post};
use bytes::Bytes;
use std::time::{Duration, Instant};
use tapestry_net::{NetError, ServerLimits};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const SHORT: Duration = Duration::from_millis(400);
/// Far more than `SHORT`, far less than any default limit.
const PATIENCE: Duration = Duration::from_secs(8);

fn impatient() -> ServerLimits {
    ServerLimits {
        handshake_timeout: SHORT,
        head_timeout: SHORT,
        idle_timeout: SHORT,
        min_bytes_per_second: 10_000,
        ..ServerLimits::default()
    }
}

fn routes() -> Router {
    Router::new()
        .route("/ok", get(async || "\"ok\""))
        .route("/size", post(async |body: Bytes| body.len().to_string()))
        .route("/long", get(async || Bytes::from(vec![7; 64 << 20])))
        .route("/wait", get(async || tokio::time::sleep(Duration::from_secs(60)).await))
}

/// What comes until the other side ends the connection by itself.
async fn until_the_end(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let mut answer = vec![];
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the server ends it");
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn a_handshake_that_stands_still_is_cut_off() {
    let server = Running::with_limits(routes(), impatient()).await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(&[22, 3, 1, 2, 0]).await.unwrap();
    assert_eq!(until_the_end(&mut stream).await, "");
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_never_ends_is_cut_off() {
    let server = Running::with_limits(routes(), impatient()).await;
    let stream = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    let trickle = async {
        let _ = writing.write_all(b"GET /ok HTTP/1.1\r\n").await;
        loop {
            let _ = writing.write_all(b"x: y\r\n").await;
            tokio::time::sleep(SHORT / 8).await;
        }
    };
    tokio::select! {
        answer = until_the_end(&mut reading) => assert!(!answer.contains("200"), "{answer}"),
        () = trickle => {}
    }
    server.stop().await;
}

/// A body of 1 MB that comes in pieces of `size`, one each eighth of the idle timeout.
async fn trickled_body(size: usize) -> (String, Duration) {
    let server = Running::with_limits(routes(), impatient()).await;
    let stream = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    let start = Instant::now();
    let trickle = async {
        let _ = writing
            .write_all(b"POST /size HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 100000\r\n\r\n")
            .await;
        for _ in 0..100_000 / size {
            if writing.write_all(&vec![0; size]).await.is_err() {
                break;
            }
            tokio::time::sleep(SHORT / 8).await;
        }
        std::future::pending::<()>().await;
    };
    let answer = tokio::select! {
        answer = until_the_end(&mut reading) => answer,
        () = trickle => String::new(),
    };
    server.stop().await;
    (answer, start.elapsed())
}

#[tokio::test]
async fn a_body_may_be_slow_but_not_a_trickle() {
    // 5,000 bytes in 50 ms are ten times the least rate, and take two and a half times the idle timeout.
    let (answer, wall) = trickled_body(5000).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("100000"), "{answer}");
    assert!(wall > 2 * SHORT, "{wall:?}");
    // 10 bytes in 50 ms are a fiftieth of it.
    let (answer, wall) = trickled_body(10).await;
    assert!(!answer.contains("200"), "{answer}");
    assert!(wall < PATIENCE);
}

#[tokio::test]
async fn who_does_not_take_its_answer_loses_the_connection() {
    let server = Running::with_limits(routes(), impatient()).await;
    let mut stream = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
    stream.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    tokio::time::sleep(4 * SHORT).await;
    let answer = until_the_end(&mut stream).await;
    assert!(answer.len() < 64 << 20, "what was in the buffers is all that comes");
    server.stop().await;
}

#[tokio::test]
async fn one_key_has_only_so_many_connections_and_the_others_have_theirs() {
    let limits = ServerLimits { num_connections_per_key: 3, ..ServerLimits::default() };
    let server = Running::with_limits(routes(), limits).await;
    let mut held = vec![];
    for _ in 0..3 {
        let mut stream = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
        stream.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        held.push(stream);
    }
    // They are counted once their handshakes are over, which is before the fourth's is.
    tokio::time::sleep(Duration::from_millis(100)).await;
    let error = server.dialer(MEMBER).get_json::<String>("/ok").await.unwrap_err();
    assert!(error.is_transient(), "{error:?}");
    assert!(matches!(&error, NetError::Refused { status: 503, error, .. } if error.contains("too many")), "{error:?}");
    assert_eq!(server.dialer(OTHER_MEMBER).get_json::<String>("/ok").await.unwrap(), "ok");
    held.pop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(server.dialer(MEMBER).get_json::<String>("/ok").await.unwrap(), "ok");
    server.stop().await;
}

#[tokio::test]
async fn all_keys_together_have_only_so_many_connections() {
    let limits = ServerLimits { num_connections: 1, ..ServerLimits::default() };
    let server = Running::with_limits(routes(), limits).await;
    let first = server.dialer(MEMBER);
    assert_eq!(first.get_json::<String>("/ok").await.unwrap(), "ok");
    let error = server.dialer(OTHER_MEMBER).get_json::<String>("/ok").await.unwrap_err();
    assert!(matches!(error, NetError::Refused { status: 503, retry: true, .. }), "{error:?}");
    assert_eq!(first.get_json::<String>("/ok").await.unwrap(), "ok");
    server.stop().await;
}

#[tokio::test]
async fn strangers_do_not_take_the_places_of_members() {
    let limits = ServerLimits {
        num_connections: 1,
        num_handshakes: 8,
        num_handshakes_per_network: 4,
        handshake_timeout: Duration::from_secs(60),
        ..ServerLimits::default()
    };
    let server = Running::with_limits(routes(), limits).await;
    // Three stand still in their handshakes, and many fail.
    let mut still = vec![];
    for _ in 0..3 {
        still.push(TcpStream::connect(server.address).await.unwrap());
    }
    for _ in 0..20 {
        let error = server.dialer(STRANGER).get_json::<String>("/ok").await.unwrap_err();
        assert!(matches!(error, NetError::NotAllowed { .. }), "{error:?}");
    }
    let member = server.dialer(MEMBER);
    assert_eq!(member.get_json::<String>("/ok").await.unwrap(), "ok");
    // The fourth is the last that this network may have.
    let mut fourth = TcpStream::connect(server.address).await.unwrap();
    let ended = tokio::time::timeout(SHORT, fourth.read(&mut [0])).await;
    assert!(ended.is_err(), "a member's connection no longer counts among the handshakes: {ended:?}");
    still.push(fourth);
    let mut fifth = TcpStream::connect(server.address).await.unwrap();
    assert_eq!(until_the_end(&mut fifth).await, "");
    assert_eq!(member.get_json::<String>("/ok").await.unwrap(), "ok");
    drop(still);
    server.stop().await;
}
