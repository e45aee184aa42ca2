//! One safetensors file, open for reading.

use super::header::{self, Entry, MAX_HEADER_BYTES, StoredDtype};
use super::{FORMAT, OtherTensor};
use crate::{WeightSource, WeightsError};
use serde::{Deserialize, Serialize};
use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use tapestry_core::{Digest, TensorSpec};

/// An open safetensors file whose header holds in every respect.
///
/// Reading takes `&self` and moves no position: any number of threads may read at once. It needs a Unix system (`pread`).
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    file: File,
    tensors: Vec<TensorSpec>,
    /// Start of each tensor, from the start of the file.
    starts: Vec<u64>,
    others: Vec<OtherTensor>,
    other_starts: Vec<u64>,
    data_start: u64,
    header_digest: Digest,
    facts: FileFacts,
}

/// What the system says of a file without reading it: enough to notice, cheaply, that it is no longer the same.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileFacts {
    /// Where it was opened.
    pub path: PathBuf,
    /// Its size.
    pub size_bytes: u64,
    /// When it was last written, in nanoseconds since 1970.
    pub modified_ns: u64,
}

impl FileFacts {
    fn of(path: &Path, metadata: &Metadata) -> Self {
        let (seconds, nanoseconds) =
            (metadata.mtime().max(0).unsigned_abs(), metadata.mtime_nsec().max(0).unsigned_abs());
        let modified_ns = seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds);
        Self { path: path.to_path_buf(), size_bytes: metadata.len(), modified_ns }
    }
}

impl SafetensorsFile {
    /// Opens a file in canonical form: tensors of [`tapestry_core::Dtype`] in the order of their names, without gaps, to the
    /// end of the file.
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
        let file = Self::open_with_others(path)?;
        if let Some(other) = file.others.first() {
            let what =
                format!("tensor {:?} has dtype \"{}\"; F32, F16 and BF16 are read here", other.name, other.dtype);
            return Err(WeightsError::malformed(FORMAT, path, what));
        }
        Ok(file)
    }

    /// Opens a file that may also hold tensors of other types, which [`SafetensorsFile::others`] lists. As
    /// [`SafetensorsFile::open_any_order`] else.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`] naming the first fault.
    pub fn open_with_others(path: &Path) -> Result<Self, WeightsError> {
        let malformed = |what: String| WeightsError::malformed(FORMAT, path, what);
        // Before it is opened: opening a pipe would wait for somebody to write into it.
        let metadata = std::fs::metadata(path).map_err(WeightsError::io("open", path))?;
        if !metadata.is_file() {
            return Err(malformed("it is not a regular file".into()));
        }
        let file = File::open(path).map_err(WeightsError::io("open", path))?;
        let facts = FileFacts::of(path, &file.metadata().map_err(WeightsError::io("open", path))?);
        let size = facts.size_bytes;
        if size < 8 {
            return Err(malformed(format!("{size} bytes are too few for a header; the file was cut off")));
        }
        let mut length = [0; 8];
        file.read_exact_at(&mut length, 0).map_err(WeightsError::io("read", path))?;
        let header_bytes = u64::from_le_bytes(length);
        if header_bytes > MAX_HEADER_BYTES || header_bytes > size - 8 {
            return Err(malformed(format!(
                "the header claims {header_bytes} bytes in a file of {size} (at most {MAX_HEADER_BYTES} are accepted)"
            )));
        }
        let mut header = vec![0; usize::try_from(header_bytes).map_err(|e| malformed(e.to_string()))?];
        file.read_exact_at(&mut header, 8).map_err(WeightsError::io("read", path))?;
        let data_start = 8 + header_bytes;
        let entries = header::parse(&header, size - data_start).map_err(malformed)?;
        let header_digest = Digest::of(&header);
        let (mut tensors, mut starts, mut others, mut other_starts) = (vec![], vec![], vec![], vec![]);
        for Entry { name, dtype, shape, start, .. } in entries {
            match dtype {
                StoredDtype::Float(dtype) => {
                    tensors.push(TensorSpec { name, dtype, shape });
                    starts.push(data_start + start);
                }
                StoredDtype::Other(dtype) => {
                    others.push(OtherTensor { name, dtype, shape });
                    other_starts.push(data_start + start);
                }
            }
        }
        Ok(Self { path: path.into(), file, tensors, starts, others, other_starts, data_start, header_digest, facts })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the data begins, in bytes from the start of the file.
    #[must_use]
    pub const fn data_offset(&self) -> u64 {
        self.data_start
    }

    /// Bytes of the data.
    #[must_use]
    pub const fn data_len(&self) -> u64 {
        self.facts.size_bytes - self.data_start
    }

    /// Tensors of types that are not computed with, sorted by name. None unless opened with
    /// [`SafetensorsFile::open_with_others`].
    #[must_use]
    pub fn others(&self) -> &[OtherTensor] {
        &self.others
    }

    /// The digest of the header, which names the tensors and their places but says nothing of their values.
    #[must_use]
    pub const fn header_digest(&self) -> Digest {
        self.header_digest
    }

    /// What the system said of the file when it was opened.
    #[must_use]
    pub const fn facts(&self) -> &FileFacts {
        &self.facts
    }

    /// Asks the system again.
    ///
    /// # Errors
    /// [`WeightsError::Changed`] where somebody wrote into the file since it was opened.
    pub fn check_unchanged(&self) -> Result<(), WeightsError> {
        let metadata = self.file.metadata().map_err(WeightsError::io("examine", &self.path))?;
        let found = FileFacts::of(&self.path, &metadata);
        if found == self.facts { Ok(()) } else { Err(WeightsError::Changed { expected: self.facts.clone(), found }) }
    }

    /// Fills `buffer` with bytes of tensor number `tensor`, from its byte `start_byte` on.
    ///
    /// # Errors
    /// [`WeightsError::Missing`], [`WeightsError::ByteRange`] where the range is not inside the tensor, or the system refuses.
    pub fn read_into(&self, tensor: usize, start_byte: u64, buffer: &mut [u8]) -> Result<(), WeightsError> {
        let spec = self.tensors.get(tensor).ok_or_else(|| WeightsError::no_number(tensor))?;
        self.read_part(&spec.name, self.starts[tensor], spec.size_bytes(), start_byte, buffer)
    }

    /// As [`SafetensorsFile::read_into`], of number `other` in [`SafetensorsFile::others`].
    ///
    /// # Errors
    /// As [`SafetensorsFile::read_into`].
    pub fn read_other_into(&self, other: usize, start_byte: u64, buffer: &mut [u8]) -> Result<(), WeightsError> {
        let tensor = self.others.get(other).ok_or_else(|| WeightsError::no_number(other))?;
        self.read_part(&tensor.name, self.other_starts[other], tensor.size_bytes(), start_byte, buffer)
    }

    fn read_part(
        &self,
        name: &str,
        tensor_start: u64,
        size_bytes: Option<u64>,
        start_byte: u64,
        buffer: &mut [u8],
    ) -> Result<(), WeightsError> {
        let (len, size_bytes) = (buffer.len() as u64, size_bytes.unwrap_or(0));
        if start_byte.checked_add(len).is_none_or(|end| end > size_bytes) {
            let (path, name) = (self.path.clone(), name.to_owned());
            return Err(WeightsError::ByteRange { path, name, start: start_byte, len, size_bytes });
        }
        self.file.read_exact_at(buffer, tensor_start + start_byte).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => WeightsError::malformed(
                FORMAT,
                &self.path,
                format!("it ends inside tensor {name:?}: somebody cut it off after it was opened"),
            ),
            _ => WeightsError::io("read", &self.path)(error),
        })
    }
}

impl WeightSource for SafetensorsFile {
    fn tensors(&self) -> &[TensorSpec] {
        &self.tensors
    }

    fn read_f32(&self, tensor: usize, first: u64, count: u64) -> Result<Vec<f32>, WeightsError> {
        let spec = self.tensors.get(tensor).ok_or_else(|| WeightsError::no_number(tensor))?;
        crate::source::read_f32_in_pieces(spec, first, count, |start, buffer| self.read_into(tensor, start, buffer))
    }
}
