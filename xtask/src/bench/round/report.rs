//! What was found about rounds: rows for programs, lines for people.

use std::fmt::Write as _;

use serde_json::{Value, json};

use super::consortium::Taken;
use super::log::{RoundTimes, Transfer};
use super::peer::Flower;
use crate::bench::limits::Limits;
use crate::bench::machine::gigabytes;

/// Copies of a model that become durable in a round of two members: each member's base and result, the two contributions, the
/// merged model. The trainer's own output is not counted: what it writes is not the round's.
const NUM_DURABLE: u64 = 7;
/// Copies that go over the wire: each member's base and contribution.
const NUM_WIRED: u64 = 4;

/// One figure.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) work: String,
    pub(super) metric: &'static str,
    pub(super) ours: f64,
    pub(super) peer: Option<f64>,
    /// Whether more is better; otherwise less is.
    pub(super) more_is_better: bool,
    pub(super) target: Option<f64>,
    /// What this machine allows at most, or at least, and why.
    pub(super) limit: Option<(f64, &'static str)>,
}

impl Row {
    pub(super) fn new(work: &str, metric: &'static str, ours: f64) -> Self {
        Self { work: work.into(), metric, ours, peer: None, more_is_better: false, target: None, limit: None }
    }

    /// A figure of which more is better.
    pub(super) fn more(work: &str, metric: &'static str, ours: f64) -> Self {
        Self { more_is_better: true, ..Self::new(work, metric, ours) }
    }

    pub(super) fn target(self, target: f64) -> Self {
        Self { target: Some(target), ..self }
    }

    pub(super) fn limit(self, limit: f64, why: &'static str) -> Self {
        Self { limit: Some((limit, why)), ..self }
    }

    /// How many times better ours is than the peer's.
    fn ratio(&self) -> Option<f64> {
        let peer = self.peer.filter(|peer| *peer > 0.0 && self.ours > 0.0)?;
        Some(if self.more_is_better { self.ours / peer } else { peer / self.ours })
    }

    fn fraction(&self) -> Option<f64> {
        let (limit, _) = self.limit.filter(|(limit, _)| *limit > 0.0 && self.ours > 0.0)?;
        Some(if self.more_is_better { self.ours / limit } else { limit / self.ours })
    }

    pub(super) fn is_reached(&self) -> Option<bool> {
        self.target.map(|target| if self.more_is_better { self.ours >= target } else { self.ours <= target })
    }

    pub(super) fn json(&self) -> Value {
        json!({
            "work": self.work, "metric": self.metric, "ours": self.ours, "peer": self.peer, "ratio": self.ratio(),
            "target": self.target, "reached": self.is_reached(), "limit": self.limit.map(|(limit, _)| limit),
            "limit_is": self.limit.map(|(_, why)| why), "fraction_of_limit": self.fraction(),
        })
    }

    pub(super) fn line(&self) -> String {
        let mut line = format!("{:<10} {:<28} {:>9.2}", self.work, self.metric, self.ours);
        if let Some(target) = self.target {
            let reached = if self.is_reached() == Some(true) { "reached" } else { "MISSED" };
            let _ = write!(line, "  target {target:.2} {reached}");
        }
        if let Some((peer, ratio)) = self.peer.zip(self.ratio()) {
            let _ = write!(line, "  Flower {peer:.1}, {ratio:.1} times");
        }
        if let Some(((limit, why), fraction)) = self.limit.zip(self.fraction()) {
            let _ = write!(line, "  limit {limit:.2} ({why}), {:.0} % of it", fraction * 100.0);
        }
        line
    }
}

/// What one run of a consortium showed.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) rounds: Vec<RoundTimes>,
    /// After each round: the coordinator's and the nodes'.
    pub(super) taken: Vec<(Taken, Taken)>,
    pub(super) transfers: Vec<Transfer>,
}

impl Found {
    /// The median over all rounds but the first.
    fn median(&self, figure: impl Fn(&RoundTimes) -> Option<f64>) -> Option<f64> {
        let mut values: Vec<f64> = self.rounds.iter().skip(1).filter_map(figure).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied()
    }

    /// The coordinator's peak, over everything since its start.
    fn peak_rss(&self, work: &str) -> Row {
        let peak = self.taken.last().map_or(f64::NAN, |(coordinator, _)| coordinator.rss_mb);
        Row::new(work, "coordinator_peak_rss_mb", peak).target(256.0)
    }

    pub(super) fn round_rows(&self, model_bytes: u64, limits: &Limits) -> Vec<Row> {
        let work = super::ROUND;
        let mut rows = vec![];
        if let Some(wall_s) = self.median(|round| Some(round.wall_s)) {
            let (limit, why) = least_round(model_bytes, limits);
            rows.push(Row::new(work, "wall_s", wall_s).target(4.0).limit(limit, why));
        }
        rows.extend(self.median(|round| round.held_s).map(|held| Row::new(work, "until_all_hold_new_base_s", held)));
        for stretch in 0.. {
            let name = self.rounds.last().and_then(|round| round.stretches.get(stretch)).map(|(name, _)| *name);
            let Some((name, median)) =
                name.zip(self.median(|round| round.stretches.get(stretch).map(|(_, seconds)| *seconds)))
            else {
                break;
            };
            rows.push(Row::new(&format!("{work}, {name}"), "wall_s", median));
        }
        if let [.., (coordinator_before, nodes_before), (coordinator, nodes)] = self.taken[..] {
            rows.push(Row::new(work, "coordinator_cpu_s", coordinator.cpu_s - coordinator_before.cpu_s));
            rows.push(Row::new(work, "nodes_cpu_s", nodes.cpu_s - nodes_before.cpu_s));
            rows.push(Row::new(work, "node_peak_rss_mb", nodes.rss_mb));
        }
        rows.push(self.peak_rss(work));
        rows
    }

    pub(super) fn memory_rows(&self, work: &str) -> Vec<Row> {
        let wall = self.rounds.first().map(|round| Row::new(work, "first_round_wall_s", round.wall_s));
        wall.into_iter().chain([self.peak_rss(work)]).collect()
    }

    /// How fast one member moves a model when nobody else does.
    pub(super) fn goodput_rows(&self, model_bytes: u64, limits: &Limits) -> Vec<Row> {
        let mut rows = vec![];
        for (kind, metric) in [("base_held", "pull_mb_s"), ("contribution_sent", "push_mb_s")] {
            let whole =
                self.transfers.iter().filter(|transfer| transfer.kind == kind && transfer.size_bytes >= model_bytes);
            let best = whole.map(Transfer::mb_per_second).max_by(f64::total_cmp);
            let Some(best) = best else { continue };
            let mut row = Row::more("goodput", metric, best);
            if let Some(tcp) = limits.rate("tcp-loopback") {
                row = row.target(0.5 * tcp / 1e6).limit(tcp / 1e6, "one TCP stream on loopback, without TLS");
            }
            rows.push(row);
        }
        rows
    }
}

/// The least time for a round of two members on this machine: what goes over the wire at the rate of a bare TCP stream and is
/// hashed once where it lands, while the disk takes what becomes durable.
fn least_round(model_bytes: u64, limits: &Limits) -> (f64, &'static str) {
    let seconds = |bytes: u64, name: &str| limits.rate(name).map_or(0.0, |rate| gigabytes(bytes) * 1e9 / rate);
    let durable = NUM_DURABLE * model_bytes;
    let cores = seconds(NUM_WIRED * model_bytes, "tcp-loopback") + seconds(durable, "blake3-all");
    let direct = limits.rate("write-direct").map(|rate| gigabytes(durable) * 1e9 / rate);
    let disk = direct.unwrap_or_else(|| seconds(durable, "write-sync"));
    if disk > cores {
        (disk, "the disk: 7 models become durable")
    } else {
        (cores, "the cores: 4 models over TCP, 7 hashed")
    }
}

/// Puts the peer's figures beside ours.
pub(super) fn compare(rows: &mut [Row], flower: Flower) {
    for row in rows.iter_mut().filter(|row| row.work == super::ROUND) {
        match row.metric {
            "wall_s" => row.peer = Some(flower.wall_s),
            "coordinator_peak_rss_mb" => row.peer = Some(flower.rss_mb),
            _ => {}
        }
    }
}

/// A round in one line.
pub(super) fn story(round: u32, times: &RoundTimes) -> String {
    let mut line = format!("  round {round}: {:.2} s =", times.wall_s);
    for (index, (name, seconds)) in times.stretches.iter().enumerate() {
        let _ = write!(line, "{} {name} {seconds:.2}", if index == 0 { "" } else { " +" });
    }
    if let Some(held) = times.held_s {
        let _ = write!(line, "; all hold the new base after {held:.2} s");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    fn times(wall_s: f64) -> RoundTimes {
        RoundTimes { wall_s, stretches: vec![("push", wall_s / 2.0)], held_s: None }
    }

    #[test]
    fn the_first_round_does_not_count_and_the_median_does() {
        let found = Found { rounds: [9.0, 3.0, 5.0, 4.0].map(times).to_vec(), ..Found::default() };
        let limits =
            Limits::of(&[("tcp-loopback", 1e9), ("blake3-all", 1e9), ("write-direct", 1e9), ("write-sync", 9e9)]);
        let rows = found.round_rows(100_000_000, &limits);
        assert_eq!((rows[0].ours, rows[0].target, rows[0].is_reached()), (4.0, Some(4.0), Some(true)));
        assert_eq!(rows[0].limit, Some((1.1, "the cores: 4 models over TCP, 7 hashed")));
        assert_eq!((rows[1].work.as_str(), rows[1].ours), ("round-2, push", 2.0));
    }

    #[test]
    fn ratios_say_how_many_times_better_ours_is_whichever_way_is_better() {
        let mut rows = [Row::new("round-2", "wall_s", 4.0).target(3.0), Row::new("other", "wall_s", 4.0)];
        compare(&mut rows, Flower { wall_s: 40.0, rss_mb: 4000.0 });
        assert_eq!((rows[0].json()["ratio"].as_f64(), rows[0].json()["reached"].as_bool()), (Some(10.0), Some(false)));
        assert_eq!(rows[1].peer, None);
        assert!(rows[0].line().contains("target 3.00 MISSED  Flower 40.0, 10.0 times"), "{}", rows[0].line());
        let row =
            Row { more_is_better: true, peer: Some(2.0), ..Row::new("goodput", "push_mb_s", 8.0) }.limit(16.0, "TCP");
        assert_eq!((row.ratio(), row.fraction()), (Some(4.0), Some(0.5)));
    }

    #[test]
    fn only_whole_models_count_for_goodput() {
        let transfer = |kind: &'static str, size_bytes, wall_s| Transfer { kind, size_bytes, wall_s };
        let transfers = vec![
            transfer("base_held", 50, 1e-9),
            transfer("base_held", 100_000_000, 0.1),
            transfer("contribution_sent", 100_000_000, 0.2),
        ];
        let found = Found { transfers, ..Found::default() };
        let rows = found.goodput_rows(100_000_000, &Limits::of(&[("tcp-loopback", 1.6e9)]));
        let figures: Vec<_> = rows.iter().map(|row| (row.metric, row.ours, row.is_reached())).collect();
        assert_eq!(figures, [("pull_mb_s", 1000.0, Some(true)), ("push_mb_s", 500.0, Some(false))]);
    }
}
