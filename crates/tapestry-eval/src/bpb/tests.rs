#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;

/// Gives every token the same probability and remembers what it was asked.
struct Uniform {
    vocabulary: f32,
    asked: Vec<Vec<usize>>,
}

impl Uniform {
    fn new(vocabulary: f32) -> Self {
        Self { vocabulary, asked: Vec::new() }
    }
}

impl TokenScorer for Uniform {
    type Error = std::convert::Infallible;

    fn score(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Self::Error> {
        self.asked.push(windows.iter().map(|w| w.len()).collect());
        Ok(windows.iter().map(|w| vec![self.vocabulary.ln(); w.len() - 1]).collect())
    }
}

/// `-ln p` of a token is its own id, whatever came before.
struct IdIsSurprise;

impl TokenScorer for IdIsSurprise {
    type Error = std::convert::Infallible;

    #[expect(clippy::cast_precision_loss, reason = "small ids")]
    fn score(&mut self, windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Self::Error> {
        Ok(windows.iter().map(|w| w[1..].iter().map(|&id| id as f32).collect()).collect())
    }
}

/// Answers with a fixed value list, whatever the question.
struct Fixed(Result<Vec<Vec<f32>>, &'static str>);

impl TokenScorer for Fixed {
    type Error = &'static str;

    fn score(&mut self, _windows: &[&[u32]]) -> Result<Vec<Vec<f32>>, Self::Error> {
        self.0.clone()
    }
}

fn options(window: usize, batch: usize, max_tokens: Option<usize>) -> BpbOptions {
    BpbOptions { window: NonZeroUsize::new(window).unwrap(), batch: NonZeroUsize::new(batch).unwrap(), max_tokens }
}

fn measure<S: TokenScorer>(
    scorer: &mut S,
    ids: &[u32],
    lengths: &[u32],
    options: &BpbOptions,
) -> Result<BitsPerByte, BpbError<S::Error>> {
    bits_per_byte(scorer, ids, lengths, options, &mut |_| {})
}

#[test]
fn a_uniform_model_over_single_byte_tokens_costs_log2_of_the_vocabulary() {
    for vocabulary in [2.0_f32, 256.0, 49152.0] {
        let ids = vec![1; 1000];
        let found = measure(&mut Uniform::new(vocabulary), &ids, &vec![1; 1000], &BpbOptions::default()).unwrap();
        assert!((found.bpb() - f64::from(vocabulary).log2()).abs() < 1e-6);
        assert_eq!((found.tokens_scored, found.bytes, found.windows), (996, 996, 4));
    }
}

#[test]
fn the_bytes_are_those_of_scored_tokens_only() {
    // Windows [1 2 3] [4 5 6] [7]: scored are 2, 3, 5, 6; the lone 7 is a first token and drops out.
    let ids = [1, 2, 3, 4, 5, 6, 7];
    let lengths = [100, 2, 3, 100, 5, 6, 100];
    let found = measure(&mut IdIsSurprise, &ids, &lengths, &options(3, 1, None)).unwrap();
    assert_eq!((found.tokens_scored, found.bytes, found.windows), (4, 16, 2));
    assert!((found.bits - 16.0 / std::f64::consts::LN_2).abs() < 1e-9);
    assert!((found.bpb() - std::f64::consts::LOG2_E).abs() < 1e-9);
}

#[test]
fn max_tokens_keeps_the_first_tokens() {
    let ids: Vec<u32> = (0..50).collect();
    let lengths: Vec<u32> = (1..=50).collect();
    let cut = measure(&mut IdIsSurprise, &ids, &lengths, &options(8, 2, Some(20))).unwrap();
    let short = measure(&mut IdIsSurprise, &ids[..20], &lengths[..20], &options(8, 2, None)).unwrap();
    assert_eq!(cut, short);
    let beyond = measure(&mut IdIsSurprise, &ids, &lengths, &options(8, 2, Some(900))).unwrap();
    assert_eq!(beyond.tokens_scored, 43);
}

#[test]
fn the_batch_does_not_change_the_result_and_batches_are_rectangular() {
    let ids: Vec<u32> = (0..103).map(|i| i * 7 % 31).collect();
    let lengths: Vec<u32> = (0..103).map(|i| i % 4 + 1).collect();
    let one = measure(&mut IdIsSurprise, &ids, &lengths, &options(10, 1, None)).unwrap();
    for batch in [2, 3, 7, 1000] {
        let other = measure(&mut IdIsSurprise, &ids, &lengths, &options(10, batch, None)).unwrap();
        assert_eq!(one, other);
    }
    let mut uniform = Uniform::new(2.0);
    measure(&mut uniform, &ids, &lengths, &options(10, 4, None)).unwrap();
    assert_eq!(uniform.asked, [vec![10; 4], vec![10; 4], vec![10; 2], vec![3]]);
}

#[test]
fn progress_ends_at_its_total() {
    let ids = vec![0; 1000];
    let mut seen = Vec::new();
    bits_per_byte(&mut Uniform::new(4.0), &ids, &vec![1; 1000], &options(64, 4, None), &mut |p| seen.push(p)).unwrap();
    assert!(seen.windows(2).all(|p| p[0].tokens_scored < p[1].tokens_scored));
    let last = seen.last().unwrap();
    assert_eq!(last.tokens_scored, last.tokens_total);
}

#[test]
fn too_little_text_is_an_error() {
    let empty = |ids: &[u32], lengths: &[u32], window| {
        matches!(
            measure(&mut Uniform::new(2.0), ids, lengths, &options(window, 1, None)),
            Err(BpbError::NothingToScore { .. })
        )
    };
    assert!(empty(&[], &[], 256));
    assert!(empty(&[1], &[1], 256));
    assert!(empty(&[1; 10], &[1; 10], 1));
    assert!(empty(&[1; 10], &[0; 10], 5));
    assert!(!empty(&[1; 2], &[1; 2], 256));
}

#[test]
fn lists_that_do_not_belong_together_are_an_error() {
    let found = measure(&mut Uniform::new(2.0), &[1, 2], &[1], &BpbOptions::default());
    assert!(matches!(found, Err(BpbError::LengthsDoNotMatch { tokens: 2, lengths: 1 })));
}

#[test]
fn an_answer_of_the_wrong_shape_is_an_error() {
    for answer in [vec![], vec![vec![1.0]], vec![vec![1.0; 3]]] {
        let found = measure(&mut Fixed(Ok(answer)), &[1, 2, 3], &[1; 3], &BpbOptions::default());
        assert!(matches!(found, Err(BpbError::WrongAnswer { expected: 2, .. })));
    }
}

#[test]
fn a_value_that_is_not_finite_names_its_token() {
    for value in [f32::NAN, f32::INFINITY] {
        let found = measure(&mut Fixed(Ok(vec![vec![1.0, value]])), &[1, 2, 3], &[1; 3], &BpbOptions::default());
        assert!(matches!(found, Err(BpbError::NotFinite { token: 2, .. })));
    }
}

#[test]
fn a_failing_model_is_reported_with_the_place() {
    let found = measure(&mut Fixed(Err("broken")), &[1, 2, 3], &[1; 3], &BpbOptions::default());
    assert!(matches!(found, Err(BpbError::Scorer { first_token: 0, source: "broken" })));
}
