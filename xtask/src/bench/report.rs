//! What a bench found: rows for programs (`--json`), tables for people.

use serde_json::{Value, json};

use super::limits::{Least, Limits, Moved};
use super::machine::gigabytes;
use super::measure::{Samples, Usage};

/// A figure that is compared, smaller is better.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Metric {
    Wall,
    Cpu,
    Rss,
}

impl Metric {
    const ALL: [Self; 3] = [Self::Wall, Self::Cpu, Self::Rss];

    /// Name and unit in a row.
    const fn name(self) -> &'static str {
        match self {
            Self::Wall => "wall_s",
            Self::Cpu => "cpu_s",
            Self::Rss => "peak_rss_mb",
        }
    }

    const fn of(self, usage: &Usage) -> f64 {
        match self {
            Self::Wall => usage.wall_s,
            Self::Cpu => usage.cpu_s,
            Self::Rss => usage.rss_mb,
        }
    }

    const fn target(self, target: &Target) -> Option<f64> {
        match self {
            Self::Wall => target.wall_s,
            Self::Cpu => target.cpu_s,
            Self::Rss => target.rss_mb,
        }
    }
}

/// The figures that we set ourselves for a piece of work.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Target {
    pub(super) wall_s: Option<f64>,
    pub(super) cpu_s: Option<f64>,
    pub(super) rss_mb: Option<f64>,
}

/// How far two outputs are from each other.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Difference {
    /// The largest between any two elements.
    pub(super) largest: f64,
    /// The share of elements that differ by more than rounding does ([`ROUNDING`]).
    pub(super) share: f64,
}

/// Elements of our models are about 0.02; f32 rounds those by a billionth, several times in a merge.
pub(super) const ROUNDING: f64 = 1e-7;

/// One who did the work: we, or a peer.
#[derive(Debug, Clone)]
pub(super) struct Contender {
    pub(super) name: String,
    /// The bytes that this way of doing it must move.
    pub(super) moved: Moved,
    pub(super) samples: Samples,
    /// Why there are no figures.
    pub(super) failure: Option<String>,
    /// How far its output is from ours.
    pub(super) difference: Option<Difference>,
}

impl Contender {
    pub(super) fn new(name: impl Into<String>, moved: Moved) -> Self {
        Self { name: name.into(), moved, samples: Samples::default(), failure: None, difference: None }
    }

    fn median(&self) -> Option<Usage> {
        if self.failure.is_some() { None } else { self.samples.median() }
    }
}

/// A piece of work and what everybody took for it.
#[derive(Debug, Clone)]
pub(super) struct Comparison {
    pub(super) work: String,
    /// What is done, for people.
    pub(super) title: String,
    pub(super) target: Target,
    pub(super) ours: Contender,
    pub(super) peers: Vec<Contender>,
}

/// How many times better ours is; all figures are better when they are smaller.
fn ratio(ours: f64, peer: f64) -> Option<f64> {
    (ours > 0.0).then(|| peer / ours)
}

impl Comparison {
    /// One object for each metric and peer; for each metric where there is no peer.
    pub(super) fn rows(&self, limits: &Limits) -> Vec<Value> {
        let peers: Vec<Option<&Contender>> =
            if self.peers.is_empty() { vec![None] } else { self.peers.iter().map(Some).collect() };
        let row = |metric: Metric, peer: Option<&Contender>| {
            let figure = |contender: &Contender| contender.median().map(|usage| metric.of(&usage));
            let (ours, theirs) = (figure(&self.ours), peer.and_then(figure));
            let least = limits.least(&self.ours.moved).map(|least| least.seconds);
            let of_wall = |value: Option<f64>| value.filter(|_| metric == Metric::Wall);
            let difference = peer.and_then(|peer| peer.difference);
            let failure = self.ours.failure.as_deref().or_else(|| peer?.failure.as_deref());
            json!({
                "work": self.work, "metric": metric.name(), "ours": ours, "peer": theirs,
                "ratio": ours.zip(theirs).and_then(|(ours, theirs)| ratio(ours, theirs)),
                "peer_name": peer.map(|peer| peer.name.as_str()),
                "peer_start_s": peer.and_then(|peer| Some(peer.median()?.start_s)),
                "peer_writes": peer.map(|peer| peer.moved.written > 0),
                "peer_largest_difference": difference.map(|difference| difference.largest),
                "peer_share_different": difference.map(|difference| difference.share),
                "ours_min": self.ours.samples.min().map(|usage| metric.of(&usage)),
                "target": metric.target(&self.target),
                "bytes_moved": self.ours.moved.read + self.ours.moved.written,
                "limit": of_wall(least),
                "fraction_of_limit": of_wall(least.zip(ours).map(|(least, ours)| least / ours)),
                "failure": failure,
            })
        };
        let peers = peers.iter();
        peers.flat_map(|peer| Metric::ALL.iter().map(move |metric| (*metric, *peer))).map(|(m, p)| row(m, p)).collect()
    }

    /// A table with a line for ours and each peer.
    pub(super) fn table(&self, limits: &Limits) -> String {
        let mut lines = vec![
            [
                "",
                "start s",
                "wall s",
                "(min)",
                "CPU s",
                "RSS MB",
                "GB moved",
                "limit s",
                "reached",
                "ours is better by",
                "",
                "",
                "",
            ]
            .map(str::to_string),
            ["", "", "", "", "", "", "", "", "", "wall", "CPU", "RSS", "differs by"].map(str::to_string),
        ];
        lines.push(self.line(&self.ours, limits));
        lines.extend(self.peers.iter().map(|peer| self.line(peer, limits)));
        lines.push(self.target_line());
        let failures = std::iter::once(&self.ours).chain(&self.peers);
        let failures = failures.filter_map(|c| Some(format!("  {} failed: {}\n", c.name, c.failure.as_deref()?)));
        format!("{}: {}\n{}{}", self.work, self.title, align(&lines), failures.collect::<String>())
    }

    fn line(&self, contender: &Contender, limits: &Limits) -> [String; 13] {
        let mut cells: [String; 13] = Default::default();
        cells[0].clone_from(&contender.name);
        if contender.failure.is_some() {
            cells[2] = "failed".into();
            return cells;
        }
        let (Some(median), Some(min)) = (contender.median(), contender.samples.min()) else { return cells };
        cells[1] = if median.start_s > 0.0 { seconds_text(median.start_s) } else { String::new() };
        cells[2] = seconds_text(median.wall_s);
        cells[3] = format!("({})", seconds_text(min.wall_s));
        cells[4] = seconds_text(median.cpu_s);
        cells[5] = format!("{:.0}", median.rss_mb);
        cells[6] = format!("{:.2}", gigabytes(contender.moved.read + contender.moved.written));
        if let Some(Least { seconds, by }) = limits.least(&contender.moved) {
            cells[7] = format!("{} {by}", seconds_text(seconds));
            cells[8] = format!("{:.0}%", 100.0 * seconds / median.wall_s);
        }
        let is_ours = std::ptr::eq(contender, &raw const self.ours);
        if let Some(ours) = self.ours.median().filter(|_| !is_ours) {
            for (cell, metric) in cells[9..12].iter_mut().zip(Metric::ALL) {
                let ratio = ratio(metric.of(&ours), metric.of(&median));
                *cell = ratio.map_or_else(String::new, |ratio| format!("{ratio:.1}x"));
            }
        }
        if let Some(Difference { largest, share }) = contender.difference {
            cells[12] = format!("{largest:.0e}");
            if share > 0.0 {
                cells[12].push_str(&format!(" ({share:.0e})"));
            }
        }
        cells
    }

    fn target_line(&self) -> [String; 13] {
        let mut cells: [String; 13] = Default::default();
        cells[0] = "target for ours".into();
        let text = |value: Option<f64>| value.map_or_else(String::new, |value| format!("<= {value}"));
        cells[2] = text(self.target.wall_s);
        cells[4] = text(self.target.cpu_s);
        cells[5] = text(self.target.rss_mb);
        cells
    }
}

/// Rows for the rates of the machine; there is no peer to physics.
pub(super) fn limit_rows(limits: &Limits) -> Vec<Value> {
    let row = |(name, rate): (&str, f64)| json!({ "work": "limits", "metric": format!("{name}_bytes_per_s"), "ours": rate, "peer": null, "ratio": null });
    limits.iter().map(row).collect()
}

/// Three digits that count.
fn seconds_text(seconds: f64) -> String {
    let digits = if seconds >= 100.0 {
        0
    } else if seconds >= 10.0 {
        1
    } else if seconds >= 0.1 {
        2
    } else {
        4
    };
    format!("{seconds:.digits$}")
}

/// Columns as wide as their widest cell: the first to the left, the others to the right.
fn align<const N: usize>(lines: &[[String; N]]) -> String {
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
    // A title over several columns does not widen the first of them.
    let widths: [usize; N] = std::array::from_fn(|column| match column {
        9 => lines.iter().skip(1).map(|line| line[column].chars().count()).max().unwrap_or(0),
        _ => width(column),
    });
    let mut text = String::new();
    for line in lines {
        let mut row = format!("  {:<width$}", line[0], width = widths[0]);
        for (cell, width) in line.iter().zip(widths).skip(1) {
            row.push_str(&format!("  {cell:>width$}"));
        }
        text.push_str(row.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contender(name: &str, usages: &[Usage]) -> Contender {
        let moved = Moved { read: 400, written: 100, synced: 100, hashed: 100, ..Moved::default() };
        let mut contender = Contender::new(name, moved);
        usages.iter().for_each(|usage| contender.samples.push(*usage));
        contender
    }

    fn comparison() -> Comparison {
        let ours = Usage { wall_s: 0.5, cpu_s: 1.0, rss_mb: 100.0, start_s: 0.0 };
        let peer = Usage { wall_s: 4.0, cpu_s: 0.5, rss_mb: 3000.0, start_s: 1.5 };
        Comparison {
            work: "fedavg-4".into(),
            title: "a mean".into(),
            target: Target { wall_s: Some(0.7), ..Target::default() },
            ours: contender("tapestry", &[ours, ours, Usage { wall_s: 0.4, ..ours }]),
            peers: vec![contender("slow", &[peer])],
        }
    }

    fn limits() -> Limits {
        Limits::of(&[("read-all", 4000.0), ("write-cache", 1000.0), ("blake3-all", 2000.0), ("write-direct", 500.0)])
    }

    #[test]
    fn a_ratio_above_one_means_that_ours_is_better() {
        let rows = comparison().rows(&limits());
        let ratio = |metric| rows.iter().find(|row| row["metric"] == metric).map(|row| row["ratio"].clone());
        assert_eq!(ratio("wall_s"), Some(json!(8.0)), "we took an eighth of the time");
        assert_eq!(ratio("peak_rss_mb"), Some(json!(30.0)));
        assert_eq!(ratio("cpu_s"), Some(json!(0.5)), "we took twice the processor time");
    }

    #[test]
    fn a_row_has_its_figures_target_limit_and_the_fraction_reached() {
        let rows = comparison().rows(&limits());
        assert_eq!(rows.len(), 3);
        let wall = &rows[0];
        assert_eq!((&wall["work"], &wall["ours"], &wall["peer"]), (&json!("fedavg-4"), &json!(0.5), &json!(4.0)));
        assert_eq!((&wall["target"], &wall["ours_min"]), (&json!(0.7), &json!(0.4)));
        // 400 / 4000 + 100 / 2000 for the cores, 100 / 500 for the disk, which is longer.
        let limit = wall["limit"].as_f64().expect("a limit");
        assert!((limit - 0.2).abs() < 1e-12, "{limit}");
        assert!((wall["fraction_of_limit"].as_f64().expect("reached") - 0.4).abs() < 1e-12);
        assert_eq!(rows[1]["fraction_of_limit"], Value::Null, "a limit is one of time");
        assert!(rows.iter().all(|row| row.to_string().lines().count() == 1));
    }

    #[test]
    fn without_a_peer_or_with_one_that_failed_the_ratio_is_null_and_ours_stays() {
        let mut alone = comparison();
        alone.peers.clear();
        let rows = alone.rows(&limits());
        assert_eq!(rows.len(), 3);
        assert!(rows.iter().all(|row| row["peer"].is_null() && row["ratio"].is_null() && row["ours"].is_f64()));
        let mut failed = comparison();
        failed.peers[0].failure = Some("no memory".into());
        let rows = failed.rows(&limits());
        assert!(rows.iter().all(|row| row["ratio"].is_null() && row["ours"].is_f64() && row["failure"] == "no memory"));
        assert!(failed.table(&limits()).contains("slow failed: no memory"));
    }

    #[test]
    fn the_table_is_aligned_and_says_what_the_rows_say() {
        let table = comparison().table(&limits());
        let lines: Vec<&str> = table.lines().collect();
        assert!(lines[0].starts_with("fedavg-4: a mean"));
        let column = |line: &str, text: &str| line.find(text).map(|at| at + text.len());
        assert_eq!(column(lines[1], "wall s"), column(lines[3], "0.50"));
        assert_eq!(column(lines[4], "4.00"), column(lines[3], "0.50"));
        assert!(lines[3].contains("40%") && lines[4].contains("8.0x") && lines[4].contains("30.0x"));
        assert!(
            lines[4].contains("1.50") && !lines[3].contains("1.50"),
            "what a peer's start took stands beside its time"
        );
        assert!(!lines[3].contains('x'), "ours is not compared with itself");
        assert!(lines[5].contains("<= 0.7"));
    }
}
