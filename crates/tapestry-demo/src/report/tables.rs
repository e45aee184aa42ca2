//! The report's tables as values: headings and cells, for the terminal and for the page.

use crate::results::{MemberRecord, ModelName, Phase, PhaseRecord, Results, Role, TextName};
use std::time::Duration;
use tapestry_core::{MemberName, format_duration};
use tapestry_round::{RoundResult, Verdict};

/// How a column is aligned. Numbers stand right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Align {
    Left,
    Right,
}

/// A table of text cells. Every row has a cell per column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Table {
    pub(super) title: &'static str,
    /// What the figures mean, in a sentence; may be empty.
    pub(super) note: &'static str,
    pub(super) columns: Vec<(String, Align)>,
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    fn new(title: &'static str, note: &'static str, columns: &[(&str, Align)]) -> Self {
        let columns = columns.iter().map(|(heading, align)| ((*heading).to_owned(), *align)).collect();
        Self { title, note, columns, rows: Vec::new() }
    }

    fn right(&mut self, headings: impl IntoIterator<Item = String>) {
        self.columns.extend(headings.into_iter().map(|heading| (heading, Right)));
    }
}

use Align::{Left, Right};

/// Titles of the tables beside which the page puts a chart.
pub(super) const BITS_PER_BYTE: &str = "Bits per byte of held-out text";
pub(super) const RETENTION: &str = "Retention";
pub(super) const TIME_AND_BYTES: &str = "Time and bytes";

/// All tables, in reading order. Tables without rows are left out.
pub(super) fn all(results: &Results) -> Vec<Table> {
    let tables = [
        bits_per_byte(results),
        own_models_on_english(results),
        retention(results),
        verdicts(results),
        time_and_bytes(results),
        models(results),
        processes(results),
        logs(results),
    ];
    tables.into_iter().filter(|table| !table.rows.is_empty()).collect()
}

fn four_digits(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.4}"))
}

fn bits_per_byte(results: &Results) -> Table {
    let note = "Lower is better. Each column is a text that nobody trained on; own CPT and Sovereign Model are the member's own.";
    let mut table = Table::new(BITS_PER_BYTE, note, &[("model", Left)]);
    table.right(results.honest_members().map(|m| m.name.to_string()));
    table.right(["general English".to_owned()]);
    let mut row = |label: String, of: &dyn Fn(&MemberName) -> ModelName, general: Option<&ModelName>| {
        let held_out =
            |m: &MemberRecord| four_digits(results.bpb(&of(&m.name), &TextName::HeldOut { member: m.name.clone() }));
        let mut cells = vec![label];
        cells.extend(results.honest_members().map(held_out));
        cells.push(general.map_or(String::new(), |g| four_digits(results.bpb(g, &TextName::GeneralEnglish))));
        table.rows.push(cells);
    };
    let adopted = ModelName::AdoptedBase;
    row("adopted base".to_owned(), &|_| adopted.clone(), Some(&adopted));
    for round in results.round_numbers() {
        let own = |member: &MemberName| ModelName::OwnCpt { member: member.clone(), round };
        let shared = ModelName::SharedBase { round };
        row(format!("own CPT, round {round}"), &own, None);
        row(format!("Shared Base, round {round}"), &|_| shared.clone(), Some(&shared));
    }
    row("Sovereign Model".to_owned(), &|member| ModelName::Sovereign { member: member.clone() }, None);
    table
}

fn own_models_on_english(results: &Results) -> Table {
    let note = "Bits per byte; lower is better.";
    let mut table = Table::new("Members' own models on general English", note, &[("model", Left)]);
    table.right(results.honest_members().map(|m| m.name.to_string()));
    let mut row = |label: String, of: &dyn Fn(&MemberName) -> ModelName| {
        let values: Vec<_> =
            results.honest_members().map(|m| results.bpb(&of(&m.name), &TextName::GeneralEnglish)).collect();
        if values.iter().any(Option::is_some) {
            table.rows.push([label].into_iter().chain(values.into_iter().map(four_digits)).collect());
        }
    };
    for round in results.round_numbers() {
        row(format!("own CPT, round {round}"), &|member| ModelName::OwnCpt { member: member.clone(), round });
    }
    row("Sovereign Model".to_owned(), &|member| ModelName::Sovereign { member: member.clone() });
    table
}

fn retention(results: &Results) -> Table {
    let note = "The share of a member's own CPT gain that the merged base keeps: (adopted base - Shared Base) / (adopted base - own CPT).";
    let mut table = Table::new(RETENTION, note, &[("round", Left)]);
    table.right(results.honest_members().map(|m| m.name.to_string()));
    let all = results.retention();
    for round in results.round_numbers() {
        let shown = |m: &MemberRecord| {
            let found = all.iter().find(|r| r.round == round && r.member == m.name).and_then(|r| r.retention);
            found.map_or("-".to_owned(), |share| format!("{:.0}%", share * 100.0))
        };
        table.rows.push([round.to_string()].into_iter().chain(results.honest_members().map(shown)).collect());
    }
    table
}

fn verdicts(results: &Results) -> Table {
    let note = "Score: bits per byte on the open held-out text. Floor: the largest score that is accepted. Cap: the largest weight of a member.";
    let columns = [
        ("round", Left),
        ("member", Left),
        ("score", Right),
        ("floor", Right),
        ("cap", Right),
        ("weight", Right),
        ("verdict", Left),
    ];
    let mut table = Table::new("Verdicts and weights", note, &columns);
    for round in &results.rounds {
        let outcome = &round.outcome;
        for (member, verdict) in &outcome.verdicts {
            let weight = outcome.weights.iter().find(|w| w.member == *member);
            let (score, text) = match verdict {
                Verdict::Accepted { bpb, staleness: 0, .. } => (Some(*bpb), "accepted".to_owned()),
                Verdict::Accepted { bpb, staleness, .. } => (Some(*bpb), format!("accepted, {staleness} rounds late")),
                Verdict::Refused { reasons } => {
                    let reasons: Vec<String> = reasons.iter().map(ToString::to_string).collect();
                    (None, format!("REFUSED: {}", reasons.join("; ")))
                }
                Verdict::Declined { reason } if reason.is_empty() => (None, "declined".to_owned()),
                Verdict::Declined { reason } => (None, format!("declined: {reason}")),
                Verdict::Missing => (None, "missing".to_owned()),
                Verdict::Left { .. } => (None, "has left".to_owned()),
                Verdict::Away { reason } if reason.is_empty() => (None, "away".to_owned()),
                Verdict::Away { reason } => (None, format!("away: {reason}")),
            };
            table.rows.push(vec![
                outcome.round.to_string(),
                member.to_string(),
                four_digits(score),
                four_digits(weight.map(|w| w.floor_bpb)),
                four_digits(weight.map(|w| w.cap)),
                four_digits(weight.map(|w| w.weight)),
                text,
            ]);
        }
        let (score, text) = match &outcome.result {
            RoundResult::Published { bpb } => (Some(*bpb), "PUBLISHED as the Shared Base".to_owned()),
            RoundResult::Abandoned { reason } => (None, format!("ABANDONED, the base stays: {reason}")),
        };
        let blank = String::new;
        table.rows.push(vec![
            outcome.round.to_string(),
            "(merge)".to_owned(),
            four_digits(score),
            blank(),
            blank(),
            blank(),
            text,
        ]);
    }
    table
}

/// `340 B`, `8.4 MB`, `271 MB`, `1.63 GB`: three digits, decimal units.
pub(super) fn format_bytes(bytes: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "three digits are shown")]
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in ["kB", "MB", "GB", "TB"] {
        if value < 999.5 {
            break;
        }
        value /= 1000.0;
        unit = next;
    }
    match value {
        _ if unit == "B" => format!("{bytes} B"),
        ..9.995 => format!("{value:.2} {unit}"),
        ..99.95 => format!("{value:.1} {unit}"),
        _ => format!("{value:.0} {unit}"),
    }
}

pub(super) fn format_seconds(seconds: f64) -> String {
    Duration::try_from_secs_f64(seconds).map_or("-".to_owned(), format_duration)
}

/// Roles in the order of the run: the demo, the coordinator, then the members as listed.
pub(super) fn roles(results: &Results) -> Vec<Role> {
    let nodes = results.members.iter().map(|m| Role::Node(m.name.clone()));
    [Role::Demo, Role::Coordinator].into_iter().chain(nodes).collect()
}

fn time_and_bytes(results: &Results) -> Table {
    let note = "Time per phase, and bytes of chunks over the network in all rounds together.";
    let mut table = Table::new(TIME_AND_BYTES, note, &[("role", Left), ("phase", Left)]);
    table.right(["outside rounds".to_owned()]);
    table.right(results.round_numbers().map(|round| format!("round {round}")));
    table.right(["received".to_owned(), "sent".to_owned()]);
    for role in roles(results) {
        for phase in Phase::ALL {
            let records: Vec<&PhaseRecord> =
                results.phases.iter().filter(|p| p.role == role && p.phase == phase).collect();
            if records.is_empty() {
                continue;
            }
            let time = |round: Option<u32>| {
                let mut of_round = records.iter().filter(|p| p.round == round).peekable();
                of_round.peek()?;
                Some(of_round.map(|p| p.seconds).sum::<f64>())
            };
            let shown = |round| time(round).map_or(String::new(), format_seconds);
            let bytes = |of: fn(&PhaseRecord) -> u64| match records.iter().map(|p| of(p)).sum() {
                0 => String::new(),
                bytes => format_bytes(bytes),
            };
            let mut row = vec![role.to_string(), phase.to_string(), shown(None)];
            row.extend(results.round_numbers().map(|round| shown(Some(round))));
            row.extend([bytes(|p| p.bytes_received), bytes(|p| p.bytes_sent)]);
            table.rows.push(row);
        }
    }
    table
}

fn models(results: &Results) -> Table {
    let note = "A model's digest is that of its manifest; it names every tensor and every chunk.";
    let mut table = Table::new("Models", note, &[("digest (BLAKE3)", Left), ("model", Left)]);
    for record in &results.models {
        let model = match &record.path {
            Some(path) => format!("{}: {path}", record.model),
            None => record.model.to_string(),
        };
        table.rows.push(vec![record.digest.to_string(), model]);
    }
    table
}

fn processes(results: &Results) -> Table {
    let columns = [("process", Left), ("ran", Right), ("processor time", Right), ("peak memory", Right)];
    let mut table = Table::new("Processes", "Peak memory: the largest resident memory.", &columns);
    for process in &results.processes {
        table.rows.push(vec![
            process.role.to_string(),
            format_seconds(process.wall_seconds),
            format_seconds(process.cpu_seconds),
            format_bytes(process.peak_memory_bytes),
        ]);
    }
    if results.peak_memory_together_bytes > 0 {
        let peak = format_bytes(results.peak_memory_together_bytes);
        table.rows.push(vec!["all together".to_owned(), String::new(), String::new(), peak]);
    }
    table
}

fn logs(results: &Results) -> Table {
    let note = "Each entry holds the digest of the one before and is signed by its role; the whole chain was read again at the end.";
    let columns = [("log of", Left), ("entries", Right), ("root", Left), ("verified", Left)];
    let mut table = Table::new("Logs", note, &columns);
    for log in &results.logs {
        table.rows.push(vec![
            log.role.to_string(),
            log.num_entries.to_string(),
            log.root.map_or("-".to_owned(), |root| root.short()),
            log.problem.as_ref().map_or("yes".to_owned(), |problem| format!("NO: {problem}")),
        ]);
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_well() {
        let check = |bytes, text: &str| assert_eq!(format_bytes(bytes), text);
        check(0, "0 B");
        check(999, "999 B");
        check(1000, "1.00 kB");
        check(8_388_608, "8.39 MB");
        check(271_000_000, "271 MB");
        check(999_600_000, "1.00 GB");
        check(u64::MAX, "18446744 TB");
    }
}
