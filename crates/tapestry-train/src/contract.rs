//! What a trainer and the node that starts it owe each other: `docs/trainer-contract.md`. Any program that keeps it can train a member's
//! contributions; this crate's own engine is one of them.

use crate::TrainError;
use serde::Deserialize;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;

/// The version of the contract, in every job.
pub const TRAINER_CONTRACT: u32 = 1;
/// A trainer ends with this when it was interrupted and the same job goes on later (`EX_TEMPFAIL` of sysexits.h).
pub const EXIT_INTERRUPTED: u8 = 75;
/// A trainer ends with this when the job, its texts or its base cannot be used, and trying again changes nothing (`EX_DATAERR`).
pub const EXIT_UNUSABLE: u8 = 65;
/// The steps of a job, a line each.
pub const METRICS_FILE: &str = "metrics.jsonl";

/// A longer line is no step.
const MAX_LINE_BYTES: u64 = 64 << 10;

/// What `metrics.jsonl` says of a training run.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct TrainingRecord {
    /// Updates.
    pub num_steps: u64,
    /// Tokens trained on, counted once for each time they were seen.
    pub num_tokens: u64,
    /// Loss of the first update, in nats per token.
    pub first_loss: f64,
    /// Mean loss over the last quarter of the updates.
    pub last_loss: f64,
    /// Wall time of all updates, in seconds.
    pub wall_seconds: f64,
    /// Processor time of all updates, in seconds; zero where the trainer does not say.
    pub cpu_seconds: f64,
}

/// A line of `metrics.jsonl`, as much of it as the contract asks for. Trainers may add fields.
#[derive(Debug, Deserialize)]
struct Line {
    step: u64,
    loss: f64,
    tokens: u64,
    seconds: f64,
    #[serde(default)]
    cpu_seconds: f64,
}

/// Reads the steps of a job in `out_dir`. A last line that is still being written is left out.
///
/// # Errors
/// Where there is no such file, or a line is no step, steps are not counted from 1, or a number is not finite.
pub fn read_metrics(out_dir: &Path) -> Result<TrainingRecord, TrainError> {
    let path = out_dir.join(METRICS_FILE);
    let broken = |line: u64, reason: String| TrainError::Metrics { path: path.clone(), line, reason };
    let mut reader = BufReader::new(File::open(&path).map_err(TrainError::io("read", &path))?);
    let (mut record, mut losses, mut text) = (TrainingRecord::default(), vec![], vec![]);
    loop {
        text.clear();
        let number = record.num_steps + 1;
        reader.by_ref().take(MAX_LINE_BYTES).read_until(b'\n', &mut text).map_err(TrainError::io("read", &path))?;
        if text.last() != Some(&b'\n') {
            if text.len() as u64 == MAX_LINE_BYTES {
                return Err(broken(number, format!("it is longer than {MAX_LINE_BYTES} bytes")));
            }
            break;
        }
        let line: Line = serde_json::from_slice(&text).map_err(|e| broken(number, e.to_string()))?;
        if line.step != number {
            return Err(broken(
                number,
                format!("`step` must be {number}, one more than on the line before; found {}", line.step),
            ));
        }
        let numbers = [("loss", line.loss), ("seconds", line.seconds), ("cpu_seconds", line.cpu_seconds)];
        if let Some((field, value)) = numbers.into_iter().find(|(_, value)| !value.is_finite()) {
            return Err(broken(number, format!("`{field}` must be a finite number; found {value}")));
        }
        record.num_steps = number;
        record.num_tokens = record.num_tokens.saturating_add(line.tokens);
        record.wall_seconds += line.seconds;
        record.cpu_seconds += line.cpu_seconds;
        losses.push(line.loss);
    }
    let last = &losses[losses.len() - losses.len().div_ceil(4)..];
    record.first_loss = losses.first().copied().unwrap_or_default();
    #[expect(clippy::cast_precision_loss, reason = "a count of steps")]
    let mean = last.iter().sum::<f64>() / last.len().max(1) as f64;
    record.last_loss = mean;
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(content: &str) -> Result<TrainingRecord, String> {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::write(dir.path().join(METRICS_FILE), content).expect("written");
        read_metrics(dir.path()).map_err(|error| error.to_string())
    }

    fn line(step: u64, loss: f64) -> String {
        format!("{{\"step\":{step},\"loss\":{loss},\"tokens\":512,\"seconds\":0.5,\"of_our_own\":[1]}}\n")
    }

    #[test]
    fn steps_are_added_up_and_a_line_that_is_being_written_is_left_out() {
        let five: String = (1..=5).map(|step| line(step, 6.0 - step as f64)).collect();
        let record = check(&format!("{five}{{\"step\":6,")).expect("five steps");
        let expected = TrainingRecord {
            num_steps: 5,
            num_tokens: 2560,
            first_loss: 5.0,
            last_loss: 1.5,
            wall_seconds: 2.5,
            cpu_seconds: 0.0,
        };
        assert_eq!(record, expected);
        assert_eq!(check("").expect("nothing yet"), TrainingRecord::default());
    }

    #[test]
    fn what_is_no_step_is_refused_with_its_line() {
        let cases = [
            (format!("{}{}", line(1, 1.0), line(3, 1.0)), "line 2: `step` must be 2"),
            (format!("{}{{}}\n", line(1, 1.0)), "line 2: missing field `step`"),
            (line(1, 1.0).replace("512", "-1"), "line 1: invalid value"),
            (line(1, 1.0).replace("0.5", "1e999"), "line 1"),
            (format!("{}\n", " ".repeat(70_000)), "line 1: it is longer than 65536 bytes"),
        ];
        for (content, expected) in cases {
            let error = check(&content).expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
    }
}
