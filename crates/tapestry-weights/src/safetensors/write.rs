//! Safetensors out: the canonical form, which is there whole or not at all.

use super::FORMAT;
use super::OtherTensor;
use crate::WeightsError;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use tapestry_core::{Dtype, TensorSpec};

/// The canonical header of these tensors (sorted by name): eight bytes of length, JSON, spaces up to a multiple of eight.
#[must_use]
pub fn safetensors_header(tensors: &[TensorSpec]) -> Vec<u8> {
    safetensors_header_with_others(tensors, &[])
}

/// The header of a file in which tensors of other types lie behind these. Both lists are sorted by name.
#[must_use]
pub fn safetensors_header_with_others(tensors: &[TensorSpec], others: &[OtherTensor]) -> Vec<u8> {
    let floats = tensors.iter().map(|tensor| {
        let dtype = match tensor.dtype {
            Dtype::F32 => "F32",
            Dtype::BF16 => "BF16",
            Dtype::F16 => "F16",
        };
        (&tensor.name, dtype, &tensor.shape, tensor.size_bytes())
    });
    let others = others.iter().map(|other| (&other.name, other.dtype.name(), &other.shape, other.size_bytes()));
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut start = 0;
    for (name, dtype, shape, size_bytes) in floats.chain(others) {
        let end = start + size_bytes.unwrap_or(0);
        let name = serde_json::Value::from(name.as_str());
        let shape: Vec<_> = shape.iter().map(ToString::to_string).collect();
        json.push_str(&format!(
            r#",{name}:{{"dtype":"{dtype}","shape":[{}],"data_offsets":[{start},{end}]}}"#,
            shape.join(",")
        ));
        start = end;
    }
    json.push('}');
    while json.len() % 8 != 0 {
        json.push(' ');
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend(json.into_bytes());
    header
}

/// Writes a canonical safetensors file: a temporary file beside it, synced, then renamed. Dropped before
/// [`SafetensorsWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub struct SafetensorsWriter {
    path: PathBuf,
    temporary: PathBuf,
    file: Option<BufWriter<File>>,
    expected: u64,
    written: u64,
}

impl SafetensorsWriter {
    /// Begins the file `path` for these tensors, which are sorted by name.
    ///
    /// # Errors
    /// Where the file cannot be made.
    pub fn create(path: &Path, tensors: Vec<TensorSpec>) -> Result<Self, WeightsError> {
        if let Some(pair) = tensors.windows(2).find(|pair| pair[0].name >= pair[1].name) {
            let what = format!("tensor {:?} is not in the order of the names", pair[1].name);
            return Err(WeightsError::malformed(FORMAT, path, what));
        }
        let expected = tensors.iter().try_fold(0u64, |sum, tensor| sum.checked_add(tensor.size_bytes()?));
        let expected = expected.ok_or_else(|| WeightsError::malformed(FORMAT, path, "a shape overflows"))?;
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(format!(".{}.tmp", std::process::id()));
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).map_err(WeightsError::io("create", &temporary))?;
        let mut file = BufWriter::with_capacity(1 << 20, file);
        file.write_all(&safetensors_header(&tensors)).map_err(WeightsError::io("write", &temporary))?;
        Ok(Self { path: path.to_path_buf(), temporary, file: Some(file), expected, written: 0 })
    }

    /// Appends bytes of the data.
    ///
    /// # Errors
    /// Where the disk is full or the tensors have no room for more.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), WeightsError> {
        self.written += bytes.len() as u64;
        let (path, expected, found) = (self.path.clone(), self.expected, self.written);
        let Some(file) = self.file.as_mut().filter(|_| found <= expected) else {
            return Err(WeightsError::WrittenSize { path, expected, found });
        };
        file.write_all(bytes).map_err(WeightsError::io("write", &self.temporary))
    }

    /// Makes the file durable under its name.
    ///
    /// # Errors
    /// Where bytes are missing, or the system refuses; the file's old content is still there.
    pub fn finish(mut self) -> Result<(), WeightsError> {
        let (path, expected, found) = (self.path.clone(), self.expected, self.written);
        let Some(file) = self.file.take().filter(|_| found == expected) else {
            return Err(WeightsError::WrittenSize { path, expected, found });
        };
        let file = file.into_inner().map_err(|e| WeightsError::io("write", &self.temporary)(e.into_error()))?;
        file.sync_all().map_err(WeightsError::io("sync", &self.temporary))?;
        fs::rename(&self.temporary, &path).map_err(WeightsError::io("rename to", &path))?;
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder).and_then(|folder| folder.sync_all()).map_err(WeightsError::io("sync", folder))
    }
}

impl Drop for SafetensorsWriter {
    fn drop(&mut self) {
        // After the rename there is nothing to remove.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Writes whole tensors, given in the order of their names, as 32-bit floats.
///
/// # Errors
/// As [`SafetensorsWriter`].
pub fn save_safetensors<E: From<WeightsError>>(
    path: &Path,
    tensors: Vec<TensorSpec>,
    mut values: impl FnMut(&TensorSpec) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let mut writer = SafetensorsWriter::create(path, tensors.clone())?;
    for tensor in &tensors {
        writer.write(&crate::f32_to_bytes(&values(tensor)?))?;
    }
    Ok(writer.finish()?)
}
