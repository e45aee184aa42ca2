//! Weights that are one file and chunks at once.

use crate::blobs::{content, files_in};
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use tapestry_core::{Dtype, ModelManifest, TensorSpec, WeightsManifest};
use tapestry_store::{BlobStore, ChunkBuffer, PIECE_BYTES, StoreError};
use tapestry_weights::{SafetensorsFile, safetensors_header};

const CHUNK: usize = 8 << 20;
const WEIGHTS: &str = "model.safetensors";

/// Three chunks, of which the first two are the same, and a short one.
fn data() -> Vec<u8> {
    let chunk = content(CHUNK, 1);
    [&chunk[..], &chunk, &content(CHUNK, 2), &content(5000, 3)].concat()
}

/// A trainer's file.
fn write_weights(folder: &Path) -> PathBuf {
    fs::create_dir_all(folder).unwrap();
    let data = data();
    let (first, second) = (1_000_000, data.len() as u64 / 4 - 1_000_000);
    let spec = |name: &str, num| TensorSpec { name: name.into(), dtype: Dtype::F32, shape: vec![num] };
    let header = safetensors_header(&[spec("a", first), spec("b", second)]);
    fs::write(folder.join(WEIGHTS), [header, data].concat()).unwrap();
    folder.join(WEIGHTS)
}

/// A store that has the weights, and their manifest.
async fn source(dir: &Path) -> (BlobStore, WeightsManifest) {
    let store = BlobStore::in_memory();
    let (_, manifest) = store.import_weights(&write_weights(&dir.join("source"))).await.unwrap();
    (store, manifest)
}

async fn open(dir: &Path) -> BlobStore {
    BlobStore::open_folder(&dir.join("blobs")).await.unwrap()
}

/// Brings what is missing, each chunk in pieces.
async fn fetch(from: &BlobStore, to: &BlobStore, manifest: &WeightsManifest) -> usize {
    let missing = to.missing(&manifest.data.chunks).await.unwrap();
    for digest in &missing {
        let content = from.get(*digest).await.unwrap();
        let mut arrival = to.arrival(*digest);
        for bytes in content.chunks(PIECE_BYTES) {
            let mut piece = ChunkBuffer::new(bytes.len());
            piece.fill_from(bytes);
            arrival.write(piece).await.unwrap();
        }
        to.commit(vec![arrival.finish().await.unwrap()]).await.unwrap();
    }
    missing.len()
}

fn pack_of(dir: &Path) -> PathBuf {
    let packs = files_in(&dir.join("blobs/packs"));
    assert_eq!(packs.len(), 1, "{packs:?}");
    packs.into_iter().next().unwrap()
}

async fn lend(store: &BlobStore, manifest: &WeightsManifest, folder: &Path) -> Result<PathBuf, StoreError> {
    let model = ModelManifest { files: [].into(), weights: manifest.clone() };
    store.export_model_for_now(&model, folder).await?;
    Ok(folder.join(WEIGHTS))
}

async fn all_can_be_read(store: &BlobStore, manifest: &WeightsManifest) {
    assert!(store.missing(&manifest.data.chunks).await.unwrap().is_empty());
    let data = data();
    for (index, digest) in manifest.data.chunks.iter().enumerate() {
        let expected = &data[index * CHUNK..data.len().min((index + 1) * CHUNK)];
        assert!(store.get(*digest).await.unwrap() == expected, "chunk {index}");
        let mut departure = store.departure(*digest).await.unwrap();
        departure.skip_to(100);
        let mut sent = vec![];
        while let Some(piece) = departure.next().await.unwrap() {
            sent.extend_from_slice(&piece);
        }
        assert!(sent == expected[100..], "chunk {index}");
    }
}

/// Overwrites a byte as a program that does not care whether it may.
fn write_into(path: &Path, at_from_end: i64) {
    fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    let mut file = File::options().write(true).open(path).unwrap();
    file.seek(SeekFrom::End(-at_from_end)).unwrap();
    file.write_all(&[77]).unwrap();
}

#[tokio::test]
async fn weights_that_are_fetched_become_a_trainers_file_without_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (from, manifest) = source(dir.path()).await;
    let to = open(dir.path()).await;
    to.begin_pack(&manifest).await.unwrap();
    // One of them in one piece, as what came compressed.
    to.put_expected(manifest.data.chunks[2], from.get(manifest.data.chunks[2]).await.unwrap()).await.unwrap();
    assert_eq!(fetch(&from, &to, &manifest).await, 2);
    all_can_be_read(&to, &manifest).await;
    to.finish_pack().await.unwrap();
    all_can_be_read(&to, &manifest).await;

    let lent = lend(&to, &manifest, &dir.path().join("base")).await.unwrap();
    let pack = pack_of(dir.path());
    let facts = |path: &Path| fs::metadata(path).unwrap();
    // A second name; or, on a file system that can do that, a copy that shares the content.
    let is_link = facts(&pack).ino() == facts(&lent).ino();
    assert!(!is_link || facts(&lent).permissions().mode() & 0o222 == 0);
    assert!(fs::read(&lent).unwrap().ends_with(&data()));
    let file = SafetensorsFile::open(&lent).unwrap();
    assert_eq!(file.data_offset() % 4096, 0);
    // The only other blob is the manifest.
    assert_eq!(files_in(&dir.path().join("blobs")).len(), 2);

    let again = open(dir.path()).await;
    all_can_be_read(&again, &manifest).await;
    let other = BlobStore::read_folder(&dir.path().join("blobs")).unwrap();
    all_can_be_read(&other, &manifest).await;
    assert_eq!(from.import_weights(&lent).await.unwrap().1, manifest);
}

#[tokio::test]
async fn what_was_fetched_before_a_crash_is_not_fetched_again_unless_it_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let (from, manifest) = source(dir.path()).await;
    let chunks = &manifest.data.chunks;
    let before = open(dir.path()).await;
    before.begin_pack(&manifest).await.unwrap();
    for index in [0, 2] {
        before.put_expected(chunks[index], from.get(chunks[index]).await.unwrap()).await.unwrap();
    }
    drop(before);

    let after = open(dir.path()).await;
    after.begin_pack(&manifest).await.unwrap();
    assert_eq!(after.missing(chunks).await.unwrap(), [chunks[3]]);
    drop(after);
    write_into(&pack_of(dir.path()), 5000 + 1);
    let after = open(dir.path()).await;
    after.begin_pack(&manifest).await.unwrap();
    assert_eq!(after.missing(chunks).await.unwrap(), [chunks[2], chunks[3]]);
    assert_eq!(fetch(&from, &after, &manifest).await, 2);
    after.finish_pack().await.unwrap();
    all_can_be_read(&open(dir.path()).await, &manifest).await;

    // What was begun for other weights goes.
    let stale = dir.path().join("blobs/packs/0.part");
    fs::write(&stale, "").unwrap();
    let mut other = manifest.clone();
    other.data.chunks[3] = tapestry_core::Digest::of(b"other");
    after.begin_pack(&other).await.unwrap();
    assert!(!stale.exists());
    assert!(matches!(after.finish_pack().await, Err(StoreError::Missing { .. })));
}

#[tokio::test]
async fn a_chunk_that_is_not_what_it_should_be_leaves_its_neighbours_alone() {
    let dir = tempfile::tempdir().unwrap();
    let (from, manifest) = source(dir.path()).await;
    let chunks = &manifest.data.chunks;
    let to = open(dir.path()).await;
    to.begin_pack(&manifest).await.unwrap();
    to.put_expected(chunks[2], from.get(chunks[2]).await.unwrap()).await.unwrap();
    to.put_expected(chunks[3], from.get(chunks[3]).await.unwrap()).await.unwrap();
    // Longer than its place and wrong, while another brings the right one.
    let (mut wrong, mut right) = (to.arrival(chunks[0]), to.arrival(chunks[0]));
    let whole = from.get(chunks[0]).await.unwrap();
    for piece in whole.chunks(PIECE_BYTES) {
        let mut buffer = ChunkBuffer::new(PIECE_BYTES);
        buffer.fill_from(&vec![9; PIECE_BYTES]);
        wrong.write(buffer).await.unwrap();
        let mut buffer = ChunkBuffer::new(PIECE_BYTES);
        buffer.fill_from(piece);
        right.write(buffer).await.unwrap();
    }
    to.commit(vec![right.finish().await.unwrap()]).await.unwrap();
    assert!(matches!(wrong.finish().await, Err(StoreError::WrongContent { .. })));
    let mut longer = to.arrival(chunks[3]);
    let mut buffer = ChunkBuffer::new(PIECE_BYTES);
    buffer.fill_from(&vec![9; PIECE_BYTES]);
    longer.write(buffer).await.unwrap();
    assert!(matches!(longer.finish().await, Err(StoreError::WrongContent { .. })));
    to.finish_pack().await.unwrap();
    all_can_be_read(&to, &manifest).await;
    assert!(fs::read(pack_of(dir.path())).unwrap().ends_with(&data()));
}

#[tokio::test]
async fn a_trainer_that_writes_into_what_it_was_lent_damages_nothing_unnoticed() {
    let dir = tempfile::tempdir().unwrap();
    let (from, manifest) = source(dir.path()).await;
    let chunks = &manifest.data.chunks;
    let store = open(dir.path()).await;
    store.begin_pack(&manifest).await.unwrap();
    fetch(&from, &store, &manifest).await;
    store.finish_pack().await.unwrap();
    // The store's own name: on any file system, whatever could be written through it is written here.
    write_into(&pack_of(dir.path()), 5000 + 1);
    assert_eq!(store.missing(chunks).await.unwrap(), [chunks[2]]);
    assert!(matches!(store.get(chunks[2]).await, Err(StoreError::Missing { .. })));
    assert!(store.get(chunks[0]).await.is_ok());
    let base = dir.path().join("base");
    assert!(matches!(lend(&store, &manifest, &base).await, Err(StoreError::Missing { .. })));
    // Fetched again, the pack is as it was.
    store.begin_pack(&manifest).await.unwrap();
    assert_eq!(fetch(&from, &store, &manifest).await, 1);
    store.finish_pack().await.unwrap();
    assert!(fs::read(lend(&store, &manifest, &base).await.unwrap()).unwrap().ends_with(&data()));

    // Damage that an earlier process saw nothing of is found before a trainer gets it.
    write_into(&pack_of(dir.path()), 1);
    let later = open(dir.path()).await;
    assert!(matches!(lend(&later, &manifest, &base).await, Err(StoreError::Missing { .. })));
    assert_eq!(later.missing(chunks).await.unwrap(), [chunks[3]]);
}

#[tokio::test]
async fn what_a_trainer_wrote_becomes_chunks_without_a_copy() {
    let dir = tempfile::tempdir().unwrap();
    let (from, manifest) = source(dir.path()).await;
    let out = dir.path().join("out");
    let file = write_weights(&out);
    let store = open(dir.path()).await;
    let (digest, adopted) = store.adopt_weights(&out).await.unwrap();
    assert_eq!(adopted, manifest);
    assert_eq!(store.get_json::<WeightsManifest>(digest).await.unwrap(), manifest);
    assert_eq!(files_in(&dir.path().join("blobs")).len(), 2);
    // Once more, as after a crash before anybody noted it: nothing new.
    assert_eq!(store.adopt_weights(&file).await.unwrap().0, digest);
    assert_eq!(files_in(&dir.path().join("blobs")).len(), 2);
    fs::remove_dir_all(&out).unwrap();
    all_can_be_read(&store, &manifest).await;
    all_can_be_read(&open(dir.path()).await, &manifest).await;

    // Somebody else's file is not made ours.
    let (theirs, linked) = (write_weights(&dir.path().join("theirs")), dir.path().join("linked"));
    fs::create_dir_all(&linked).unwrap();
    symlink(&theirs, linked.join(WEIGHTS)).unwrap();
    let other = BlobStore::open_folder(&dir.path().join("other")).await.unwrap();
    assert_eq!(other.adopt_weights(&linked).await.unwrap().0, digest);
    assert!(!dir.path().join("other/packs").exists());
    assert_eq!(fs::metadata(&theirs).unwrap().nlink(), 1);
    assert!(from.missing(&other.missing(&manifest.data.chunks).await.unwrap()).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_pack_without_its_manifest_counts_for_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let out = dir.path().join("out");
    write_weights(&out);
    let (digest, manifest) = store.adopt_weights(&out).await.unwrap();
    drop(store);
    let name = digest.to_string();
    fs::remove_file(dir.path().join("blobs").join(&name[..2]).join(&name)).unwrap();
    let store = open(dir.path()).await;
    assert_eq!(store.missing(&manifest.data.chunks).await.unwrap().len(), 3);
}
