//! A context-free grammar as data, and the pseudo-random numbers that walk it.

/// A grammar: the first rule is the document. In an alternative, `{name}` stands for a rule.
#[derive(Debug)]
pub(super) struct Grammar {
    /// Rules: a name and its alternatives. A rule refers to later rules only, so every document ends.
    pub(super) rules: &'static [Rule],
    /// What stands between words in a text without grammar.
    pub(super) word_separator: &'static str,
}

/// A name and its alternatives.
pub(super) type Rule = (&'static str, &'static [&'static str]);

impl Grammar {
    /// One document.
    pub(super) fn document(&self, random: &mut Random) -> String {
        let mut text = String::new();
        self.expand(0, random, &mut text);
        text
    }

    /// Words of the grammar, drawn evenly and put in no order.
    pub(super) fn words_in_no_order(&self, random: &mut Random, num_words: usize) -> String {
        let words: Vec<&str> = self
            .rules
            .iter()
            .flat_map(|(_, alternatives)| *alternatives)
            .filter(|a| !a.contains('{'))
            .copied()
            .collect();
        let drawn: Vec<&str> = (0..num_words).map(|_| words[random.index(words.len())]).collect();
        drawn.join(self.word_separator)
    }

    fn expand(&self, rule: usize, random: &mut Random, text: &mut String) {
        let alternatives = self.rules[rule].1;
        let mut rest = alternatives[random.index(alternatives.len())];
        while let Some((before, after)) = rest.split_once('{') {
            text.push_str(before);
            let (name, after) = after.split_once('}').expect("every brace is closed: a test reads all grammars");
            let next = self.rules.iter().position(|(n, _)| *n == name).expect("every rule exists: a test reads them");
            self.expand(next, random, text);
            rest = after;
        }
        text.push_str(rest);
    }
}

/// Reproducible pseudo-random numbers: SplitMix64. Not for keys.
///
/// # Source
/// Steele, Lea, Flood: Fast splittable pseudorandom number generators (OOPSLA 2014), figure 17 with the mixing constants
/// that are commonly used.
#[derive(Debug)]
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// 0 to `bound - 1`. The bias of the remainder is below 2^-50 for the small bounds used here.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// An index into a list of `len` elements.
    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).expect("below a usize")
    }
}
