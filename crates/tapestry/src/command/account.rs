//! `tapestry account`: what rounds cost, out of a role's log and, for a coordinator, its `costs.json`.

use super::log::read;
use crate::cli::AccountArgs;
use crate::costs::{self, Costs};
use crate::home::Home;
use crate::observe::{WorkCost, round_of};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use tapestry_core::{MemberName, PublicKey, format_duration};
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent};
use tapestry_round::node::{Node, NodeEvent, TransferMetrics};
use tapestry_round::{TrainingMetrics, Verdict};

/// One line: what one party did for a round. What is not known is absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Line {
    /// From 1; 0 for what came before the first round.
    round: u32,
    /// A member, or `coordinator`.
    party: String,
    /// A member's answer, or the kind of work.
    what: String,
    /// Bytes from the member to the coordinator.
    bytes_up: Option<u64>,
    /// Bytes from the coordinator to the member.
    bytes_down: Option<u64>,
    /// Tokens trained on.
    tokens: Option<u64>,
    /// Processor or GPU time in seconds.
    compute_seconds: Option<f64>,
    wall_seconds: Option<f64>,
    /// Bytes of weights that the coordinator's work was about.
    size_bytes: Option<u64>,
}

pub(crate) async fn run(args: &AccountArgs) -> Result<()> {
    let home = Home::at(&args.home);
    let key = args.key.map_or_else(|| home.public_key(), Ok)?;
    let mut lines = if home.path("node.toml").exists() {
        let entries = read::<Node>(&home, key).await?.1;
        of_node(entries.iter().map(|entry| &entry.event), key)
    } else {
        let entries = read::<Coordinator>(&home, key).await?.1;
        of_coordinator(entries.iter().map(|entry| &entry.event), &costs::read(&home)?)
    };
    lines.retain(|line| args.round.is_none_or(|round| line.round == round));
    if args.json {
        for line in &lines {
            println!("{}", serde_json::to_string(line)?);
        }
    } else if args.csv {
        print!("{}", csv(&lines));
    } else {
        print!("{}", table(&lines));
    }
    Ok(())
}

impl Line {
    fn train(&mut self, metrics: &TrainingMetrics) {
        self.tokens = Some(self.tokens.unwrap_or(0).saturating_add(metrics.num_tokens));
        self.compute_seconds = Some(self.compute_seconds.unwrap_or(0.0) + metrics.cpu_seconds);
        self.wall_seconds = Some(self.wall_seconds.unwrap_or(0.0) + metrics.wall_seconds);
    }

    fn work(round: u32, kind: &str, cost: &WorkCost) -> Self {
        Self {
            round,
            party: "coordinator".into(),
            what: kind.into(),
            compute_seconds: Some(cost.cpu_seconds),
            wall_seconds: Some(cost.wall_seconds),
            size_bytes: Some(cost.size_bytes),
            ..Self::default()
        }
    }
}

/// What the members moved, what they state of their training, and the coordinator's own work.
fn of_coordinator<'a>(events: impl Iterator<Item = &'a CoordinatorEvent>, costs: &Costs) -> Vec<Line> {
    let mut members: BTreeMap<(u32, MemberName), Line> = BTreeMap::new();
    let answer = |line: &mut Line, what: &str| what.clone_into(&mut line.what);
    for event in events {
        match event {
            CoordinatorEvent::ContributionReceived { contribution } => {
                let it = &contribution.document;
                let line = member_line(&mut members, it.round, &it.member);
                line.train(&it.metrics);
                answer(line, "received");
            }
            CoordinatorEvent::Late { round, member, taken, .. } => {
                let line = member_line(&mut members, *round, member);
                if let Some(late) = taken {
                    line.train(&late.contribution.document.metrics);
                }
                answer(line, "late");
            }
            CoordinatorEvent::ContributionScreened { round, member, verdict, .. } => {
                let is_accepted = matches!(verdict, Verdict::Accepted { .. });
                answer(member_line(&mut members, *round, member), if is_accepted { "accepted" } else { "refused" });
            }
            CoordinatorEvent::Declined { decline } => {
                answer(member_line(&mut members, decline.document.round, &decline.document.member), "declined");
            }
            CoordinatorEvent::Missing { round, member, .. } => {
                answer(member_line(&mut members, *round, member), "missing");
            }
            CoordinatorEvent::Ended { outcome, .. } => {
                for (member, verdict) in &outcome.verdicts {
                    if matches!(verdict, Verdict::Away { .. }) {
                        answer(member_line(&mut members, outcome.round, member), "away");
                    }
                }
            }
            _ => {}
        }
    }
    for (round, of_round) in costs {
        for (member, moved) in &of_round.members {
            let line = member_line(&mut members, *round, member);
            (line.bytes_up, line.bytes_down) = (Some(moved.bytes_up), Some(moved.bytes_down));
        }
    }
    let work = costs
        .iter()
        .flat_map(|(round, of_round)| of_round.work.iter().map(|(kind, cost)| Line::work(*round, kind, cost)));
    let mut lines: Vec<_> = members.into_values().chain(work).collect();
    // Stable: members by name, then the coordinator's work.
    lines.sort_by_key(|line| line.round);
    lines
}

fn member_line<'m>(
    members: &'m mut BTreeMap<(u32, MemberName), Line>,
    round: u32,
    member: &MemberName,
) -> &'m mut Line {
    members.entry((round, member.clone())).or_insert_with(|| Line {
        round,
        party: member.to_string(),
        what: "-".into(),
        ..Line::default()
    })
}

/// What a node did, in order.
fn of_node<'a>(events: impl Iterator<Item = &'a NodeEvent>, key: PublicKey) -> Vec<Line> {
    let (mut lines, mut round, mut party): (Vec<Line>, u32, String) = (vec![], 0, "this node".into());
    let line = |round: u32, party: &str, what: &str, wall_seconds: f64| Line {
        round,
        party: party.to_owned(),
        what: what.to_owned(),
        wall_seconds: Some(wall_seconds),
        ..Line::default()
    };
    let trained = |round: u32, party: &str, what: &str, metrics: &TrainingMetrics| {
        let mut line = line(round, party, what, 0.0);
        line.train(metrics);
        line
    };
    for event in events {
        match event {
            NodeEvent::RoundAccepted { announcement, .. } => round = announcement.document.round,
            NodeEvent::Joined { charter } => {
                if let Ok(member) = charter.document.member_of(key) {
                    party = member.to_string();
                }
            }
            NodeEvent::BaseHeld { transfer: TransferMetrics { size_bytes, wall_seconds }, .. } => {
                lines.push(Line { bytes_down: Some(*size_bytes), ..line(round, &party, "pull", *wall_seconds) });
            }
            NodeEvent::Trained { round, contributed } => {
                lines.push(trained(*round, &party, "train", contributed.metrics()));
            }
            NodeEvent::ContributionSent { round, transfer } => {
                let sent = line(*round, &party, "push", transfer.wall_seconds);
                lines.push(Line { bytes_up: Some(transfer.size_bytes), ..sent });
            }
            NodeEvent::Measured(measured) => {
                let round = round_of(measured.subject).unwrap_or(round);
                lines.push(line(round, &party, "measure", measured.wall_seconds));
            }
            NodeEvent::SovereignBuilt { metrics, .. } => {
                lines.push(trained(round, &party, "build_sovereign", metrics));
            }
            _ => {}
        }
    }
    lines
}

const NAMES: [&str; 9] =
    ["round", "party", "what", "bytes_up", "bytes_down", "tokens", "compute_seconds", "wall_seconds", "size_bytes"];

impl Line {
    /// In the order of [`NAMES`]; empty where it is not known.
    fn cells(&self) -> [String; 9] {
        let count = |count: Option<u64>| count.map_or(String::new(), |count| count.to_string());
        let seconds = |seconds: Option<f64>| seconds.map_or(String::new(), |seconds| format!("{seconds:.3}"));
        [
            self.round.to_string(),
            self.party.clone(),
            self.what.clone(),
            count(self.bytes_up),
            count(self.bytes_down),
            count(self.tokens),
            seconds(self.compute_seconds),
            seconds(self.wall_seconds),
            count(self.size_bytes),
        ]
    }
}

/// RFC 4180.
fn csv(lines: &[Line]) -> String {
    let quoted = |cell: &String| {
        let needs = cell.contains(['"', ',', '\n', '\r']);
        if needs { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.clone() }
    };
    let rows = lines.iter().map(|line| line.cells().each_ref().map(quoted).join(","));
    std::iter::once(NAMES.join(",")).chain(rows).map(|row| format!("{row}\r\n")).collect()
}

fn table(lines: &[Line]) -> String {
    let seconds = |seconds: Option<f64>| {
        seconds.map_or("-".into(), |s| format_duration(std::time::Duration::from_secs_f64(s.clamp(0.0, 1e12))))
    };
    let bytes = |bytes: Option<u64>| bytes.map_or("-".into(), megabytes);
    let row = |cells: [&str; 8]| {
        let [round, party, what, up, down, tokens, compute, wall] = cells;
        format!("{round:>5}  {party:<14} {what:<16} {up:>12} {down:>12} {tokens:>12} {compute:>12} {wall:>12}\n")
    };
    let mut text = row(["round", "party", "what", "up", "down", "tokens", "compute", "wall"]);
    for line in lines {
        let tokens = line.tokens.map_or("-".into(), |tokens| tokens.to_string());
        text += &row([
            &line.round.to_string(),
            &line.party,
            &line.what,
            &bytes(line.bytes_up),
            &bytes(line.bytes_down),
            &tokens,
            &seconds(line.compute_seconds),
            &seconds(line.wall_seconds),
        ]);
    }
    text
}

fn megabytes(bytes: u64) -> String {
    let (whole, tenths) = (bytes / 1_000_000, bytes / 100_000 % 10);
    if bytes < 100_000 { format!("{bytes} B") } else { format!("{whole}.{tenths} MB") }
}
