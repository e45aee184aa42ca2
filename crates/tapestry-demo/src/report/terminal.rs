//! Tables as aligned ASCII text.

use super::tables::{self, Align, Table};
use super::verdict;
use crate::results::{Mode, Results};
use std::fmt::Write;

/// The widest line.
const WIDTH: usize = 100;
/// Between columns.
const GAP: usize = 2;
/// A last column that wraps gets at least this much.
const NARROWEST_WRAPPED: usize = 24;

pub(super) fn render(results: &Results) -> String {
    let mode = match results.mode {
        Mode::Full => "",
        Mode::Quick => " (quick mode: a tiny base and generated texts)",
    };
    let took = tables::format_seconds(results.finished_at.since(results.started_at).as_secs_f64());
    let mut text = format!("Tapestry demonstration{mode}, {took}\n");
    for table in tables::all(results) {
        let _ = write!(text, "\n{}\n", table.title);
        for part in split_columns(&ascii_table(table)) {
            text.push_str(&rows(&part));
        }
    }
    text.push('\n');
    for line in wrap(&ascii(&verdict(results)), WIDTH) {
        text.push_str(&line);
        text.push('\n');
    }
    let logs =
        if results.logs_verified() { "Every role's log is verified." } else { "NOT every role's log is verified." };
    text.push_str(logs);
    text.push('\n');
    text
}

/// Printable ASCII; anything else as an escape, so that a text from outside can neither move the cursor nor the columns.
fn ascii(text: &str) -> String {
    text.chars().flat_map(|c| if matches!(c, ' '..='~') { vec![c] } else { c.escape_default().collect() }).collect()
}

fn ascii_table(table: Table) -> Table {
    let columns = table.columns.into_iter().map(|(heading, align)| (ascii(&heading), align)).collect();
    let rows = table.rows.iter().map(|row| row.iter().map(|cell| ascii(cell)).collect()).collect();
    Table { columns, rows, ..table }
}

/// Widths of the columns, by their longest cell.
fn widths(table: &Table) -> Vec<usize> {
    let longest = |i: usize| table.rows.iter().map(|row| row[i].len()).chain([table.columns[i].0.len()]).max();
    (0..table.columns.len()).map(|i| longest(i).unwrap_or(0)).collect()
}

/// A table that is too wide because of many number columns, as several: each begins with the first column.
fn split_columns(table: &Table) -> Vec<Table> {
    let widths = widths(table);
    let ends_with_number = table.columns.last().is_some_and(|(_, align)| *align == Align::Right);
    if !ends_with_number || widths.iter().sum::<usize>() + GAP * (widths.len() - 1) <= WIDTH {
        return vec![table.clone()];
    }
    let mut groups: Vec<Vec<usize>> = vec![vec![0]];
    let mut used = widths[0];
    for (i, width) in widths.iter().enumerate().skip(1) {
        let group = groups.last_mut().expect("there is one group from the start");
        if used + GAP + width > WIDTH && group.len() > 1 {
            groups.push(vec![0, i]);
            used = widths[0] + GAP + width;
        } else {
            group.push(i);
            used += GAP + width;
        }
    }
    let part = |group: &Vec<usize>| Table {
        columns: group.iter().map(|i| table.columns[*i].clone()).collect(),
        rows: table.rows.iter().map(|row| group.iter().map(|i| row[*i].clone()).collect()).collect(),
        ..table.clone()
    };
    groups.iter().map(part).collect()
}

fn rows(table: &Table) -> String {
    let mut widths = widths(table);
    let last = widths.len() - 1;
    let before: usize = widths[..last].iter().map(|width| width + GAP).sum();
    widths[last] = widths[last].min(WIDTH.saturating_sub(before).max(NARROWEST_WRAPPED));
    let mut text = String::new();
    let headings: Vec<String> = table.columns.iter().map(|(heading, _)| heading.clone()).collect();
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(*width)).collect();
    for row in [&headings, &rule].into_iter().chain(&table.rows) {
        for (i, part) in wrap(&row[last], widths[last]).iter().enumerate() {
            let mut line = String::new();
            for (j, width) in widths.iter().enumerate() {
                let cell = match (j == last, i) {
                    (true, _) => part.as_str(),
                    (false, 0) => row[j].as_str(),
                    (false, _) => "",
                };
                let _ = match table.columns[j].1 {
                    Align::Left => write!(line, "{cell:<width$}"),
                    Align::Right => write!(line, "{cell:>width$}"),
                };
                line.push_str(&" ".repeat(GAP));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
    }
    text
}

/// Lines of at most `width` characters of an ASCII text, broken at spaces, and inside a word only where it is too long.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for mut word in text.split(' ') {
        if !line.is_empty() && line.len() + 1 + word.len() > width {
            lines.push(std::mem::take(&mut line));
        }
        while word.len() > width {
            let (part, rest) = word.split_at(width);
            lines.push(part.to_owned());
            word = rest;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrapping_keeps_every_word_within_the_width() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("abcdefgh ij", 3), ["abc", "def", "gh", "ij"]);
        assert_eq!(wrap("", 5), [""]);
    }

    #[test]
    fn text_from_outside_cannot_reach_the_terminal() {
        assert_eq!(ascii("a\u{1b}[31m\n東"), "a\\u{1b}[31m\\n\\u{6771}");
    }
}
