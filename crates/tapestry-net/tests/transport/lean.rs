//! Blobs that are made smaller on their way, where that pays.

use crate::fixture::{MEMBER, Running};
use crate::moving::serving;
use crate::raw::{Shown, raw_tls};
use std::collections::HashMap;
use std::sync::Arc;
use tapestry_core::Digest;
use tapestry_net::{BlobAction, BlobPolicy, Dialer, Hints, Mirrors, blob_routes, pull_blobs_from, push_blobs_like};
use tapestry_store::BlobStore;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const NUM_BLOBS: usize = 14;
const BLOB_BYTES: usize = 1 << 20;
/// Far below what one thread encodes, far above what a test can wait for.
const SLOW_LINK: u64 = 12 << 20;

/// Weights in 32-bit floats as training leaves them, and the same after some more of it.
fn weights(seed: usize) -> (Vec<u8>, Vec<u8>) {
    let mut state = seed as u64 + 1;
    let mut uniform = || {
        state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        f32::from(u16::try_from(state >> 48).unwrap()) / 65536.0 - 0.5
    };
    let mut noise = || (0..6).map(|_| uniform()).sum::<f32>();
    let before: Vec<f32> = (0..BLOB_BYTES / 4).map(|_| 0.03 * noise()).collect();
    let after: Vec<f32> = before.iter().map(|weight| weight + 1e-4 * noise()).collect();
    let bytes = |weights: Vec<f32>| weights.into_iter().flat_map(f32::to_le_bytes).collect();
    (bytes(before), bytes(after))
}

/// A store with bases and contributions, and one with the bases alone.
async fn stores(link: Option<f64>) -> (BlobStore, BlobStore, Vec<Digest>, Hints) {
    let (full, bases_alone) = (BlobStore::in_memory(), BlobStore::in_memory());
    let (mut digests, mut bases) = (vec![], HashMap::new());
    for seed in 0..NUM_BLOBS {
        let (before, after) = weights(seed);
        let base = bases_alone.put(before.clone().into()).await.unwrap();
        full.put(before.into()).await.unwrap();
        let digest = full.put(after.into()).await.unwrap();
        digests.push(digest);
        bases.insert(digest, base);
    }
    (full, bases_alone, digests, Hints { element_bytes: Some(4), bases: Arc::new(bases), link_bytes_per_second: link })
}

/// The share of the plain bytes that went over the link in the direction of the blobs.
async fn share_moved(is_push: bool, limit: Option<u64>, link: Option<f64>, with_bases: bool) -> f64 {
    let (full, bases_alone, digests, mut hints) = stores(link).await;
    let empty = if with_bases { bases_alone } else { BlobStore::in_memory() };
    if !with_bases {
        hints.bases = Arc::default();
    }
    let (here, there) = if is_push { (full, empty) } else { (empty, full) };
    let server = serving(&there).await;
    let mut dialer = server.dialer(MEMBER);
    if let Some(limit) = limit {
        dialer = dialer.with_max_bytes_per_second(limit);
    }
    let mut nobody = |_, _| {};
    let moved = if is_push {
        push_blobs_like(&dialer, &here, &digests, &hints, 2, &mut nobody).await.unwrap()
    } else {
        pull_blobs_from(&dialer, &Mirrors::default(), &here, &digests, &hints, 2, &mut nobody).await.unwrap()
    };
    let total = NUM_BLOBS * BLOB_BYTES;
    assert_eq!(usize::try_from(moved).unwrap(), total);
    for digest in &digests {
        assert_eq!(here.get(*digest).await.unwrap(), there.get(*digest).await.unwrap());
    }
    server.stop().await;
    let (sent, received) = dialer.bytes_moved();
    let wire = if is_push { sent } else { received };
    f64::from(u32::try_from(wire).unwrap()) / f64::from(u32::try_from(total).unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_slow_link_weights_get_smaller_and_with_a_base_much_smaller() {
    for is_push in [true, false] {
        let alone = share_moved(is_push, Some(SLOW_LINK), None, false).await;
        let with_bases = share_moved(is_push, Some(SLOW_LINK), None, true).await;
        // The first third goes as it is, to measure the link.
        assert!(alone < 0.95, "{alone}");
        assert!(with_bases < alone - 0.05, "{with_bases} of {alone}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_fast_link_they_go_as_they_are() {
    for is_push in [true, false] {
        // What a busy machine would measure is not what is tested.
        let share = share_moved(is_push, None, Some(10e9), true).await;
        assert!((1.0..1.1).contains(&share), "{share}");
    }
}

async fn put(server: &Running, digest: Digest, headers: &str, body: &[u8]) -> String {
    let mut stream = raw_tls(server.address, Shown::honest(MEMBER)).await.unwrap();
    let length = body.len();
    let head = format!(
        "PUT /v1/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n{headers}\r\n"
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test]
async fn what_comes_encoded_is_bounded_and_checked_like_everything_else() {
    let secret = Digest::of(b"secret");
    let policy: BlobPolicy = Arc::new(move |_, action| match action {
        BlobAction::Read(digest) if digest == secret => Err("not yours".into()),
        _ => Ok(()),
    });
    let there = BlobStore::in_memory();
    there.put(bytes::Bytes::from_static(b"secret")).await.unwrap();
    let server = Running::new(blob_routes(there.clone(), policy)).await;
    let digest = Digest::of(b"honest");
    let planes = "tapestry-encoding: planes/1\r\n";
    let check = async |headers: &str, body: &[u8], expected: &str, reason: &str| {
        let answer = put(&server, digest, headers, body).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")) && answer.contains(reason), "{answer}");
    };
    check("tapestry-encoding: gzip\r\n", b"x", "415", "send the blob as it is").await;
    check(planes, b"", "400", "encoded chunk").await;
    // Two bytes in elements of two, each plane of one byte as it is: whole, and not what was named.
    let other = [&[2, 2, 0, 0, 0][..], &[0, 1, 0, 0, 0, 7], &[0, 1, 0, 0, 0, 8]].concat();
    check(planes, &other, "400", "whose digest is").await;
    check(&format!("{planes}tapestry-base: {secret}\r\n"), &other, "403", "not yours").await;
    check(&format!("{planes}tapestry-base: {}\r\n", Digest::of(b"nowhere")), &other, "404", "is not here").await;
    check(&format!("{planes}tapestry-base: x\r\n"), &other, "400", "").await;
    // A bomb: a chunk that says it has four gigabytes.
    check(planes, &[4, 255, 255, 255, 255], "400", "says that it has 4294967295 bytes").await;
    assert!(!there.has(digest).await.unwrap());
    let good = [&[2, 6, 0, 0, 0][..], &[0, 3, 0, 0, 0], b"hns", &[0, 3, 0, 0, 0], b"oet"].concat();
    check(planes, &good, "201", "").await;
    assert_eq!(there.get(digest).await.unwrap(), "honest");
    server.stop().await;
}

#[tokio::test]
async fn an_old_server_is_sent_everything_as_it_is() {
    let (full, _, digests, hints) = stores(None).await;
    let there = BlobStore::in_memory();
    let inner = blob_routes(there.clone(), Arc::new(|_, _| Ok(())));
    // It does not know the question.
    let old = axum::Router::new()
        .route("/v1/blobs/encodings", axum::routing::get(async || axum::http::StatusCode::BAD_REQUEST))
        .fallback_service(inner);
    let server = Running::new(old).await;
    let dialer: Dialer = server.dialer(MEMBER).with_max_bytes_per_second(SLOW_LINK);
    push_blobs_like(&dialer, &full, &digests, &hints, 2, &mut |_, _| {}).await.unwrap();
    assert!(there.missing(&digests).await.unwrap().is_empty());
    assert!(dialer.bytes_moved().0 > (NUM_BLOBS * BLOB_BYTES) as u64);
    server.stop().await;
}
