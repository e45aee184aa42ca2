//! Seeded damage to bytes and to JSON.

/// Random numbers of a seed (SplitMix64).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ 0x1234_5678_9ABC_DEF0)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("below a usize")
    }

    pub(crate) fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub(crate) fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    /// A number that readers trip over: small, at a border of a width, or anything.
    pub(crate) fn nasty(&mut self) -> u64 {
        let border = 1u64.checked_shl(u32::try_from(self.below(65)).expect("small")).unwrap_or(0);
        match self.below(4) {
            0 => self.below(10) as u64,
            1 => border.wrapping_sub(1),
            2 => border.wrapping_add(self.below(8) as u64),
            _ => self.next(),
        }
    }
}

/// Flips, overwrites, cuts, repeats, moves or inserts some of the bytes.
pub(crate) fn damage(bytes: &mut Vec<u8>, random: &mut Random) {
    for _ in 0..=random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let at = random.below(bytes.len());
        let end = at + random.below((bytes.len() - at).min(64)) + 1;
        match random.below(7) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next().to_le_bytes()[0],
            3 => bytes.truncate(at),
            4 => {
                let part = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, part);
            }
            5 => drop(bytes.drain(at..end)),
            _ => {
                let number = random.nasty().to_le_bytes();
                let end = (at + 8).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
        }
    }
}

/// What may stand where a value or a mark of JSON is expected, and mostly should not.
const TOKENS: [&str; 34] = [
    "{",
    "}",
    "[",
    "]",
    ":",
    ",",
    "\"",
    "\\",
    "null",
    "true",
    "-1",
    "-0",
    "1.5",
    "1e3",
    "1e999",
    "0",
    "1",
    "2",
    "4",
    "8",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "\"\"",
    "\"a\"",
    "\"F32\"",
    "\"BF16\"",
    "\"I64\"",
    "\"F4\"",
    "\"shape\":",
    "\"__metadata__\":",
    "[[[[[[[[",
    "\"\\u0061\"",
    "\"\\ud800\"",
];

/// Replaces, removes or inserts tokens of JSON.
pub(crate) fn damage_json(json: &mut String, random: &mut Random) {
    for _ in 0..=random.below(2) {
        let tokens = tokens_of(json);
        if tokens.is_empty() {
            return;
        }
        let (start, end) = *random.pick(&tokens);
        let number;
        let token = match random.below(4) {
            0 => "",
            1 => {
                number = random.nasty().to_string();
                &number
            }
            2 => {
                // Another of its own: a name, a type or an offset in a place of another.
                let (start, end) = *random.pick(&tokens);
                number = json[start..end].to_owned();
                &number
            }
            _ => *random.pick(&TOKENS),
        };
        if random.one_in(4) {
            json.insert_str(start, token);
        } else {
            json.replace_range(start..end, token);
        }
    }
}

/// Where the tokens lie: texts, marks, and runs of anything else.
fn tokens_of(json: &str) -> Vec<(usize, usize)> {
    let mut tokens = vec![];
    let mut rest = json.char_indices().peekable();
    while let Some((start, c)) = rest.next() {
        if c == '"' {
            while rest.next_if(|(_, c)| *c != '"').is_some() {}
            rest.next();
        } else if !"{}[]:,".contains(c) {
            while rest.next_if(|(_, c)| !"{}[]:,\"".contains(*c)).is_some() {}
        }
        tokens.push((start, rest.peek().map_or(json.len(), |(at, _)| *at)));
    }
    tokens
}
