//! Tokens back to text.

use crate::Tokenizer;

/// Turns tokens into text as they come. A character is given out when all its bytes are there, never in parts; bytes that are no UTF-8
/// come out as U+FFFD.
#[derive(Debug, Clone, Default)]
pub struct TextStream {
    pending: Vec<u8>,
}

impl TextStream {
    /// The text that is certain after one more token. Special tokens add nothing.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> String {
        if !tokenizer.is_special(id) {
            self.pending.extend_from_slice(tokenizer.bytes_of(id));
        }
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.pending) {
                Ok(all) => {
                    text.push_str(all);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let (good, rest) = self.pending.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(good));
                    let Some(bad) = error.error_len() else {
                        // The beginning of a character.
                        self.pending = rest.to_vec();
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.pending = rest[bad..].to_vec();
                }
            }
        }
    }

    /// What is left at the end: U+FFFD where a character was begun and not ended.
    #[must_use]
    pub fn finish(self) -> String {
        String::from_utf8_lossy(&self.pending).into_owned()
    }
}

/// Finds the first of some texts in a text that comes piece by piece, and holds back what may be the beginning of one.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
    is_found: bool,
}

impl StopStrings {
    /// Empty texts stop nothing.
    #[must_use]
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        Self { stops, held: String::new(), is_found: false }
    }

    /// What is certain to come before any stop, after one more piece. Nothing once a stop was found.
    pub fn push(&mut self, piece: &str) -> String {
        if self.is_found {
            return String::new();
        }
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.is_found = true;
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let is_beginning = |at: &usize| self.stops.iter().any(|stop| stop.starts_with(&self.held[*at..]));
        let starts = self.held.char_indices().map(|(at, _)| at);
        let keep = starts.clone().find(is_beginning).unwrap_or(self.held.len());
        let rest = self.held.split_off(keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop was found.
    #[must_use]
    pub const fn is_found(&self) -> bool {
        self.is_found
    }

    /// What was held back and turned out to be no stop.
    #[must_use]
    pub fn finish(self) -> String {
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn through(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool, String) {
        let mut found = StopStrings::new(stops.iter().map(|stop| (*stop).to_owned()));
        let given = pieces.iter().map(|piece| found.push(piece)).collect();
        (given, found.is_found(), found.finish())
    }

    #[test]
    fn stops_are_found_across_pieces_and_nothing_else_is_lost() {
        let given = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        assert_eq!(through(&["END"], &["so E", "N", "Dless"]), (given(&["so ", "", ""]), true, String::new()));
        assert_eq!(through(&["END"], &["so E", "N", "T"]), (given(&["so ", "", "ENT"]), false, String::new()));
        assert_eq!(through(&["END"], &["so E", "N"]), (given(&["so ", ""]), false, "EN".into()));
        // The earliest of several, whatever their order.
        assert_eq!(through(&["b", "ab"], &["xaby"]), (given(&["x"]), true, String::new()));
        assert_eq!(through(&[""], &["xy"]), (given(&["xy"]), false, String::new()));
        assert_eq!(through(&["éa"], &["aé", "é", "a"]), (given(&["a", "é", ""]), true, String::new()));
    }
}
