//! Blobs: checked, sent once, resumed.

use crate::fixture::{Link, MEMBER, OTHER_MEMBER, Running, dialer, members_only};
use crate::raw::{Shown, raw_tls};
use bytes::Bytes;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tapestry_core::{CHUNK_BYTES, Digest};
use tapestry_net::{BlobAction, BlobPolicy, Dialer, NetError, ServerLimits, blob_routes, pull_blobs, push_blobs};
use tapestry_store::{BlobStore, StoreError};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const BLOB_BYTES: usize = 100_000;
/// More than the heads, records and questions of a transfer in these tests, less than a blob.
const OVERHEAD: u64 = 40_000;

fn anything() -> BlobPolicy {
    Arc::new(|_, _| Ok(()))
}

async fn stored(policy: BlobPolicy) -> (BlobStore, Running) {
    let store = BlobStore::in_memory();
    let server = Running::new(blob_routes(store.clone(), policy)).await;
    (store, server)
}

/// `count` different blobs that no two tests need to share.
async fn filled(count: usize) -> (BlobStore, Vec<Digest>) {
    let store = BlobStore::in_memory();
    let mut digests = vec![];
    for n in 0..count {
        let content: Vec<u8> =
            (0..BLOB_BYTES).map(|i| u8::try_from((i * 31 + n * 7 + i / 251) % 251).unwrap()).collect();
        digests.push(store.put(content.into()).await.unwrap());
    }
    assert_eq!(digests.iter().collect::<HashSet<_>>().len(), count);
    (store, digests)
}

async fn push(dialer: &Dialer, store: &BlobStore, digests: &[Digest]) -> Result<u64, NetError> {
    push_blobs(dialer, store, digests, 4, &mut |_, _| {}).await
}

async fn pull(dialer: &Dialer, store: &BlobStore, digests: &[Digest]) -> Result<u64, NetError> {
    pull_blobs(dialer, store, digests, 4, &mut |_, _| {}).await
}

#[tokio::test]
async fn only_what_is_missing_moves() {
    let (there, server) = stored(anything()).await;
    let (here, digests) = filled(10).await;
    let dialer = server.dialer(MEMBER);
    assert_eq!(push(&dialer, &here, &digests[..4]).await.unwrap(), 4 * BLOB_BYTES as u64);
    let (sent_before, _) = dialer.bytes_moved();
    let mut told = vec![];
    let sent = push_blobs(&dialer, &here, &digests, 3, &mut |done, total| told.push((done, total))).await.unwrap();
    assert_eq!(sent, 6 * BLOB_BYTES as u64);
    let on_the_wire = dialer.bytes_moved().0 - sent_before;
    assert!((sent..sent + OVERHEAD).contains(&on_the_wire), "{on_the_wire}");
    assert_eq!(told.len(), 6);
    assert!(told.is_sorted_by_key(|(done, _)| *done) && told.is_sorted_by(|a, b| a.1 >= b.1), "{told:?}");
    assert_eq!(told.last(), Some(&(sent, sent)));
    assert!(there.missing(&digests).await.unwrap().is_empty());
    assert_eq!(push(&dialer, &here, &digests).await.unwrap(), 0);

    let other = BlobStore::in_memory();
    other.put(here.get(digests[0]).await.unwrap()).await.unwrap();
    assert_eq!(pull(&dialer, &other, &digests).await.unwrap(), 9 * BLOB_BYTES as u64);
    for digest in &digests {
        assert_eq!(other.get(*digest).await.unwrap(), here.get(*digest).await.unwrap());
    }
    let (_, received) = dialer.bytes_moved();
    assert_eq!(pull(&dialer, &other, &digests).await.unwrap(), 0);
    assert_eq!(dialer.bytes_moved().1, received, "nothing is asked where nothing is missing");
    server.stop().await;
}

#[tokio::test]
async fn a_whole_chunk_goes_there_and_back() {
    let (_, server) = stored(anything()).await;
    let store = BlobStore::in_memory();
    let chunk = vec![5; usize::try_from(CHUNK_BYTES).unwrap()];
    let digest = store.put(chunk.into()).await.unwrap();
    assert_eq!(push(&server.dialer(MEMBER), &store, &[digest]).await.unwrap(), CHUNK_BYTES);
    let other = BlobStore::in_memory();
    assert_eq!(pull(&server.dialer(OTHER_MEMBER), &other, &[digest]).await.unwrap(), CHUNK_BYTES);
    assert_eq!(other.get(digest).await.unwrap(), store.get(digest).await.unwrap());
    server.stop().await;
}

#[tokio::test]
async fn content_that_is_not_what_its_name_says_is_refused_on_arrival() {
    let (there, server) = stored(anything()).await;
    let dialer = server.dialer(MEMBER);
    let name = Digest::of(b"honest");
    let lie = dialer.put_bytes(&format!("/v1/blobs/{name}"), Bytes::from_static(b"honesty")).await.unwrap_err();
    assert!(
        matches!(&lie, NetError::Refused { status: 400, retry: false, error } if error.contains(&name.to_string())),
        "{lie:?}"
    );
    assert!(!there.has(name).await.unwrap() && !there.has(Digest::of(b"honesty")).await.unwrap());
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_gives_something_else_is_found_out() {
    let wrong = axum::Router::new().route("/v1/blobs/{digest}", axum::routing::get(async || "something else"));
    let server = Running::new(wrong).await;
    let here = BlobStore::in_memory();
    let name = Digest::of(b"honest");
    let error = pull(&server.dialer(MEMBER), &here, &[name]).await.unwrap_err();
    assert!(
        matches!(&error, NetError::Store(StoreError::WrongContent { expected, .. }) if *expected == name),
        "{error:?}"
    );
    assert!(!here.has(name).await.unwrap() && !here.has(Digest::of(b"something else")).await.unwrap());
    server.stop().await;
}

#[tokio::test]
async fn a_server_that_asks_for_more_than_was_offered_gets_no_more() {
    let asked = Arc::new(Mutex::new(vec![]));
    let puts = Arc::clone(&asked);
    let (here, digests) = filled(3).await;
    let greedy = vec![digests[0], digests[2], digests[0], Digest::of(b"secret")];
    let router = axum::Router::new()
        .route("/v1/blobs/missing", axum::routing::post(async move || axum::Json(greedy.clone())))
        .route(
            "/v1/blobs/{digest}",
            axum::routing::put(async move |axum::extract::Path(digest): axum::extract::Path<String>, _: Bytes| {
                puts.lock().unwrap().push(digest);
            }),
        );
    let server = Running::new(router).await;
    assert_eq!(push(&server.dialer(MEMBER), &here, &digests[..2]).await.unwrap(), BLOB_BYTES as u64);
    assert_eq!(*asked.lock().unwrap(), [digests[0].to_string()]);
    server.stop().await;
}

#[tokio::test]
async fn too_much_is_refused_and_the_refusal_arrives() {
    let (_, server) = stored(anything()).await;
    let dialer = server.dialer(MEMBER);
    let long = vec![0; usize::try_from(CHUNK_BYTES).unwrap() + 1];
    let error = dialer.put_bytes(&format!("/v1/blobs/{}", Digest::of(&long)), long.into()).await.unwrap_err();
    assert!(matches!(error, NetError::Refused { status: 413, retry: false, .. }), "{error:?}");
    let many = vec![Digest::of(b"x"); 65_537];
    let error = dialer.post_json::<_, Vec<Digest>>("/v1/blobs/missing", &many).await.unwrap_err();
    assert!(matches!(&error, NetError::Refused { status: 413, error, .. } if error.contains("65536")), "{error:?}");
    assert_eq!(dialer.post_json::<_, Vec<Digest>>("/v1/blobs/missing", &many[1..].to_vec()).await.unwrap(), many[..1]);
    for name in ["nothing", "..%2f..%2fkey.pem", &"G".repeat(64)] {
        let error = dialer.get_bytes(&format!("/v1/blobs/{name}"), 100).await.unwrap_err();
        assert!(matches!(error, NetError::Refused { status: 400, .. }), "{error:?}");
    }
    let nowhere = Digest::of(b"nowhere");
    let error = dialer.get_bytes(&format!("/v1/blobs/{nowhere}"), 100).await.unwrap_err();
    assert!(matches!(error, NetError::Refused { status: 404, retry: false, .. }), "{error:?}");
    server.stop().await;
}

#[tokio::test]
async fn the_policy_decides_before_the_body_is_read_and_its_reason_arrives() {
    let (readable, secret) = (Digest::of(b"readable"), Digest::of(b"secret"));
    let policy: BlobPolicy = Arc::new(move |_, action| match action {
        BlobAction::Read(digest) if digest == secret => Err("not yours".into()),
        BlobAction::Read(_) => Ok(()),
        BlobAction::Write(_) => Err("no round takes weights now".into()),
    });
    let (there, server) = stored(policy).await;
    there.put(Bytes::from_static(b"readable")).await.unwrap();
    there.put(Bytes::from_static(b"secret")).await.unwrap();
    let dialer = server.dialer(MEMBER);
    let here = BlobStore::in_memory();
    let chunk = here.put(vec![5; usize::try_from(CHUNK_BYTES).unwrap()].into()).await.unwrap();
    let error = push(&dialer, &here, &[chunk]).await.unwrap_err();
    assert!(
        matches!(&error, NetError::Refused { status: 403, error, .. } if error == "no round takes weights now"),
        "{error:?}"
    );
    assert!(error.is_refusal());
    // What one may not read cannot be told from what is not there.
    assert!(dialer.exists(&format!("/v1/blobs/{readable}")).await.unwrap());
    assert!(matches!(dialer.exists(&format!("/v1/blobs/{secret}")).await, Err(NetError::Refused { status: 403, .. })));
    let asked = [readable, secret, Digest::of(b"nowhere")];
    let missing: HashSet<Digest> = dialer.post_json("/v1/blobs/missing", &asked).await.unwrap();
    assert_eq!(missing, HashSet::from([secret, Digest::of(b"nowhere")]));
    server.stop().await;
}

#[tokio::test]
async fn a_refused_body_is_read_to_its_end_so_that_the_reason_is_too() {
    let policy: BlobPolicy = Arc::new(|_, _| Err("no".into()));
    let (_, server) = stored(policy).await;
    let stream = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
    let (mut reading, mut writing) = tokio::io::split(stream);
    let head = format!("PUT /v1/blobs/{} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n", Digest::of(b"x"));
    let half = vec![0; 500_000];
    writing.write_all(head.as_bytes()).await.unwrap();
    writing.write_all(&half).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(200), reading.read_u8()).await;
    assert!(early.is_err(), "answered in the middle of the body: {early:?}");
    writing.write_all(&half).await.unwrap();
    // The connection lives on, and the next request on it is answered too.
    writing.write_all(b"GET /v1/blobs/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answers = String::new();
    reading.read_to_string(&mut answers).await.unwrap();
    assert!(answers.starts_with("HTTP/1.1 403 ") && answers.contains("HTTP/1.1 400 "), "{answers}");
    server.stop().await;
}

#[tokio::test]
async fn a_push_over_a_link_that_breaks_sends_only_the_broken_blobs_again() {
    let (there, server) = stored(anything()).await;
    let (here, digests) = filled(30).await;
    let total = 30 * BLOB_BYTES as u64;
    let link = Link::to(server.address, total / 2).await;
    let sent = push(&dialer(link.address, MEMBER), &here, &digests).await.unwrap();
    assert!(link.was_cut());
    assert_eq!(sent, total);
    assert!(there.missing(&digests).await.unwrap().is_empty());
    let most = total + 4 * BLOB_BYTES as u64 + OVERHEAD;
    assert!((total..most).contains(&link.num_bytes()), "{} of at most {most}", link.num_bytes());
    server.stop().await;
}

#[tokio::test]
async fn an_interrupted_push_and_pull_go_on_where_they_were() {
    let (there, server) = stored(anything()).await;
    let (here, digests) = filled(30).await;
    let dialer = server.dialer(MEMBER);
    let num_done = AtomicUsize::new(0);
    let interrupted = async |transfer: &mut (dyn Future<Output = Result<u64, NetError>> + Unpin)| {
        tokio::select! {
            done = transfer => panic!("over before it was interrupted: {done:?}"),
            () = async {
                while num_done.load(Ordering::SeqCst) < 10 {
                    tokio::task::yield_now().await;
                }
            } => {}
        }
        num_done.store(0, Ordering::SeqCst);
    };
    let mut count = |_, _| {
        num_done.fetch_add(1, Ordering::SeqCst);
    };
    interrupted(&mut Box::pin(push_blobs(&dialer, &here, &digests, 2, &mut count))).await;
    let num_missing = there.missing(&digests).await.unwrap().len();
    assert!((1..=20).contains(&num_missing), "{num_missing}");
    // What the server had received when it was asked may have been stored since.
    let sent = push(&dialer, &here, &digests).await.unwrap();
    assert!(((num_missing - 2) * BLOB_BYTES..=num_missing * BLOB_BYTES).contains(&usize::try_from(sent).unwrap()));
    assert!(there.missing(&digests).await.unwrap().is_empty());

    let other = BlobStore::in_memory();
    interrupted(&mut Box::pin(pull_blobs(&dialer, &other, &digests, 2, &mut count))).await;
    let num_missing = other.missing(&digests).await.unwrap().len();
    assert!((1..=20).contains(&num_missing), "{num_missing}");
    assert_eq!(pull(&dialer, &other, &digests).await.unwrap(), (num_missing * BLOB_BYTES) as u64);
    assert!(other.missing(&digests).await.unwrap().is_empty());
    server.stop().await;
}

#[tokio::test]
async fn transfers_survive_a_restart_of_the_server() {
    for is_push in [true, false] {
        let (full, digests) = filled(40).await;
        let empty = BlobStore::in_memory();
        let (here, there) = if is_push { (full, empty) } else { (empty, full) };
        let num_served = Arc::new(AtomicUsize::new(0));
        let router = || {
            let num_served = Arc::clone(&num_served);
            let policy: BlobPolicy = Arc::new(move |_, _| {
                num_served.fetch_add(1, Ordering::SeqCst);
                Ok(())
            });
            blob_routes(there.clone(), policy)
        };
        let no_grace = ServerLimits { shutdown_grace: Duration::ZERO, ..ServerLimits::default() };
        let server = Running::with_limits(router(), no_grace.clone()).await;
        let (address, dialer) = (server.address, server.dialer(MEMBER));
        let moving = {
            let (dialer, here, digests) = (dialer.clone(), here.clone(), digests.clone());
            tokio::spawn(async move {
                if is_push { push(&dialer, &here, &digests).await } else { pull(&dialer, &here, &digests).await }
            })
        };
        // A push begins with a question about all 40.
        let middle = if is_push { 40 + 10 } else { 10 };
        while num_served.load(Ordering::SeqCst) < middle {
            tokio::task::yield_now().await;
        }
        server.stop().await;
        assert!(!moving.is_finished());
        let server = Running::at(address, members_only(), router(), no_grace).await;
        assert_eq!(moving.await.unwrap().unwrap(), 40 * BLOB_BYTES as u64);
        assert!(there.missing(&digests).await.unwrap().is_empty() && here.missing(&digests).await.unwrap().is_empty());
        let (sent, received) = dialer.bytes_moved();
        let most = (40 + 4) * BLOB_BYTES as u64 + OVERHEAD;
        assert!(sent.max(received) < most, "{sent} and {received} of at most {most}");
        server.stop().await;
    }
}
