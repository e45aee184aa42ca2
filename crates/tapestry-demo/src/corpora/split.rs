//! Splitting documents by their content, so that the same text always lands in the same part.

use std::collections::HashSet;
use tapestry_core::Digest;

/// Separates documents in a training text: U+001E, the record separator of ASCII. No document contains it.
pub const DOCUMENT_SEPARATOR: char = '\u{1e}';

/// A long document is cut into pieces of about this size after it was assigned to a part.
const PIECE_BYTES: usize = 4000;

/// Lines with at least so many bytes of letters and digits identify a text: a training document that shares one with a
/// held-out document is dropped. Shorter lines (headings, formulas, refrains) occur everywhere. Bytes and not letters,
/// because twenty Chinese characters say as much as sixty Latin letters, and take as many bytes.
const TELLING_BYTES: usize = 60;

/// How documents are split.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rule {
    /// Percent of the documents for Contributed CPT.
    pub(crate) contributed: u64,
    /// Percent for Private CPT; the rest is held out.
    pub(crate) private: u64,
    /// At most so many bytes of documents are used, chosen by digest.
    pub(crate) max_bytes: usize,
    /// Whether training documents that share a telling line with a held-out one are dropped. Not for generated texts: a
    /// small grammar makes the same line again and again.
    pub(crate) drops_quotations: bool,
}

/// Documents in three parts that have nothing in common.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    pub(crate) contributed: Vec<String>,
    pub(crate) private: Vec<String>,
    pub(crate) held_out: Vec<String>,
}

/// Splits documents by the digest of their letters and digits, so that neither order, white space nor punctuation
/// decides. Repeated documents are dropped. The pieces of each part come in an order that depends on their content only,
/// which also mixes the sources.
pub(crate) fn split(documents: impl IntoIterator<Item = String>, rule: Rule) -> Parts {
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
        total_bytes <= rule.max_bytes
    });

    let (mut training, mut held_out) = (Vec::new(), Vec::new());
    for (digest, document) in by_digest {
        let percent = percent_of(digest);
        if percent < rule.contributed + rule.private {
            training.push((percent < rule.contributed, document));
        } else {
            held_out.push(document);
        }
    }
    if rule.drops_quotations {
        let telling: HashSet<Digest> = held_out.iter().flat_map(|d| telling_lines(d)).collect();
        training.retain(|(_, document)| !telling_lines(document).any(|line| telling.contains(&line)));
    }
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
        .filter(|letters| letters.len() >= TELLING_BYTES)
        .map(|letters| Digest::of(letters.as_bytes()))
}

/// Cuts long documents and orders the pieces by digest.
fn pieces(documents: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut pieces: Vec<String> = documents.into_iter().flat_map(|document| cut(&document)).collect();
    pieces.sort_by_cached_key(|piece| Digest::of(piece.as_bytes()));
    pieces
}

/// Cuts a document into pieces of about [`PIECE_BYTES`], at ends of lines and, in very long lines, of sentences.
fn cut(document: &str) -> Vec<String> {
    let mut pieces = vec![String::new()];
    for line in document.split_inclusive('\n') {
        let sentences: Vec<&str> = if line.len() > PIECE_BYTES { sentences(line) } else { vec![line] };
        for part in sentences {
            if pieces.last().is_some_and(|piece| !piece.is_empty() && piece.len() + part.len() > PIECE_BYTES) {
                pieces.push(String::new());
            }
            pieces.last_mut().expect("there is at least one piece").push_str(part);
        }
    }
    pieces.iter().map(|piece| piece.trim().to_owned()).filter(|piece| !piece.is_empty()).collect()
}

/// A line cut after each full stop that a space follows, and after each ideographic one.
fn sentences(line: &str) -> Vec<&str> {
    line.split_inclusive(". ").flat_map(|part| part.split_inclusive('\u{3002}')).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: Rule = Rule { contributed: 60, private: 30, max_bytes: usize::MAX, drops_quotations: true };

    fn documents() -> Vec<String> {
        let line =
            |i, j| format!("Document {i} says in line {j} what no other document says, at some length and with care.");
        let document = |i| (0..40).map(|j| line(i, j)).collect::<Vec<_>>().join("\n");
        (0..300).map(document).collect()
    }

    #[test]
    fn the_parts_have_their_shares_and_nothing_in_common() {
        let parts = split(documents(), RULE);
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
        let mut other: Vec<String> = documents().into_iter().rev().collect();
        other.extend(documents().iter().map(|d| d.replace('\n', " \r\n")));
        for rule in [RULE, Rule { max_bytes: 200_000, ..RULE }] {
            assert_eq!(split(other.clone(), rule), split(documents(), rule));
        }
    }

    #[test]
    fn a_training_document_that_quotes_a_held_out_one_is_dropped() {
        let held_out = split(documents(), RULE).held_out[0].clone();
        let quoted = held_out.lines().next().expect("a line");
        let quotes = (0..50).map(|i| format!("Quotation {i}:\n{quoted}\nEnd of quotation {i}."));
        let parts = split(documents().into_iter().chain(quotes), RULE);
        let holds = |part: &[String]| part.iter().any(|d| d.contains(quoted));
        assert!(holds(&parts.held_out) && !holds(&parts.contributed) && !holds(&parts.private));
    }

    #[test]
    fn the_size_is_bounded_and_pieces_are_short() {
        let parts = split(documents(), Rule { max_bytes: 100_000, ..RULE });
        let all = [parts.contributed, parts.private, parts.held_out].concat();
        let size: usize = all.iter().map(String::len).sum();
        assert!((80_000..=100_000).contains(&size), "{size}");
        assert!(all.iter().all(|piece| piece.len() <= PIECE_BYTES));
    }

    #[test]
    fn a_long_line_is_cut_between_sentences_without_loss() {
        let line: String = (0..400).map(|i| format!("This is sentence number {i} of a line. ")).collect();
        let pieces = cut(line.trim());
        assert!(pieces.len() > 3 && pieces.iter().all(|p| p.len() <= PIECE_BYTES && p.ends_with('.')));
        assert_eq!(pieces.join(" "), line.trim());
    }

    #[test]
    fn the_separator_cannot_occur_in_a_document() {
        let parts = split(["a\u{1e}b\u{0}c\n\n\n\nd".to_owned()], RULE);
        let all = [parts.contributed, parts.private, parts.held_out].concat();
        assert_eq!(all, ["abc\n\nd"]);
    }
}
