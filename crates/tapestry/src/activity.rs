//! What a node is doing, for whoever watches: said to the coordinator every other second, remembered by nobody.

use crate::progress::{Reporter, Step};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use tapestry_core::format_duration;
use tapestry_net::Dialer;

/// How often it is said.
const EVERY: Duration = Duration::from_secs(2);
/// The longest word or description that is kept, in characters.
const MAX_CHARS: usize = 120;

/// A step of work that is under way. Nothing of a member's texts, paths or losses is in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Activity {
    /// What is being done, such as `train` or `push`.
    pub(crate) what: String,
    /// Which round, which model.
    pub(crate) detail: String,
    /// Units done.
    pub(crate) done: u64,
    /// Units in all; 0 where that is unknown.
    pub(crate) total: u64,
    /// `tokens` or `bytes`.
    pub(crate) unit: String,
    /// Units per second.
    pub(crate) per_second: Option<f64>,
    /// Whether the step has ended.
    pub(crate) is_end: bool,
}

impl From<Step> for Activity {
    fn from(step: Step) -> Self {
        let Step { what, detail, done, total, unit, per_second, is_end, .. } = step;
        Self { what, detail, done, total, unit, per_second, is_end }
    }
}

impl Activity {
    /// The same with nothing in it that a terminal would obey, and nothing that is long or no number.
    pub(crate) fn tamed(self) -> Self {
        let plain = |text: String| text.chars().filter(|c| !c.is_control()).take(MAX_CHARS).collect();
        Self {
            what: plain(self.what),
            detail: plain(self.detail),
            unit: plain(self.unit),
            done: self.done.min(self.total),
            per_second: self.per_second.filter(|rate| rate.is_finite() && *rate >= 0.0),
            ..self
        }
    }

    /// For people: `train round 1: 40 % of 12,288 tokens, 512 tokens/s, 14 s left`.
    #[expect(clippy::cast_precision_loss, reason = "for people")]
    pub(crate) fn in_words(&self) -> String {
        if self.is_end {
            return format!("{} {}: done", self.what, self.detail);
        }
        let mut text = format!("{} {}", self.what, self.detail);
        if self.total > 0 {
            let percent = self.done as f64 / self.total as f64 * 100.0;
            text += &format!(": {percent:.0} % of {}", amount(self.total as f64, &self.unit));
        }
        if let Some(rate) = self.per_second {
            text += &format!(", {}/s", amount(rate, &self.unit));
            let left = self.total.saturating_sub(self.done) as f64 / rate;
            // What takes a year may take for ever.
            if self.total > 0 && left < 3.2e7 {
                text += &format!(", {} left", format_duration(Duration::from_secs_f64(left.ceil())));
            }
        }
        text
    }
}

fn amount(number: f64, unit: &str) -> String {
    match unit {
        "bytes" if number >= 1e9 => format!("{:.2} GB", number / 1e9),
        "bytes" if number >= 1e6 => format!("{:.1} MB", number / 1e6),
        "bytes" => format!("{:.0} kB", (number / 1e3).ceil()),
        unit => format!("{number:.0} {unit}"),
    }
}

/// Ends with its owner.
pub(crate) struct Telling(tokio::task::JoinHandle<()>);

impl Drop for Telling {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Tells the coordinator every other second what is being done here, where that has changed. Nothing waits for it, and nothing depends on it.
pub(crate) fn tell(dialer: Dialer, reporter: Reporter) -> Telling {
    Telling(tokio::spawn(async move {
        let mut told = None;
        loop {
            let activity = reporter.latest().map(Activity::from);
            if activity.is_some() && activity != told {
                let sent = dialer.post_json::<_, ()>("/v1/activity", &activity);
                if let Ok(Ok(())) = tokio::time::timeout(EVERY, sent).await {
                    told = activity;
                }
            }
            tokio::time::sleep(EVERY).await;
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn activity() -> Activity {
        Activity {
            what: "push".into(),
            detail: "weights of round 2".into(),
            done: 250_000_000,
            total: 1_000_000_000,
            unit: "bytes".into(),
            per_second: Some(50e6),
            is_end: false,
        }
    }

    #[test]
    fn it_reads_well() {
        assert_eq!(activity().in_words(), "push weights of round 2: 25 % of 1.00 GB, 50.0 MB/s, 15.0 s left");
        assert_eq!(Activity { total: 0, per_second: None, ..activity() }.in_words(), "push weights of round 2");
        assert_eq!(Activity { is_end: true, ..activity() }.in_words(), "push weights of round 2: done");
    }

    #[test]
    fn what_a_member_says_cannot_harm_a_terminal() {
        let wild = Activity {
            what: "\u{1b}[2J".into(),
            detail: "x".repeat(100_000),
            done: u64::MAX,
            per_second: Some(f64::INFINITY),
            ..activity()
        };
        let tame = wild.tamed();
        assert_eq!((tame.what.as_str(), tame.detail.len(), tame.done), ("[2J", MAX_CHARS, tame.total));
        assert_eq!(tame.per_second, None);
    }
}
