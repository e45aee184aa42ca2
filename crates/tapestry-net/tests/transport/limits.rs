//! What the slow and the greedy get.

use crate::fixture::{MEMBER, OTHER_MEMBER, Running, STRANGER};
use crate::raw::{Shown, raw_tls};
use axum::Router;
use axum::routing::{get, post, put};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use std::time::{Duration, Instant};
use tapestry_net::{NetError, Rule, ServerLimits};
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

#[tokio::test]
async fn a_body_that_is_too_large_is_told_so_every_time() {
    let server = Running::new(routes()).await;
    let dialer = server.dialer(MEMBER);
    // JSON may have 1 MiB; the handler stops reading there. Whoever has sent the rest must still read the answer.
    for _ in 0..20 {
        let error = dialer.post_json::<_, ()>("/size", &"x".repeat(3 << 20)).await.unwrap_err();
        assert!(matches!(error, NetError::Refused { status: 413, retry: false, .. }), "{error:?}");
        assert!(!error.is_transient());
    }
    assert_eq!(server.broken(), [Rule::BodySize]);
    // What no server reads is not sent at all.
    let error = dialer.post_json::<_, ()>("/size", &"x".repeat(17 << 20)).await.unwrap_err();
    assert!(matches!(error, NetError::QuestionTooLarge { .. }) && !error.is_transient(), "{error:?}");
    assert_eq!(dialer.get_json::<String>("/ok").await.unwrap(), "ok");
    server.stop().await;
}

#[tokio::test]
async fn a_request_that_is_given_up_ends_with_its_connection() {
    // Reads a body only after it is told to, and tells how much came.
    let (go, gate) = tokio::sync::watch::channel(false);
    let (told, mut came) = tokio::sync::mpsc::unbounded_channel();
    let slow = async move |mut body: axum::body::Body| {
        let _ = gate.clone().wait_for(|go| *go).await;
        let mut size = 0;
        let end = loop {
            match body.frame().await {
                Some(Ok(frame)) => size += frame.data_ref().map_or(0, Bytes::len),
                Some(Err(_)) => break None,
                None => break Some(size),
            }
        };
        let _ = told.send(end);
    };
    let server = Running::new(routes().route("/slow", put(slow))).await;
    let dialer = server.dialer(MEMBER);
    let sending = dialer.put_bytes("/slow", vec![7; 16 << 20].into());
    assert!(tokio::time::timeout(SHORT, sending).await.is_err(), "it waits for the handler");
    go.send(true).unwrap();
    let came = tokio::time::timeout(PATIENCE, came.recv()).await.unwrap().unwrap();
    assert_eq!(came, None, "nobody sends on what nobody waits for");
    assert_eq!(server.broken(), [], "who gives up breaks no rule");
    server.stop().await;
}

#[tokio::test]
async fn every_rule_that_is_broken_is_counted_and_patience_breaks_none() {
    let server = Running::with_limits(routes(), impatient()).await;
    let mut idle = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
    idle.write_all(b"GET /ok HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    // A connection that is kept after its answer, and asks nothing more.
    assert!(until_the_end(&mut idle).await.contains("200"));
    assert_eq!(server.broken(), []);
    let check = async |bytes: &[u8], expected: Rule| {
        let before = server.broken();
        let mut stream = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
        let _ = stream.write_all(bytes).await;
        until_the_end(&mut stream).await;
        let new: Vec<_> = server.broken().into_iter().filter(|rule| !before.contains(rule)).collect();
        assert_eq!(new, [expected]);
    };
    check(b"GET /ok HTTP/1.1\r\nhost: ", Rule::HeadTime).await;
    check(format!("GET /ok HTTP/1.1\r\nhost: {}\r\n\r\n", "x".repeat(100_000)).as_bytes(), Rule::HeadSize).await;
    check(b"POST /size HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nx", Rule::BodyPace).await;
    check(b"GET /elsewhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", Rule::Request).await;
    server.stop().await;
    // One that goes away as soon as it is told.
    let server = Running::new(routes()).await;
    for _ in 0..10 {
        let mut stream = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
        let _ = stream.write_all(format!("GET /ok?{} HTTP/1.1\r\n\r\n", "1".repeat(200_000)).as_bytes()).await;
        let _ = stream.read(&mut [0]).await;
    }
    let start = Instant::now();
    while server.broken() != [Rule::HeadSize] {
        assert!(start.elapsed() < PATIENCE, "{:?}", server.broken());
        tokio::time::sleep(SHORT / 8).await;
    }
    server.stop().await;
    let server = Running::with_limits(routes(), impatient()).await;
    let mut stream = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
    stream.write_all(b"GET /long HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    tokio::time::sleep(4 * SHORT).await;
    until_the_end(&mut stream).await;
    assert_eq!(server.broken(), [Rule::AnswerPace]);
    server.stop().await;
}
