//! Rows of elements: from the bytes of a file to values and back, many at a time.

use crate::simd::dispatch;
use half::f16;
use half::slice::HalfFloatSliceExt as _;
use tapestry_core::Dtype;

/// Writes the values of `bytes` to `row`, exactly. `f32` bytes are copied.
///
/// # Panics
/// Where `bytes` is not as long as `row.len()` elements.
pub fn decode_row(dtype: Dtype, bytes: &[u8], row: &mut [f32]) {
    assert_eq!(bytes.len() as u64, row.len() as u64 * dtype.size_bytes(), "the bytes of one row");
    match dtype {
        Dtype::F32 => bytemuck::cast_slice_mut(row).copy_from_slice(bytes),
        Dtype::BF16 => dispatch(
            #[inline(always)]
            || {
                for (value, pair) in row.iter_mut().zip(bytes.chunks_exact(2)) {
                    *value = f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
                }
            },
        ),
        Dtype::F16 => match bytemuck::try_cast_slice::<u8, f16>(bytes) {
            Ok(halves) => halves.convert_to_f32_slice(row),
            // Bytes that do not lie on an even address: one by one.
            Err(_) => row.iter_mut().zip(bytes.chunks_exact(2)).for_each(|(value, pair)| {
                *value = f16::from_le_bytes([pair[0], pair[1]]).to_f32();
            }),
        },
    }
}

/// Rounds every value once to `dtype`, to nearest, ties to even, and writes its bytes. Returns whether all results are finite.
///
/// # Panics
/// Where `bytes` is not as long as `row.len()` elements.
#[must_use]
pub fn encode_row(dtype: Dtype, row: &[f64], bytes: &mut [u8]) -> bool {
    assert_eq!(bytes.len() as u64, row.len() as u64 * dtype.size_bytes(), "the bytes of one row");
    dispatch(
        #[inline(always)]
        || match dtype {
            Dtype::F32 => encode_f32(row, bytes),
            Dtype::BF16 => encode_16(row, bytes, 0x7f80, bf16_bits),
            Dtype::F16 => encode_f16(row, bytes),
        },
    )
}

/// Whether no value is infinite or not a number.
#[must_use]
pub fn all_finite(row: &[f32]) -> bool {
    dispatch(
        #[inline(always)]
        || {
            // The largest magnitude, as an integer: one operation an element, and nothing to branch on.
            row.iter().fold(0, |largest: u32, value| largest.max(value.to_bits() & 0x7fff_ffff)) < 0x7f80_0000
        },
    )
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "rounding is what is wanted; `as` rounds to nearest, ties to even")]
fn encode_f32(row: &[f64], bytes: &mut [u8]) -> bool {
    let mut largest = 0;
    for (value, bytes) in row.iter().zip(bytes.chunks_exact_mut(4)) {
        let bits = (*value as f32).to_bits();
        largest = largest.max(bits & 0x7fff_ffff);
        bytes.copy_from_slice(&bits.to_le_bytes());
    }
    largest < 0x7f80_0000
}

#[inline(always)]
fn encode_16(row: &[f64], bytes: &mut [u8], infinity: u16, round: impl Fn(f32) -> u16) -> bool {
    let mut largest = 0;
    for (value, bytes) in row.iter().zip(bytes.chunks_exact_mut(2)) {
        let bits = round(to_f32_odd(*value));
        largest = largest.max(bits & 0x7fff);
        bytes.copy_from_slice(&bits.to_le_bytes());
    }
    largest < infinity
}

/// In pieces, so that the conversion to binary16 can use the processor's own instruction.
#[inline(always)]
fn encode_f16(row: &[f64], bytes: &mut [u8]) -> bool {
    const PIECE: usize = 512;
    let (mut odd, mut halves, mut is_finite) = ([0f32; PIECE], [f16::ZERO; PIECE], true);
    for (row, bytes) in row.chunks(PIECE).zip(bytes.chunks_mut(2 * PIECE)) {
        let (odd, halves) = (&mut odd[..row.len()], &mut halves[..row.len()]);
        odd.iter_mut().zip(row).for_each(|(odd, value)| *odd = to_f32_odd(*value));
        halves.convert_from_f32_slice(odd);
        is_finite &= halves.iter().fold(0, |largest: u16, half| largest.max(half.to_bits() & 0x7fff)) < 0x7c00;
        bytes.copy_from_slice(bytemuck::cast_slice(halves));
    }
    is_finite
}

/// Rounds to bfloat16, to nearest, ties to even. Infinity stays; a value that is not a number becomes one of those, or
/// infinity, and either is noticed by who asks for finite values.
#[inline(always)]
const fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if bits & 0x7fff_ffff > 0x7f80_0000 { 0x7fc0 } else { ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16 }
}

/// `value` as an `f32`, rounded to odd: cut off towards zero, with the last bit set where anything was cut.
///
/// Rounding to nearest twice can be off: a value just above the middle between two 16-bit neighbours becomes the middle
/// in `f32`, and then goes to the even neighbour below. Rounded to odd, the middle stays distinguishable, and the second
/// rounding alone decides.
///
/// # Source
/// Boldo and Melquiond, "When double rounding is odd", 2005: right whenever the first format has at least two more bits
/// than the second, here 24 against 11 and 8.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the rounding error is corrected below")]
#[expect(clippy::float_cmp, reason = "whether rounding was exact is the question")]
fn to_f32_odd(value: f64) -> f32 {
    let nearest = value as f32;
    let back = f64::from(nearest);
    // The next value towards zero has the bits of one less, whatever the sign; below infinity that is the largest.
    let is_above = back.abs() > value.abs();
    let is_inexact = back != value && !value.is_nan();
    let odd = (nearest.to_bits() - u32::from(is_above)) | u32::from(is_inexact);
    f32::from_bits(odd)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::element::{Bf16, Element, F16, F32};

    /// Values that rounding can get wrong: every 16-bit value, the middles between neighbours, a bit more and less.
    fn difficult() -> Vec<f64> {
        let finite = |bits: u16| [Bf16::load(&bits.to_le_bytes()), F16::load(&bits.to_le_bytes())];
        let mut values = vec![f64::MAX, f64::MIN_POSITIVE, -0.0, 1e300, f64::from(f32::MAX), f64::INFINITY, f64::NAN];
        for bits in 0..u16::MAX {
            for (lower, upper) in finite(bits).into_iter().zip(finite(bits + 1)) {
                let middle = f64::midpoint(lower, upper);
                values.extend([lower, middle, middle * (1.0 + 1e-15), middle * (1.0 - 1e-15)]);
            }
        }
        values
    }

    fn check<E: Element>(dtype: Dtype) {
        let row = difficult();
        let mut expected = vec![0; row.len() * E::LEN];
        row.iter().zip(expected.chunks_exact_mut(E::LEN)).for_each(|(value, bytes)| E::store(*value, bytes));
        let mut found = vec![0; expected.len()];
        let is_finite = encode_row(dtype, &row, &mut found);
        assert!(!is_finite, "{dtype:?}");
        for (index, value) in row.iter().enumerate() {
            let range = index * E::LEN..(index + 1) * E::LEN;
            let (expected, found) = (E::load(&expected[range.clone()]), E::load(&found[range]));
            assert!(
                expected.to_bits() == found.to_bits() || (expected.is_nan() && !found.is_finite()),
                "{dtype:?}: {value:e} became {found:e}, not {expected:e}"
            );
        }
    }

    #[test]
    fn rows_round_like_single_elements() {
        check::<F32>(Dtype::F32);
        check::<Bf16>(Dtype::BF16);
        check::<F16>(Dtype::F16);
    }

    #[test]
    fn rows_decode_like_single_elements_at_any_address() {
        let bytes: Vec<u8> = (0..u16::MAX).flat_map(u16::to_le_bytes).chain([0; 2]).collect();
        for cut in [0, 1] {
            let len = (bytes.len() - cut) / 4 * 4;
            let bytes = &bytes[cut..cut + len];
            let mut row = vec![0.0; len / 2];
            decode_row(Dtype::BF16, bytes, &mut row);
            let same = |row: &[f32], load: fn(&[u8]) -> f64, size: usize| {
                row.iter().zip(bytes.chunks_exact(size)).all(|(found, bytes)| {
                    f64::from(*found).to_bits() == load(bytes).to_bits() || (found.is_nan() && load(bytes).is_nan())
                })
            };
            assert!(same(&row, Bf16::load, 2));
            decode_row(Dtype::F16, bytes, &mut row);
            assert!(same(&row, F16::load, 2));
            row.truncate(len / 4);
            decode_row(Dtype::F32, bytes, &mut row);
            assert!(same(&row, F32::load, 4));
        }
    }

    #[test]
    fn one_bad_value_anywhere_is_noticed() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -f32::NAN] {
            for at in 0..100 {
                let mut row = vec![f32::MAX; 100];
                assert!(all_finite(&row));
                row[at] = bad;
                assert!(!all_finite(&row), "{bad} at {at}");
                let row: Vec<f64> = row.into_iter().map(f64::from).collect();
                assert!(!encode_row(Dtype::F32, &row, &mut [0; 400]));
            }
        }
    }
}
