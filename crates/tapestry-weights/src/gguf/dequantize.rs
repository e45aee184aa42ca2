//! From stored blocks to 32-bit floats.
//!
//! Source: the block layouts of the `ggml` project. A block holds 32 consecutive elements of a row, of the types with K 256; scales are 16-bit
//! floats; of two 4-bit values in a byte the low one belongs to the first half of the block. Blocks are checked against the project's Python
//! package (`golden/blocks.py`).

use half::{bf16, f16};

/// How a tensor's elements are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(non_camel_case_types, reason = "the names of the ggml project")]
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
    /// Scale `d` and 32 5-bit values `q`: `d*(q-16)`.
    Q5_0,
    /// Scale `d`, minimum `m` and 32 5-bit values `q`: `d*q + m`.
    Q5_1,
    /// Scale `d`, minimum `m`, eight pairs of 6-bit factors `s`, `t` and 256 4-bit values `q`: `d*s*q - m*t`.
    Q4_K,
    /// As `Q4_K` with 5-bit values.
    Q5_K,
    /// Scale `d`, sixteen signed factors `s` and 256 6-bit values `q`: `d*s*(q-32)`.
    Q6_K,
}

const BLOCK: u64 = 32;
const SUPER_BLOCK: u64 = 256;

/// Names of the types that the `ggml` project knows and that are not read, by their code.
const OTHERS: [(u32, &str); 16] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
];

impl GgmlType {
    pub(super) fn from_code(code: u32) -> Result<Self, String> {
        Ok(match code {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            other => {
                let name = OTHERS.iter().find(|(code, _)| *code == other).map_or("unknown", |(_, name)| name);
                return Err(format!(
                    "element type {other} ({name}) is not read; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are"
                ));
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
            Self::Q5_0 => (BLOCK, 22),
            Self::Q5_1 => (BLOCK, 24),
            Self::Q4_K => (SUPER_BLOCK, 144),
            Self::Q5_K => (SUPER_BLOCK, 176),
            Self::Q6_K => (SUPER_BLOCK, 210),
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
            Self::Q5_0 => {
                let block = |b: &[u8; 22]| {
                    let d = scale(b[0], b[1]);
                    five_bits(&b[2..6], &b[6..]).map(|q| d * (f32::from(q) - 16.0)).collect::<Vec<_>>()
                };
                bytes.as_chunks().0.iter().flat_map(block).collect()
            }
            Self::Q5_1 => {
                let block = |b: &[u8; 24]| {
                    let (d, m) = (scale(b[0], b[1]), scale(b[2], b[3]));
                    five_bits(&b[4..8], &b[8..]).map(|q| d * f32::from(q) + m).collect::<Vec<_>>()
                };
                bytes.as_chunks().0.iter().flat_map(block).collect()
            }
            Self::Q4_K => bytes.as_chunks::<144>().0.iter().flat_map(|b| k_block(b, &[], &b[16..])).collect(),
            Self::Q5_K => bytes.as_chunks::<176>().0.iter().flat_map(|b| k_block(b, &b[16..48], &b[48..])).collect(),
            Self::Q6_K => bytes.as_chunks().0.iter().flat_map(q6_k).collect(),
        }
    }
}

/// 5-bit values: four bits as in the types with four, the fifth of element `i` in bit `i` of `high`.
fn five_bits<'a>(high: &'a [u8], low: &'a [u8]) -> impl Iterator<Item = u8> + 'a {
    nibbles(low).enumerate().map(|(i, q)| q | (high[i / 8] >> (i % 8) & 1) << 4)
}

/// A block of `Q4_K` or `Q5_K`: two scales, twelve bytes of factors, perhaps 32 bytes of fifth bits, 128 bytes of low bits.
///
/// Each 32 bytes of low bits hold 64 elements, the first half in the low bits. The fifth bit of element `l` of part `j` (of eight) is bit `j` of byte `l`.
fn k_block(block: &[u8], high: &[u8], low: &[u8]) -> Vec<f32> {
    let (d, m) = (scale(block[0], block[1]), scale(block[2], block[3]));
    let factors = &block[4..16];
    let mut out = Vec::with_capacity(256);
    for part in 0..8 {
        // Six bits each: of the first four in one byte, of the last four in the low and high bits of three.
        let (s, t) = match part {
            0..4 => (factors[part] & 63, factors[part + 4] & 63),
            _ => {
                (factors[part + 4] & 15 | factors[part - 4] >> 6 << 4, factors[part + 4] >> 4 | factors[part] >> 6 << 4)
            }
        };
        let (d, m) = (d * f32::from(s), m * f32::from(t));
        let bytes = &low[part / 2 * 32..][..32];
        out.extend(bytes.iter().enumerate().map(|(l, byte)| {
            let q = if part % 2 == 0 { byte & 15 } else { byte >> 4 };
            let fifth = high.get(l).map_or(0, |bits| bits >> part & 1);
            d * f32::from(q | fifth << 4) - m
        }));
    }
    out
}

/// A block of `Q6_K`: 128 bytes of low four bits, 64 of high two, sixteen signed factors, the scale.
fn q6_k(block: &[u8; 210]) -> Vec<f32> {
    let (low, high, factors) = (&block[..128], &block[128..192], &block[192..208]);
    let d = scale(block[208], block[209]);
    let value = |i: usize| {
        // Each half of 128 elements has 64 bytes of low bits and 32 of high ones.
        let (half, at) = (i / 128, i % 128);
        let (byte, bits) = (low[half * 64 + at % 64], high[half * 32 + at % 32] >> (at / 32 * 2) & 3);
        let q = if at < 64 { byte & 15 } else { byte >> 4 } | bits << 4;
        let factor = f32::from(factors[i / 16].cast_signed());
        d * factor * (f32::from(q) - 32.0)
    };
    (0..256).map(value).collect()
}

fn scale(low: u8, high: u8) -> f32 {
    f16::from_le_bytes([low, high]).to_f32()
}

fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> {
    bytes.iter().map(|b| b & 15).chain(bytes.iter().map(|b| b >> 4))
}
