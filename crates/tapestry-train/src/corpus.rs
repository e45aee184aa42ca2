//! From texts to batches: documents in an order that the seed decides, packed into windows one after another.
//!
//! Attention does not cross from one document into the next, and the last token of a document (its end-of-text token) does
//! not predict the first of the next.

use crate::{CptJob, TrainError};
use std::fs;
use tapestry_model::{Batch, Tokenizer};

/// Between two documents in a text.
const SEPARATOR: char = '\u{1e}';
/// A longer document is cut, so that a corpus of one long document is seen all over, not from its beginning.
const MAX_DOCUMENT_BYTES: usize = 16 << 10;

/// SplitMix64: a small generator whose whole state is one number.
///
/// # Source
/// Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", figure 16.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed)
    }

    const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; the bias is below `bound / 2^64`.
    fn below(&mut self, bound: usize) -> usize {
        let product = u128::from(self.next()) * bound as u128;
        usize::try_from(product >> 64).unwrap_or(0)
    }

    /// Fisher and Yates' shuffle.
    fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

/// The documents of a job.
#[derive(Debug)]
pub(crate) struct Corpus {
    documents: Vec<String>,
}

impl Corpus {
    /// Reads the texts of a job and cuts them into documents.
    pub(crate) fn read(job: &CptJob) -> Result<Self, TrainError> {
        let mut documents = vec![];
        for path in &job.texts {
            let bytes = fs::read(path).map_err(TrainError::io("read", path))?;
            let text = String::from_utf8(bytes).map_err(|error| TrainError::NotUtf8 {
                path: path.clone(),
                offset: error.utf8_error().valid_up_to(),
            })?;
            for document in text.split(SEPARATOR).map(str::trim).filter(|document| !document.is_empty()) {
                cut(document, &mut documents);
            }
        }
        if documents.is_empty() {
            let paths: Vec<_> = job.texts.iter().map(|path| path.display().to_string()).collect();
            return Err(TrainError::EmptyCorpus { paths: paths.join(", ") });
        }
        Ok(Self { documents })
    }
}

/// Cuts a document at line ends into pieces of a bounded size.
fn cut(document: &str, pieces: &mut Vec<String>) {
    let mut rest = document;
    while rest.len() > MAX_DOCUMENT_BYTES {
        let mut end = MAX_DOCUMENT_BYTES;
        while !rest.is_char_boundary(end) {
            end -= 1;
        }
        let at_line = rest[..end].rfind('\n').map(|at| at + 1);
        let (piece, after) = rest.split_at(at_line.filter(|at| *at > end / 2).unwrap_or(end));
        pieces.push(piece.trim().to_owned());
        rest = after;
    }
    pieces.push(rest.trim().to_owned());
    pieces.retain(|piece| !piece.is_empty());
}

/// An endless stream of batches. Its state follows from the seed and the number of batches taken.
#[derive(Debug)]
pub(crate) struct Batches<'a> {
    corpus: &'a Corpus,
    tokenizer: &'a Tokenizer,
    random: Random,
    order: Vec<usize>,
    next: usize,
    /// Tokens not yet handed out, each with the number of its document.
    pending: Vec<(u32, u32)>,
    num_documents: u32,
    tokens_of_pass: usize,
    needed: usize,
}

impl<'a> Batches<'a> {
    pub(crate) fn new(corpus: &'a Corpus, tokenizer: &'a Tokenizer, seed: u64, window: usize) -> Self {
        let order = (0..corpus.documents.len()).collect();
        let (next, pending, needed) = (usize::MAX, vec![], window + 1);
        let random = Random::new(seed);
        Self { corpus, tokenizer, random, order, next, pending, num_documents: 0, tokens_of_pass: usize::MAX, needed }
    }

    /// The next batch.
    pub(crate) fn next(&mut self, num_windows: usize, window: usize) -> Result<Batch, TrainError> {
        let (mut tokens, mut targets, mut segments, mut counts) = (vec![], vec![], vec![], vec![]);
        for _ in 0..num_windows {
            self.fill(window + 1)?;
            for pair in self.pending[..=window].windows(2) {
                let [(token, document), (target, next_document)] = [pair[0], pair[1]];
                tokens.push(token);
                targets.push(target);
                segments.push(document);
                counts.push(document == next_document);
            }
            self.pending.drain(..window);
        }
        Ok(Batch::new(num_windows, window, tokens, targets, segments, counts)?)
    }

    /// Passes over a batch that was trained on before the last checkpoint.
    pub(crate) fn skip(&mut self, num_windows: usize, window: usize) -> Result<(), TrainError> {
        for _ in 0..num_windows {
            self.fill(window + 1)?;
            self.pending.drain(..window);
        }
        Ok(())
    }

    fn fill(&mut self, count: usize) -> Result<(), TrainError> {
        while self.pending.len() < count {
            if self.next >= self.order.len() {
                if self.tokens_of_pass < self.needed {
                    return Err(TrainError::CorpusTooShort { found: self.tokens_of_pass, needed: self.needed });
                }
                self.random.shuffle(&mut self.order);
                (self.next, self.tokens_of_pass) = (0, 0);
            }
            let ids = self.tokenizer.encode(&self.corpus.documents[self.order[self.next]])?.ids;
            let document = self.num_documents;
            let all = ids.into_iter().chain(self.tokenizer.eos_id()).map(|id| (id, document));
            let before = self.pending.len();
            self.pending.extend(all);
            self.tokens_of_pass += self.pending.len() - before;
            self.num_documents = self.num_documents.wrapping_add(1);
            self.next += 1;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_documents_are_cut_at_lines() {
        let line = "é".repeat(500) + "\n";
        let mut pieces = vec![];
        cut(&line.repeat(40), &mut pieces);
        assert!(pieces.len() == 3 && pieces.iter().all(|p| p.len() <= MAX_DOCUMENT_BYTES && p.ends_with('é')));
        let total: usize = pieces.iter().map(|p| p.matches('é').count()).sum();
        assert_eq!(total, 20_000);
    }

    #[test]
    fn a_shuffle_keeps_everything_and_depends_on_the_seed() {
        let shuffled = |seed| {
            let mut items: Vec<u32> = (0..100).collect();
            Random::new(seed).shuffle(&mut items);
            items
        };
        let mut sorted = shuffled(1);
        assert!(shuffled(1) == sorted && shuffled(2) != sorted);
        sorted.sort_unstable();
        assert!(sorted.into_iter().eq(0..100));
    }
}
