//! GGUF versions 2 and 3: how most people hold open weights.
//!
//! Source: the format description of the `ggml` project. Every count, length and offset is checked against the file before
//! it is used; metadata is read into a bounded number of entries. Tensors are read one by one, and nothing of them is kept.

mod dequantize;
pub(crate) mod names;
pub(crate) mod pre_tokenizer;
mod reader;
#[cfg(test)]
mod tests;
mod write;

pub use dequantize::GgmlType;
pub use write::{GgufStorage, export_gguf};

use crate::WeightsError;
use reader::Reader;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

const FORMAT: &str = "GGUF";
/// More tensors than this are refused.
const MAX_TENSORS: u64 = 1 << 20;
/// More metadata entries than this are refused.
const MAX_ENTRIES: u64 = 1 << 16;
/// More dimensions than this are refused.
const MAX_DIMENSIONS: u32 = 4;

/// A metadata value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Any of the integer types.
    Integer(i128),
    /// Any of the float types.
    Float(f64),
    /// A truth value.
    Bool(bool),
    /// A text.
    Text(String),
    /// Values of one type.
    List(Vec<Value>),
}

/// A tensor as the file describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GgufTensor {
    /// Its name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Its dimensions, outermost first (the file lists them the other way round).
    pub shape: Vec<u64>,
    /// How its elements are stored.
    pub ggml_type: GgmlType,
    /// Where its bytes begin, from the start of the file.
    start: u64,
    /// How many they are.
    size: u64,
}

/// An open GGUF file whose description holds in every respect.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    file: File,
    metadata: BTreeMap<String, Value>,
    tensors: BTreeMap<String, GgufTensor>,
}

impl GgufFile {
    /// Opens a file and checks all that it says about itself.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`] naming the first fault.
    pub fn open(path: &Path) -> Result<Self, WeightsError> {
        let malformed = |what: String| WeightsError::malformed(FORMAT, path, what);
        let found = std::fs::metadata(path).map_err(WeightsError::io("open", path))?;
        if !found.is_file() {
            return Err(malformed("it is not a regular file".into()));
        }
        let file = File::open(path).map_err(WeightsError::io("open", path))?;
        let (metadata, tensors) = parse(BufReader::new(&file), found.len()).map_err(malformed)?;
        Ok(Self { path: path.to_path_buf(), file, metadata, tensors })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The metadata.
    #[must_use]
    pub const fn metadata(&self) -> &BTreeMap<String, Value> {
        &self.metadata
    }

    /// The tensors by name.
    #[must_use]
    pub const fn tensors(&self) -> &BTreeMap<String, GgufTensor> {
        &self.tensors
    }

    /// A tensor's elements as 32-bit floats, row-major.
    ///
    /// # Errors
    /// Where the system refuses, or the file was cut off since it was opened.
    pub fn dequantize(&self, tensor: &GgufTensor) -> Result<Vec<f32>, WeightsError> {
        let size = usize::try_from(tensor.size).map_err(|e| self.malformed(e.to_string()))?;
        let mut bytes = vec![0; size];
        self.file.read_exact_at(&mut bytes, tensor.start).map_err(WeightsError::io("read", &self.path))?;
        Ok(tensor.ggml_type.dequantize(&bytes))
    }

    /// A metadata entry, which must be there.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`].
    pub fn get(&self, name: &str) -> Result<&Value, WeightsError> {
        self.metadata.get(name).ok_or_else(|| self.malformed(format!("metadata entry {name:?} is missing")))
    }

    /// A whole number, which must be there.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`].
    pub fn get_usize(&self, name: &str) -> Result<usize, WeightsError> {
        match self.get(name)? {
            Value::Integer(value) => usize::try_from(*value).map_err(|_| self.wrong(name, "a size")),
            _ => Err(self.wrong(name, "a whole number")),
        }
    }

    /// A number, which must be there.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`].
    pub fn get_f64(&self, name: &str) -> Result<f64, WeightsError> {
        match self.get(name)? {
            Value::Float(value) => Ok(*value),
            #[expect(clippy::cast_precision_loss, reason = "a configuration's number")]
            Value::Integer(value) => Ok(*value as f64),
            _ => Err(self.wrong(name, "a number")),
        }
    }

    /// A text, which must be there.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`].
    pub fn get_text(&self, name: &str) -> Result<&str, WeightsError> {
        match self.get(name)? {
            Value::Text(value) => Ok(value),
            _ => Err(self.wrong(name, "a text")),
        }
    }

    /// A list of texts, which must be there.
    ///
    /// # Errors
    /// [`WeightsError::Malformed`].
    pub fn get_texts(&self, name: &str) -> Result<Vec<&str>, WeightsError> {
        let wrong = || self.wrong(name, "a list of texts");
        let Value::List(values) = self.get(name)? else { return Err(wrong()) };
        let texts = values.iter().map(|value| match value {
            Value::Text(text) => Ok(text.as_str()),
            _ => Err(wrong()),
        });
        texts.collect()
    }

    pub(crate) fn malformed(&self, what: impl Into<String>) -> WeightsError {
        WeightsError::malformed(FORMAT, &self.path, what)
    }

    fn wrong(&self, name: &str, expected: &str) -> WeightsError {
        self.malformed(format!("metadata entry {name:?} is not {expected}"))
    }
}

type Parsed = (BTreeMap<String, Value>, BTreeMap<String, GgufTensor>);

fn parse(input: impl Read, file_size: u64) -> Result<Parsed, String> {
    let mut reader = Reader::new(input, file_size);
    if reader.array()? != *b"GGUF" {
        return Err("it does not begin with \"GGUF\"".into());
    }
    let version = reader.u32()?;
    if !(2..=3).contains(&version) {
        return Err(format!("version {version} is not read; 2 and 3 are"));
    }
    let num_tensors = reader.count("tensors", MAX_TENSORS)?;
    let num_entries = reader.count("metadata entries", MAX_ENTRIES)?;
    let mut metadata = BTreeMap::new();
    for _ in 0..num_entries {
        let name = reader.text()?;
        let value = reader.value()?;
        if metadata.insert(name.clone(), value).is_some() {
            return Err(format!("metadata entry {name:?} is there twice"));
        }
    }
    let alignment = match metadata.get("general.alignment") {
        None => 32,
        Some(Value::Integer(n)) if (8..=1 << 16).contains(n) && n.count_ones() == 1 => {
            u64::try_from(*n).map_err(|e| e.to_string())?
        }
        Some(_) => return Err("general.alignment is not a power of two from 8 to 65536".into()),
    };
    let mut described = vec![];
    for _ in 0..num_tensors {
        let name = reader.text()?;
        let num_dimensions = reader.u32()?;
        if num_dimensions == 0 || num_dimensions > MAX_DIMENSIONS {
            return Err(format!("tensor {name:?} has {num_dimensions} dimensions; 1 to {MAX_DIMENSIONS} are read"));
        }
        let mut shape = vec![];
        for _ in 0..num_dimensions {
            shape.push(reader.u64()?);
        }
        let row = shape[0];
        shape.reverse();
        let ggml_type = GgmlType::from_code(reader.u32()?).map_err(|what| format!("tensor {name:?}: {what}"))?;
        let offset = reader.u64()?;
        described.push((name, shape, row, ggml_type, offset));
    }
    let data_start = reader.position().next_multiple_of(alignment);
    let mut tensors = BTreeMap::new();
    let mut ranges = vec![];
    for (name, shape, row, ggml_type, offset) in described {
        let outside = || format!("tensor {name:?} of shape {shape:?} at offset {offset} does not lie inside the file");
        if !offset.is_multiple_of(alignment) {
            return Err(format!("tensor {name:?} lies at offset {offset}, which is not a multiple of {alignment}"));
        }
        let count = shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n)).ok_or_else(outside)?;
        let size = ggml_type.size_bytes(count, row).ok_or_else(|| {
            format!("tensor {name:?}: rows of {row} elements cannot be cut into blocks of {ggml_type:?}")
        })?;
        let start = data_start.checked_add(offset).ok_or_else(outside)?;
        let end = start.checked_add(size).filter(|end| *end <= file_size).ok_or_else(outside)?;
        ranges.push((start, end, name.clone()));
        let tensor = GgufTensor { name: name.clone(), shape: shape.clone(), ggml_type, start, size };
        if tensors.insert(name.clone(), tensor).is_some() {
            return Err(format!("tensor {name:?} is there twice"));
        }
    }
    ranges.sort();
    match ranges.windows(2).find(|pair| pair[0].1 > pair[1].0) {
        Some(pair) => Err(format!("tensors {:?} and {:?} overlap", pair[0].2, pair[1].2)),
        None => Ok((metadata, tensors)),
    }
}
