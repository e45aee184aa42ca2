//! Splitting documents by their content, so that the same text always lands in the same part.

use std::collections::HashSet;
use tapestry_core::Digest;

/// Separates documents in a training text: U+001E, the record separator of ASCII. No document contains it.
pub const DOCUMENT_SEPARATOR: char = '\u{1e}';

/// A long document is cut into pieces of about this size, at line ends, after it was assigned to a part.
const PIECE_BYTES: usize = 4000;

/// Lines with at least so many letters and digits identify a text: a training document that shares one with a held-out
/// document is dropped. Shorter lines (headings, formulas, refrains) occur everywhere.
const TELLING_CHARS: usize = 60;

/// Which share of the documents goes where, in percent; the rest is held out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shares {
    pub(crate) contributed: u64,
    pub(crate) private: u64,
}

/// Documents in three parts that have nothing in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) contributed: Vec<String>,
    pub(crate) private: Vec<String>,
    pub(crate) held_out: Vec<String>,
}

/// Splits documents by the digest of their letters and digits, so that neither order, white space nor punctuation
/// decides. Repeated documents are dropped, and so are training documents that share a telling line with a held-out one.
/// The pieces of each part come in an order that depends on their content only, which also mixes the sources.
///
/// At most `max_bytes` of documents are used, chosen by digest.
pub(crate) fn split(documents: impl IntoIterator<Item = String>, shares: Shares, max_bytes: usize) -> Parts {
    let mut seen = HashSet::new();
    let mut by_digest: Vec<(Digest, String)> = documents
        .into_iter()
        .map(|document| clean(&document))
        .map(|document| (Digest::of(letters(&document).as_bytes()), document))
        .filter(|(digest, document)| !document.is_empty() && seen.insert(*digest))
        .collect();
    by_digest.sort_by_key(|(digest, _)| *digest);
    let mut total_bytes = 0;
    by_digest.retain(|(_, document)| {
        total_bytes += document.len();
        total_bytes <= max_bytes
    });

    let (mut training, mut held_out) = (Vec::new(), Vec::new());
    for (digest, document) in by_digest {
        let percent = percent_of(digest);
        if percent < shares.contributed + shares.private {
            training.push((percent < shares.contributed, document));
        } else {
            held_out.push(document);
        }
    }
    let telling: HashSet<Digest> = held_out.iter().flat_map(|d| telling_lines(d)).collect();
    training.retain(|(_, document)| !telling_lines(document).any(|line| telling.contains(&line)));
    let (contributed, private): (Vec<_>, Vec<_>) = training.into_iter().partition(|(contributed, _)| *contributed);
    let texts = |documents: Vec<(bool, String)>| documents.into_iter().map(|(_, document)| document);
    Parts { contributed: pieces(texts(contributed)), private: pieces(texts(private)), held_out: pieces(held_out) }
}

/// 0 to 99, evenly, from bytes of the digest that do not decide the order.
fn percent_of(digest: Digest) -> u64 {
    let bytes = digest.as_bytes();
    u64::from_le_bytes(bytes[24..].try_into().expect("a digest has 32 bytes")) % 100
}

/// Without control characters other than line ends, without white space at the ends of lines and of the document, and
/// with at most one empty line in a row.
fn clean(document: &str) -> String {
    let mut text = String::with_capacity(document.len());
    let mut num_empty = 0;
    for line in document.lines() {
        let line: String = line.chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| !c.is_control()).collect();
        let line = line.trim();
        num_empty = if line.is_empty() { num_empty + 1 } else { 0 };
        if num_empty <= 1 {
            text.push_str(line);
            text.push('\n');
        }
    }
    text.trim().to_owned()
}

fn letters(text: &str) -> String {
    text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn telling_lines(document: &str) -> impl Iterator<Item = Digest> + '_ {
    document
        .lines()
        .map(letters)
        .filter(|letters| letters.chars().count() >= TELLING_CHARS)
        .map(|letters| Digest::of(letters.as_bytes()))
}

/// Cuts long documents at line ends and orders the pieces by digest.
fn pieces(documents: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut pieces: Vec<String> = documents.into_iter().flat_map(|document| cut(&document)).collect();
    pieces.sort_by_cached_key(|piece| Digest::of(piece.as_bytes()));
    pieces
}

fn cut(document: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for line in document.split_inclusive('\n') {
        if pieces.last().is_some_and(|piece| !piece.is_empty() && piece.len() + line.len() > PIECE_BYTES) {
            pieces.push(String::new());
        }
        pieces.last_mut().expect("there is at least one piece").push_str(line);
    }
    pieces.iter().map(|piece| piece.trim().to_owned()).filter(|piece| !piece.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHARES: Shares = Shares { contributed: 60, private: 30 };

    fn documents() -> Vec<String> {
        let line =
            |i, j| format!("Document {i} says in line {j} what no other document says, at some length and with care.");
        let document = |i| (0..40).map(|j| line(i, j)).collect::<Vec<_>>().join("\n");
        (0..300).map(document).collect()
    }

    #[test]
    fn the_parts_have_their_shares_and_nothing_in_common() {
        let parts = split(documents(), SHARES, usize::MAX);
        let lines = |part: &[String]| -> HashSet<String> {
            part.iter().flat_map(|d| d.lines().map(str::to_owned).collect::<Vec<_>>()).collect()
        };
        let (contributed, private, held_out) =
            (lines(&parts.contributed), lines(&parts.private), lines(&parts.held_out));
        assert!(
            contributed.is_disjoint(&private) && contributed.is_disjoint(&held_out) && private.is_disjoint(&held_out)
        );
        assert_eq!(contributed.len() + private.len() + held_out.len(), 300 * 40);
        let share = |n: usize| n * 100 / (300 * 40);
        assert!((50..70).contains(&share(contributed.len())), "{}", share(contributed.len()));
        assert!((20..40).contains(&share(private.len())) && (5..16).contains(&share(held_out.len())));
    }

    #[test]
    fn order_repetition_and_white_space_decide_nothing() {
        let expected = split(documents(), SHARES, usize::MAX);
        let mut other: Vec<String> = documents().into_iter().rev().collect();
        other.extend(documents().iter().map(|d| d.replace('\n', " \r\n")));
        assert_eq!(split(other, SHARES, usize::MAX), expected);
    }

    #[test]
    fn a_training_document_that_quotes_a_held_out_one_is_dropped() {
        let held_out = split(documents(), SHARES, usize::MAX).held_out[0].clone();
        let quoted = held_out.lines().next().expect("a line");
        let quotes = (0..50).map(|i| format!("Quotation {i}:\n{quoted}\nEnd of quotation {i}."));
        let parts = split(documents().into_iter().chain(quotes), SHARES, usize::MAX);
        let holds = |part: &[String]| part.iter().any(|d| d.contains(quoted));
        assert!(holds(&parts.held_out) && !holds(&parts.contributed) && !holds(&parts.private));
    }

    #[test]
    fn the_size_is_bounded_and_pieces_are_short() {
        let parts = split(documents(), SHARES, 100_000);
        let all = [parts.contributed, parts.private, parts.held_out].concat();
        let size: usize = all.iter().map(String::len).sum();
        assert!((80_000..=100_000).contains(&size), "{size}");
        assert!(all.iter().all(|piece| piece.len() <= PIECE_BYTES));
    }

    #[test]
    fn the_separator_cannot_occur_in_a_document() {
        let parts = split(["a\u{1e}b\u{0}c\n\n\n\nd".to_owned()], SHARES, 1000);
        let all = [parts.contributed, parts.private, parts.held_out].concat();
        assert_eq!(all, ["abc\n\nd"]);
    }
}
