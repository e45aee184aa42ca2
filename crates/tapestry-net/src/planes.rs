//! Lossless compression of weights: their bytes by place in the element, each plane by itself.
//!
//! Neighbouring weights have signs and exponents alike and mantissas that are noise. So the bytes of a chunk are taken apart by their
//! place in the element, and each plane that gets smaller by it is compressed (zstd); the others stay as they are. Where the receiver
//! has a similar chunk, such as the one at the same place in the base, both are combined (exclusive or) before: what training has not
//! changed becomes zeros.
//!
//! ```text
//! u8 element bytes (2 or 4), u32 length of the content, then for each plane: u8 method (0 as it is, 1 zstd), u32 length, bytes;
//! then what is left of a last, incomplete element. Numbers are little-endian.
//! ```
//!
//! # Hostile input
//! Lengths follow from the content's length, which is bounded before anything is allocated; a plane that gives more or fewer bytes than
//! it must is refused. That what comes out is what was asked for is for the caller to check, by its digest.

use crate::economy::Sample;
use bytes::Bytes;
use std::time::Instant;
use tapestry_core::{CHUNK_BYTES, Digest};
use tapestry_store::{BlobStore, StoreError};

/// How this encoding is named between the two sides.
pub(crate) const NAME: &str = "planes/1";
/// The header that names the encoding of a body.
pub(crate) const ENCODING_HEADER: &str = "tapestry-encoding";
/// The header that names the blob that the content was combined with.
pub(crate) const BASE_HEADER: &str = "tapestry-base";
/// The longest encoded chunk that is taken: what is longer than a chunk is not worth sending.
pub(crate) const MAX_ENCODED_BYTES: usize = MAX_CHUNK;

#[expect(clippy::cast_possible_truncation, reason = "8 MiB")]
const MAX_CHUNK: usize = CHUNK_BYTES as usize;
const AS_IT_IS: u8 = 0;
const ZSTD: u8 = 1;
/// Fast; higher levels save little on what is left of weights.
const LEVEL: i32 = 1;
/// So much of a plane is tried before all of it is compressed.
const SAMPLE: usize = 32 << 10;

/// Why something encoded is not a chunk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// It ends early, or goes on behind its end.
    #[error("the encoded chunk has {found} bytes where it must have {expected}")]
    Length {
        /// Bytes that it must have, as far as it says.
        expected: usize,
        /// Bytes that it has.
        found: usize,
    },
    /// It says that it is something that no chunk is.
    #[error("the encoded chunk says that it has {size_bytes} bytes in elements of {element_bytes}")]
    Shape {
        /// The length that it states.
        size_bytes: usize,
        /// The bytes of an element that it states.
        element_bytes: u8,
    },
    /// A plane cannot be read, or gives more or fewer bytes than it must.
    #[error("plane {plane} of the encoded chunk does not give {expected} bytes by method {method}")]
    Plane {
        /// Its number.
        plane: usize,
        /// The method that it states.
        method: u8,
        /// Bytes that it must give.
        expected: usize,
    },
}

/// The encoded form, or `None` where it would not be smaller. `element_bytes` is 2 or 4; with another, nothing is smaller.
pub(crate) fn encode(content: &[u8], element_bytes: u8, base: Option<&[u8]>) -> Option<Vec<u8>> {
    let width = usize::from(element_bytes);
    if !matches!(element_bytes, 2 | 4) || content.len() > MAX_CHUNK {
        return None;
    }
    let combined;
    let content = match base {
        Some(base) => {
            combined = combine(content, base);
            &combined
        }
        None => content,
    };
    let num_elements = content.len() / width;
    let mut encoded = Vec::with_capacity(content.len());
    encoded.push(element_bytes);
    encoded.extend_from_slice(&u32::try_from(content.len()).ok()?.to_le_bytes());
    let mut plane = vec![0; num_elements];
    let mut packed = vec![0; zstd::zstd_safe::compress_bound(num_elements)];
    let mut compressor = zstd::bulk::Compressor::new(LEVEL).ok()?;
    for number in 0..width {
        for (byte, element) in plane.iter_mut().zip(content.chunks_exact(width)) {
            *byte = element[number];
        }
        // From the middle, where no padding is.
        let middle = (num_elements / 2)..(num_elements / 2 + SAMPLE).min(num_elements);
        let sampled = compressor.compress_to_buffer(&plane[middle.clone()], &mut packed).ok()?;
        let is_worth_it = sampled < middle.len() - middle.len() / 32;
        let len = if is_worth_it { compressor.compress_to_buffer(&plane, &mut packed).ok()? } else { num_elements };
        let (method, bytes) = if len < num_elements { (ZSTD, &packed[..len]) } else { (AS_IT_IS, &plane[..]) };
        encoded.push(method);
        encoded.extend_from_slice(&u32::try_from(bytes.len()).ok()?.to_le_bytes());
        encoded.extend_from_slice(bytes);
    }
    encoded.extend_from_slice(&content[num_elements * width..]);
    (encoded.len() < content.len()).then_some(encoded)
}

/// The content of an encoded form. At most a chunk is allocated for it, and half a chunk for its planes.
///
/// # Errors
/// [`DecodeError`].
pub(crate) fn decode(encoded: &[u8], base: Option<&[u8]>) -> Result<Vec<u8>, DecodeError> {
    let found = encoded.len();
    let mut at = 0;
    let mut take = |len: usize| {
        let end = at + len;
        let part = encoded.get(at..end).ok_or(DecodeError::Length { expected: end, found });
        at = end;
        part
    };
    let element_bytes = take(1)?[0];
    let number = |bytes: &[u8]| bytes.iter().rev().fold(0usize, |number, byte| number << 8 | usize::from(*byte));
    let size_bytes = number(take(4)?);
    if !matches!(element_bytes, 2 | 4) || size_bytes > MAX_CHUNK {
        return Err(DecodeError::Shape { size_bytes, element_bytes });
    }
    let width = usize::from(element_bytes);
    let num_elements = size_bytes / width;
    let mut content = vec![0; size_bytes];
    // One byte more than a plane has, to tell one that would give more.
    let mut unpacked = vec![0; num_elements + 1];
    for plane in 0..width {
        let method = take(1)?[0];
        let len = number(take(4)?);
        let bytes = take(len)?;
        let wrong = DecodeError::Plane { plane, method, expected: num_elements };
        let bytes = match method {
            AS_IT_IS if len == num_elements => bytes,
            ZSTD => match zstd::bulk::decompress_to_buffer(bytes, &mut unpacked) {
                Ok(len) if len == num_elements => &unpacked[..len],
                _ => return Err(wrong),
            },
            _ => return Err(wrong),
        };
        for (element, byte) in content.chunks_exact_mut(width).zip(bytes) {
            element[plane] = *byte;
        }
    }
    content[num_elements * width..].copy_from_slice(take(size_bytes % width)?);
    if at != found {
        return Err(DecodeError::Length { expected: at, found });
    }
    Ok(match base {
        Some(base) => combine(&content, base),
        None => content,
    })
}

/// Exclusive or, as far as the shorter goes; twice gives back what was.
fn combine(content: &[u8], base: &[u8]) -> Vec<u8> {
    let mut combined = content.to_vec();
    for (byte, base) in combined.iter_mut().zip(base) {
        *byte ^= base;
    }
    combined
}

/// What came of encoding a blob.
pub(crate) struct Tried {
    /// None where it would not have become smaller.
    pub(crate) encoded: Option<Bytes>,
    pub(crate) size_bytes: u64,
    pub(crate) seconds: f64,
}

impl Tried {
    #[expect(clippy::cast_precision_loss, reason = "a ratio and a rate")]
    pub(crate) fn sample(&self) -> Sample {
        let size = self.size_bytes as f64;
        let ratio = self.encoded.as_ref().map_or(1.0, |encoded| encoded.len() as f64 / size);
        Sample { ratio, bytes_per_second: size / self.seconds.max(1e-9) }
    }
}

/// Encodes a blob of a store. Neither it nor its base is checked; the receiver checks what comes out.
pub(crate) async fn encode_blob(
    store: &BlobStore,
    digest: Digest,
    element_bytes: u8,
    base: Option<Digest>,
) -> Result<Tried, StoreError> {
    let content = store.get_unverified(digest).await?;
    let base = read_base(store, base).await?;
    let work = move || {
        let start = Instant::now();
        let encoded = encode(&content, element_bytes, base.as_deref()).map(Bytes::from);
        Tried { encoded, size_bytes: content.len() as u64, seconds: start.elapsed().as_secs_f64() }
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Interrupted)
}

/// Decodes a blob that came.
pub(crate) async fn decode_blob(
    store: &BlobStore,
    encoded: Bytes,
    base: Option<Digest>,
) -> Result<Result<Bytes, DecodeError>, StoreError> {
    let base = read_base(store, base).await?;
    let work = move || decode(&encoded, base.as_deref()).map(Bytes::from);
    tokio::task::spawn_blocking(work).await.map_err(|_| StoreError::Interrupted)
}

async fn read_base(store: &BlobStore, base: Option<Digest>) -> Result<Option<Bytes>, StoreError> {
    match base {
        Some(base) => store.get_unverified(base).await.map(Some),
        None => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Noise(u64);

    impl Noise {
        /// About normal, by the sum of twelve.
        fn next(&mut self) -> f32 {
            let mut sum = -6.0;
            for _ in 0..12 {
                self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
                sum += f32::from(u16::try_from(self.0 >> 48).expect("16 bits")) / 65536.0;
            }
            sum
        }
    }

    /// Weights as training leaves them, and the same after a little more training.
    fn weights(count: usize) -> (Vec<f32>, Vec<f32>) {
        let mut noise = Noise(1);
        let before: Vec<f32> = (0..count).map(|_| 0.02 * noise.next()).collect();
        let after = before.iter().map(|weight| weight + 1e-4 * noise.next()).collect();
        (before, after)
    }

    fn bytes(weights: &[f32], element_bytes: usize) -> Vec<u8> {
        // The upper half of a 32-bit float is a bfloat16.
        weights.iter().flat_map(|weight| weight.to_le_bytes()[4 - element_bytes..].to_vec()).collect()
    }

    #[test]
    fn weights_get_smaller_and_come_back_to_the_bit() {
        let (before, after) = weights(300_000);
        for (element_bytes, most_alone, most_with_base) in [(4, 0.88, 0.70), (2, 0.76, 0.45)] {
            let (base, content) = (bytes(&before, element_bytes), bytes(&after, element_bytes));
            let width = u8::try_from(element_bytes).expect("small");
            for (base, most) in [(None, most_alone), (Some(&base[..]), most_with_base)] {
                let encoded = encode(&content, width, base).expect("smaller");
                #[expect(clippy::cast_precision_loss, reason = "a ratio")]
                let ratio = encoded.len() as f64 / content.len() as f64;
                assert!(ratio < most, "{element_bytes} bytes, base {}: {ratio}", base.is_some());
                assert!(decode(&encoded, base).expect("whole") == content);
            }
        }
    }

    #[test]
    fn every_length_comes_back_and_noise_is_left_alone() {
        let (before, _) = weights(2000);
        let content = bytes(&before, 4);
        for len in [0, 1, 2, 3, 5, 4000, 7999, 8000] {
            for (width, base) in [(2, None), (4, None), (4, Some(&content[..len / 2])), (2, Some(&content[..]))] {
                if let Some(encoded) = encode(&content[..len], width, base) {
                    assert!(decode(&encoded, base).expect("whole") == content[..len]);
                }
            }
        }
        let mut noise = Noise(7);
        let noise: Vec<u8> =
            (0..100_000).map(|_| noise.next().to_le_bytes()[0] ^ noise.next().to_le_bytes()[1]).collect();
        assert_eq!(encode(&noise, 4, None), None);
        assert_eq!(encode(&content, 3, None), None);
    }

    #[test]
    fn what_is_no_chunk_is_refused_before_it_is_allocated() {
        let zeros = vec![0u8; 1 << 20];
        let good = encode(&zeros, 4, None).expect("smaller");
        assert_eq!(decode(&good, None).as_deref(), Ok(&zeros[..]));
        for len in 0..good.len() {
            assert!(decode(&good[..len], None).is_err(), "{len}");
        }
        let longer = [&good[..], &[0]].concat();
        assert!(matches!(decode(&longer, None), Err(DecodeError::Length { .. })));
        let with = |at: usize, value: &[u8]| {
            let mut changed = good.clone();
            changed[at..at + value.len()].copy_from_slice(value);
            decode(&changed, None)
        };
        assert!(matches!(with(0, &[3]), Err(DecodeError::Shape { .. })));
        assert!(matches!(with(1, &u32::MAX.to_le_bytes()), Err(DecodeError::Shape { .. })));
        assert!(matches!(with(5, &[2]), Err(DecodeError::Plane { method: 2, .. })));
        assert!(matches!(with(6, &u32::MAX.to_le_bytes()), Err(DecodeError::Length { .. })));
        // Bombs: planes that would give more than they must, by a byte or by 64 megabytes.
        for size in [(1 << 18) + 1, 64 << 20] {
            let bomb = zstd::bulk::compress(&vec![0; size], 1).expect("compresses");
            let mut encoded = good[..5].to_vec();
            encoded.push(ZSTD);
            encoded.extend_from_slice(&u32::try_from(bomb.len()).expect("small").to_le_bytes());
            encoded.extend_from_slice(&bomb);
            assert!(matches!(decode(&encoded, None), Err(DecodeError::Plane { plane: 0, .. })), "{size}");
        }
    }

    #[test]
    fn changed_bytes_never_panic() {
        let (before, _) = weights(3000);
        let good = encode(&bytes(&before, 4), 4, None).expect("smaller");
        let mut state = 5u64;
        for _ in 0..20_000 {
            let mut changed = good.clone();
            for _ in 0..3 {
                state = state.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
                let at = usize::try_from(state >> 33).expect("31 bits") % changed.len();
                changed[at] = state.to_le_bytes()[3];
            }
            if let Ok(content) = decode(&changed, None) {
                assert!(content.len() <= MAX_CHUNK);
            }
        }
    }
}
