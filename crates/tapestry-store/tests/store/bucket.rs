//! Blobs and logs in a bucket of a real S3-compatible server.

use crate::blobs::files_in;
use bytes::Bytes;
use std::path::Path;
use std::time::Duration;
use tapestry_bucket::{ACCESS_KEY, BucketServer, SECRET_KEY};
use tapestry_core::{Digest, SecretKey, Timestamp};
use tapestry_store::{BlobStore, LogError, LogStore, Pulse, RoleLog, S3Credentials, S3Settings, StoreError};
use tempfile::TempDir;

/// A server with the bucket `consortium`, and what a coordinator would say of it.
fn bucket() -> (TempDir, BucketServer, S3Settings) {
    let root = tempfile::tempdir().unwrap();
    std::fs::create_dir(root.path().join("consortium")).unwrap();
    let server = BucketServer::start(root.path()).unwrap();
    let settings = S3Settings {
        bucket: "consortium".into(),
        prefix: "here".into(),
        endpoint: Some(server.endpoint()),
        region: "us-east-1".into(),
        allow_http: false,
        idle: Duration::from_secs(30),
    };
    (root, server, settings)
}

fn credentials() -> Result<S3Credentials, &'static str> {
    Ok(S3Credentials { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into(), session_token: None })
}

async fn blobs(folder: &Path, settings: &S3Settings) -> BlobStore {
    BlobStore::open_bucket(folder, settings.open(credentials()).await.unwrap(), &settings.place()).await.unwrap()
}

fn chunk(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 100_000 + usize::from(byte)])
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_confirmed_is_in_the_bucket_and_copies_are_only_copies() {
    let (_root, server, settings) = bucket();
    let copies = tempfile::tempdir().unwrap();
    let store = blobs(copies.path(), &settings).await;
    let mut digests = vec![];
    for byte in 0..5 {
        digests.push(store.put(chunk(byte)).await.unwrap());
    }
    assert!(store.missing(&digests).await.unwrap().is_empty());
    // Another machine, without any copy: everything is there.
    let elsewhere = tempfile::tempdir().unwrap();
    let other = blobs(elsewhere.path(), &settings).await;
    let absent = Digest::of(b"nothing");
    assert_eq!(other.missing(&[digests[0], absent, digests[4]]).await.unwrap(), [absent]);
    for (byte, digest) in (0..).zip(&digests) {
        assert_eq!(other.get(*digest).await.unwrap(), chunk(byte));
    }
    assert!(matches!(other.get(absent).await, Err(StoreError::Missing { .. })));
    let mut listed = vec![];
    for first in 0..=u8::MAX {
        listed.extend(other.digests(first).await.unwrap());
    }
    digests.sort_unstable();
    assert_eq!(listed, digests);
    // What is among the copies is read there.
    let num_requests = server.num_requests();
    other.get(digests[0]).await.unwrap();
    assert_eq!(server.num_requests(), num_requests);
    other.trim_copies(250_000).unwrap();
    let left: usize = std::fs::read_dir(elsewhere.path())
        .unwrap()
        .flatten()
        .map(|folder| std::fs::read_dir(folder.path()).map_or(0, Iterator::count))
        .sum();
    assert_eq!(left, 2, "of five copies of 100 kB");
    for digest in &digests {
        assert_eq!(Digest::of(&other.get(*digest).await.unwrap()), *digest, "and it comes again");
    }
    assert!(server.num_requests() > num_requests);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_whose_upload_failed_is_not_said_to_be_there() {
    let (root, server, settings) = bucket();
    let copies = tempfile::tempdir().unwrap();
    let digest = {
        let store = blobs(copies.path(), &settings).await;
        drop(server);
        let content = chunk(9);
        let gone = tokio::time::timeout(Duration::from_secs(3), store.put(content.clone())).await;
        assert!(!matches!(gone, Ok(Ok(_))), "nobody confirms what the bucket did not");
        Digest::of(&content)
    };
    let server = BucketServer::start(root.path()).unwrap();
    let settings = S3Settings { endpoint: Some(server.endpoint()), ..settings };
    let store = blobs(copies.path(), &settings).await;
    assert_eq!(store.missing(&[digest]).await.unwrap(), [digest], "it is among the copies, and that does not count");
    store.put(chunk(9)).await.unwrap();
    assert!(store.missing(&[digest]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_in_the_bucket_is_found() {
    let (root, _server, settings) = bucket();
    let copies = tempfile::tempdir().unwrap();
    let digest = blobs(copies.path(), &settings).await.put(chunk(1)).await.unwrap();
    let name = digest.to_string();
    let object = root.path().join("consortium/here").join(&name[..2]).join(&name);
    let mut content = std::fs::read(&object).unwrap();
    content[77] ^= 1;
    std::fs::write(&object, content).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    let read = blobs(elsewhere.path(), &settings).await.get(digest).await;
    assert!(matches!(read, Err(StoreError::Damaged { .. })), "{read:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_writers_of_one_entry_in_a_bucket_one_is_told() {
    let (_root, _server, settings) = bucket();
    let logs = async || LogStore::on(settings.open(credentials()).await.unwrap(), &settings.place());
    let key = SecretKey::from_seed(&[1; 32].into());
    let mut writers = vec![];
    for _ in 0..8 {
        writers.push(RoleLog::<u32>::open_on(logs().await, key.clone()).await.unwrap().0);
    }
    for round in 1..=3 {
        let attempts = writers.iter_mut().zip(0_u32..).map(|(writer, n)| writer.append(Timestamp::from_ms(round), n));
        let results = futures::future::join_all(attempts).await;
        let num_written = results.iter().filter(|result| result.is_ok()).count();
        assert_eq!(num_written, 1, "{results:?}");
        let is_told = |result: &Result<_, LogError>| matches!(result, Ok(_) | Err(LogError::Taken { .. }));
        assert!(results.iter().all(is_told), "{results:?}");
        for writer in &mut writers {
            writer.follow().await.unwrap();
        }
    }
    assert_eq!(RoleLog::<u32>::open_on(logs().await, key).await.unwrap().1.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_entry_whose_confirmation_was_lost_is_known_as_ones_own() {
    let (_root, _server, settings) = bucket();
    let log = LogStore::on(settings.open(credentials()).await.unwrap(), &settings.place());
    log.append(1, Bytes::from("signed by us")).await.unwrap();
    // As the client does that tries again when no answer has come.
    log.append(1, Bytes::from("signed by us")).await.unwrap();
    assert!(matches!(log.append(1, Bytes::from("signed by others")).await, Err(LogError::Taken { .. })));
    let pulse = Pulse::on(settings.open(credentials()).await.unwrap(), &settings.place());
    for sign in ["1", "2"] {
        pulse.beat(Bytes::from(sign)).await.unwrap();
        assert_eq!(pulse.last().await.unwrap(), Some(Bytes::from(sign)));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_that_is_never_answered_is_not_told_that_another_was_faster() {
    let (_root, server, settings) = bucket();
    let settings = S3Settings { idle: Duration::from_millis(500), ..settings };
    let log = LogStore::on(settings.open(credentials()).await.unwrap(), &settings.place());
    let key = SecretKey::from_seed(&[1; 32].into());
    let mut writer = RoleLog::<u32>::open_on(log, key).await.unwrap().0;
    for (number, num_lost) in [(1, 1), (2, 2), (3, 0)] {
        server.lose_answers(num_lost);
        writer.append(Timestamp::from_ms(number), 7).await.unwrap();
    }
    assert_eq!(writer.chain().num_entries(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_may_not_delete_is_enough() {
    let (root, server, settings) = bucket();
    server.keep_everything();
    let open = async || LogStore::on(settings.open(credentials()).await.unwrap(), &settings.place());
    let log = open().await;
    log.append(1, Bytes::from("an entry")).await.unwrap();
    assert_eq!(open().await.commits().await.unwrap(), [1]);
    let left = std::fs::read_dir(root.path().join("consortium/here")).unwrap().count();
    assert_eq!(left, 3, "the entry and two probes");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_disk_damaged_on_its_way_is_not_confirmed() {
    let (_root, _server, settings) = bucket();
    let copies = tempfile::tempdir().unwrap();
    let store = blobs(copies.path(), &settings).await;
    let digest = Digest::of(&chunk(3));
    let staged = store.stage(digest, chunk(3)).await.unwrap();
    let [partial] = &files_in(copies.path())[..] else { panic!("one file") };
    let mut content = std::fs::read(partial).unwrap();
    content[77] ^= 1;
    std::fs::write(partial, content).unwrap();
    let committed = store.commit(vec![staged]).await;
    assert!(matches!(committed, Err(StoreError::Damaged { .. })), "{committed:?}");
    assert_eq!(store.missing(&[digest]).await.unwrap(), [digest]);
    store.put(chunk(3)).await.unwrap();
    assert!(store.missing(&[digest]).await.unwrap().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_cannot_be_used_is_refused_with_the_reason() {
    let (_root, server, settings) = bucket();
    let reason = async |settings: S3Settings| settings.open(credentials()).await.map(drop).unwrap_err().to_string();
    let absent = reason(S3Settings { bucket: "absent".into(), ..settings.clone() }).await;
    assert!(absent.contains("cannot be listed") && absent.contains("no such bucket"), "{absent}");
    let plain = reason(S3Settings { endpoint: Some("http://s3.example.org".into()), ..settings.clone() }).await;
    assert!(plain.contains("allow_http"), "{plain}");
    let unnamed = settings.open(Err("AWS_ACCESS_KEY_ID")).await.map(drop).unwrap_err().to_string();
    assert!(unnamed.contains("AWS_ACCESS_KEY_ID is not in the environment"), "{unnamed}");
    let wrong = S3Credentials { secret_key: "another".into(), ..credentials().unwrap() };
    let wrong = settings.open(Ok(wrong)).await.map(drop).unwrap_err().to_string();
    assert!(wrong.contains("clock") && !wrong.contains("another"), "{wrong}");
    server.ignore_conditions();
    let careless = reason(settings).await;
    assert!(careless.contains("conditional writes"), "{careless}");
    for told in [absent, plain, careless] {
        assert!(!told.contains(SECRET_KEY), "{told}");
    }
}
