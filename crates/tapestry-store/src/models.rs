//! Models in and out: from a folder in Hugging Face layout to blobs and back.

use crate::blocking::wait;
use crate::stream::{WholeFile, export_chunks, import_reader, on_blocking_thread};
use crate::verified::hash_range;
use crate::weights::check_tensors;
use crate::{BlobStore, ChunkBuffer, StoreError};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use tapestry_core::{Blob, CHUNK_BYTES, Digest, ModelManifest, TensorSpec, WeightsManifest};
use tapestry_weights::{HfDir, SafetensorsFile, SafetensorsModel, WeightSource as _, safetensors_header};

const WEIGHTS_FILE: &str = "model.safetensors";

/// The small files of the layout that belong to the model: what decides how it computes, reads text and answers, and
/// its licence. Anything else in the folder (logs, optimiser state) is not the model.
const FILES: [&str; 13] = [
    "config.json",
    "tokenizer.json",
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "merges.txt",
    "vocab.json",
    "tokenizer.model",
    "LICENSE",
    "LICENSE.txt",
    "NOTICE",
];

/// The largest of the small files: 64 MiB. Tokenizers of 250,000 tokens stay below 40.
const MAX_FILE_BYTES: u64 = 64 << 20;

impl BlobStore {
    /// Takes in a model in Hugging Face layout: `config.json`, `tokenizer.json`, `model.safetensors` or shards and their
    /// index, and those of the customary small files that are there. Gives the model's name and its manifest, which is
    /// stored too.
    ///
    /// The same model has the same name wherever it is taken in, in whatever files and order it keeps the tensors.
    ///
    /// # Errors
    /// Where a file is missing, is not what it should be or does not fit the others, or the store fails.
    pub async fn import_model(&self, hf_dir: &Path) -> Result<(Digest, ModelManifest), StoreError> {
        let (store, dir) = (self.clone(), hf_dir.to_path_buf());
        let manifest = on_blocking_thread(move || import_model(&store, &dir, import_weights)).await?;
        Ok((self.put_json(&manifest).await?, manifest))
    }

    /// Takes in the weights of a safetensors file, or of an index and its shards. Gives the digest of their manifest, which
    /// is stored too.
    ///
    /// # Errors
    /// Where the file is not what it should be, or the store fails.
    pub async fn import_weights(&self, safetensors: &Path) -> Result<(Digest, WeightsManifest), StoreError> {
        let (store, path) = (self.clone(), safetensors.to_path_buf());
        on_blocking_thread(move || import_weights(&store, &path)).await
    }

    /// As [`Self::import_model`], of what a trainer wrote and nobody will write to any more: where its weights are one file in canonical
    /// order on the same file system, that file itself becomes a part of the store (`pack.rs`), and is read-only from then on.
    ///
    /// # Errors
    /// As [`Self::import_model`].
    pub async fn adopt_model(&self, hf_dir: &Path) -> Result<(Digest, ModelManifest), StoreError> {
        let (store, dir) = (self.clone(), hf_dir.to_path_buf());
        let manifest = on_blocking_thread(move || import_model(&store, &dir, adopt_weights)).await?;
        Ok((self.put_json(&manifest).await?, manifest))
    }

    /// As [`Self::import_weights`], and as [`Self::adopt_model`].
    ///
    /// # Errors
    /// As [`Self::import_weights`].
    pub async fn adopt_weights(&self, safetensors: &Path) -> Result<(Digest, WeightsManifest), StoreError> {
        let (store, path) = (self.clone(), safetensors.to_path_buf());
        on_blocking_thread(move || adopt_weights(&store, &path)).await
    }

    /// Writes a model in Hugging Face layout into `dir`, which is made where it is missing. Each file is there whole or
    /// not at all, and `model.safetensors` comes last: where it is, the model is complete.
    ///
    /// # Errors
    /// Where the manifest describes no possible model, a chunk is missing or damaged, or a file cannot be written.
    pub async fn export_model(&self, model: &ModelManifest, dir: &Path) -> Result<(), StoreError> {
        let (store, model, dir) = (self.clone(), model.clone(), dir.to_path_buf());
        on_blocking_thread(move || export_model(&store, &model, &dir, true)).await
    }

    /// As [`Self::export_model`], for a reader that starts now and writes nothing there: nothing is synced, so that a power cut may leave
    /// files that are not whole. Whoever comes back after a restart writes them again. Weights that came by [`Self::begin_pack`] are not
    /// copied; their file gets another name, and is read-only.
    ///
    /// # Errors
    /// As [`Self::export_model`].
    pub async fn export_model_for_now(&self, model: &ModelManifest, dir: &Path) -> Result<(), StoreError> {
        let (store, model, dir) = (self.clone(), model.clone(), dir.to_path_buf());
        on_blocking_thread(move || export_model(&store, &model, &dir, false)).await
    }
}

/// How weights are taken in.
type TakeIn = fn(&BlobStore, &Path) -> Result<(Digest, WeightsManifest), StoreError>;

fn import_model(store: &BlobStore, dir: &Path, take_in: TakeIn) -> Result<ModelManifest, StoreError> {
    let checked = HfDir::open(dir)?;
    let mut files = BTreeMap::new();
    for name in FILES {
        if let Some(blob) = import_small_file(store, &dir.join(name))? {
            files.insert(name.to_owned(), blob);
        }
    }
    let (_, weights) = take_in(store, &checked.weights_path)?;
    let manifest = ModelManifest { files, weights };
    manifest.check()?;
    Ok(manifest)
}

/// The file's content, or `None` where there is no such file.
fn import_small_file(store: &BlobStore, path: &Path) -> Result<Option<Blob>, StoreError> {
    match File::open(path) {
        Ok(file) => import_reader(store, path, file, MAX_FILE_BYTES).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(StoreError::file("open", path, error)),
    }
}

/// The tensors in the order of their names, whatever order the files keep them in; several chunks at once.
fn import_weights(store: &BlobStore, path: &Path) -> Result<(Digest, WeightsManifest), StoreError> {
    let file = SafetensorsModel::open(path)?;
    let tensors = file.tensors().to_vec();
    let size_bytes = tensors.iter().filter_map(TensorSpec::size_bytes).fold(0u64, u64::saturating_add);
    check_tensors(&tensors, size_bytes)?;
    let chunks = in_parallel(
        size_bytes.div_ceil(CHUNK_BYTES),
        |index| {
            let start = index * CHUNK_BYTES;
            let mut chunk = ChunkBuffer::new(chunk_len(size_bytes, index));
            read_range(&file, start, chunk.room_for_all())?;
            store.stage_blocking(chunk.into_bytes())
        },
        |staged| store.commit_blocking(staged),
    )?;
    let manifest = WeightsManifest { tensors, data: Blob { size_bytes, chunks } };
    let (store, stored) = (store.clone(), manifest.clone());
    let digest = wait(async move { store.put_json(&stored).await })?;
    Ok((digest, manifest))
}

/// Takes a file in as it is, if it is one file in which the tensors lie in the order of their names; others are copied.
fn adopt_weights(store: &BlobStore, path: &Path) -> Result<(Digest, WeightsManifest), StoreError> {
    let path = SafetensorsModel::open(path)?.path().to_path_buf();
    // A link leads to something of somebody else's, and a file with two names may be.
    let is_own = |metadata: fs::Metadata| metadata.is_file() && metadata.nlink() == 1;
    let (Some(packs), Ok(file), true) =
        (store.packs(), SafetensorsFile::open(&path), fs::symlink_metadata(&path).is_ok_and(is_own))
    else {
        return import_weights(store, &path);
    };
    let tensors = file.tensors().to_vec();
    let size_bytes = file.data_len();
    check_tensors(&tensors, size_bytes)?;
    let content = File::open(&path).map_err(|e| StoreError::file("open", &path, e))?;
    // The disk has time to write while this hashes.
    let chunks = in_parallel(
        size_bytes.div_ceil(CHUNK_BYTES),
        |index| {
            let size = chunk_len(size_bytes, index) as u64;
            hash_range(&content, file.data_offset() + index * CHUNK_BYTES, size)
                .map_err(|e| StoreError::file("read", &path, e))
        },
        Ok,
    )?;
    content.sync_all().map_err(|e| StoreError::file("sync", &path, e))?;
    file.check_unchanged()?;
    let manifest = WeightsManifest { tensors, data: Blob { size_bytes, chunks } };
    let (putting, stored) = (store.clone(), manifest.clone());
    let digest = wait(async move { putting.put_json(&stored).await })?;
    if packs.adopt(digest, &manifest, &path)? { Ok((digest, manifest)) } else { import_weights(store, &path) }
}

/// The manifest of weights under this digest, if it is here and is one.
pub(crate) fn stored_manifest(store: &BlobStore, weights: Digest) -> Option<WeightsManifest> {
    // A file of its own, and never in a pack.
    let content = fs::read(store.file(weights)?).ok().filter(|content| Digest::of(content) == weights)?;
    let manifest: WeightsManifest = serde_json::from_slice(&content).ok()?;
    manifest.check().is_ok().then_some(manifest)
}

/// Bytes from `start` on of the tensors' data, put one behind the other in the order of their names.
fn read_range(file: &SafetensorsModel, start: u64, mut buffer: &mut [u8]) -> Result<(), StoreError> {
    let mut tensor_start = 0;
    let mut at = start;
    for (tensor, spec) in file.tensors().iter().enumerate() {
        let size = spec.size_bytes().unwrap_or(0);
        let offset = at - tensor_start;
        if offset < size {
            let len = usize::try_from(size - offset).map_or(buffer.len(), |rest| rest.min(buffer.len()));
            let (now, later) = buffer.split_at_mut(len);
            file.read_into(tensor, offset, now)?;
            at += len as u64;
            buffer = later;
        }
        if buffer.is_empty() {
            break;
        }
        tensor_start += size;
    }
    Ok(())
}

fn chunk_len(size_bytes: u64, index: u64) -> usize {
    usize::try_from((size_bytes - index * CHUNK_BYTES).min(CHUNK_BYTES)).expect("8 MiB fit in memory")
}

fn export_model(store: &BlobStore, model: &ModelManifest, dir: &Path, durable: bool) -> Result<(), StoreError> {
    model.check()?;
    for (name, blob) in &model.files {
        let path = dir.join(name);
        // Not even in other letters: some file systems see no difference.
        if name.eq_ignore_ascii_case(WEIGHTS_FILE) {
            let reason = "a model's manifest lists this among the small files; refuse the model".to_owned();
            return Err(StoreError::Layout { path, reason });
        }
        if blob.size_bytes > MAX_FILE_BYTES {
            let object = path.display().to_string();
            return Err(StoreError::Oversized { object, found: blob.size_bytes, limit: MAX_FILE_BYTES });
        }
    }
    fs::create_dir_all(dir).map_err(|e| StoreError::file("make the folder", dir, e))?;
    for (name, blob) in &model.files {
        let mut file = WholeFile::create(&dir.join(name))?;
        export_chunks(store, blob, &mut |content| file.write(content))?;
        if durable { file.finish()? } else { file.finish_for_now()? }
    }
    export_weights(store, &model.weights, &dir.join(WEIGHTS_FILE), durable)
}

/// Several chunks at once, each to its place.
fn export_weights(store: &BlobStore, weights: &WeightsManifest, path: &Path, durable: bool) -> Result<(), StoreError> {
    if !durable
        && let Some(packs) = store.packs()
        && packs.share(store, weights, path)?
    {
        return Ok(());
    }
    let file = WholeFile::create(path)?;
    let header = safetensors_header(&weights.tensors);
    file.write_at(&header, 0)?;
    let blob = &weights.data;
    let write = |index: u64| {
        let content = store.chunk_blocking(blob, usize::try_from(index).expect("chunks of a manifest in memory"))?;
        file.write_at(&content, header.len() as u64 + index * CHUNK_BYTES)
    };
    in_parallel(blob.chunks.len() as u64, write, Ok)?;
    if durable { file.finish() } else { file.finish_for_now() }
}

/// How many chunks are in memory at once.
const NUM_TOGETHER: usize = 4;
/// How many chunks share a commit.
const COMMIT_CHUNKS: usize = 16;

/// Does `work` for the numbers below `num`, on a few threads, and gives what came of each, in order. Every so many results of one
/// thread go through `settle` together.
pub(crate) fn in_parallel<T: Send, R: Send>(
    num: u64,
    work: impl Fn(u64) -> Result<T, StoreError> + Sync,
    settle: impl Fn(Vec<T>) -> Result<Vec<R>, StoreError> + Sync,
) -> Result<Vec<R>, StoreError> {
    let next = AtomicU64::new(0);
    let one_thread = || -> Result<Vec<(u64, R)>, StoreError> {
        let mut done = vec![];
        loop {
            let (mut indexes, mut results) = (vec![], vec![]);
            while results.len() < COMMIT_CHUNKS {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= num {
                    break;
                }
                // A failure keeps the other threads from beginning anything new.
                let result = work(index).inspect_err(|_| next.store(num, Ordering::Relaxed))?;
                indexes.push(index);
                results.push(result);
            }
            if indexes.is_empty() {
                return Ok(done);
            }
            done.extend(indexes.into_iter().zip(settle(results)?));
        }
    };
    let mut all = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..NUM_TOGETHER).map(|_| scope.spawn(one_thread)).collect();
        let mut all = vec![];
        for thread in threads {
            all.extend(thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok::<_, StoreError>(all)
    })?;
    all.sort_unstable_by_key(|(index, _)| *index);
    Ok(all.into_iter().map(|(_, result)| result).collect())
}
