//! What a role tells while it works: lines for people on standard error, or one JSON object a line on standard output for
//! a program that watches.

use crate::clock::now;
use serde::{Deserialize, Serialize};
use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tapestry_core::format_duration;

/// A step of work, or a part of one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Step {
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
    /// What is being done, such as `train` or `push`.
    pub(crate) what: String,
    /// For people: which round, which model.
    pub(crate) detail: String,
    /// Units done.
    pub(crate) done: u64,
    /// Units in all; 0 where that is unknown.
    pub(crate) total: u64,
    /// `tokens`, `bytes` or `steps`.
    pub(crate) unit: String,
    /// Units per second since the step began here; a step that was resumed began with what was done before.
    #[serde(default)]
    pub(crate) per_second: Option<f64>,
    /// Whether this is the step's last line.
    pub(crate) is_end: bool,
}

/// Where steps are reported to.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    form: Form,
    latest: Arc<Mutex<Option<Step>>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// Lines on standard error.
    People,
    /// JSON lines on standard output, for a process that started this one; when that is gone, this one ends.
    Json,
}

/// One step under way.
#[derive(Debug)]
pub(crate) struct Working {
    reporter: Reporter,
    step: Step,
    started: Instant,
    last_line: Option<Instant>,
    /// When the first number was known, and what it was.
    first: Option<(Instant, u64)>,
}

/// Calls `end` when the process that started this one is gone.
pub(crate) fn when_parent_is_gone(end: impl FnOnce() + Send + 'static) {
    std::thread::spawn(move || {
        let parent = std::os::unix::process::parent_id();
        while std::os::unix::process::parent_id() == parent {
            std::thread::sleep(Duration::from_millis(200));
        }
        end();
    });
}

impl Reporter {
    pub(crate) fn new(form: Form) -> Self {
        if form == Form::Json {
            // Whatever this process was doing goes on at the next start.
            when_parent_is_gone(|| std::process::exit(1));
        }
        Self { form, latest: Arc::default() }
    }

    /// The step that was reported last.
    pub(crate) fn latest(&self) -> Option<Step> {
        self.latest.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// A message is not a step: it does not end the one that is under way.
    fn remember(&self, step: &Step) {
        if step.what != "note" {
            *self.latest.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(step.clone());
        }
    }

    /// Whether messages go to standard error.
    pub(crate) fn is_for_people(&self) -> bool {
        self.form == Form::People
    }

    /// A message without a duration.
    pub(crate) fn say(&self, detail: impl Into<String>) {
        self.start("note", detail, "").end();
    }

    /// Begins a step.
    pub(crate) fn start(&self, what: &str, detail: impl Into<String>, unit: &str) -> Working {
        let step = Step {
            at_ms: now().as_ms(),
            what: what.to_owned(),
            detail: detail.into(),
            done: 0,
            total: 0,
            unit: unit.to_owned(),
            per_second: None,
            is_end: false,
        };
        let mut working =
            Working { reporter: self.clone(), step, started: Instant::now(), last_line: None, first: None };
        if what != "note" {
            working.print();
        }
        working
    }
}

impl Working {
    /// Says how far the step is; shown a few times a second at most.
    pub(crate) fn update(&mut self, done: u64, total: u64) {
        (self.step.done, self.step.total) = (done, total);
        let (since, before) = *self.first.get_or_insert((Instant::now(), done));
        #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
        let rate = done.saturating_sub(before) as f64 / since.elapsed().as_secs_f64();
        self.step.per_second = Some(rate).filter(|rate| rate.is_finite() && *rate > 0.0);
        self.reporter.remember(&self.step);
        let pause = if self.reporter.form == Form::Json { 200 } else { 10_000 };
        if self.last_line.is_none_or(|last| last.elapsed() >= Duration::from_millis(pause)) {
            self.print();
        }
    }

    /// The step is done.
    pub(crate) fn end(mut self) -> Duration {
        self.step.is_end = true;
        self.print();
        self.started.elapsed()
    }

    fn print(&mut self) {
        self.last_line = Some(Instant::now());
        self.step.at_ms = now().as_ms();
        let step = &self.step;
        self.reporter.remember(step);
        match self.reporter.form {
            Form::Json => {
                if let Ok(line) = serde_json::to_string(step) {
                    // Whoever watched may be gone; the work goes on.
                    let _ = writeln!(std::io::stdout().lock(), "{line}");
                }
            }
            Form::People if crate::logs::is_json() => crate::logs::step(step, self.started.elapsed()),
            Form::People => {
                let time = now().to_string();
                let time = &time[11..19];
                if step.what == "note" {
                    eprintln!("{time} {}", step.detail);
                } else if step.is_end {
                    let took = format_duration(self.started.elapsed());
                    eprintln!("{time} {} {}: done in {took}", step.what, step.detail);
                } else if step.total > 0 {
                    #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
                    let percent = step.done as f64 / step.total as f64 * 100.0;
                    eprintln!("{time} {} {}: {percent:.0} % of {} {}", step.what, step.detail, step.total, step.unit);
                } else {
                    eprintln!("{time} {} {} ...", step.what, step.detail);
                }
            }
        }
    }
}
