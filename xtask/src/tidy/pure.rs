//! Sources of pure crates name no clock, file, socket, process, environment or ambient randomness.

/// Modules of the standard library that reach outside, or whose order differs from run to run.
const STD_MODULES: [&str; 5] = ["env", "fs", "net", "os", "process"];

/// Words that stand for a clock, for randomness, or for a map in random order.
const WORDS: [&str; 8] =
    ["Instant", "SystemTime", "UNIX_EPOCH", "HashMap", "HashSet", "RandomState", "thread_rng", "getrandom"];

/// Every breach in one file, with its line.
pub(super) fn check(path: &str, source: &str) -> Vec<String> {
    let code = without_comments_and_texts(source);
    let mut breaches = vec![];
    for (number, line) in code.lines().enumerate() {
        for name in WORDS.iter().filter(|word| words(line).any(|found| found == **word)) {
            breaches.push(breach(path, number, name));
        }
        if line.contains("rand::") && words(line).any(|word| word == "rand") {
            breaches.push(breach(path, number, "rand"));
        }
    }
    for (at, _) in code.match_indices("std::") {
        let is_path = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let number = code[..at].matches('\n').count();
        for module in modules_after(&code[at + 5..]).filter(|module| is_path && STD_MODULES.contains(module)) {
            breaches.push(breach(path, number, &format!("std::{module}")));
        }
    }
    breaches
}

fn breach(path: &str, line_index: usize, name: &str) -> String {
    format!("{path}:{}: a pure crate does not use `{name}`: take what it gives as an argument", line_index + 1)
}

fn words(line: &str) -> impl Iterator<Item = &str> {
    line.split(|c: char| !c.is_alphanumeric() && c != '_')
}

/// The modules that a path beginning with `std::` leads to: `fs` of `fs::read`, `fs` and `env` of `{fs, env::args}`.
fn modules_after(rest: &str) -> Box<dyn Iterator<Item = &str> + '_> {
    let first_word = |text: &str| words(text.trim_start()).next().map_or(0, str::len);
    let Some(group) = rest.strip_prefix('{') else { return Box::new(std::iter::once(&rest[..first_word(rest)])) };
    let mut depth = 0_i32;
    let mut ends = vec![];
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                ends.push(at);
                break;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => ends.push(at),
            _ => {}
        }
    }
    let starts = std::iter::once(0).chain(ends.clone().into_iter().map(|end| end + 1));
    Box::new(starts.zip(ends).map(move |(start, end)| {
        let part = group[start..end].trim_start();
        &part[..first_word(part)]
    }))
}

/// The source with comments and the contents of texts blanked out; lines stay where they are.
fn without_comments_and_texts(source: &str) -> String {
    let mut code = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            rest.find("*/").map_or(rest.len(), |end| end + 2)
        } else if c == '"' {
            end_of_text(rest)
        } else if let Some(text) = rest.strip_prefix("r#\"") {
            text.find("\"#").map_or(rest.len(), |end| end + 5)
        } else if rest.starts_with("'\"'") || rest.starts_with("'\\\"'") {
            // The character literal of a quote would otherwise open a text.
            rest[1..].find('\'').map_or(rest.len(), |end| end + 2)
        } else {
            code.push(c);
            rest = &rest[c.len_utf8()..];
            continue;
        };
        let lines = rest[..skipped].matches('\n').count();
        code.push(' ');
        code.extend(std::iter::repeat_n('\n', lines));
        rest = &rest[skipped..];
    }
    code
}

/// The length of the text literal at the start, with both quotes.
fn end_of_text(rest: &str) -> usize {
    let mut is_escaped = false;
    for (at, c) in rest.char_indices().skip(1) {
        match c {
            _ if is_escaped => is_escaped = false,
            '\\' => is_escaped = true,
            '"' => return at + 1,
            _ => {}
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reaches_outside_is_found_in_every_spelling() {
        let check_found = |source: &str, expected: &str| {
            let breaches = check("lib.rs", source);
            assert!(breaches.iter().any(|breach| breach.contains(expected)), "{source}: {breaches:?}");
        };
        check_found("use std::fs;", "lib.rs:1");
        check_found("\n let x = std::env::var(\"A\");", "lib.rs:2");
        check_found("use std::{collections::{BTreeMap, BTreeSet}, net::TcpStream};", "`std::net`");
        check_found("use std::{\n    fmt,\n    process,\n};", "`std::process`");
        check_found("let now = SystemTime::now();", "`SystemTime`");
        check_found("use std::time::{Duration, Instant};", "`Instant`");
        check_found("let x: u8 = rand::random();", "`rand`");
        check_found("let m = HashMap::new();", "`HashMap`");
    }

    #[test]
    fn comments_texts_and_lookalikes_are_no_breach() {
        let source = r##"
            //! No std::fs here, no Instant.
            use std::{collections::BTreeMap, fmt, time::Duration};
            const A: &str = "std::env and SystemTime \" rand::random";
            const B: &str = r#"std::net "HashMap" "#;
            /* std::process */
            let quote = '"'; let strand::x = Instantly; let operand = 1;
        "##;
        assert_eq!(check("lib.rs", source), Vec::<String>::new());
    }
}
