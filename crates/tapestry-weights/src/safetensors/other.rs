//! Tensors that Tapestry carries from file to file but does not compute with: integers, truth values, other floats.

use std::fmt;

/// An element type of the safetensors format beside those of [`tapestry_core::Dtype`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OtherDtype {
    name: &'static str,
    size_bits: u64,
}

/// Each with its bits; those of fewer than eight lie packed.
const DTYPES: [OtherDtype; 19] = {
    const fn dtype(name: &'static str, size_bits: u64) -> OtherDtype {
        OtherDtype { name, size_bits }
    }
    [
        dtype("BOOL", 8),
        dtype("U8", 8),
        dtype("I8", 8),
        dtype("U16", 16),
        dtype("I16", 16),
        dtype("U32", 32),
        dtype("I32", 32),
        dtype("U64", 64),
        dtype("I64", 64),
        dtype("F64", 64),
        dtype("C64", 64),
        dtype("F4", 4),
        dtype("F6_E2M3", 6),
        dtype("F6_E3M2", 6),
        dtype("F8_E5M2", 8),
        dtype("F8_E4M3", 8),
        dtype("F8_E8M0", 8),
        dtype("F8_E4M3FNUZ", 8),
        dtype("F8_E5M2FNUZ", 8),
    ]
};

impl OtherDtype {
    /// The type of this name in a header.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        DTYPES.into_iter().find(|dtype| dtype.name == name)
    }

    /// Its name in a header, such as `I64`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.name
    }

    /// Bits of one element.
    #[must_use]
    pub const fn size_bits(self) -> u64 {
        self.size_bits
    }

    /// Whether its elements stand for fractions: a merge that copies them leaves something out.
    #[must_use]
    pub fn is_float(self) -> bool {
        self.name.starts_with(['F', 'C'])
    }
}

impl fmt::Display for OtherDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A tensor of such a type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OtherTensor {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub dtype: OtherDtype,
    /// Its dimensions, outermost first.
    pub shape: Vec<u64>,
}

impl OtherTensor {
    /// Bytes of the tensor, or `None` where the product overflows or the elements do not fill whole bytes.
    #[must_use]
    pub fn size_bytes(&self) -> Option<u64> {
        let bits = self.shape.iter().try_fold(self.dtype.size_bits, |product, n| product.checked_mul(*n))?;
        bits.is_multiple_of(8).then_some(bits / 8)
    }
}
