//! What a running role writes to standard error: lines for people, or with `--log-format json` one JSON object for each event.

use crate::progress::Step;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line, with `round`, `member` and `phase` where they apply.
    Json,
}

static IS_JSON: AtomicBool = AtomicBool::new(false);

/// Sets up the process's messages, once, at its start. `TAPESTRY_LOG` filters them, as in `info,tapestry_net=debug`.
pub(crate) fn init(format: LogFormat) {
    IS_JSON.store(format == LogFormat::Json, Ordering::Relaxed);
    let filter = |default: &str| EnvFilter::try_from_env("TAPESTRY_LOG").unwrap_or_else(|_| default.into());
    match format {
        LogFormat::Text => {
            tracing_subscriber::fmt().with_env_filter(filter("warn")).with_writer(std::io::stderr).init();
        }
        LogFormat::Json => tracing_subscriber::fmt()
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .with_span_list(false)
            .with_env_filter(filter("warn,tapestry=info"))
            .with_writer(std::io::stderr)
            .init(),
    }
}

/// Whether messages are JSON.
pub(crate) fn is_json() -> bool {
    IS_JSON.load(Ordering::Relaxed)
}

/// A step of work as a JSON line.
pub(crate) fn step(step: &Step, elapsed: Duration) {
    if step.what == "note" {
        return tracing::info!(target: "tapestry::note", "{}", step.detail);
    }
    tracing::info!(
        target: "tapestry::step",
        step = step.what,
        done = step.done,
        total = step.total,
        unit = step.unit,
        is_end = step.is_end,
        seconds = elapsed.as_secs_f64(),
        "{}",
        step.detail
    );
}

/// An event of the role's log as a JSON line.
pub(crate) fn event(event: &str, about: &crate::observe::About, text: &str) {
    let member = about.member.as_ref().map(ToString::to_string);
    tracing::info!(
        target: "tapestry::event",
        event,
        round = about.round,
        member,
        phase = about.phase,
        "{text}"
    );
}
