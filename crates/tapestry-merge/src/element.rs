//! One element of a tensor: its bytes, its value, and rounding back to it.

#[cfg(test)]
use half::bf16;
use half::f16;

/// A little-endian floating-point type whose every value is an `f64` too.
pub(crate) trait Element {
    /// Bytes of one element.
    const LEN: usize;

    /// The value of `LEN` bytes, exactly.
    fn load(bytes: &[u8]) -> f64;

    /// Writes the nearest value to `LEN` bytes; of two that are equally near, the one with an even last bit.
    #[cfg(test)]
    fn store(value: f64, bytes: &mut [u8]);

    /// Whether `LEN` bytes are neither infinite nor not-a-number.
    fn is_finite(bytes: &[u8]) -> bool;
}

pub(crate) struct F32;
pub(crate) struct Bf16;
pub(crate) struct F16;

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    bytes.try_into().expect("callers cut content into whole elements")
}

impl Element for F32 {
    const LEN: usize = 4;

    fn load(bytes: &[u8]) -> f64 {
        f64::from(f32::from_le_bytes(array(bytes)))
    }

    #[cfg(test)]
    #[expect(
        clippy::cast_possible_truncation,
        reason = "rounding is what is wanted; `as` rounds to nearest, ties to even"
    )]
    fn store(value: f64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&(value as f32).to_le_bytes());
    }

    fn is_finite(bytes: &[u8]) -> bool {
        u32::from_le_bytes(array(bytes)) & 0x7f80_0000 != 0x7f80_0000
    }
}

impl Element for Bf16 {
    const LEN: usize = 2;

    fn load(bytes: &[u8]) -> f64 {
        f64::from(f32::from_bits(u32::from(u16::from_le_bytes(array(bytes))) << 16))
    }

    #[cfg(test)]
    fn store(value: f64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&bf16::from_f32(to_f32_odd(value)).to_le_bytes());
    }

    fn is_finite(bytes: &[u8]) -> bool {
        u16::from_le_bytes(array(bytes)) & 0x7f80 != 0x7f80
    }
}

impl Element for F16 {
    const LEN: usize = 2;

    fn load(bytes: &[u8]) -> f64 {
        f64::from(f16::from_le_bytes(array(bytes)).to_f32())
    }

    #[cfg(test)]
    fn store(value: f64, bytes: &mut [u8]) {
        bytes.copy_from_slice(&f16::from_f32(to_f32_odd(value)).to_le_bytes());
    }

    fn is_finite(bytes: &[u8]) -> bool {
        u16::from_le_bytes(array(bytes)) & 0x7c00 != 0x7c00
    }
}

#[cfg(test)]
/// `value` as an `f32`, rounded to odd: cut off towards zero, with the last bit set where anything was cut.
///
/// Rounding to nearest twice can be off: a value just above the middle between two 16-bit neighbours becomes the middle
/// in `f32`, and then goes to the even neighbour below. Rounded to odd, the middle stays distinguishable, and the second
/// rounding alone decides.
///
/// # Source
/// Boldo and Melquiond, "When double rounding is odd", 2005: right whenever the first format has at least two more bits
/// than the second, here 24 against 11 and 8.
#[expect(clippy::cast_possible_truncation, reason = "the rounding error is corrected below")]
#[expect(clippy::float_cmp, reason = "whether rounding was exact is the question")]
fn to_f32_odd(value: f64) -> f32 {
    let nearest = value as f32;
    if nearest.is_nan() || f64::from(nearest) == value {
        return nearest;
    }
    let is_above = f64::from(nearest).abs() > value.abs();
    // The next value towards zero has the bits of one less, whatever the sign; below infinity that is the largest.
    f32::from_bits((nearest.to_bits() - u32::from(is_above)) | 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All finite values of a 16-bit type with their upper neighbours, the middle between them, and a bit more and less.
    fn check_ties<E: Element>() {
        let load = |bits: u16| E::load(&bits.to_le_bytes());
        let store = |value: f64| {
            let mut bytes = [0; 2];
            E::store(value, &mut bytes);
            u16::from_le_bytes(bytes)
        };
        let mut checked = 0;
        for sign in [0u16, 0x8000] {
            for bits in 0..0x7fff {
                let (lower, upper) = (sign | bits, sign | (bits + 1));
                if !E::is_finite(&lower.to_le_bytes()) || !E::is_finite(&upper.to_le_bytes()) {
                    continue;
                }
                let middle = f64::midpoint(load(lower), load(upper));
                let even = if lower % 2 == 0 { lower } else { upper };
                assert_eq!(store(load(lower)), lower);
                assert_eq!(store(middle), even, "the middle of {lower:#06x} and the next");
                assert_eq!(store(middle * (1.0 + 1e-15)), upper, "above the middle of {lower:#06x} and the next");
                assert_eq!(store(middle * (1.0 - 1e-15)), lower, "below the middle of {lower:#06x} and the next");
                checked += 1;
            }
        }
        assert!(checked > 63_000 - 4096, "{checked}");
    }

    #[test]
    fn bf16_rounds_to_nearest_even_at_every_tie() {
        check_ties::<Bf16>();
    }

    #[test]
    fn f16_rounds_to_nearest_even_at_every_tie() {
        check_ties::<F16>();
    }

    #[test]
    fn what_is_too_large_becomes_infinite_and_nan_stays() {
        let mut bytes = [0; 2];
        for value in [1e300, f64::from(f32::MAX), f64::INFINITY] {
            Bf16::store(value, &mut bytes);
            assert_eq!(bytes, [0x80, 0x7f], "{value}");
            F16::store(-value, &mut bytes);
            assert_eq!(bytes, [0x00, 0xfc], "{value}");
        }
        F16::store(f64::NAN, &mut bytes);
        assert!(!F16::is_finite(&bytes));
        Bf16::store(-1e-300, &mut bytes);
        assert_eq!(bytes, [0x00, 0x80], "the sign of zero stays");
    }
}
