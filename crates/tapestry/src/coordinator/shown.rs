//! What `/metrics` says of a coordinator.

use super::Loop;
use super::api::{round_answer, verdict_in_words};
use crate::metrics::{Exposition, Kind, number};
use crate::observe::phase_name;
use std::collections::BTreeMap;
use std::path::Path;
use tapestry_core::{MemberName, Timestamp};
use tapestry_round::RoundResult;

/// Every phase, so that each is there with 0 or 1.
const PHASES: [&str; 4] = ["none", "collecting", "merging", "gating"];
/// Every answer that a member can have given.
const ANSWERS: [&str; 7] = ["awaited", "received", "accepted", "refused", "declined", "away", "missing"];

impl Loop {
    /// The document of metrics as of now.
    pub(super) fn metrics(&self, blobs: &Path) -> String {
        self.book_traffic();
        let mut metrics = Exposition::default();
        metrics.process("coordinator", blobs);
        metrics.observed(&self.observer);
        self.show_refusals(&mut metrics);
        self.show_rounds(&mut metrics);
        self.show_members(&mut metrics);
        metrics.into_text()
    }

    fn show_refusals(&self, metrics: &mut Exposition) {
        let Some(refusals) = self.refusals.get() else { return };
        let counts: Vec<_> =
            refusals.counts().into_iter().map(|(rule, num)| ([("rule", rule.name())], number(num))).collect();
        metrics.family(
            "tapestry_refused_total",
            Kind::Counter,
            "Connections and requests that were refused, by the rule that they broke.",
            counts.iter().map(|(labels, num)| (&labels[..], *num)),
        );
    }

    fn show_rounds(&self, metrics: &mut Exposition) {
        let state = self.state();
        metrics.value("tapestry_log_entries", Kind::Gauge, "Entries of the role's log.", number(state.num_events()));
        let is_published = |result: &RoundResult| matches!(result, RoundResult::Published { .. });
        let published = state.outcomes().iter().filter(|outcome| is_published(&outcome.result)).count() as u64;
        let abandoned = state.outcomes().len() as u64 - published;
        let ended = [([("result", "published")], published), ([("result", "abandoned")], abandoned)];
        metrics.family(
            "tapestry_rounds_total",
            Kind::Counter,
            "Rounds that have ended.",
            ended.iter().map(|(labels, num)| (&labels[..], number(*num))),
        );
        let mut verdicts: BTreeMap<&str, u64> = ANSWERS.iter().skip(2).map(|name| (*name, 0)).collect();
        for verdict in state.outcomes().iter().flat_map(|outcome| outcome.verdicts.values()) {
            *verdicts.entry(verdict_in_words(verdict).0).or_default() += 1;
        }
        let verdicts: Vec<_> = verdicts.into_iter().map(|(name, num)| ([("verdict", name)], num)).collect();
        metrics.family(
            "tapestry_verdicts_total",
            Kind::Counter,
            "Members' answers in rounds that have ended, by verdict.",
            verdicts.iter().map(|(labels, num)| (&labels[..], number(*num))),
        );
        let round = state.round();
        let open = round.map_or(0, |round| round.announcement.round);
        metrics.value("tapestry_round", Kind::Gauge, "The open round; 0 where none is.", f64::from(open));
        let now = round.map_or("none", |round| phase_name(&round.phase));
        let phases = PHASES.map(|phase| ([("phase", phase)], f64::from(u8::from(phase == now))));
        metrics.family(
            "tapestry_round_phase",
            Kind::Gauge,
            "1 for the phase that the open round is in.",
            phases.iter().map(|(labels, value)| (&labels[..], *value)),
        );
        let Some(round) = round else { return };
        let closes_at = seconds(round.announcement.closes_at);
        metrics.value(
            "tapestry_round_closes_timestamp_seconds",
            Kind::Gauge,
            "When the round's window closes.",
            closes_at,
        );
        let Some(charter) = state.charter() else { return };
        let mut answers: BTreeMap<&str, u64> = ANSWERS.iter().map(|name| (*name, 0)).collect();
        for member in charter.document.members.keys() {
            *answers.entry(round_answer(round, member).0).or_default() += 1;
        }
        let answers: Vec<_> = answers.into_iter().map(|(name, num)| ([("answer", name)], num)).collect();
        metrics.family(
            "tapestry_answers",
            Kind::Gauge,
            "Members by their answer to the open round.",
            answers.iter().map(|(labels, num)| (&labels[..], number(*num))),
        );
    }

    fn show_members(&self, metrics: &mut Exposition) {
        let mut moved: BTreeMap<MemberName, (u64, u64)> = BTreeMap::new();
        for (member, of_round) in self.costs.costs().into_values().flat_map(|round| round.members) {
            let sum = moved.entry(member).or_default();
            *sum = (sum.0 + of_round.bytes_up, sum.1 + of_round.bytes_down);
        }
        let moved: Vec<_> = moved.iter().map(|(member, moved)| ([("member", member.as_str())], *moved)).collect();
        metrics.family(
            "tapestry_member_received_bytes_total",
            Kind::Counter,
            "Bytes on the wire from a member, TLS and HTTP included.",
            moved.iter().map(|(labels, moved)| (&labels[..], number(moved.0))),
        );
        metrics.family(
            "tapestry_member_sent_bytes_total",
            Kind::Counter,
            "Bytes on the wire to a member, TLS and HTTP included.",
            moved.iter().map(|(labels, moved)| (&labels[..], number(moved.1))),
        );
        let seen: Vec<_> = self
            .presence()
            .iter()
            .filter_map(|(member, seen)| Some((member.clone(), seconds(seen.last_seen?))))
            .collect();
        let seen: Vec<_> = seen.iter().map(|(member, at)| ([("member", member.as_str())], *at)).collect();
        metrics.family(
            "tapestry_member_last_seen_timestamp_seconds",
            Kind::Gauge,
            "When a member last asked for something, since this process started.",
            seen.iter().map(|(labels, at)| (&labels[..], *at)),
        );
    }
}

const fn seconds(at: Timestamp) -> f64 {
    number(at.as_ms()) / 1000.0
}
