//! JSON, bytes, errors, long polls, and repetition.

use crate::fixture::{MEMBER, Running, STRANGER, dialer, key, members_only};
use axum::extract::Query;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tapestry_net::{Dialer, ErrorBody, NetError, ServerLimits, retry_forever};

fn routes() -> Router {
    let wait = async |Query(query): Query<BTreeMap<String, u64>>| {
        tokio::time::sleep(Duration::from_millis(query["ms"])).await;
        Json(query["ms"])
    };
    let no = async || {
        let error = "the round is over\u{1b}[2J".to_owned();
        (StatusCode::CONFLICT, Json(ErrorBody { error, retry: false }))
    };
    Router::new()
        .route("/echo", post(async |Json(text): Json<String>| Json(text)))
        .route("/long", get(async || Bytes::from(vec![7; 1 << 20])))
        .route("/wait", get(wait))
        .route("/no", get(no))
}

#[tokio::test]
async fn json_goes_there_and_back_on_one_connection() {
    let server = Running::new(routes()).await;
    let dialer = server.dialer(MEMBER);
    let text = "x".repeat(100_000);
    for _ in 0..5 {
        assert_eq!(dialer.post_json::<_, String>("/echo", &text).await.unwrap(), text);
    }
    let (sent, received) = dialer.bytes_moved();
    let overhead = 3000; // one handshake, five heads
    assert!((500_000..500_000 + overhead).contains(&sent), "{sent}");
    assert!((500_000..500_000 + overhead).contains(&received), "{received}");
    server.stop().await;
}

#[tokio::test]
async fn every_refusal_says_why_in_one_form() {
    let server = Running::new(routes()).await;
    let dialer = server.dialer(MEMBER);
    let check = |error: NetError, expected_status: u16, expected: &str| {
        let NetError::Refused { status, error, retry } = &error else { panic!("{error:?}") };
        assert_eq!((*status, *retry), (expected_status, false));
        assert!(error.contains(expected) && !error.contains('\u{1b}'), "{error:?}");
    };
    check(dialer.get_json::<String>("/no").await.unwrap_err(), 409, "the round is over");
    check(dialer.get_json::<String>("/nowhere").await.unwrap_err(), 404, "Not Found");
    check(dialer.get_json::<String>("/echo").await.unwrap_err(), 405, "Method Not Allowed");
    check(dialer.post_json::<_, String>("/echo", &7).await.unwrap_err(), 422, "expected a string");
    check(dialer.post_json::<_, String>("/echo", &"x".repeat(1 << 20)).await.unwrap_err(), 413, "length limit");
    server.stop().await;
}

#[tokio::test]
async fn answers_are_bounded_and_must_be_what_was_asked_for() {
    let server = Running::new(routes()).await;
    let dialer = server.dialer(MEMBER);
    let error = dialer.get_bytes("/long", (1 << 20) - 1).await.unwrap_err();
    assert!(matches!(error, NetError::TooLarge { limit, .. } if limit == (1 << 20) - 1), "{error:?}");
    assert_eq!(dialer.get_bytes("/long", 1 << 20).await.unwrap().len(), 1 << 20);
    let error = dialer.post_json::<_, u32>("/echo", &"text").await.unwrap_err();
    assert!(matches!(error, NetError::Unreadable { .. }) && !error.is_transient(), "{error:?}");
    server.stop().await;
}

#[tokio::test]
async fn a_long_poll_waits_as_long_as_it_says_and_no_longer() {
    let server = Running::new(routes()).await;
    let dialer = server.dialer(MEMBER);
    let impatient = dialer.with_idle_timeout(Duration::from_millis(300));
    let error = impatient.get_json::<u64>("/wait?ms=2000").await.unwrap_err();
    assert!(matches!(error, NetError::Idle { .. }) && error.is_transient(), "{error:?}");
    let patient = dialer.with_idle_timeout(Duration::from_secs(20));
    assert_eq!(patient.get_json::<u64>("/wait?ms=600").await.unwrap(), 600);
    // Other requests do not stand behind it.
    let start = Instant::now();
    let (_, echoed) = tokio::join!(patient.get_json::<u64>("/wait?ms=1500"), async {
        let echoed = dialer.post_json::<_, String>("/echo", &"text").await;
        assert!(start.elapsed() < Duration::from_millis(1000));
        echoed
    });
    assert_eq!(echoed.unwrap(), "text");
    server.stop().await;
}

#[tokio::test]
async fn repetition_ends_with_success_or_with_the_first_error_that_stays() {
    let server = Running::new(routes()).await;
    let address = server.address;
    server.stop().await;
    let absent = dialer(address, MEMBER);
    let error = absent.get_json::<u64>("/wait?ms=0").await.unwrap_err();
    assert!(matches!(error, NetError::Unreachable { .. }) && error.is_transient(), "{error:?}");
    let num_failures = AtomicUsize::new(0);
    let mut pauses = vec![];
    let on_failure = |_: &NetError, pause: Duration| {
        num_failures.fetch_add(1, Ordering::SeqCst);
        pauses.push(pause);
    };
    let asking = retry_forever(async || absent.get_json::<u64>("/wait?ms=0").await, on_failure);
    let returning = async {
        while num_failures.load(Ordering::SeqCst) < 3 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Running::at(address, members_only(), routes(), ServerLimits::default()).await
    };
    let (answered, server) = tokio::join!(asking, returning);
    assert_eq!(answered.unwrap(), 0);
    for (index, pause) in pauses.iter().enumerate() {
        let longest = Duration::from_millis(200 << index);
        assert!((longest / 2..=longest).contains(pause), "{pauses:?}");
    }
    let stranger = server.dialer(STRANGER);
    let told = retry_forever(async || stranger.get_json::<u64>("/wait?ms=0").await, |error, _| panic!("{error}")).await;
    assert!(matches!(told, Err(NetError::NotAllowed { .. })));
    server.stop().await;
}

#[tokio::test]
async fn a_restarted_server_is_found_again_without_an_error() {
    let server = Running::new(routes()).await;
    let dialer = server.dialer(MEMBER);
    dialer.post_json::<_, String>("/echo", &"before").await.unwrap();
    let address = server.address;
    server.stop().await;
    let server = Running::at(address, members_only(), routes(), ServerLimits::default()).await;
    assert_eq!(dialer.post_json::<_, String>("/echo", &"after").await.unwrap(), "after");
    server.stop().await;
}

#[tokio::test]
async fn shutdown_lets_a_request_end_but_waits_for_none_for_ever() {
    let grace = |shutdown_grace| ServerLimits { shutdown_grace, ..ServerLimits::default() };
    for (ms, limits, is_answered) in
        [(600, grace(Duration::from_secs(20)), true), (60_000, grace(Duration::from_millis(200)), false)]
    {
        let server = Running::with_limits(routes(), limits).await;
        let dialer = server.dialer(MEMBER);
        let asking = tokio::spawn(async move { dialer.get_json::<u64>(&format!("/wait?ms={ms}")).await });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let start = Instant::now();
        server.stop().await;
        assert!(start.elapsed() < Duration::from_secs(5));
        assert_eq!(asking.await.unwrap().is_ok(), is_answered);
    }
}

#[test]
fn addresses_have_a_host_and_a_port() {
    let check = |address: &str| Dialer::new(address, key(1).public(), &key(MEMBER)).is_ok();
    for good in ["localhost:80", "127.0.0.1:8443", "[::1]:8443", "node.example:65535"] {
        assert!(check(good), "{good}");
    }
    for bad in ["", "localhost", ":80", "localhost:", "localhost:0", "localhost:70000", "https://localhost"] {
        assert!(!check(bad), "{bad}");
    }
    let dialer = Dialer::new("localhost:80", key(1).public(), &key(MEMBER)).unwrap();
    assert_eq!(format!("{dialer:?}"), r#"Dialer { address: "localhost:80", .. }"#);
}
