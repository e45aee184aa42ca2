//! Whole chunks between folders: broken off, limited, and without room.

use crate::fixture::{ANY_PORT, Link, MEMBER, Running, dialer, members_only};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tapestry_core::{CHUNK_BYTES, Digest};
use tapestry_net::{MIN_BYTES_PER_SECOND, NetError, ServerLimits, blob_routes, pull_blobs, push_blobs};
use tapestry_store::{BlobStore, StoreError};

/// More than the heads and records of a few chunks, less than a piece of one.
const OVERHEAD: u64 = 200_000;

pub(crate) async fn folder(dir: &Path) -> BlobStore {
    BlobStore::open_folder(dir).await.unwrap()
}

/// Different chunks, all whole but for the last.
pub(crate) async fn chunks(store: &BlobStore, count: u8) -> Vec<Digest> {
    let mut digests = vec![];
    for n in 1..=count {
        let len = usize::try_from(CHUNK_BYTES).unwrap() - if n == count { 12_345 } else { 0 };
        let content: Vec<u8> = (0..len).map(|i| (i % 251).to_le_bytes()[0] ^ n).collect();
        digests.push(store.put(content.into()).await.unwrap());
    }
    digests
}

pub(crate) async fn serving(store: &BlobStore) -> Running {
    Running::new(blob_routes(store.clone(), Arc::new(|_, _| Ok(())))).await
}

#[tokio::test]
async fn a_pull_that_breaks_off_inside_a_chunk_goes_on_inside_it() {
    let dir = tempfile::tempdir().unwrap();
    let (there, here) = (folder(&dir.path().join("there")).await, folder(&dir.path().join("here")).await);
    let digests = chunks(&there, 2).await;
    let server = serving(&there).await;
    let total = 2 * CHUNK_BYTES - 12_345;
    let link = Link::from(server.address, CHUNK_BYTES / 2).await;
    let pulled = pull_blobs(&dialer(link.address, MEMBER), &here, &digests, 1, &mut |_, _| {}).await.unwrap();
    assert_eq!(pulled, total);
    assert!(link.was_cut());
    // What was on its way when the link broke is lost: what the system's buffers hold, far less than half a chunk.
    let most = total + CHUNK_BYTES / 4 + OVERHEAD;
    assert!((total..most).contains(&link.num_bytes_back()), "{} of at most {most}", link.num_bytes_back());
    for digest in digests {
        assert_eq!(here.get(digest).await.unwrap(), there.get(digest).await.unwrap());
    }
    server.stop().await;
}

#[tokio::test]
async fn after_a_kill_at_most_one_chunk_a_stream_is_sent_again() {
    const NUM_STREAMS: usize = 2;
    let dir = tempfile::tempdir().unwrap();
    let (there, here) = (folder(&dir.path().join("there")).await, folder(&dir.path().join("here")).await);
    let digests = chunks(&here, 8).await;
    let server = serving(&there).await;
    let link = Link::to(server.address, u64::MAX).await;
    {
        // The sender dies: everything of it is dropped in the middle of chunks.
        let dying = dialer(link.address, MEMBER);
        let mut nobody = |_, _| {};
        let pushing = push_blobs(&dying, &here, &digests, NUM_STREAMS, &mut nobody);
        let middle = async {
            while link.num_bytes() < 3 * CHUNK_BYTES + CHUNK_BYTES / 2 {
                tokio::task::yield_now().await;
            }
        };
        tokio::select! {
            done = pushing => panic!("over before it was killed: {done:?}"),
            () = middle => {}
        }
    }
    push_blobs(&dialer(link.address, MEMBER), &here, &digests, NUM_STREAMS, &mut |_, _| {}).await.unwrap();
    assert!(there.missing(&digests).await.unwrap().is_empty());
    let total = 8 * CHUNK_BYTES - 12_345;
    let most = total + NUM_STREAMS as u64 * CHUNK_BYTES + OVERHEAD;
    assert!((total..most).contains(&link.num_bytes()), "{} of at most {most}", link.num_bytes());
    server.stop().await;
}

#[tokio::test]
async fn ranges_are_the_rest_of_a_blob_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for store in [BlobStore::in_memory(), folder(dir.path()).await] {
        let digest = store.put(vec![7; 300_000].into()).await.unwrap();
        let server = serving(&store).await;
        let ask = async |range: &str| {
            let mut stream = crate::raw::raw_tls(server.address, crate::raw::Shown::honest(MEMBER)).await.unwrap();
            let head =
                format!("GET /v1/blobs/{digest} HTTP/1.1\r\nhost: x\r\nconnection: close\r\nrange: {range}\r\n\r\n");
            tokio::io::AsyncWriteExt::write_all(&mut stream, head.as_bytes()).await.unwrap();
            let mut answer = vec![];
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut answer).await.unwrap();
            let end = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap();
            (String::from_utf8(answer[..end].to_vec()).unwrap(), answer.len() - end - 4)
        };
        let (head, len) = ask("bytes=299990-").await;
        assert!(head.starts_with("HTTP/1.1 206 ") && head.contains("bytes 299990-299999/300000"), "{head}");
        assert_eq!(len, 10);
        for wrong in ["bytes=300000-", "bytes=-5", "bytes=0-10", "bytes=18446744073709551616-", "x"] {
            let (head, _) = ask(wrong).await;
            assert!(head.starts_with("HTTP/1.1 416 "), "{wrong}: {head}");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn a_limit_of_ones_own_is_not_taken_for_standing_still() {
    let limit = MIN_BYTES_PER_SECOND;
    let idle_timeout = Duration::from_millis(300);
    let content = vec![3; 150_000];
    // The limit is on the sending, then on the receiving side, and lets nothing through for longer than the idle timeout.
    for is_here in [true, false] {
        let there = BlobStore::in_memory();
        let limits = ServerLimits {
            idle_timeout,
            min_bytes_per_second: 1_000_000,
            max_bytes_per_second: (!is_here).then_some(limit),
            ..ServerLimits::default()
        };
        let routes = blob_routes(there.clone(), Arc::new(|_, _| Ok(())));
        let server = Running::at(ANY_PORT, members_only(), routes, limits).await;
        let mut dialer = server.dialer(MEMBER);
        if is_here {
            dialer = dialer.with_idle_timeout(idle_timeout).with_max_bytes_per_second(limit);
        }
        let here = BlobStore::in_memory();
        let digest = here.put(content.clone().into()).await.unwrap();
        if is_here {
            let again = BlobStore::in_memory();
            there.put(content.clone().into()).await.unwrap();
            pull_blobs(&dialer, &again, &[digest], 2, &mut |_, _| {}).await.unwrap();
            assert!(dialer.bytes_moved().1 < 200_000, "nothing was given up and asked for again");
        } else {
            push_blobs(&dialer, &here, &[digest], 2, &mut |_, _| {}).await.unwrap();
            assert!(dialer.bytes_moved().0 < 200_000, "nothing was refused and sent again");
        }
        server.stop().await;
    }
}

#[tokio::test]
async fn what_does_not_fit_is_not_begun() {
    let dir = tempfile::tempdir().unwrap();
    let full = folder(&dir.path().join("full")).await.with_reserve(u64::MAX);
    let there = BlobStore::in_memory();
    let digests = chunks(&there, 3).await;
    let server = serving(&there).await;
    let dialer = server.dialer(MEMBER);
    let error = pull_blobs(&dialer, &full, &digests, 2, &mut |_, _| {}).await.unwrap_err();
    let NetError::Store(StoreError::NoRoom { needed, place, .. }) = &error else { panic!("{error:?}") };
    assert_eq!(*needed, 2 * CHUNK_BYTES, "the last may be short");
    assert!(place.ends_with("full") && error.to_string().contains("Free some space"), "{error}");
    assert_eq!(dialer.bytes_moved(), (0, 0));
    server.stop().await;

    // A sender is told before it sends, and told no path.
    let server = serving(&full).await;
    let error = server.dialer(MEMBER).post_json::<_, Vec<Digest>>("/v1/blobs/missing", &digests).await.unwrap_err();
    assert!(
        matches!(&error, NetError::Refused { status: 507, retry: true, error }
            if error.contains("16777216 bytes are missing") && !error.contains("full/")),
        "{error:?}"
    );
    server.stop().await;
}

#[tokio::test]
async fn a_damaged_store_says_that_it_is_damaged_whoever_asks() {
    let dir = tempfile::tempdir().unwrap();
    let damaged = folder(dir.path()).await;
    let digest = chunks(&damaged, 1).await[0];
    let name = digest.to_string();
    let file = dir.path().join(&name[..2]).join(&name);
    let mut content = std::fs::read(&file).unwrap();
    content[1000] ^= 1;
    std::fs::write(&file, content).unwrap();
    let other = BlobStore::in_memory();
    let server = serving(&damaged).await;
    let error = pull_blobs(&server.dialer(MEMBER), &other, &[digest], 1, &mut |_, _| {}).await.unwrap_err();
    assert!(matches!(error, NetError::Refused { status: 500, retry: false, .. }), "{error:?}");
    server.stop().await;
    let server = serving(&other).await;
    let error = push_blobs(&server.dialer(MEMBER), &damaged, &[digest], 1, &mut |_, _| {}).await.unwrap_err();
    assert!(matches!(error, NetError::Store(StoreError::Damaged { .. })), "{error:?}");
    assert!(!other.has(digest).await.unwrap());
    server.stop().await;
}
