//! Philox 4x32-10: random numbers that are a function of a key and a place, so that any thread can draw any of them.
//!
//! # Source
//! Salmon, Moraes, Dror, Shaw, "Parallel Random Numbers: As Easy as 1, 2, 3", 2011, section 3.3; the tests hold its known answers, as
//! published with the authors' Random123.

use crate::simd::dispatch;
use tapestry_core::Digest;

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const KEY_STEPS: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const NUM_ROUNDS: u32 = 10;
/// Groups of four draws that are computed side by side.
const LANES: usize = 16;

/// The draws for one tensor of one contribution.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Draws {
    key: [u32; 2],
    /// The upper half of the counter; the lower half is the place.
    stream: [u32; 2],
}

impl Draws {
    /// Key and stream from the BLAKE3 of everything that the draws depend on, each part behind its length.
    pub(crate) fn new(seed: u64, parts: &[&str]) -> Self {
        let mut text = seed.to_le_bytes().to_vec();
        for part in parts {
            text.extend((part.len() as u64).to_le_bytes());
            text.extend(part.as_bytes());
        }
        let digest = Digest::of(&text);
        let word = |index: usize| {
            let bytes = &digest.as_bytes()[4 * index..4 * index + 4];
            u32::from_le_bytes(bytes.try_into().expect("four bytes"))
        };
        Self { key: [word(0), word(1)], stream: [word(2), word(3)] }
    }

    /// The draws of the elements from `first` on: draw `i` is word `i mod 4` of the group `i / 4`.
    pub(crate) fn fill(&self, first: u64, draws: &mut [u32]) {
        dispatch(
            #[inline(always)]
            || self.fill_vectors(first, draws),
        );
    }

    #[inline(always)]
    fn fill_vectors(&self, first: u64, draws: &mut [u32]) {
        let skip = usize::try_from(first % 4).expect("below 4");
        let mut group = first / 4;
        let head = if skip == 0 { 0 } else { (4 - skip).min(draws.len()) };
        let (head, rest) = draws.split_at_mut(head);
        if !head.is_empty() {
            let words = self.groups::<1>(group);
            head.iter_mut().enumerate().for_each(|(i, draw)| *draw = words[skip + i][0]);
            group += 1;
        }
        let mut chunks = rest.chunks_exact_mut(4 * LANES);
        for chunk in &mut chunks {
            let words = self.groups::<LANES>(group);
            for (lane, four) in chunk.chunks_exact_mut(4).enumerate() {
                four.iter_mut().zip(&words).for_each(|(draw, word)| *draw = word[lane]);
            }
            group += LANES as u64;
        }
        for four in chunks.into_remainder().chunks_mut(4) {
            let words = self.groups::<1>(group);
            four.iter_mut().zip(&words).for_each(|(draw, word)| *draw = word[0]);
            group += 1;
        }
    }

    /// The four words of `N` groups in a row.
    #[inline(always)]
    fn groups<const N: usize>(&self, first: u64) -> [[u32; N]; 4] {
        let mut counter = [[0; N], [0; N], [self.stream[0]; N], [self.stream[1]; N]];
        let [low, high, ..] = &mut counter;
        for (lane, (low, high)) in low.iter_mut().zip(high).enumerate() {
            let group = first + lane as u64;
            #[expect(clippy::cast_possible_truncation, reason = "the two halves of a counter")]
            let halves = (group as u32, (group >> 32) as u32);
            (*low, *high) = halves;
        }
        philox(counter, self.key)
    }
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the two halves of a product")]
fn philox<const N: usize>(mut c: [[u32; N]; 4], mut key: [u32; 2]) -> [[u32; N]; 4] {
    for round in 0..NUM_ROUNDS {
        if round > 0 {
            key = [key[0].wrapping_add(KEY_STEPS[0]), key[1].wrapping_add(KEY_STEPS[1])];
        }
        let mut next = [[0; N]; 4];
        for lane in 0..N {
            let a = u64::from(MULTIPLIERS[0]) * u64::from(c[0][lane]);
            let b = u64::from(MULTIPLIERS[1]) * u64::from(c[2][lane]);
            next[0][lane] = (b >> 32) as u32 ^ c[1][lane] ^ key[0];
            next[1][lane] = b as u32;
            next[2][lane] = (a >> 32) as u32 ^ c[3][lane] ^ key[1];
            next[3][lane] = a as u32;
        }
        c = next;
    }
    c
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_the_published_answers() {
        let cases = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, expected) in cases {
            assert_eq!(philox(counter.map(|word| [word]), key).map(|[word]| word), expected);
        }
    }

    #[test]
    fn a_draw_depends_on_its_place_and_not_on_where_drawing_began() {
        let draws = Draws::new(7, &["hospital", "layers.0"]);
        let mut all = vec![0; 1000];
        draws.fill(0, &mut all);
        for (first, len) in [(1, 3), (2, 1), (3, 200), (4, 64), (63, 300), (999, 1), (500, 500)] {
            let mut some = vec![0; len];
            draws.fill(first as u64, &mut some);
            assert_eq!(some, all[first..first + len], "{first}+{len}");
        }
    }

    #[test]
    fn seed_member_and_tensor_all_count() {
        let first = |seed, parts: &[&str]| {
            let mut draws = [0; 4];
            Draws::new(seed, parts).fill(1 << 40, &mut draws);
            draws
        };
        let all = [first(1, &["a", "bc"]), first(2, &["a", "bc"]), first(1, &["ab", "c"]), first(1, &["a", "bd"])];
        for (i, a) in all.iter().enumerate() {
            assert!(all[i + 1..].iter().all(|b| a != b));
        }
    }
}
