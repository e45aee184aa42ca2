//! A model's weights in one safetensors file or in several.

use super::index::{Index, MAX_INDEX_BYTES};
use super::{FORMAT, FileFacts, OtherTensor, SafetensorsFile};
use crate::{WeightSource, WeightsError};
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use tapestry_core::{Digest, TensorSpec};

/// The weights of a folder that keeps them in one file.
const SINGLE: &str = "model.safetensors";
/// The index of a folder that keeps them in shards.
const INDEX: &str = "model.safetensors.index.json";
const INDEX_FORMAT: &str = "safetensors index";

/// The weights of one model, open for reading: a file, or shards united by their index.
///
/// Every shard is open as long as this lives; no tensor is in two of them; the index and the shards agree on every tensor.
/// As with [`SafetensorsFile`], any number of threads may read at once, and nothing of the data is kept in memory.
#[derive(Debug)]
pub struct SafetensorsModel {
    path: PathBuf,
    files: Vec<SafetensorsFile>,
    tensors: Vec<TensorSpec>,
    /// File and number in it of each tensor.
    places: Vec<Place>,
    others: Vec<OtherTensor>,
    other_places: Vec<Place>,
}

#[derive(Debug, Clone, Copy)]
struct Place {
    file: usize,
    number: usize,
}

impl SafetensorsModel {
    /// Opens a safetensors file, an index (`*.index.json`) with its shards, or a folder that holds `model.safetensors` or
    /// `model.safetensors.index.json`. Tensors may lie in any order.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`] naming the file and its first fault: of a shard as [`SafetensorsFile::open_any_order`]; of
    /// the index a shard or tensor that is missing, listed nowhere, or in two places.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        Self::open_files(path, SafetensorsFile::open_any_order)
    }

    /// As [`SafetensorsModel::open`]; the files may also hold tensors of other types, which [`SafetensorsModel::others`] lists.
    ///
    /// # Errors
    /// As [`SafetensorsModel::open`].
    pub fn open_with_others(path: &Path) -> Result<Self, WeightsError> {
        Self::open_files(path, SafetensorsFile::open_with_others)
    }

    fn open_files(
        path: &Path,
        open: impl Fn(&Path) -> Result<SafetensorsFile, WeightsError>,
    ) -> Result<Self, WeightsError> {
        let path = find_weights(path)?;
        if !path.as_os_str().as_encoded_bytes().ends_with(b".index.json") {
            return Ok(Self::unite(vec![open(&path)?], path));
        }
        let malformed = |what: String| WeightsError::malformed(INDEX_FORMAT, &path, what);
        let index = Index::parse(&read_index(&path)?).map_err(malformed)?;
        let mut files = vec![];
        for shard in &index.shards {
            let file = path.with_file_name(shard);
            if !file.exists() {
                return Err(malformed(format!("it lists the shard {shard:?}, which is not beside it")));
            }
            files.push(open(&file)?);
        }
        let model = Self::unite(files, path.clone());
        model.check_index(&index).map_err(malformed)?;
        Ok(model)
    }

    fn unite(files: Vec<SafetensorsFile>, path: PathBuf) -> Self {
        let mut tensors = vec![];
        let mut others = vec![];
        for (file, shard) in files.iter().enumerate() {
            let place = |number| Place { file, number };
            tensors.extend(shard.tensors().iter().enumerate().map(|(n, spec)| (spec.clone(), place(n))));
            others.extend(shard.others().iter().enumerate().map(|(n, other)| (other.clone(), place(n))));
        }
        // Stable: of two with one name, the one in the earlier file comes first.
        tensors.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        others.sort_by(|a, b| a.0.name.cmp(&b.0.name));
        let (tensors, places) = tensors.into_iter().unzip();
        let (others, other_places) = others.into_iter().unzip();
        Self { path, files, tensors, places, others, other_places }
    }

    /// Compares what the index lists with what the shards hold.
    fn check_index(&self, index: &Index) -> Result<(), String> {
        let floats = self.tensors.iter().zip(&self.places).map(|(spec, place)| (spec.name.as_str(), place.file));
        let others = self.others.iter().zip(&self.other_places).map(|(other, place)| (other.name.as_str(), place.file));
        let mut held: Vec<(&str, usize)> = floats.chain(others).collect();
        held.sort_unstable();
        if let Some(pair) = held.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            let [first, second] = [pair[0].1, pair[1].1].map(|shard| &index.shards[shard]);
            return Err(format!("tensor {:?} is in two shards, {first:?} and {second:?}", pair[0].0));
        }
        for (tensor, shard) in &index.tensors {
            let expected = &index.shards[*shard];
            match held.binary_search_by(|(name, _)| (*name).cmp(tensor)) {
                Ok(at) if held[at].1 == *shard => {}
                Ok(at) => {
                    let found = &index.shards[held[at].1];
                    return Err(format!("it lists tensor {tensor:?} in {expected:?}; it is in {found:?}"));
                }
                Err(_) => {
                    let tensor = super::header::clipped(&format!("{tensor:?}"));
                    return Err(format!("it lists tensor {tensor} in {expected:?}, which does not hold it"));
                }
            }
        }
        let is_listed = |name: &str| index.tensors.binary_search_by(|(tensor, _)| tensor.as_str().cmp(name)).is_ok();
        match held.iter().find(|(name, _)| !is_listed(name)) {
            Some((name, shard)) => Err(format!(
                "the shard {:?} holds tensor {name:?}, which the index does not list",
                index.shards[*shard]
            )),
            None => Ok(()),
        }
    }

    /// The file, or the index of the shards.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files that hold the tensors, in the order of their names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(SafetensorsFile::path)
    }

    /// The file that holds tensor number `tensor`, for messages.
    ///
    /// # Panics
    /// Where there is no such tensor.
    #[must_use]
    pub fn path_of(&self, tensor: usize) -> &Path {
        self.files[self.places[tensor].file].path()
    }

    /// Tensors of types that are not computed with, sorted by name. None unless opened with
    /// [`SafetensorsModel::open_with_others`].
    #[must_use]
    pub fn others(&self) -> &[OtherTensor] {
        &self.others
    }

    /// The file that holds number `other` of [`SafetensorsModel::others`], for messages.
    ///
    /// # Panics
    /// Where there is no such tensor.
    #[must_use]
    pub fn path_of_other(&self, other: usize) -> &Path {
        self.files[self.other_places[other].file].path()
    }

    /// Fills `buffer` with bytes of tensor number `tensor`, from its byte `start_byte` on.
    ///
    /// # Errors
    /// As [`SafetensorsFile::read_into`].
    pub fn read_into(&self, tensor: usize, start_byte: u64, buffer: &mut [u8]) -> Result<(), WeightsError> {
        let Place { file, number } = *self.places.get(tensor).ok_or_else(|| WeightsError::no_number(tensor))?;
        self.files[file].read_into(number, start_byte, buffer)
    }

    /// As [`SafetensorsModel::read_into`], of number `other` in [`SafetensorsModel::others`].
    ///
    /// # Errors
    /// As [`SafetensorsFile::read_into`].
    pub fn read_other_into(&self, other: usize, start_byte: u64, buffer: &mut [u8]) -> Result<(), WeightsError> {
        let Place { file, number } = *self.other_places.get(other).ok_or_else(|| WeightsError::no_number(other))?;
        self.files[file].read_other_into(number, start_byte, buffer)
    }

    /// The digest of all headers and sizes of files: another one means other tensors or other places, whatever the values.
    /// It does not depend on where the files lie.
    #[must_use]
    pub fn header_digest(&self) -> Digest {
        let mut content = vec![];
        for file in &self.files {
            content.extend_from_slice(file.header_digest().as_bytes());
            content.extend_from_slice(&file.facts().size_bytes.to_le_bytes());
        }
        Digest::of(&content)
    }

    /// What the system said of each file when it was opened, in the order of [`SafetensorsModel::files`].
    pub fn file_facts(&self) -> impl Iterator<Item = &FileFacts> {
        self.files.iter().map(SafetensorsFile::facts)
    }

    /// Asks the system again, of every file.
    ///
    /// # Errors
    /// [`WeightsError::Changed`] naming the first that somebody wrote into since it was opened.
    pub fn check_unchanged(&self) -> Result<(), WeightsError> {
        self.files.iter().try_for_each(SafetensorsFile::check_unchanged)
    }
}

impl WeightSource for SafetensorsModel {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn read_f32(&self, tensor: usize, first: u64, count: u64) -> Result<Vec<f32>, WeightsError> {
        let Place { file, number } = *self.places.get(tensor).ok_or_else(|| WeightsError::no_number(tensor))?;
        self.files[file].read_f32(number, first, count)
    }
}

/// The file or index that `path` means.
fn find_weights(path: &Path) -> Result<PathBuf, WeightsError> {
    if !path.is_dir() {
        return Ok(path.to_path_buf());
    }
    let (single, index) = (path.join(SINGLE), path.join(INDEX));
    let what = match (single.exists(), index.exists()) {
        (true, false) => return Ok(single),
        (false, true) => return Ok(index),
        // Programs differ in which of the two they load.
        (true, true) => format!("it holds {SINGLE} and {INDEX}; remove the one that is not the model"),
        (false, false) => format!("it holds neither {SINGLE} nor {INDEX}"),
    };
    Err(WeightsError::malformed(FORMAT, path, what))
}

fn read_index(path: &Path) -> Result<Vec<u8>, WeightsError> {
    let malformed = |what: String| WeightsError::malformed(INDEX_FORMAT, path, what);
    if !std::fs::metadata(path).map_err(WeightsError::io("open", path))?.is_file() {
        return Err(malformed("it is not a regular file".into()));
    }
    let file = File::open(path).map_err(WeightsError::io("open", path))?;
    let mut content = vec![];
    file.take(MAX_INDEX_BYTES + 1).read_to_end(&mut content).map_err(WeightsError::io("read", path))?;
    if content.len() as u64 > MAX_INDEX_BYTES {
        return Err(malformed(format!(
            "it is longer than {MAX_INDEX_BYTES} bytes, which is the most that is accepted"
        )));
    }
    Ok(content)
}

#[cfg(test)]
mod tests;
