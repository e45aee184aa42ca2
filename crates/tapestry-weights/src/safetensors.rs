//! Safetensors: eight bytes of header length, a JSON header, the data.
//!
//! Source: the format description of the `safetensors` project. Stricter here: see [`SafetensorsFile::open`].

use crate::{WeightSource, WeightsError, bytes_to_f32};
use memmap2::Mmap;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use std::fmt;
use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};
use tapestry_core::{Dtype, TensorSpec};

/// A header longer than this is refused; that of a model with 100,000 tensors is shorter.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// More tensors than this are refused.
const MAX_TENSORS: usize = 1 << 20;
const FORMAT: &str = "safetensors";

/// An open safetensors file whose header holds in every respect.
#[derive(Debug)]
pub struct SafetensorsFile {
    map: Mmap,
    tensors: Vec<TensorSpec>,
    /// Start of each tensor, from the start of the file.
    starts: Vec<u64>,
    data_start: u64,
}

/// The header's entries in their own order; names given twice are seen.
struct Header(Vec<(String, HeaderTensor)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = vec![];
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<serde::de::IgnoredAny>()?;
                        continue;
                    }
                    if entries.len() == MAX_TENSORS {
                        return Err(serde::de::Error::custom("too many tensors"));
                    }
                    entries.push((name, map.next_value()?));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl SafetensorsFile {
    /// Opens a file in canonical form: tensors in the order of their names, without gaps, to the end of the file.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`] naming the first fault.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let file = Self::open_any_order(path)?;
        if file.starts.windows(2).any(|pair| pair[0] > pair[1]) {
            let what = "the tensors do not lie in the order of their names; rewrite the file in canonical form";
            return Err(WeightsError::malformed(FORMAT, path, what));
        }
        Ok(file)
    }

    /// Opens a file whose tensors lie in any order, but without overlap and without gaps.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`] naming the first fault.
    pub fn open_any_order(path: &Path) -> Result<Self, WeightsError> {
        let malformed = |what: String| WeightsError::malformed(FORMAT, path, what);
        let file = File::open(path).map_err(WeightsError::io("open", path))?;
        // SAFETY: the file is not written by Tapestry while it is mapped (files are replaced by rename, never changed); a
        // foreign program that truncates it meanwhile can end this process, but cannot make it read outside the mapping.
        #[expect(unsafe_code, reason = "mapping a file of weights; see the comment above")]
        let map = unsafe { Mmap::map(&file) }.map_err(WeightsError::io("map", path))?;
        let size = map.len() as u64;
        let Some((length, _)) = map.split_first_chunk::<8>() else {
            return Err(malformed(format!("{size} bytes are too few for a header; the file was cut off")));
        };
        let header_bytes = u64::from_le_bytes(*length);
        if header_bytes > MAX_HEADER_BYTES || 8 + header_bytes > size {
            return Err(malformed(format!(
                "the header claims {header_bytes} bytes in a file of {size} (at most {MAX_HEADER_BYTES} are accepted)"
            )));
        }
        let data_start = 8 + header_bytes;
        let header =
            &map[8..usize::try_from(data_start).map_err(|_| malformed("too large for this machine".into()))?];
        let Header(mut entries) =
            serde_json::from_slice(header).map_err(|e| malformed(format!("the header cannot be read: {e}")))?;
        let data_bytes = size - data_start;
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        if let Some(pair) = entries.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(malformed(format!("tensor {:?} is there twice", pair[0].0)));
        }
        let mut tensors = vec![];
        let mut ranges = vec![];
        for (name, entry) in entries {
            let dtype = match entry.dtype.as_str() {
                "F32" => Dtype::F32,
                "F16" => Dtype::F16,
                "BF16" => Dtype::BF16,
                other => {
                    return Err(malformed(format!("tensor {name:?} has dtype {other:?}; F32, F16 and BF16 are read")));
                }
            };
            let spec = TensorSpec { name, dtype, shape: entry.shape };
            let (start, end) = entry.data_offsets;
            let expected = spec.size_bytes();
            if end > data_bytes || start > end || expected != Some(end - start) {
                return Err(malformed(format!(
                    "tensor {:?} of shape {:?} claims bytes {start}..{end} of {data_bytes}; its shape needs {expected:?}",
                    spec.name, spec.shape
                )));
            }
            ranges.push((start, end));
            tensors.push(spec);
        }
        let starts = ranges.iter().map(|(start, _)| data_start + start).collect();
        ranges.sort_unstable();
        let mut at = 0;
        for (start, end) in ranges {
            if start != at {
                return Err(malformed(format!("there is a gap or an overlap at byte {at} of the data")));
            }
            at = end;
        }
        if at != data_bytes {
            return Err(malformed(format!("the tensors end at byte {at} of the data, which has {data_bytes}")));
        }
        Ok(Self { map, tensors, starts, data_start })
    }

    /// Where the data begins, in bytes from the start of the file.
    #[must_use]
    pub const fn data_offset(&self) -> u64 {
        self.data_start
    }

    /// Bytes of the data.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        self.map.len() as u64 - self.data_start
    }

    /// The data section.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        &self.map[usize::try_from(self.data_start).unwrap_or(usize::MAX)..]
    }

    /// The bytes of one tensor.
    #[must_use]
    pub fn tensor_bytes(&self, tensor: usize) -> &[u8] {
        let start = usize::try_from(self.starts[tensor]).unwrap_or(usize::MAX);
        let size = self.tensors[tensor].size_bytes().and_then(|size| usize::try_from(size).ok()).unwrap_or(0);
        &self.map[start..start + size]
    }

    /// The first value that is NaN or infinite: its tensor and row-major index.
    #[must_use]
    pub fn first_non_finite(&self) -> Option<(&TensorSpec, u64)> {
        self.tensors.iter().enumerate().find_map(|(index, spec)| {
            let bytes = self.tensor_bytes(index);
            let size = usize::try_from(spec.dtype.size_bytes()).unwrap_or(4);
            // In pieces, so that a large tensor is not copied whole.
            let piece = 1 << 20;
            bytes.chunks(piece * size).enumerate().find_map(|(n, bytes)| {
                let position = bytes_to_f32(spec.dtype, bytes).iter().position(|value| !value.is_finite())?;
                Some((spec, (n * piece + position) as u64))
            })
        })
    }
}

impl WeightSource for SafetensorsFile {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn read_f32(&self, tensor: usize, first: u64, count: u64) -> Result<Vec<f32>, WeightsError> {
        let spec =
            self.tensors.get(tensor).ok_or_else(|| WeightsError::Missing { name: format!("number {tensor}") })?;
        let num_elements = spec.num_elements().unwrap_or(0);
        let name = || spec.name.clone();
        let end = first.checked_add(count).filter(|end| *end <= num_elements);
        let end = end.ok_or_else(|| WeightsError::Range { name: name(), first, count, num_elements })?;
        let size = spec.dtype.size_bytes();
        let at = |element: u64| usize::try_from(element * size).unwrap_or(usize::MAX);
        Ok(bytes_to_f32(spec.dtype, &self.tensor_bytes(tensor)[at(first)..at(end)]))
    }
}

/// The canonical header of these tensors (sorted by name): eight bytes of length, JSON, spaces up to a multiple of eight.
#[must_use]
pub fn safetensors_header(tensors: &[TensorSpec]) -> Vec<u8> {
    let mut json = String::from(r#"{"__metadata__":{"format":"pt"}"#);
    let mut start = 0;
    for tensor in tensors {
        let end = start + tensor.size_bytes().unwrap_or(0);
        let name = serde_json::Value::from(tensor.name.as_str());
        let dtype = match tensor.dtype {
            Dtype::F32 => "F32",
            Dtype::BF16 => "BF16",
            Dtype::F16 => "F16",
        };
        let shape: Vec<_> = tensor.shape.iter().map(ToString::to_string).collect();
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

#[cfg(test)]
mod tests;
