//! From texts to batches: documents in an order that the seed decides, packed into windows one after another.
//!
//! Attention does not cross from one document into the next, and the last token of a document (its end-of-text token) does
//! not predict the first of the next.

use crate::job::Part;
use crate::random::Random;
use crate::split::split;
use crate::{TrainError, Validation};
use std::fs;
use std::path::{Path, PathBuf};
use tapestry_model::{Batch, Tokenizer};

/// Between two documents in a text.
const SEPARATOR: char = '\u{1e}';
/// A longer document is cut, so that a corpus of one long document is seen all over, not from its beginning.
const MAX_DOCUMENT_BYTES: usize = 16 << 10;

/// Documents with the share of the tokens that they are to have.
#[derive(Debug)]
pub(crate) struct Source {
    documents: Vec<String>,
    weight: f64,
}

/// The documents of a job.
#[derive(Debug)]
pub(crate) struct Corpus {
    sources: Vec<Source>,
    /// What is never trained on.
    set_aside: Vec<String>,
}

impl Corpus {
    /// Reads texts and cuts them into documents. Whole documents are set aside, before they are cut.
    pub(crate) fn read(parts: &[Part], validation: Option<&Validation>) -> Result<Self, TrainError> {
        let (mut sources, mut set_aside) = (vec![], vec![]);
        for part in parts {
            let (trained, aside) = split(documents(&part.texts)?, validation, |text| text.clone().into_bytes());
            set_aside.extend(aside.iter().flat_map(|document| cut(document)));
            let documents: Vec<String> = trained.iter().flat_map(|document| cut(document)).collect();
            if documents.is_empty() {
                return Err(TrainError::EmptyCorpus { paths: names(&part.texts) });
            }
            sources.push(Source { documents, weight: part.weight });
        }
        if let Some(validation) = validation.filter(|validation| !validation.files.is_empty()) {
            set_aside = documents(&validation.files)?.iter().flat_map(|document| cut(document)).collect();
        }
        if set_aside.is_empty() && validation.is_some() {
            return Err(TrainError::NothingSetAside);
        }
        Ok(Self { sources, set_aside })
    }

    /// What is measured on, as a corpus of its own.
    pub(crate) fn into_set_aside(self) -> Self {
        Self { sources: vec![Source { documents: self.set_aside, weight: 1.0 }], set_aside: vec![] }
    }
}

pub(crate) fn names(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(", ")
}

/// A file that must be UTF-8.
pub(crate) fn read_text(path: &Path) -> Result<String, TrainError> {
    let bytes = fs::read(path).map_err(TrainError::io("read", path))?;
    String::from_utf8(bytes)
        .map_err(|error| TrainError::NotUtf8 { path: path.to_path_buf(), offset: error.utf8_error().valid_up_to() })
}

/// The documents of some texts.
fn documents(texts: &[PathBuf]) -> Result<Vec<String>, TrainError> {
    let mut documents = vec![];
    for path in texts {
        let text = read_text(path)?;
        let parts = text.split(SEPARATOR).map(str::trim).filter(|document| !document.is_empty());
        documents.extend(parts.map(str::to_owned));
    }
    Ok(documents)
}

/// Cuts a document at line ends into pieces of a bounded size.
fn cut(document: &str) -> Vec<String> {
    let (mut rest, mut pieces) = (document, vec![]);
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
    pieces.retain(|piece: &String| !piece.is_empty());
    pieces
}

/// The order in which the documents of a source come.
#[derive(Debug)]
struct Pass {
    random: Random,
    order: Vec<usize>,
    next: usize,
    tokens_of_pass: usize,
    /// Tokens given so far, in all passes.
    tokens_given: u64,
}

/// An endless stream of batches. Its state follows from the seed and the number of batches taken.
#[derive(Debug)]
pub(crate) struct Batches<'a> {
    corpus: &'a Corpus,
    tokenizer: &'a Tokenizer,
    passes: Vec<Pass>,
    /// Tokens not yet handed out, each with the number of its document.
    pending: Vec<(u32, u32)>,
    num_documents: u32,
    window: usize,
}

impl<'a> Batches<'a> {
    pub(crate) fn new(corpus: &'a Corpus, tokenizer: &'a Tokenizer, seed: u64, window: usize) -> Self {
        let pass = |(number, source): (u64, &Source)| Pass {
            random: Random::new(seed.wrapping_add(number)),
            order: (0..source.documents.len()).collect(),
            next: usize::MAX,
            tokens_of_pass: usize::MAX,
            tokens_given: 0,
        };
        let passes = (0..).zip(&corpus.sources).map(pass).collect();
        Self { corpus, tokenizer, passes, pending: vec![], num_documents: 0, window }
    }

    /// The next batch.
    pub(crate) fn next(&mut self, num_windows: usize) -> Result<Batch, TrainError> {
        let window = self.window;
        let (mut tokens, mut targets, mut segments, mut counts) = (vec![], vec![], vec![], vec![]);
        for _ in 0..num_windows {
            self.fill()?;
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
    pub(crate) fn skip(&mut self, num_windows: usize) -> Result<(), TrainError> {
        for _ in 0..num_windows {
            self.fill()?;
            self.pending.drain(..self.window);
        }
        Ok(())
    }

    /// How many batches of so many windows one pass over everything has, at most `limit`; takes them.
    pub(crate) fn of_one_pass(mut self, num_windows: usize, limit: usize) -> Result<Vec<Batch>, TrainError> {
        let mut batches = vec![];
        while batches.len() < limit {
            let batch = self.next(num_windows)?;
            // The batch that began another pass is left out, but for one that is all there is.
            let is_over = self.passes.iter().any(|pass| pass.tokens_given > pass.tokens_of_pass as u64);
            if is_over && !batches.is_empty() {
                break;
            }
            batches.push(batch);
            if is_over {
                break;
            }
        }
        Ok(batches)
    }

    /// The source whose share of the tokens is furthest behind its weight.
    fn next_source(&self) -> usize {
        #[expect(clippy::cast_precision_loss, reason = "tokens are far below 2^52")]
        let given = |at: usize| self.passes[at].tokens_given as f64 / self.corpus.sources[at].weight;
        (0..self.passes.len()).min_by(|a, b| given(*a).total_cmp(&given(*b))).unwrap_or(0)
    }

    fn fill(&mut self) -> Result<(), TrainError> {
        let needed = self.window + 1;
        while self.pending.len() < needed {
            let at = self.next_source();
            let (pass, source) = (&mut self.passes[at], &self.corpus.sources[at]);
            if pass.next >= pass.order.len() {
                if pass.tokens_of_pass < needed {
                    return Err(TrainError::CorpusTooShort { found: pass.tokens_of_pass, needed });
                }
                pass.random.shuffle(&mut pass.order);
                (pass.next, pass.tokens_of_pass) = (0, 0);
            }
            let ids = self.tokenizer.encode(&source.documents[pass.order[pass.next]])?.ids;
            let document = self.num_documents;
            let all = ids.into_iter().chain(self.tokenizer.eos_id()).map(|id| (id, document));
            let before = self.pending.len();
            self.pending.extend(all);
            let num_tokens = self.pending.len() - before;
            pass.tokens_of_pass += num_tokens;
            pass.tokens_given += num_tokens as u64;
            self.num_documents = self.num_documents.wrapping_add(1);
            pass.next += 1;
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
        let pieces = cut(&line.repeat(40));
        assert!(pieces.len() == 3 && pieces.iter().all(|p| p.len() <= MAX_DOCUMENT_BYTES && p.ends_with('é')));
        let total: usize = pieces.iter().map(|p| p.matches('é').count()).sum();
        assert_eq!(total, 20_000);
    }
}
