use crate::blobs::{content, files_in};
use std::fs;
use std::path::Path;
use tapestry_core::{CHUNK_BYTES, Dtype, ModelManifest, TensorSpec};
use tapestry_store::{BlobStore, StoreError, WeightsReader, chunk_digests};
use tapestry_weights::{DecoderShape, SafetensorsFile, WeightSource as _, expected_tensors, save_safetensors};

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50000, "rms_norm_eps": 1e-5,
    "tie_word_embeddings": true}"#;

/// A model with an embedding of more than one chunk.
fn make_model(dir: &Path) -> Vec<TensorSpec> {
    fs::create_dir_all(dir).unwrap();
    fs::write(dir.join("config.json"), CONFIG).unwrap();
    fs::write(dir.join("tokenizer.json"), "{}").unwrap();
    fs::write(dir.join("generation_config.json"), "").unwrap();
    fs::write(dir.join("optimizer.bin"), "not the model").unwrap();
    let tensors = expected_tensors(&DecoderShape::parse(CONFIG).unwrap());
    let values = |spec: &TensorSpec| {
        let len = usize::try_from(spec.num_elements().unwrap()).unwrap();
        Ok::<_, StoreError>(content(len, spec.name.len() as u64).into_iter().map(|b| f32::from(b) - 99.5).collect())
    };
    save_safetensors(&dir.join("model.safetensors"), tensors.clone(), values).unwrap();
    tensors
}

/// The same model with the tensors in the reverse order, as other programs may write it.
fn reverse_order(file: &Path) {
    let whole = SafetensorsFile::open(file).unwrap();
    let mut header = serde_json::Map::new();
    let mut data = vec![];
    for (index, spec) in whole.tensors().iter().enumerate().rev() {
        let start = data.len();
        data.resize(start + usize::try_from(spec.size_bytes().unwrap()).unwrap(), 0);
        whole.read_into(index, 0, &mut data[start..]).unwrap();
        let entry = serde_json::json!({"dtype": "F32", "shape": spec.shape, "data_offsets": [start, data.len()]});
        header.insert(spec.name.clone(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    fs::write(file, [&(header.len() as u64).to_le_bytes(), header.as_slice(), &data].concat()).unwrap();
}

#[tokio::test]
async fn a_model_goes_in_and_comes_out_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("in"), dir.path().join("out"));
    make_model(&source);
    let store = BlobStore::open_folder(&dir.path().join("blobs")).await.unwrap();
    let (name, manifest) = store.import_model(&source).await.unwrap();
    assert_eq!(name, manifest.digest().unwrap());
    assert_eq!(store.get_json::<ModelManifest>(name).await.unwrap(), manifest);
    assert_eq!(manifest.files.keys().collect::<Vec<_>>(), ["config.json", "generation_config.json", "tokenizer.json"]);
    assert!(manifest.weights.data.chunks.len() > 1);
    assert!(store.missing(&chunk_digests(&manifest)).await.unwrap().is_empty());

    store.export_model(&manifest, &target).await.unwrap();
    for file in ["config.json", "generation_config.json", "tokenizer.json", "model.safetensors"] {
        assert!(fs::read(source.join(file)).unwrap() == fs::read(target.join(file)).unwrap(), "{file}");
    }
    assert_eq!(files_in(&target).len(), 4);
    assert_eq!(store.import_model(&target).await.unwrap().0, name);
}

#[tokio::test]
async fn the_order_of_tensors_in_a_file_does_not_change_the_models_name() {
    let dir = tempfile::tempdir().unwrap();
    make_model(dir.path());
    let store = BlobStore::in_memory();
    let (canonical, _) = store.import_model(dir.path()).await.unwrap();
    let (weights, _) = store.import_weights(&dir.path().join("model.safetensors")).await.unwrap();
    reverse_order(&dir.path().join("model.safetensors"));
    assert!(SafetensorsFile::open(&dir.path().join("model.safetensors")).is_err());
    assert_eq!(store.import_model(dir.path()).await.unwrap().0, canonical);
    assert_eq!(store.import_weights(&dir.path().join("model.safetensors")).await.unwrap().0, weights);
}

/// The same model in two shards, every other tensor in each.
fn cut_into_shards(dir: &Path) {
    let whole = SafetensorsFile::open(&dir.join("model.safetensors")).unwrap();
    let shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];
    let mut weight_map = serde_json::Map::new();
    for (n, shard) in shards.iter().enumerate() {
        let tensors: Vec<TensorSpec> = whole.tensors().iter().skip(n).step_by(2).cloned().collect();
        weight_map.extend(tensors.iter().map(|spec| (spec.name.clone(), (*shard).into())));
        save_safetensors(&dir.join(shard), tensors, |spec| whole.read_named(&spec.name)).unwrap();
    }
    let index = serde_json::json!({"metadata": {"total_size": 1}, "weight_map": weight_map});
    fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
    fs::remove_file(dir.join("model.safetensors")).unwrap();
}

#[tokio::test]
async fn a_model_in_shards_has_the_name_of_the_same_model_in_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let (source, target) = (dir.path().join("in"), dir.path().join("out"));
    make_model(&source);
    let store = BlobStore::in_memory();
    let (name, manifest) = store.import_model(&source).await.unwrap();
    let content = fs::read(source.join("model.safetensors")).unwrap();
    cut_into_shards(&source);
    assert_eq!(store.import_model(&source).await.unwrap(), (name, manifest.clone()));
    let index = source.join("model.safetensors.index.json");
    assert_eq!(store.import_weights(&index).await.unwrap().1, manifest.weights);
    store.export_model(&manifest, &target).await.unwrap();
    assert!(fs::read(target.join("model.safetensors")).unwrap() == content);

    // The configuration is checked against the tensors of all shards.
    let without = fs::read_to_string(&index).unwrap().replace("\"model.norm.weight\"", "\"model.gone.weight\"");
    fs::write(&index, without).unwrap();
    let message = store.import_model(&source).await.unwrap_err().to_string();
    assert!(message.contains("model.gone.weight"), "{message}");
    fs::remove_file(source.join("model-00002-of-00002.safetensors")).unwrap();
    let message = store.import_model(&source).await.unwrap_err().to_string();
    assert!(message.contains("model-00002-of-00002.safetensors"), "{message}");
}

#[tokio::test]
async fn a_reader_gives_the_values_of_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let tensors = make_model(dir.path());
    let store = BlobStore::in_memory();
    let (_, manifest) = store.import_model(dir.path()).await.unwrap();
    let file = SafetensorsFile::open(&dir.path().join("model.safetensors")).unwrap();
    let reader = WeightsReader::open(store, manifest.weights).unwrap();
    assert_eq!(reader.tensors(), tensors);
    for (index, spec) in tensors.iter().enumerate() {
        let count = spec.num_elements().unwrap();
        assert!(reader.read_f32(index, 0, count).unwrap() == file.read_f32(index, 0, count).unwrap(), "{}", spec.name);
        assert_eq!(reader.read_f32(index, count - 1, 1).unwrap(), file.read_f32(index, count - 1, 1).unwrap());
        assert!(reader.read_f32(index, count - 1, 2).is_err());
        assert!(reader.read_f32(index, u64::MAX, 2).is_err());
    }
    assert!(reader.read_f32(tensors.len(), 0, 0).is_err());
}

/// All of a chunk, as a pass over it gives it.
fn scanned(reader: &WeightsReader, index: usize) -> Result<Vec<u8>, StoreError> {
    let (mut scan, mut content) = (reader.scan(index)?, vec![]);
    while let Some(window) = scan.window()? {
        content.extend_from_slice(window);
    }
    Ok(content)
}

#[tokio::test]
async fn a_pass_over_a_chunk_gives_its_content_and_ends_with_an_error_where_it_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    make_model(dir.path());
    let folder = BlobStore::open_folder(&dir.path().join("blobs")).await.unwrap();
    for store in [folder.clone(), BlobStore::in_memory()] {
        let (_, manifest) = store.import_model(dir.path()).await.unwrap();
        let reader = WeightsReader::open(store, manifest.weights.clone()).unwrap();
        for (index, digest) in manifest.weights.data.chunks.iter().enumerate() {
            for _ in 0..2 {
                let content = scanned(&reader, index).unwrap();
                assert_eq!(
                    (tapestry_core::Digest::of(&content), content.len() as u64),
                    (*digest, manifest.weights.data.chunk_size(index))
                );
            }
        }
    }
    let (_, manifest) = folder.import_model(dir.path()).await.unwrap();
    let damaged = manifest.weights.data.chunks[1].to_string();
    let file = dir.path().join("blobs").join(&damaged[..2]).join(&damaged);
    let mut content = fs::read(&file).unwrap();
    *content.last_mut().unwrap() ^= 1;
    fs::write(&file, content).unwrap();
    let reader = WeightsReader::open(folder, manifest.weights).unwrap();
    for _ in 0..2 {
        let error = scanned(&reader, 1).unwrap_err();
        assert!(matches!(&error, StoreError::Damaged { .. }) && error.to_string().contains(&damaged), "{error}");
    }
    assert!(scanned(&reader, 0).is_ok());
}

#[tokio::test]
async fn a_damaged_chunk_stops_the_reader_and_the_export_with_its_name() {
    let dir = tempfile::tempdir().unwrap();
    make_model(&dir.path().join("in"));
    let store = BlobStore::open_folder(&dir.path().join("blobs")).await.unwrap();
    let (_, manifest) = store.import_model(&dir.path().join("in")).await.unwrap();
    let damaged = manifest.weights.data.chunks[1].to_string();
    let file = dir.path().join("blobs").join(&damaged[..2]).join(&damaged);
    let mut bytes = fs::read(&file).unwrap();
    bytes[77] ^= 4;
    fs::write(&file, bytes).unwrap();

    let error = store.export_model(&manifest, &dir.path().join("out")).await.unwrap_err();
    assert!(matches!(&error, StoreError::Damaged { .. }) && error.to_string().contains(&damaged), "{error}");
    assert!(!dir.path().join("out/model.safetensors").exists());
    assert_eq!(files_in(&dir.path().join("out")).len(), 3, "no partial file");
    let reader = WeightsReader::open(store.clone(), manifest.weights.clone()).unwrap();
    let message = reader.read_f32(0, 0, 50_000 * 64).unwrap_err().to_string();
    assert!(message.contains(&damaged) && message.contains("fetched again"), "{message}");

    fs::remove_file(file).unwrap();
    assert_eq!(store.missing(&chunk_digests(&manifest)).await.unwrap(), [manifest.weights.data.chunks[1]]);
}

#[tokio::test]
async fn folders_that_are_no_model_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = BlobStore::in_memory();
    for missing in ["config.json", "tokenizer.json", "model.safetensors"] {
        make_model(dir.path());
        fs::remove_file(dir.path().join(missing)).unwrap();
        let message = store.import_model(dir.path()).await.unwrap_err().to_string();
        assert!(message.contains(missing), "{message}");
    }
    make_model(dir.path());
    fs::write(dir.path().join("config.json"), CONFIG.replace("96", "97")).unwrap();
    let message = store.import_model(dir.path()).await.unwrap_err().to_string();
    assert!(message.contains("mlp.down_proj") && message.contains("does not fit"), "{message}");
    make_model(dir.path());
    let weights = fs::read(dir.path().join("model.safetensors")).unwrap();
    fs::write(dir.path().join("model.safetensors"), &weights[..weights.len() - 1]).unwrap();
    assert!(matches!(store.import_model(dir.path()).await, Err(StoreError::Weights(_))));
    make_model(dir.path());
    fs::File::create(dir.path().join("tokenizer.json")).unwrap().set_len(1 << 33).unwrap();
    assert!(matches!(store.import_model(dir.path()).await, Err(StoreError::Oversized { .. })));
}

#[tokio::test]
async fn manifests_that_would_write_elsewhere_or_without_end_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    make_model(&dir.path().join("in"));
    let store = BlobStore::in_memory();
    let (_, honest) = store.import_model(&dir.path().join("in")).await.unwrap();
    let blob = honest.files["config.json"].clone();
    for name in ["../config.json", ".bashrc", "a/b", "model.safetensors", "MODEL.safetensors", ""] {
        let mut model = honest.clone();
        model.files.insert(name.into(), blob.clone());
        assert!(store.export_model(&model, &dir.path().join("out")).await.is_err(), "{name:?}");
    }
    let mut model = honest.clone();
    let chunk = honest.weights.data.chunks[0];
    let large = tapestry_core::Blob { size_bytes: 100 * CHUNK_BYTES, chunks: vec![chunk; 100] };
    model.files.insert("tokenizer.json".into(), large);
    assert!(matches!(store.export_model(&model, &dir.path().join("out")).await, Err(StoreError::Oversized { .. })));
    assert!(!dir.path().join("out").exists());
}

#[test]
fn pieces_cover_everything_once_in_whole_elements() {
    let store = BlobStore::in_memory();
    let elements = CHUNK_BYTES / 4;
    let tensor = |name: &str, dtype, len| TensorSpec { name: name.into(), dtype, shape: vec![len] };
    // The odd number of 2-byte elements puts every following element of 4 bytes across the borders.
    let tensors = vec![
        tensor("a", Dtype::F32, 3),
        tensor("b", Dtype::BF16, 7),
        tensor("c", Dtype::F32, 2 * elements + 5),
        tensor("d", Dtype::F16, 0),
        tensor("e", Dtype::F16, 1),
    ];
    let size_bytes = tensors.iter().map(|t| t.size_bytes().unwrap()).sum::<u64>();
    let mut writer = tapestry_store::WeightsWriter::new(store, tensors.clone()).unwrap();
    writer.write(&content(usize::try_from(size_bytes).unwrap(), 1)).unwrap();
    let (_, manifest) = writer.finish().unwrap();
    let starts: Vec<u64> = manifest.offsets().map(|(_, start)| start).collect();
    let mut at = 0;
    let mut previous = 0;
    for piece in tapestry_store::pieces(&manifest) {
        let spec = &tensors[piece.tensor];
        assert!(
            piece.tensor >= previous && piece.start == at && piece.len > 0 && piece.len <= CHUNK_BYTES,
            "{piece:?}"
        );
        assert!((piece.start - starts[piece.tensor]).is_multiple_of(spec.dtype.size_bytes()), "{piece:?}");
        assert!(piece.len.is_multiple_of(spec.dtype.size_bytes()), "{piece:?}");
        assert!(piece.start + piece.len <= starts[piece.tensor] + spec.size_bytes().unwrap(), "{piece:?}");
        (at, previous) = (at + piece.len, piece.tensor);
    }
    assert_eq!(at, size_bytes);
    assert_eq!(tapestry_store::pieces(&manifest).count(), 6);
}
