//! The JSON header: everything that it claims is checked against the size of the data before it is believed.
//!
//! Memory: a header of `n` bytes takes at most a small multiple of `n`, because names and shapes are bounded before they are
//! kept and nothing nested is read into values.

use super::OtherDtype;
use serde::de::{Error as _, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use tapestry_core::Dtype;

/// A header longer than this is refused; that of a model with 100,000 tensors is shorter.
pub(super) const MAX_HEADER_BYTES: u64 = 16 << 20;
/// More tensors than this are refused.
const MAX_TENSORS: usize = 1 << 20;
/// A longer name is refused, and so never shown.
const MAX_NAME_BYTES: usize = 1024;
/// More dimensions than this are refused.
const MAX_DIMENSIONS: usize = 32;
/// What an error of the JSON reader may quote of the header.
const MAX_QUOTED_CHARS: usize = 400;

/// A tensor of a header that holds, and its bytes in the data.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: String,
    pub(super) dtype: StoredDtype,
    pub(super) shape: Vec<u64>,
    pub(super) start: u64,
    pub(super) end: u64,
}

#[derive(Debug, Clone, Copy)]
pub(super) enum StoredDtype {
    Float(Dtype),
    Other(OtherDtype),
}

impl StoredDtype {
    fn from_name(name: &str) -> Option<Self> {
        match name {
            "F32" => Some(Self::Float(Dtype::F32)),
            "F16" => Some(Self::Float(Dtype::F16)),
            "BF16" => Some(Self::Float(Dtype::BF16)),
            other => OtherDtype::from_name(other).map(Self::Other),
        }
    }

    const fn size_bits(self) -> u64 {
        match self {
            Self::Float(dtype) => 8 * dtype.size_bytes(),
            Self::Other(dtype) => dtype.size_bits(),
        }
    }
}

/// The tensors of a header, in the order of their names.
///
/// # Errors
/// The first fault, for people.
pub(super) fn parse(header: &[u8], data_bytes: u64) -> Result<Vec<Entry>, String> {
    let text =
        std::str::from_utf8(header).map_err(|e| format!("the header is not UTF-8 at its byte {}", e.valid_up_to()))?;
    if !text.starts_with('{') {
        return Err("the header does not begin with '{'".into());
    }
    let Header(mut raw) =
        serde_json::from_str(text).map_err(|e| format!("the header cannot be read: {}", clipped(&e)))?;
    raw.sort_by(|a, b| a.0.cmp(&b.0));
    if let Some(pair) = raw.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(format!("tensor {:?} is there twice", pair[0].0));
    }
    let entries =
        raw.into_iter().map(|(name, raw)| check_tensor(name, raw, data_bytes)).collect::<Result<Vec<_>, _>>()?;
    check_layout(&entries, data_bytes)?;
    Ok(entries)
}

/// Checks a tensor alone.
fn check_tensor(name: String, raw: RawTensor, data_bytes: u64) -> Result<Entry, String> {
    let RawTensor { dtype: dtype_name, shape: Shape(shape), data_offsets: (start, end) } = raw;
    let Some(dtype) = StoredDtype::from_name(&dtype_name) else {
        let found = clipped(&dtype_name);
        return Err(format!("tensor {name:?} has dtype {found:?}, which the format does not know"));
    };
    let Some(size_bits) = shape.iter().try_fold(dtype.size_bits(), |product, n| product.checked_mul(*n)) else {
        return Err(format!("tensor {name:?} has shape {shape:?}, whose size overflows 64 bits"));
    };
    if start > end {
        return Err(format!("tensor {name:?} claims bytes {start}..{end} of the data, which end before they begin"));
    }
    if end > data_bytes {
        return Err(format!(
            "tensor {name:?} claims bytes {start}..{end} of the data, which has {data_bytes}; was the file cut off?"
        ));
    }
    if !size_bits.is_multiple_of(8) || size_bits / 8 != end - start {
        let (expected, found) = (size_bits.div_ceil(8), end - start);
        return Err(format!(
            "tensor {name:?} of dtype {dtype_name} and shape {shape:?} needs {expected} whole bytes; it claims {found}, \
             {start}..{end} of the data"
        ));
    }
    Ok(Entry { name, dtype, shape, start, end })
}

/// Checks that the tensors share out the data: no byte in two of them, none in no tensor.
fn check_layout(entries: &[Entry], data_bytes: u64) -> Result<(), String> {
    let mut by_place: Vec<&Entry> = entries.iter().collect();
    by_place.sort_by_key(|entry| (entry.start, entry.end));
    let mut at = 0;
    let mut before = "the start".to_owned();
    for entry in by_place {
        let (name, start) = (&entry.name, entry.start);
        if start < at {
            return Err(format!("tensor {name:?} begins at byte {start} of the data, inside {before}: they overlap"));
        }
        if start > at {
            return Err(format!("bytes {at}..{start} of the data, between {before} and tensor {name:?}, are a gap"));
        }
        at = entry.end;
        before = format!("tensor {name:?}");
    }
    if at != data_bytes {
        return Err(format!(
            "the tensors end at byte {at} of the data, which has {data_bytes}: bytes follow that belong to none"
        ));
    }
    Ok(())
}

/// As much of a text as a message may quote of an outside file.
pub(super) fn clipped(text: &impl fmt::Display) -> String {
    let text = text.to_string();
    match text.char_indices().nth(MAX_QUOTED_CHARS) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text,
    }
}

/// The header's tensors in their own order; names given twice are seen.
struct Header(Vec<(String, RawTensor)>);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Shape,
    data_offsets: (u64, u64),
}

/// Dimensions, never more than [`MAX_DIMENSIONS`].
struct Shape(Vec<u64>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries;
        impl<'de> Visitor<'de> for Entries {
            type Value = Header;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Header, A::Error> {
                let mut entries = vec![];
                let mut has_metadata = false;
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        if std::mem::replace(&mut has_metadata, true) {
                            return Err(A::Error::custom("__metadata__ is there twice"));
                        }
                        map.next_value::<Metadata>()
                            .map_err(|e| A::Error::custom(format!("__metadata__: {}", clipped(&e))))?;
                        continue;
                    }
                    if name.len() > MAX_NAME_BYTES {
                        let found = name.len();
                        return Err(A::Error::custom(format!(
                            "a tensor has a name of {found} bytes; at most {MAX_NAME_BYTES} are accepted"
                        )));
                    }
                    if entries.len() == MAX_TENSORS {
                        return Err(A::Error::custom(format!("there are more than {MAX_TENSORS} tensors")));
                    }
                    let tensor =
                        map.next_value().map_err(|e| A::Error::custom(format!("tensor {name:?}: {}", clipped(&e))))?;
                    entries.push((name, tensor));
                }
                Ok(Header(entries))
            }
        }
        deserializer.deserialize_map(Entries)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Dimensions;
        impl<'de> Visitor<'de> for Dimensions {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Shape, A::Error> {
                let mut shape = vec![];
                while let Some(n) = seq.next_element()? {
                    if shape.len() == MAX_DIMENSIONS {
                        return Err(A::Error::custom(format!("it has more than {MAX_DIMENSIONS} dimensions")));
                    }
                    shape.push(n);
                }
                Ok(Shape(shape))
            }
        }
        deserializer.deserialize_seq(Dimensions)
    }
}

/// `__metadata__`: texts by name. Read and dropped: nothing in it is a weight, and nobody vouches for it.
struct Metadata;

impl<'de> Deserialize<'de> for Metadata {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Texts;
        impl<'de> Visitor<'de> for Texts {
            type Value = Metadata;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Metadata, A::Error> {
                while map.next_entry::<String, String>()?.is_some() {}
                Ok(Metadata)
            }
        }
        deserializer.deserialize_map(Texts)
    }
}
