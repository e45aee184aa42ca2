use crate::golden::merged;
use half::{bf16, f16};
use proptest::prelude::*;
use tapestry_core::Dtype;
use tapestry_merge::{ChangePart, DeltaNorm, first_non_finite};

const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::BF16, Dtype::F16];

fn load(dtype: Dtype, bytes: &[u8]) -> Vec<f64> {
    match dtype {
        Dtype::F32 => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()).into()).collect(),
        Dtype::BF16 => bytes.chunks(2).map(|b| bf16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
        Dtype::F16 => bytes.chunks(2).map(|b| f16::from_le_bytes(b.try_into().unwrap()).to_f64()).collect(),
    }
}

/// Random bits with every exponent that is infinite or not a number taken down to a finite one.
fn finite(dtype: Dtype, mut bits: Vec<u8>) -> Vec<u8> {
    bits.truncate(bits.len() / 4 * 4);
    let (len, mask) = match dtype {
        Dtype::F32 => (4, 0x40),
        Dtype::BF16 | Dtype::F16 => (2, 0x40),
    };
    let mut at = 0;
    while let Some(index) = first_non_finite(dtype, &bits[at..]) {
        at += usize::try_from(index).unwrap() * len;
        bits[at + len - 1] &= !mask;
    }
    bits
}

/// A stream of bits that is the same for the same seed.
fn random_bits(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Two to five finite vectors of one length, of one type, with shares that sum to one.
fn contributions() -> impl Strategy<Value = (Dtype, Vec<Vec<u8>>, Vec<f64>)> {
    let shares = prop::collection::vec(0.01f64..1.0, 2..=5);
    (0usize..3, shares, any::<u64>(), 0usize..3000).prop_map(|(dtype, shares, seed, num_words)| {
        let dtype = DTYPES[dtype];
        let vector = |i: usize| finite(dtype, random_bits(seed ^ i as u64, num_words * 4));
        let vectors = (0..shares.len()).map(vector).collect();
        let sum: f64 = shares.iter().sum();
        (dtype, vectors, shares.iter().map(|share| share / sum).collect())
    })
}

fn views<'a>(vectors: &'a [Vec<u8>], shares: &[f64]) -> Vec<(&'a [u8], f64)> {
    vectors.iter().map(Vec::as_slice).zip(shares.iter().copied()).collect()
}

fn with_threads<T: Send>(num_threads: usize, work: impl FnOnce() -> T + Send) -> T {
    rayon::ThreadPoolBuilder::new().num_threads(num_threads).build().unwrap().install(work)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn one_contribution_merges_into_itself((dtype, vectors, _) in contributions()) {
        prop_assert_eq!(&merged(dtype, &[(&vectors[0], 1.0)]), &vectors[0]);
    }

    #[test]
    fn equal_contributions_merge_into_themselves((dtype, vectors, shares) in contributions()) {
        let same: Vec<_> = shares.iter().map(|share| (vectors[0].as_slice(), *share)).collect();
        prop_assert_eq!(&merged(dtype, &same), &vectors[0]);
    }

    #[test]
    fn every_value_lies_between_those_of_the_contributions((dtype, vectors, shares) in contributions()) {
        let values: Vec<Vec<f64>> = vectors.iter().map(|vector| load(dtype, vector)).collect();
        for (i, value) in load(dtype, &merged(dtype, &views(&vectors, &shares))).into_iter().enumerate() {
            let smallest = values.iter().map(|v| v[i]).fold(f64::INFINITY, f64::min);
            let largest = values.iter().map(|v| v[i]).fold(f64::NEG_INFINITY, f64::max);
            prop_assert!(smallest <= value && value <= largest, "element {}: {} <= {} <= {}", i, smallest, value, largest);
        }
    }

    #[test]
    fn every_value_is_the_naive_sum_rounded_once((dtype, vectors, shares) in contributions()) {
        let out = merged(dtype, &views(&vectors, &shares));
        let values: Vec<Vec<f64>> = vectors.iter().map(|vector| load(dtype, vector)).collect();
        for (i, found) in load(dtype, &out).into_iter().enumerate() {
            let mut sum = shares[0] * values[0][i];
            for (share, vector) in shares.iter().zip(&values).skip(1) {
                sum += share * vector[i];
            }
            // The nearest value of the type: no neighbour of what was found is nearer.
            let distance = (found - sum).abs();
            for step in [-1i64, 1] {
                let neighbour = neighbour(dtype, &out, i, step);
                prop_assert!(!neighbour.is_finite() || distance <= (neighbour - sum).abs(), "element {}: {} for {}", i, found, sum);
            }
        }
    }

    #[test]
    fn arrival_order_does_not_matter_once_sorted_by_name(((dtype, vectors, shares), seed) in (contributions(), any::<u64>())) {
        let expected = merged(dtype, &views(&vectors, &shares));
        let mut arrived: Vec<(usize, (&[u8], f64))> = views(&vectors, &shares).into_iter().enumerate().collect();
        arrived.sort_by_key(|(name, _)| random_bits(seed ^ *name as u64, 8));
        arrived.sort_by_key(|(name, _)| *name);
        let sorted: Vec<_> = arrived.into_iter().map(|(_, input)| input).collect();
        prop_assert_eq!(merged(dtype, &sorted), expected);
    }

    #[test]
    fn cutting_does_not_matter(((dtype, vectors, shares), cut) in (contributions(), 0usize..3000)) {
        let expected = merged(dtype, &views(&vectors, &shares));
        let cut = (cut * 4).min(vectors[0].len());
        let part = |range: std::ops::Range<usize>| {
            merged(dtype, &vectors.iter().map(|v| &v[range.clone()]).zip(shares.iter().copied()).collect::<Vec<_>>())
        };
        prop_assert_eq!([part(0..cut), part(cut..expected.len())].concat(), expected);
    }

    #[test]
    fn the_norm_does_not_depend_on_cutting(
        (dtype, seed, num_words) in (0usize..3, any::<u64>(), 0usize..20_000),
        cuts in prop::collection::vec(0usize..20_000, 0..6),
    ) {
        let dtype = DTYPES[dtype];
        let (base, weights) = two_vectors(dtype, seed, num_words);
        let whole = norm(dtype, &base, &weights, &[]);
        let cut = norm(dtype, &base, &weights, &cuts);
        prop_assert_eq!(whole.0.to_bits(), cut.0.to_bits());
        prop_assert_eq!(whole.1.to_bits(), cut.1.to_bits());
    }
}

/// The value `step` places of the type away from element `i`.
fn neighbour(dtype: Dtype, bytes: &[u8], i: usize, step: i64) -> f64 {
    let next = |value: f64, up: fn(f32) -> f32, down: fn(f32) -> f32| {
        #[expect(clippy::cast_possible_truncation, reason = "it came from this type")]
        let value = value as f32;
        f64::from(if step > 0 { up(value) } else { down(value) })
    };
    let value = load(dtype, bytes)[i];
    match dtype {
        Dtype::F32 => next(value, f32::next_up, f32::next_down),
        // One step of the bits away from zero, or towards it: both neighbours are covered by the two steps.
        Dtype::BF16 | Dtype::F16 => {
            let bits = u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]);
            if bits & 0x7fff == 0 && step < 0 {
                return f64::INFINITY;
            }
            let bits = bits.wrapping_add_signed(i16::try_from(step).unwrap());
            load(dtype, &bits.to_le_bytes())[0]
        }
    }
}

/// A base of everyday size, and weights near to it.
fn two_vectors(dtype: Dtype, seed: u64, num_words: usize) -> (Vec<u8>, Vec<u8>) {
    let (base, weights) = (random_bits(seed, num_words * 4), random_bits(seed ^ 1, num_words * 4));
    let len = usize::try_from(dtype.size_bytes()).unwrap();
    // The upper byte decides the size: 0x3c and 0x3b are small numbers in all three types.
    let tame = |mut bits: Vec<u8>, top: u8| {
        bits.iter_mut().skip(len - 1).step_by(len).for_each(|byte| *byte = *byte & 0x80 | top);
        bits
    };
    (tame(base, 0x3c), tame(weights, 0x3b))
}

/// Lengths of change and base, measured in pieces that end at `cuts` (in words of four bytes).
fn norm(dtype: Dtype, base: &[u8], weights: &[u8], cuts: &[usize]) -> (f64, f64) {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| (cut * 4).min(base.len())).chain([base.len()]).collect();
    ends.sort_unstable();
    let mut norm = DeltaNorm::new();
    let mut start = 0;
    for end in ends {
        norm.add(dtype, &base[start..end], &weights[start..end]);
        start = end;
    }
    (norm.change(), norm.base())
}

#[test]
fn bits_do_not_depend_on_the_number_of_threads() {
    for dtype in DTYPES {
        let vectors: Vec<Vec<u8>> = (0..3).map(|i| finite(dtype, random_bits(i, 3_000_000))).collect();
        let shares = [0.2, 0.3, 0.5];
        let (base, weights) = two_vectors(dtype, 5, 700_000);
        let run = |num_threads| {
            with_threads(num_threads, || {
                let norm = norm(dtype, &base, &weights, &[1, 333_333]);
                (merged(dtype, &views(&vectors, &shares)), norm.0.to_bits(), norm.1.to_bits())
            })
        };
        let one = run(1);
        assert!(run(2) == one && run(5) == one, "{dtype:?}");
    }
}

#[test]
fn whole_blocks_measured_elsewhere_give_the_same_bits() {
    for dtype in DTYPES {
        let (base, weights) = two_vectors(dtype, 6, 100_000);
        let block = ChangePart::ELEMENTS * usize::try_from(dtype.size_bytes()).unwrap();
        let whole = base.len() / block * block;
        let mut parted = DeltaNorm::new();
        for (start, end) in [(0, 2 * block), (2 * block, whole)] {
            let mut part = ChangePart::default();
            part.add(dtype, &base[start..start + block], &weights[start..start + block]);
            part.add(dtype, &base[start + block..end], &weights[start + block..end]);
            parted.append(&part);
        }
        parted.add(dtype, &base[whole..], &weights[whole..]);
        let expected = norm(dtype, &base, &weights, &[]);
        assert_eq!((parted.change().to_bits(), parted.base().to_bits()), (expected.0.to_bits(), expected.1.to_bits()));
    }
}

#[test]
fn the_norm_is_that_of_a_naive_sum() {
    for dtype in DTYPES {
        let (base, weights) = two_vectors(dtype, 9, 50_000);
        let pairs = || load(dtype, &base).into_iter().zip(load(dtype, &weights));
        let naive_change = pairs().map(|(b, w)| (w - b) * (w - b)).sum::<f64>().sqrt();
        let naive_base = pairs().map(|(b, _)| b * b).sum::<f64>().sqrt();
        let (change, length) = norm(dtype, &base, &weights, &[]);
        assert!((change / naive_change - 1.0).abs() < 1e-12 && (length / naive_base - 1.0).abs() < 1e-12);
    }
}

#[test]
fn relative_change_of_the_same_of_nothing_and_of_a_zero_base() {
    let (zero, one) = ([0u8; 4], 1f32.to_le_bytes());
    let relative = |base: &[u8], weights: &[u8]| {
        let mut norm = DeltaNorm::new();
        norm.add(Dtype::F32, base, weights);
        norm.relative_change()
    };
    assert_eq!(DeltaNorm::new().relative_change().to_bits(), 0f64.to_bits());
    assert_eq!(relative(&one, &one).to_bits(), 0f64.to_bits());
    assert_eq!(relative(&zero, &zero).to_bits(), 0f64.to_bits());
    assert_eq!(relative(&one, &2f32.to_le_bytes()).to_bits(), 1f64.to_bits());
    assert_eq!(relative(&zero, &one).to_bits(), f64::INFINITY.to_bits());
    assert!(relative(&one, &f32::NAN.to_le_bytes()).is_nan());
}

#[test]
fn what_is_not_finite_is_found_where_it_is() {
    let patterns: [(Dtype, &[&[u8]]); 3] = [
        (
            Dtype::F32,
            &[
                &f32::NAN.to_le_bytes(),
                &f32::INFINITY.to_le_bytes(),
                &f32::NEG_INFINITY.to_le_bytes(),
                &[1, 0, 0x80, 0xff],
            ],
        ),
        (Dtype::BF16, &[&bf16::NAN.to_le_bytes(), &bf16::INFINITY.to_le_bytes(), &bf16::NEG_INFINITY.to_le_bytes()]),
        (Dtype::F16, &[&f16::NAN.to_le_bytes(), &f16::INFINITY.to_le_bytes(), &f16::NEG_INFINITY.to_le_bytes()]),
    ];
    for (dtype, patterns) in patterns {
        let clean = finite(dtype, random_bits(3, 200_000));
        assert_eq!(first_non_finite(dtype, &clean), None);
        let len = usize::try_from(dtype.size_bytes()).unwrap();
        for (pattern, at) in patterns.iter().zip([0, 1, 4096, clean.len() / len - 1]) {
            let mut bytes = clean.clone();
            for later in [at, clean.len() / len - 1] {
                bytes[later * len..(later + 1) * len].copy_from_slice(pattern);
            }
            assert_eq!(first_non_finite(dtype, &bytes), Some(at as u64), "{dtype:?}");
        }
    }
    assert_eq!(first_non_finite(Dtype::F32, &f32::MAX.to_le_bytes()), None);
}

#[test]
fn a_negative_zero_stays() {
    let zero = (-0f32).to_le_bytes();
    assert_eq!(merged(Dtype::F32, &[(&zero, 0.5), (&zero, 0.5)]), zero);
}
