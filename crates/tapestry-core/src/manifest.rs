//! Models as manifests of content-addressed chunks.
//!
//! The weights of a model are one sequence of bytes: the tensors in the order of their names, each in row-major
//! little-endian form, without gaps. It is cut into chunks of [`CHUNK_BYTES`]; the manifest names each by its digest. It
//! is also exactly the data section of the canonical safetensors file, so a file can be rebuilt from chunks and back.

use crate::{CanonicalError, Digest};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The size of a chunk in bytes: 8 MiB. Only the last chunk of a blob is smaller.
pub const CHUNK_BYTES: u64 = 8 << 20;

/// A model is refused when it has more tensors than this.
const MAX_TENSORS: usize = 1 << 20;
/// A model is refused when it has more auxiliary files than this.
const MAX_FILES: usize = 64;

/// The type of a tensor's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Dtype {
    /// IEEE 754 binary32.
    F32,
    /// bfloat16.
    BF16,
    /// IEEE 754 binary16.
    F16,
}

impl Dtype {
    /// Bytes of one element.
    #[must_use]
    pub const fn size_bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::BF16 | Self::F16 => 2,
        }
    }
}

/// A tensor's name, element type and shape.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TensorSpec {
    /// The Hugging Face name, such as `model.layers.0.mlp.up_proj.weight`.
    pub name: String,
    /// The type of its elements.
    pub dtype: Dtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<u64>,
}

impl TensorSpec {
    /// Number of elements, or `None` where the product overflows.
    #[must_use]
    pub fn num_elements(&self) -> Option<u64> {
        self.shape.iter().try_fold(1u64, |product, n| product.checked_mul(*n))
    }

    /// Bytes of the tensor, or `None` where the product overflows.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        self.num_elements()?.checked_mul(self.dtype.size_bytes())
    }
}

/// Content of any size as a list of chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Blob {
    /// Bytes of the whole.
    pub size_bytes: u64,
    /// The digests of its chunks of [`CHUNK_BYTES`], in order; only the last chunk may be smaller.
    pub chunks: Vec<Digest>,
}

impl Blob {
    /// Checks that the number of chunks is the one that the size asks for.
    fn check(&self, what: &str) -> Result<(), ManifestError> {
        let expected = self.size_bytes.div_ceil(CHUNK_BYTES);
        let found = self.chunks.len() as u64;
        if expected == found {
            return Ok(());
        }
        Err(ManifestError::ChunkCount { what: what.to_owned(), size_bytes: self.size_bytes, expected, found })
    }

    /// Bytes of chunk `index`; zero beyond the last.
    #[must_use]
    pub fn chunk_size(&self, index: usize) -> u64 {
        let start = (index as u64).saturating_mul(CHUNK_BYTES);
        self.size_bytes.saturating_sub(start).min(CHUNK_BYTES)
    }
}

/// All parameters of a model: the tensor list and the content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WeightsManifest {
    /// The tensors, sorted by name.
    pub tensors: Vec<TensorSpec>,
    /// Their bytes, concatenated in that order.
    pub data: Blob,
}

/// A whole model: weights, and the small files around them (configuration, tokenizer).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelManifest {
    /// Auxiliary files by name, such as `config.json`.
    pub files: BTreeMap<String, Blob>,
    /// The weights.
    pub weights: WeightsManifest,
}

/// Why a manifest cannot describe a model, or differs from the one it must match.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// Tensors are not in strictly ascending order of name.
    #[error("tensor {name:?} is out of order or there twice: a manifest lists tensors sorted by name")]
    Order {
        /// The first tensor that breaks the order.
        name: String,
    },
    /// A name that cannot be trusted.
    #[error("{name:?} is not acceptable as a name of a tensor or file")]
    Name {
        /// The name, cut to a bounded length.
        name: String,
    },
    /// The shape overflows.
    #[error("tensor {name:?} has shape {shape:?}, whose size overflows")]
    Overflow {
        /// The tensor.
        name: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// The tensors do not add up to the data.
    #[error("the tensors add up to {expected} bytes, the data has {found}")]
    Size {
        /// Sum over the tensors.
        expected: u64,
        /// Declared size.
        found: u64,
    },
    /// The number of chunks does not fit the size.
    #[error("{what} has {size_bytes} bytes, which makes {expected} chunks, but {found} are listed")]
    ChunkCount {
        /// Which content.
        what: String,
        /// Its size.
        size_bytes: u64,
        /// Chunks that the size asks for.
        expected: u64,
        /// Chunks that are listed.
        found: u64,
    },
    /// Too many entries.
    #[error("{found} {what} are more than the {limit} that are accepted")]
    TooMany {
        /// What there is too much of.
        what: &'static str,
        /// How many.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// A tensor is missing.
    #[error("tensor {name:?} of the base is missing")]
    Missing {
        /// The tensor.
        name: String,
    },
    /// A tensor is there that the base does not have.
    #[error("tensor {name:?} is not in the base")]
    Extra {
        /// The tensor.
        name: String,
    },
    /// A tensor differs in shape.
    #[error("tensor {name:?}: expected shape {expected:?}, found {found:?}")]
    Shape {
        /// The tensor.
        name: String,
        /// The base's shape.
        expected: Vec<u64>,
        /// The shape found.
        found: Vec<u64>,
    },
    /// A tensor differs in type.
    #[error("tensor {name:?}: expected dtype {expected:?}, found {found:?}")]
    Dtype {
        /// The tensor.
        name: String,
        /// The base's type.
        expected: Dtype,
        /// The type found.
        found: Dtype,
    },
    /// The manifest has no canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

impl WeightsManifest {
    /// Checks that the manifest describes possible weights: names, order, sizes, chunk counts.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.tensors.len() > MAX_TENSORS {
            return Err(ManifestError::TooMany { what: "tensors", found: self.tensors.len(), limit: MAX_TENSORS });
        }
        let mut expected = 0u64;
        let mut previous = "";
        for tensor in &self.tensors {
            check_name(&tensor.name)?;
            if tensor.name.as_str() <= previous {
                return Err(ManifestError::Order { name: tensor.name.clone() });
            }
            previous = &tensor.name;
            let overflow = || ManifestError::Overflow { name: tensor.name.clone(), shape: tensor.shape.clone() };
            let size = tensor.size_bytes().ok_or_else(overflow)?;
            expected = expected.checked_add(size).ok_or_else(overflow)?;
        }
        if expected != self.data.size_bytes {
            return Err(ManifestError::Size { expected, found: self.data.size_bytes });
        }
        self.data.check("the weights")
    }

    /// Checks that these weights have the tensors of `base`: same names, shapes and types.
    ///
    /// # Errors
    /// The first difference, named.
    pub fn check_matches(&self, base: &Self) -> Result<(), ManifestError> {
        let ours: BTreeMap<_, _> = self.tensors.iter().map(|t| (&t.name, t)).collect();
        for expected in &base.tensors {
            let name = expected.name.clone();
            let found = ours.get(&expected.name).ok_or_else(|| ManifestError::Missing { name: name.clone() })?;
            if found.shape != expected.shape {
                let (expected, found) = (expected.shape.clone(), found.shape.clone());
                return Err(ManifestError::Shape { name, expected, found });
            }
            if found.dtype != expected.dtype {
                return Err(ManifestError::Dtype { name, expected: expected.dtype, found: found.dtype });
            }
        }
        let known: std::collections::BTreeSet<_> = base.tensors.iter().map(|t| &t.name).collect();
        match self.tensors.iter().find(|t| !known.contains(&t.name)) {
            Some(extra) => Err(ManifestError::Extra { name: extra.name.clone() }),
            None => Ok(()),
        }
    }

    /// Number of parameters.
    #[must_use]
    pub fn num_parameters(&self) -> u64 {
        self.tensors.iter().filter_map(TensorSpec::num_elements).sum()
    }

    /// The byte range of each tensor in the data: `(spec, start)`, in order.
    pub fn offsets(&self) -> impl Iterator<Item = (&TensorSpec, u64)> {
        self.tensors.iter().scan(0u64, |start, tensor| {
            let at = *start;
            *start = start.saturating_add(tensor.size_bytes().unwrap_or(0));
            Some((tensor, at))
        })
    }
}

impl ModelManifest {
    /// Checks that the manifest describes a possible model.
    ///
    /// # Errors
    /// The first fault found.
    pub fn check(&self) -> Result<(), ManifestError> {
        if self.files.len() > MAX_FILES {
            return Err(ManifestError::TooMany { what: "files", found: self.files.len(), limit: MAX_FILES });
        }
        for (name, file) in &self.files {
            check_name(name)?;
            file.check(name)?;
        }
        self.weights.check()
    }

    /// The name of the model: the digest of the manifest's canonical JSON.
    ///
    /// # Errors
    /// Where the manifest has no canonical form, which no manifest that passed [`Self::check`] lacks.
    pub fn digest(&self) -> Result<Digest, ManifestError> {
        Ok(Digest::of_json(self)?)
    }
}

/// Names of tensors and files end up in paths and messages, so only plain characters are accepted.
fn check_name(name: &str) -> Result<(), ManifestError> {
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if plain && !name.is_empty() && name.len() <= 256 && !name.starts_with('.') && !name.contains("..") {
        return Ok(());
    }
    Err(ManifestError::Name { name: name.chars().take(80).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(name: &str, shape: &[u64]) -> TensorSpec {
        TensorSpec { name: name.into(), dtype: Dtype::F32, shape: shape.to_vec() }
    }

    fn weights(tensors: Vec<TensorSpec>) -> WeightsManifest {
        let size_bytes = tensors.iter().filter_map(TensorSpec::size_bytes).sum();
        WeightsManifest { tensors, data: Blob { size_bytes, chunks: vec![Digest::of(b"x")] } }
    }

    #[test]
    fn differences_to_the_base_are_named() {
        let base = weights(vec![tensor("a", &[2, 3]), tensor("b", &[4])]);
        assert!(base.check().is_ok() && base.check_matches(&base).is_ok());
        let check = |other: Vec<TensorSpec>, expected: &str| {
            let message = weights(other).check_matches(&base).expect_err("differs").to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(vec![tensor("a", &[2, 3])], "\"b\" of the base is missing");
        check(vec![tensor("a", &[3, 2]), tensor("b", &[4])], "expected shape [2, 3], found [3, 2]");
        check(vec![tensor("a", &[2, 3]), tensor("b", &[4]), tensor("c", &[1])], "\"c\" is not in the base");
        let mut half = vec![tensor("a", &[2, 3]), tensor("b", &[4])];
        half[1].dtype = Dtype::BF16;
        check(half, "expected dtype F32, found BF16");
    }

    #[test]
    fn impossible_manifests_are_refused() {
        assert!(weights(vec![tensor("b", &[1]), tensor("a", &[1])]).check().is_err());
        assert!(weights(vec![tensor("a", &[1]), tensor("a", &[1])]).check().is_err());
        assert!(weights(vec![tensor("a/b", &[1])]).check().is_err());
        assert!(weights(vec![tensor("..", &[1])]).check().is_err());
        assert!(weights(vec![tensor("a", &[u64::MAX, 2])]).check().is_err());
        let mut short = weights(vec![tensor("a", &[4])]);
        short.data.size_bytes = 8;
        assert!(matches!(short.check(), Err(ManifestError::Size { expected: 16, found: 8 })));
        let mut many = weights(vec![tensor("a", &[4])]);
        many.data.chunks.push(Digest::of(b"y"));
        assert!(matches!(many.check(), Err(ManifestError::ChunkCount { expected: 1, found: 2, .. })));
    }
}
