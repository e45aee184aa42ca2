//! Blobs from others than the coordinator.

use crate::fixture::{Link, MEMBER, Running, dialer};
use crate::moving::{chunks, serving};
use axum::Router;
use axum::routing::get;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tapestry_core::{CHUNK_BYTES, Digest};
use tapestry_net::{BlobPolicy, Dialer, Hints, Mirrors, ServerLimits, blob_routes, pull_blobs_from};
use tapestry_store::BlobStore;

/// A coordinator that counts what it is asked for.
async fn coordinator(store: &BlobStore) -> (Running, Arc<AtomicUsize>) {
    let num_asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&num_asked);
    let policy: BlobPolicy = Arc::new(move |_, _| {
        counter.fetch_add(1, Ordering::SeqCst);
        Ok(())
    });
    (Running::new(blob_routes(store.clone(), policy)).await, num_asked)
}

async fn pull(coordinator: &Running, mirrors: Vec<Dialer>, digests: &[Digest]) -> BlobStore {
    let here = BlobStore::in_memory();
    let dialer = coordinator.dialer(MEMBER);
    let mirrors = Mirrors::new(mirrors);
    pull_blobs_from(&dialer, &mirrors, &here, digests, &Hints::default(), 2, &mut |_, _| {}).await.unwrap();
    assert!(here.missing(digests).await.unwrap().is_empty());
    here
}

#[tokio::test]
async fn what_mirrors_have_is_not_asked_of_the_coordinator() {
    let (full, half) = (BlobStore::in_memory(), BlobStore::in_memory());
    let digests = chunks(&full, 4).await;
    for digest in &digests[..2] {
        half.put(full.get(*digest).await.unwrap()).await.unwrap();
    }
    let (coordinator, num_asked) = coordinator(&full).await;
    let (with_half, with_all) = (serving(&half).await, serving(&full).await);
    pull(&coordinator, vec![with_half.dialer(MEMBER), with_all.dialer(MEMBER)], &digests).await;
    assert_eq!(num_asked.load(Ordering::SeqCst), 0);
    pull(&coordinator, vec![with_half.dialer(MEMBER)], &digests).await;
    assert_eq!(num_asked.load(Ordering::SeqCst), 2);
    for server in [coordinator, with_half, with_all] {
        server.stop().await;
    }
}

#[tokio::test]
async fn a_mirror_that_lies_is_found_out_and_not_asked_again() {
    let full = BlobStore::in_memory();
    let digests = chunks(&full, 6).await;
    let (coordinator, num_asked) = coordinator(&full).await;
    let num_lies = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&num_lies);
    let lie = async move || {
        counter.fetch_add(1, Ordering::SeqCst);
        vec![9u8; 5_000_000]
    };
    let liar = Running::new(Router::new().route("/v1/blobs/{digest}", get(lie))).await;
    let here = pull(&coordinator, vec![liar.dialer(MEMBER)], &digests).await;
    for digest in &digests {
        assert_eq!(here.get(*digest).await.unwrap(), full.get(*digest).await.unwrap());
    }
    assert!((1..=2).contains(&num_lies.load(Ordering::SeqCst)), "once for each stream at most");
    assert_eq!(num_asked.load(Ordering::SeqCst), 6);
    coordinator.stop().await;
    liar.stop().await;
}

#[tokio::test]
async fn mirrors_that_are_away_refuse_or_break_off_cost_nothing_but_time() {
    let full = BlobStore::in_memory();
    let digests = chunks(&full, 2).await;
    let (coordinator, num_asked) = coordinator(&full).await;
    let away = Running::new(Router::new()).await;
    let away_at = away.address;
    away.stop().await;
    let nobody = Arc::new(|_: &tapestry_core::PublicKey| false);
    let refusing = Running::at(crate::fixture::ANY_PORT, nobody, Router::new(), ServerLimits::default()).await;
    let breaking = serving(&full).await;
    let link = Link::from(breaking.address, CHUNK_BYTES / 2).await;
    let (refusing_dialer, breaking_dialer) = (refusing.dialer(MEMBER), dialer(link.address, MEMBER));
    let dialer_of_coordinator = coordinator.dialer(MEMBER);
    let here = BlobStore::in_memory();
    let mirrors = Mirrors::new(vec![dialer(away_at, MEMBER), refusing_dialer, breaking_dialer]);
    pull_blobs_from(&dialer_of_coordinator, &mirrors, &here, &digests, &Hints::default(), 1, &mut |_, _| {})
        .await
        .unwrap();
    assert!(here.missing(&digests).await.unwrap().is_empty() && link.was_cut());
    assert_eq!(num_asked.load(Ordering::SeqCst), 2, "the rest of the one, and the other");
    let (_, received) = dialer_of_coordinator.bytes_moved();
    assert!(received < 2 * CHUNK_BYTES - CHUNK_BYTES / 4, "{received}: what the mirror had sent is kept");
    for server in [coordinator, refusing, breaking] {
        server.stop().await;
    }
}
