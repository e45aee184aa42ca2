use crate::faulty::SmallDisk;
use bytes::Bytes;
use std::fs;
use std::path::{Path, PathBuf};
use tapestry_core::{Blob, CHUNK_BYTES, Digest};
use tapestry_store::{BlobStore, StoreError};

/// The file of a blob in a folder.
fn file_of(folder: &Path, digest: Digest) -> PathBuf {
    let name = digest.to_string();
    folder.join(&name[..2]).join(&name)
}

/// Every file below `folder`.
pub(crate) fn files_in(folder: &Path) -> Vec<PathBuf> {
    let mut files = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(files_in(&path)) } else { files.push(path) }
    }
    files.sort();
    files
}

/// Bytes that no compression or deduplication would find dull.
pub(crate) fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[tokio::test]
async fn what_was_put_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let digest = BlobStore::open_folder(dir.path()).await.unwrap().put(Bytes::from_static(b"warp")).await.unwrap();
    assert_eq!(digest, Digest::of(b"warp"));
    let again = BlobStore::open_folder(dir.path()).await.unwrap();
    assert_eq!(again.get(digest).await.unwrap(), "warp");
    assert!(again.has(digest).await.unwrap());
    let absent = Digest::of(b"weft");
    assert_eq!(again.missing(&[absent, digest, absent]).await.unwrap(), [absent]);
    assert!(matches!(again.get(absent).await, Err(StoreError::Missing { digest, .. }) if digest == absent));
}

#[tokio::test]
async fn putting_twice_keeps_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_folder(dir.path()).await.unwrap();
    let first = store.put(Bytes::from_static(b"warp")).await.unwrap();
    let written = fs::metadata(file_of(dir.path(), first)).unwrap().modified().unwrap();
    assert_eq!(store.put(Bytes::from_static(b"warp")).await.unwrap(), first);
    assert_eq!(files_in(dir.path()), [file_of(&dir.path().canonicalize().unwrap(), first)]);
    assert_eq!(fs::metadata(file_of(dir.path(), first)).unwrap().modified().unwrap(), written);
}

#[tokio::test]
async fn damage_is_found_named_and_repaired_by_putting_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_folder(dir.path()).await.unwrap();
    let digest = store.put(content(1000, 1).into()).await.unwrap();
    let file = file_of(dir.path(), digest);
    let whole = fs::read(&file).unwrap();
    let mut flipped = whole.clone();
    flipped[500] ^= 1;
    for damaged in [flipped, whole[..999].to_vec(), vec![]] {
        fs::write(&file, &damaged).unwrap();
        let error = store.get(digest).await.unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        let message = error.to_string();
        assert!(message.contains(&digest.to_string()) && message.contains("Delete"), "{message}");
        assert!(message.contains(file.file_name().unwrap().to_str().unwrap()), "{message}");
        store.put_expected(digest, whole.clone().into()).await.unwrap();
        assert_eq!(store.get(digest).await.unwrap(), whole);
    }
}

#[tokio::test]
async fn an_oversized_file_under_a_blobs_name_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_folder(dir.path()).await.unwrap();
    let digest = store.put(Bytes::from_static(b"warp")).await.unwrap();
    let file = fs::File::options().write(true).open(file_of(dir.path(), digest)).unwrap();
    file.set_len(1 << 40).unwrap(); // sparse
    assert!(matches!(store.get(digest).await, Err(StoreError::Oversized { found, .. }) if found == 1 << 40));
    store.put(Bytes::from_static(b"warp")).await.unwrap();
    assert_eq!(store.get(digest).await.unwrap(), "warp");
}

#[tokio::test]
async fn content_that_is_not_what_was_asked_for_is_refused() {
    let store = BlobStore::in_memory();
    let expected = Digest::of(b"warp");
    let error = store.put_expected(expected, Bytes::from_static(b"weft")).await.unwrap_err();
    assert!(matches!(error, StoreError::WrongContent { found, .. } if found == Digest::of(b"weft")));
    assert!(!store.has(expected).await.unwrap());
    let too_large = Bytes::from(vec![0; usize::try_from(CHUNK_BYTES).unwrap() + 1]);
    assert!(matches!(store.put(too_large).await, Err(StoreError::TooLarge { .. })));
}

#[tokio::test]
async fn what_a_crash_left_half_written_is_gone_after_opening() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_folder(dir.path()).await.unwrap();
    let digest = store.put(Bytes::from_static(b"warp")).await.unwrap();
    let torn = Digest::of(b"torn");
    for partial in
        [format!("{}#1", file_of(dir.path(), torn).display()), format!("{}#12", dir.path().join("x").display())]
    {
        fs::create_dir_all(Path::new(&partial).parent().unwrap()).unwrap();
        fs::write(partial, b"to").unwrap();
    }
    assert!(!store.has(torn).await.unwrap());
    let again = BlobStore::open_folder(dir.path()).await.unwrap();
    assert_eq!(files_in(dir.path()).len(), 1);
    assert_eq!(again.get(digest).await.unwrap(), "warp");
}

#[tokio::test]
async fn a_full_disk_is_told_leaves_no_half_and_a_retry_works() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(dir.path(), 1500);
    let store = BlobStore::on(disk.clone(), "the small disk");
    let kept = store.put(content(1000, 1).into()).await.unwrap();
    let error = store.put(content(1000, 2).into()).await.unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }) && error.is_retryable(), "{error:?}");
    let message = error.to_string();
    assert!(message.contains("no space is left") && message.contains("run the same command again"), "{message}");
    let lost = Digest::of(&content(1000, 2));
    assert!(!store.has(lost).await.unwrap());
    assert!(matches!(store.get(lost).await, Err(StoreError::Missing { .. })));
    assert_eq!(store.get(kept).await.unwrap(), content(1000, 1));

    disk.set_free(5000);
    store.put(content(1000, 2).into()).await.unwrap();
    assert_eq!(store.get(lost).await.unwrap(), content(1000, 2));
    let again = BlobStore::open_folder(dir.path()).await.unwrap();
    assert_eq!(files_in(dir.path()).len(), 2, "the half-written file is gone");
    assert_eq!(again.get(lost).await.unwrap(), content(1000, 2));
}

#[tokio::test]
async fn documents_have_one_form() {
    let store = BlobStore::in_memory();
    let blob = Blob { size_bytes: 4, chunks: vec![Digest::of(b"warp")] };
    let digest = store.put_json(&blob).await.unwrap();
    assert_eq!(digest, Digest::of_json(&blob).unwrap());
    assert_eq!(store.get_json::<Blob>(digest).await.unwrap(), blob);
    let spaced = serde_json::to_string_pretty(&blob).unwrap();
    for (text, expected) in [(spaced.as_str(), "not the canonical form"), ("{\"size_bytes\":", "EOF"), ("[]", "Blob")] {
        let digest = store.put(text.to_owned().into()).await.unwrap();
        let message = store.get_json::<Blob>(digest).await.unwrap_err().to_string();
        assert!(message.contains(expected) && message.contains("canonical JSON"), "{message}");
    }
}

#[tokio::test]
async fn files_of_any_size_go_in_and_out() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_folder(&dir.path().join("blobs")).await.unwrap();
    let chunk = usize::try_from(CHUNK_BYTES).unwrap();
    for (len, num_chunks) in [(0, 0), (1, 1), (chunk, 1), (chunk + 1, 2), (2 * chunk + 77, 3)] {
        let (source, target) = (dir.path().join("in"), dir.path().join("out"));
        let whole = content(len, len as u64);
        fs::write(&source, &whole).unwrap();
        let blob = store.import_file(&source).await.unwrap();
        assert_eq!((blob.size_bytes, blob.chunks.len()), (len as u64, num_chunks));
        store.export_file(&blob, &target).await.unwrap();
        assert!(fs::read(&target).unwrap() == whole, "{len} bytes");
        assert!(store.read_blob(&blob, len as u64).await.unwrap() == whole);
        assert!(len == 0 || matches!(store.read_blob(&blob, len as u64 - 1).await, Err(StoreError::Oversized { .. })));
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "in, out and blobs: no partial file");
}

#[tokio::test]
async fn an_export_that_fails_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::in_memory();
    let here = store.put(Bytes::from_static(b"warp")).await.unwrap();
    let target = dir.path().join("out");
    let short = Blob { size_bytes: 5, chunks: vec![here] };
    assert!(matches!(store.export_file(&short, &target).await, Err(StoreError::ChunkSize { .. })));
    let absent = Blob { size_bytes: 4, chunks: vec![Digest::of(b"weft")] };
    assert!(matches!(store.export_file(&absent, &target).await, Err(StoreError::Missing { .. })));
    let long = Blob { size_bytes: CHUNK_BYTES + 4, chunks: vec![here] };
    assert!(store.export_file(&long, &target).await.is_err());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_writers_of_the_same_blobs_agree() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_folder(dir.path()).await.unwrap();
    let tasks: Vec<_> = (0..8).map(|_| tokio::spawn(put_twenty(store.clone()))).collect();
    let mut results = vec![];
    for task in tasks {
        results.push(task.await.unwrap());
    }
    assert!(results.windows(2).all(|pair| pair[0] == pair[1]));
    assert_eq!(files_in(dir.path()).len(), 20);
    assert!(store.missing(&results[0]).await.unwrap().is_empty());
}

async fn put_twenty(store: BlobStore) -> Vec<Digest> {
    let mut digests = vec![];
    for seed in 0..20 {
        digests.push(store.put(content(10_000, seed).into()).await.unwrap());
    }
    store.missing(&digests).await.unwrap();
    digests
}
