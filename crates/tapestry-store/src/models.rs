//! Models in and out: from a folder in Hugging Face layout to blobs and back.

use crate::stream::{WholeFile, export_chunks, import_reader, on_blocking_thread};
use crate::weights::WeightsWriter;
use crate::{BlobStore, StoreError};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::Path;
use tapestry_core::{Blob, Digest, ModelManifest, WeightsManifest};
use tapestry_weights::{HfDir, SafetensorsModel, SafetensorsWriter, WeightSource as _};

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
        let manifest = on_blocking_thread(move || import_model(&store, &dir)).await?;
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

    /// Writes a model in Hugging Face layout into `dir`, which is made where it is missing. Each file is there whole or
    /// not at all, and `model.safetensors` comes last: where it is, the model is complete.
    ///
    /// # Errors
    /// Where the manifest describes no possible model, a chunk is missing or damaged, or a file cannot be written.
    pub async fn export_model(&self, model: &ModelManifest, dir: &Path) -> Result<(), StoreError> {
        let (store, model, dir) = (self.clone(), model.clone(), dir.to_path_buf());
        on_blocking_thread(move || export_model(&store, &model, &dir)).await
    }
}

fn import_model(store: &BlobStore, dir: &Path) -> Result<ModelManifest, StoreError> {
    let checked = HfDir::open(dir)?;
    let mut files = BTreeMap::new();
    for name in FILES {
        if let Some(blob) = import_small_file(store, &dir.join(name))? {
            files.insert(name.to_owned(), blob);
        }
    }
    let (_, weights) = import_weights(store, &checked.weights_path)?;
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

/// The tensors one by one, in the order of their names, whatever order the files keep them in.
fn import_weights(store: &BlobStore, path: &Path) -> Result<(Digest, WeightsManifest), StoreError> {
    let file = SafetensorsModel::open(path)?;
    let mut writer = WeightsWriter::new(store.clone(), file.tensors().to_vec())?;
    let mut buffer = vec![0; 1 << 20];
    for (tensor, spec) in file.tensors().iter().enumerate() {
        let size = spec.size_bytes().unwrap_or(0);
        let mut start = 0;
        while start < size {
            let len = usize::try_from(size - start).map_or(buffer.len(), |rest| rest.min(buffer.len()));
            file.read_into(tensor, start, &mut buffer[..len])?;
            writer.write(&buffer[..len])?;
            start += len as u64;
        }
    }
    writer.finish()
}

fn export_model(store: &BlobStore, model: &ModelManifest, dir: &Path) -> Result<(), StoreError> {
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
        file.finish()?;
    }
    let mut file = SafetensorsWriter::create(&dir.join(WEIGHTS_FILE), model.weights.tensors.clone())?;
    export_chunks(store, &model.weights.data, &mut |content| Ok(file.write(content)?))?;
    Ok(file.finish()?)
}
