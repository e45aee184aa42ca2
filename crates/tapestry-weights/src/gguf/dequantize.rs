//! From stored blocks to 32-bit floats.
//!
//! Source: the block layouts of the `ggml` project. A block holds 32 consecutive elements of a row; scales are 16-bit
//! floats; of two 4-bit values in a byte the low one belongs to the first half of the block.

use half::{bf16, f16};

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GgmlType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    BF16,
    /// Scale `d` and 32 signed bytes `q`: `d*q`.
    Q8_0,
    /// Scale `d` and 32 4-bit values `q`: `d*(q-8)`.
    Q4_0,
    /// Scale `d`, minimum `m` and 32 4-bit values `q`: `d*q + m`.
    Q4_1,
}

const BLOCK: u64 = 32;

impl GgmlType {
    pub(super) fn from_code(code: u32) -> Result<Self, String> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            8 => Self::Q8_0,
            30 => Self::BF16,
            other => {
                return Err(format!("element type {other} is not read; F32, F16, BF16, Q8_0, Q4_0 and Q4_1 are"));
            }
        })
    }

    /// Elements and bytes of a block.
    const fn block(self) -> (u64, u64) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::BF16 => (1, 2),
            Self::Q8_0 => (BLOCK, 34),
            Self::Q4_0 => (BLOCK, 18),
            Self::Q4_1 => (BLOCK, 20),
        }
    }

    /// Bytes of `count` elements in rows of `row`; none where rows cannot be cut into blocks, or the size overflows.
    pub(super) fn size_bytes(self, count: u64, row: u64) -> Option<u64> {
        let (elements, bytes) = self.block();
        if !row.is_multiple_of(elements) {
            return None;
        }
        (count / elements).checked_mul(bytes)
    }

    /// The elements of whole blocks.
    pub(super) fn dequantize(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F32 => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
            Self::F16 => bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b).to_f32()).collect(),
            Self::BF16 => bytes.as_chunks().0.iter().map(|b| bf16::from_le_bytes(*b).to_f32()).collect(),
            Self::Q8_0 => {
                let block = |b: &[u8; 34]| {
                    let d = scale(b[0], b[1]);
                    b[2..].iter().map(|q| d * f32::from(q.cast_signed())).collect::<Vec<_>>()
                };
                bytes.as_chunks().0.iter().flat_map(block).collect()
            }
            Self::Q4_0 => {
                let block = |b: &[u8; 18]| {
                    let d = scale(b[0], b[1]);
                    nibbles(&b[2..]).map(|q| d * (f32::from(q) - 8.0)).collect::<Vec<_>>()
                };
                bytes.as_chunks().0.iter().flat_map(block).collect()
            }
            Self::Q4_1 => {
                let block = |b: &[u8; 20]| {
                    let (d, m) = (scale(b[0], b[1]), scale(b[2], b[3]));
                    nibbles(&b[4..]).map(|q| d * f32::from(q) + m).collect::<Vec<_>>()
                };
                bytes.as_chunks().0.iter().flat_map(block).collect()
            }
        }
    }
}

fn scale(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}
