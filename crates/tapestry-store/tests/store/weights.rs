use crate::blobs::content;
use crate::faulty::SmallDisk;
use tapestry_core::{CHUNK_BYTES, Digest, Dtype, TensorSpec, WeightsManifest};
use tapestry_store::{BlobStore, StoreError, WeightsReader, WeightsWriter};

fn tensor(name: &str, dtype: Dtype, shape: &[u64]) -> TensorSpec {
    TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
}

/// Two and a half chunks of `f32` in three tensors.
fn tensors() -> Vec<TensorSpec> {
    let rows = CHUNK_BYTES / 4 / 1024;
    vec![
        tensor("a", Dtype::F32, &[rows, 1024]),
        tensor("b", Dtype::F32, &[7]),
        tensor("c", Dtype::BF16, &[3 * rows, 1024]),
    ]
}

fn size_bytes(tensors: &[TensorSpec]) -> usize {
    usize::try_from(tensors.iter().map(|t| t.size_bytes().unwrap()).sum::<u64>()).unwrap()
}

fn write(
    store: &BlobStore,
    tensors: Vec<TensorSpec>,
    whole: &[u8],
    piece: usize,
) -> Result<(Digest, WeightsManifest), StoreError> {
    let mut writer = WeightsWriter::new(store.clone(), tensors)?;
    for part in whole.chunks(piece) {
        writer.write(part)?;
    }
    writer.finish()
}

#[test]
fn what_was_written_is_read_on_a_thread_without_a_runtime() {
    let store = BlobStore::in_memory();
    let whole = content(size_bytes(&tensors()), 1);
    let (digest, manifest) = write(&store, tensors(), &whole, 1_000_003).unwrap();
    assert_eq!(digest, Digest::of_json(&manifest).unwrap());
    assert_eq!(write(&store, tensors(), &whole, whole.len()).unwrap().0, digest, "pieces do not matter");
    let reader = WeightsReader::open(store, manifest).unwrap();
    let len = whole.len();
    let chunk = usize::try_from(CHUNK_BYTES).unwrap();
    for (start, end) in
        [(0, 1), (0, len), (chunk - 1, chunk + 1), (chunk, 2 * chunk), (len - 1, len), (len, len), (5, 5)]
    {
        let found = reader.read_bytes(start as u64, (end - start) as u64).unwrap();
        assert!(found == whole[start..end], "{start}..{end}");
    }
    assert_eq!(reader.tensor_start(1), Some(CHUNK_BYTES));
    for (start, len) in [(0, len as u64 + 1), (u64::MAX, 2), (len as u64, 1)] {
        assert!(matches!(reader.read_bytes(start, len), Err(StoreError::Range { .. })));
    }
}

/// Also from the threads of a runtime, where waiting in the usual way would panic.
#[tokio::test]
async fn reading_works_inside_of_a_runtime() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::open_folder(dir.path()).await.unwrap();
    let whole = content(size_bytes(&tensors()), 2);
    let (_, manifest) = write(&store, tensors(), &whole, whole.len()).unwrap();
    let reader = WeightsReader::open(store, manifest).unwrap();
    assert!(reader.read_bytes(0, whole.len() as u64).unwrap() == whole);
    let read = tokio::task::spawn_blocking(move || reader.read_bytes(3, 4).unwrap());
    assert!(read.await.unwrap() == whole[3..7]);
}

#[test]
fn readers_on_many_threads_agree() {
    let store = BlobStore::in_memory();
    let whole = content(size_bytes(&tensors()), 3);
    let (_, manifest) = write(&store, tensors(), &whole, whole.len()).unwrap();
    let reader = WeightsReader::open(store, manifest).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (reader, whole) = (&reader, &whole);
            scope.spawn(move || {
                for i in 0..50 {
                    let start = (thread * 7_919_993 + i * 1_299_709) % (whole.len() - 5000);
                    assert!(reader.read_bytes(start as u64, 5000).unwrap() == whole[start..start + 5000]);
                }
            });
        }
    });
}

#[test]
fn too_few_and_too_many_bytes_are_errors() {
    let store = BlobStore::in_memory();
    let one = vec![tensor("a", Dtype::F32, &[2])];
    assert!(matches!(write(&store, one.clone(), &[0; 7], 7), Err(StoreError::WrittenSize { expected: 8, found: 7 })));
    assert!(matches!(write(&store, one, &[0; 9], 4), Err(StoreError::WrittenSize { expected: 8, found: 9 })));
}

#[test]
fn impossible_tensors_are_refused_before_anything_is_written() {
    let refused =
        |tensors| assert!(matches!(WeightsWriter::new(BlobStore::in_memory(), tensors), Err(StoreError::Manifest(_))));
    refused(vec![tensor("b", Dtype::F32, &[1]), tensor("a", Dtype::F32, &[1])]);
    refused(vec![tensor("a", Dtype::F32, &[u64::MAX, 2])]);
    refused(vec![tensor("a", Dtype::F32, &[1 << 61]), tensor("b", Dtype::F32, &[1 << 61])]);
    refused(vec![tensor("../a", Dtype::F32, &[1])]);
}

#[test]
fn a_manifest_that_does_not_fit_its_chunks_is_found() {
    let store = BlobStore::in_memory();
    let (_, mut manifest) = write(&store, vec![tensor("a", Dtype::F32, &[2])], &[1; 8], 8).unwrap();
    manifest.tensors[0].shape = vec![3];
    assert!(matches!(WeightsReader::open(store.clone(), manifest.clone()), Err(StoreError::Manifest(_))));
    manifest.data.size_bytes = 12;
    let reader = WeightsReader::open(store, manifest).unwrap();
    assert!(matches!(reader.read_bytes(0, 4), Err(StoreError::ChunkSize { expected: 12, found: 8, .. })));
}

#[test]
fn a_full_disk_in_the_middle_of_weights_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SmallDisk::new(dir.path(), 9 << 20);
    let store = BlobStore::on(disk.clone(), "the small disk");
    let whole = content(size_bytes(&tensors()), 4);
    let error = write(&store, tensors(), &whole, 1 << 20).unwrap_err();
    assert!(matches!(error, StoreError::DiskFull { .. }), "{error:?}");
    disk.set_free(1 << 30);
    let (_, manifest) = write(&store, tensors(), &whole, 1 << 20).unwrap();
    let reader = WeightsReader::open(store, manifest).unwrap();
    assert!(reader.read_bytes(0, whole.len() as u64).unwrap() == whole);
}
