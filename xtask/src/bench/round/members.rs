//! What a round costs as a consortium grows, from the simulator: messages, entries of the log, and time without training.

use anyhow::{Context as _, Result, ensure};

use super::Bench;
use super::report::Row;
use crate::run::{cargo, output};

/// Runs the simulator's rounds with 2 to 50 members.
pub(super) fn scaling(bench: &Bench<'_>) -> Result<Vec<Row>> {
    eprintln!("members: 2 to 50, simulated ...");
    let plot = bench.folder.join("members.svg");
    let mut command = cargo();
    command.args(["run", "--release", "--quiet", "-p", "tapestry-sim", "--", "--scaling"]).arg(&plot);
    let table = output(&mut command)?;
    eprint!("{table}");
    eprintln!("  plot: {}", plot.display());
    parse(&table)
}

/// The lines `NAME a round = SLOPE x members + OFFSET (R2 SHARE)`.
fn parse(table: &str) -> Result<Vec<Row>> {
    let mut rows = vec![];
    for line in table.lines() {
        let Some((name, rest)) = line.split_once(" a round = ") else { continue };
        let metrics = match name {
            "messages" => ("messages_a_member", "messages_linear_r2"),
            "log entries" => ("log_entries_a_member", "log_entries_linear_r2"),
            // Time is a few delays of the network, and hardly grows: there is no line to hold it against.
            _ => ("milliseconds_a_member", ""),
        };
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<f64>().ok()).context(line.to_string());
        let slope = number(rest.split(' ').next())?;
        let share = number(rest.rsplit_once("R2 ").and_then(|(_, share)| share.strip_suffix(')')))?;
        rows.push(Row::new("members", metrics.0, slope));
        if !metrics.1.is_empty() {
            rows.push(Row::more("members", metrics.1, share).target(0.99));
        }
    }
    ensure!(rows.len() == 5, "the simulator's table has another form: {table}");
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slopes_and_how_straight_they_are_come_from_the_table() {
        let table = " members     messages\n       2         10.0\nmessages a round = 12.50 x members + 1.0 (R2 0.9990)\n\
                     log entries a round = 2.00 x members + 6.0 (R2 1.0000)\n\
                     milliseconds a round = 3.10 x members + 900.0 (R2 0.5000)\n";
        let rows = parse(table).expect("whole");
        let found: Vec<_> = rows.iter().map(|row| (row.metric, row.ours, row.is_reached())).collect();
        assert_eq!(found[0], ("messages_a_member", 12.5, None));
        assert_eq!(found[3], ("log_entries_linear_r2", 1.0, Some(true)));
        assert_eq!(found[4], ("milliseconds_a_member", 3.1, None));
        assert_eq!(parse(&table.replace("0.9990", "0.5000")).expect("whole")[1].is_reached(), Some(false));
        assert!(parse("nothing").is_err());
    }
}
