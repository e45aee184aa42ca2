//! `--metrics ADDRESS`: what a role counts, in the text format of Prometheus. Off unless asked for.
//!
//! # Threat model
//! There is no authentication: whoever reaches the address reads it, so it belongs on the loopback or behind the operator's own wall.
//! It shows members' names and amounts; no text, no path, no key, no loss, no bits per byte.
//!
//! # Source
//! Prometheus text exposition format 0.0.4. `docs/operations.md` says what each metric means.

use crate::observe::{Observer, WorkCost};
use anyhow::{Context as _, Result};
use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

/// A document of metrics that grows by families.
#[derive(Debug, Default)]
pub(crate) struct Exposition {
    text: String,
}

/// What a metric does.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Kind {
    /// It only grows while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// The labels and the value of one sample.
pub(crate) type Sample<'a> = (&'a [(&'a str, &'a str)], f64);

/// What makes the document when it is asked for.
pub(crate) type Source = Arc<dyn Fn() -> String + Send + Sync>;

impl Exposition {
    /// A metric with its samples; without samples it is left out.
    pub(crate) fn family<'a>(
        &mut self,
        name: &str,
        kind: Kind,
        help: &str,
        samples: impl IntoIterator<Item = Sample<'a>>,
    ) {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return;
        }
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        // Writing to a string cannot fail.
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in samples {
            self.text.push_str(name);
            for (index, (label, text)) in labels.iter().enumerate() {
                let _ = write!(self.text, "{}{label}=\"{}\"", if index == 0 { "{" } else { "," }, escaped(text));
            }
            let value = match value {
                value if value.is_nan() => "NaN".to_owned(),
                value if value.is_infinite() => if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned(),
                value => value.to_string(),
            };
            let _ = writeln!(self.text, "{} {value}", if labels.is_empty() { "" } else { "}" });
        }
    }

    /// One value without labels.
    pub(crate) fn value(&mut self, name: &str, kind: Kind, help: &str, value: f64) {
        self.family(name, kind, help, [(&[][..], value)]);
    }

    /// What every role tells about itself.
    pub(crate) fn process(&mut self, role: &str, blobs: &Path) {
        let labels = [("role", role), ("version", env!("CARGO_PKG_VERSION"))];
        self.family(
            "tapestry_build_info",
            Kind::Gauge,
            "Which role this is, and of which version.",
            [(&labels[..], 1.0)],
        );
        self.value("process_cpu_seconds_total", Kind::Counter, "Processor time of this process.", cpu_seconds());
        if let Some(bytes) = resident_bytes() {
            self.value("process_resident_memory_bytes", Kind::Gauge, "Resident memory of this process.", number(bytes));
        }
        if let Ok(space) = rustix::fs::statvfs(blobs) {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            self.value("tapestry_store_free_bytes", Kind::Gauge, "Free space where the blobs are.", number(free));
        }
    }

    /// What has been observed since the process started.
    pub(crate) fn observed(&mut self, observer: &Observer) {
        let events = observer.num_events();
        let events: Vec<_> = events.iter().map(|(name, num)| ([("event", *name)], number(*num))).collect();
        self.family(
            "tapestry_events_total",
            Kind::Counter,
            "Events that this process wrote to the role's log.",
            events.iter().map(|(labels, value)| (&labels[..], *value)),
        );
        let work = observer.work();
        let work: Vec<_> = work.iter().map(|(kind, cost)| ([("work", *kind)], cost)).collect();
        let mut family = |name: &str, help: &str, value: fn(&WorkCost) -> f64| {
            let samples = work.iter().map(|(labels, cost)| (&labels[..], value(cost)));
            self.family(name, Kind::Counter, help, samples);
        };
        family("tapestry_work_total", "Pieces of work done.", |cost| number(cost.num));
        family("tapestry_work_seconds_total", "Wall time of work.", |cost| cost.wall_seconds);
        family("tapestry_work_cpu_seconds_total", "Processor time of this process while it worked.", |cost| {
            cost.cpu_seconds
        });
        family("tapestry_work_bytes_total", "Bytes of weights that the work was about.", |cost| {
            number(cost.size_bytes)
        });
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }
}

fn escaped(label: &str) -> String {
    label.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// A count as Prometheus has it, exact to 2^53.
#[expect(clippy::cast_precision_loss, reason = "the format's numbers are 64-bit floats")]
pub(crate) const fn number(count: u64) -> f64 {
    count as f64
}

/// Answers `GET /metrics` at `address` until the result is dropped.
pub(crate) async fn serve(address: SocketAddr, source: Source) -> Result<(SocketAddr, JoinSet<()>)> {
    let listener = TcpListener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot serve metrics on {address}; give another --metrics"))?;
    let bound = listener.local_addr()?;
    let answer = get(move || {
        let text = source();
        async move { ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text) }
    });
    let mut serving = JoinSet::new();
    serving.spawn(async move {
        let served = axum::serve(listener, Router::new().route("/metrics", answer)).await;
        tracing::error!("metrics are no longer served: {served:?}");
    });
    Ok((bound, serving))
}

/// Processor time of this process so far, in seconds; zero where the system does not tell.
pub(crate) fn cpu_seconds() -> f64 {
    let ticks = || {
        let fields = stat_fields()?;
        Some(fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?)
    };
    // Linux shows 100 ticks a second on every architecture.
    ticks().map_or(0.0, |ticks| number(ticks) / 100.0)
}

fn resident_bytes() -> Option<u64> {
    Some(stat_fields()?.get(21)?.parse::<u64>().ok()? * rustix::param::page_size() as u64)
}

/// The fields of /proc/self/stat after the name.
fn stat_fields() -> Option<Vec<String>> {
    let text = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may itself hold spaces and parentheses.
    Some(text.rsplit_once(')')?.1.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_would_break_the_format_are_escaped() {
        let mut metrics = Exposition::default();
        let labels = [("member", "a\"b\\c\nd"), ("other", "")];
        metrics.family("x_total", Kind::Counter, "Two\nlines \\ here.", [(&labels[..], 1.5), (&[][..], f64::INFINITY)]);
        metrics.family("nothing", Kind::Gauge, "Left out.", []);
        assert_eq!(
            metrics.into_text(),
            "# HELP x_total Two\\nlines \\\\ here.\n# TYPE x_total counter\n\
             x_total{member=\"a\\\"b\\\\c\\nd\",other=\"\"} 1.5\nx_total +Inf\n"
        );
    }

    #[test]
    fn this_process_is_measured() {
        let (before, start) = (cpu_seconds(), std::time::Instant::now());
        let mut sum = 0u64;
        while start.elapsed().as_millis() < 60 {
            sum = std::hint::black_box(sum.wrapping_mul(3) + 1);
        }
        assert!(cfg!(not(target_os = "linux")) || cpu_seconds() > before);
        assert!(cfg!(not(target_os = "linux")) || resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
