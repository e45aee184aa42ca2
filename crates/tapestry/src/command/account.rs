//! `tapestry account`: what rounds cost, out of a role's log and, for a coordinator, its `costs.json`.

use super::log::{founder, published, read};
use crate::cli::AccountArgs;
use crate::costs::{self, Costs};
use crate::home::Home;
use crate::observe::{WorkCost, round_of};
use anyhow::Result;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use tapestry_core::{Digest, MemberName, PublicKey, format_duration};
use tapestry_governance::{Change, Credit, Proposal};
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
    /// The member's weight in the merge, at most the charter's cap.
    weight: Option<f64>,
    /// What members have voted into the account: how much, of what, for what.
    credit: Option<String>,
}

pub(crate) async fn run(args: &AccountArgs) -> Result<()> {
    let home = Home::at(&args.home);
    let key = founder(&home, args.key).await?;
    let mut cap = None;
    let mut lines = if home.path("node.toml").exists() {
        let entries = read::<Node>(&home, key).await?.1;
        of_node(entries.iter().map(|entry| &entry.event), key)
    } else {
        let entries = read::<Coordinator>(&home, key).await?.1;
        cap = published(&home).await.ok().map(|(charter, _)| charter.document.merge.influence_cap);
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
        if let Some(cap) = cap {
            print!("\n{}", totals(&lines, cap));
        }
    }
    Ok(())
}

impl Line {
    fn train(&mut self, metrics: &TrainingMetrics) {
        self.tokens = Some(self.tokens.unwrap_or(0).saturating_add(metrics.num_tokens));
        self.compute_seconds = Some(self.compute_seconds.unwrap_or(0.0) + metrics.cpu_seconds);
        self.wall_seconds = Some(self.wall_seconds.unwrap_or(0.0) + metrics.wall_seconds);
    }

    fn credit(round: u32, credit: &Credit) -> Self {
        let Credit { member, kind, amount, unit, what } = credit;
        Self {
            round,
            party: member.to_string(),
            what: format!("credit: {kind}"),
            credit: Some(format!("{amount} {unit}: {what}")),
            ..Self::default()
        }
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
    let (mut proposals, mut credits, mut num_ended): (BTreeMap<Digest, &Proposal>, Vec<Line>, u32) = Default::default();
    for event in events {
        match event {
            CoordinatorEvent::Proposed { proposal } => {
                if let Ok(digest) = proposal.digest() {
                    proposals.insert(digest, &proposal.document);
                }
            }
            CoordinatorEvent::Decided { proposal, adopted: true, .. } => {
                if let Some(Proposal { change: Change::Credits(adopted), .. }) = proposals.get(proposal) {
                    credits.extend(adopted.iter().map(|credit| Line::credit(num_ended, credit)));
                }
            }
            CoordinatorEvent::MergeStarted { round, weights } => {
                for record in weights {
                    member_line(&mut members, *round, &record.member).weight = Some(record.weight);
                }
            }
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
                num_ended = outcome.round;
                for (member, verdict) in &outcome.verdicts {
                    match verdict {
                        Verdict::Away { .. } => answer(member_line(&mut members, outcome.round, member), "away"),
                        Verdict::Left { .. } => answer(member_line(&mut members, outcome.round, member), "left"),
                        _ => {}
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
    let mut lines: Vec<_> = members.into_values().chain(credits).chain(work).collect();
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

const NAMES: [&str; 11] = [
    "round",
    "party",
    "what",
    "bytes_up",
    "bytes_down",
    "tokens",
    "compute_seconds",
    "wall_seconds",
    "size_bytes",
    "weight",
    "credit",
];

impl Line {
    /// In the order of [`NAMES`]; empty where it is not known.
    fn cells(&self) -> [String; 11] {
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
            self.weight.map_or(String::new(), |weight| weight.to_string()),
            self.credit.clone().unwrap_or_default(),
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
    let row = |cells: [&str; 9]| {
        let [round, party, what, up, down, tokens, compute, wall, weight] = cells;
        let line = format!(
            "{round:>5}  {party:<14} {what:<20} {up:>12} {down:>12} {tokens:>12} {compute:>12} {wall:>12} {weight:>8}"
        );
        format!("{}\n", line.trim_end())
    };
    let mut text = row(["round", "party", "what", "up", "down", "tokens", "compute", "wall", "weight"]);
    for line in lines {
        let tokens = line.tokens.map_or("-".into(), |tokens| tokens.to_string());
        if let Some(credit) = &line.credit {
            writeln!(text, "{:>5}  {:<14} {:<20} {credit}", line.round, line.party, line.what)
                .expect("a String takes all");
            continue;
        }
        text += &row([
            &line.round.to_string(),
            &line.party,
            &line.what,
            &bytes(line.bytes_up),
            &bytes(line.bytes_down),
            &tokens,
            &seconds(line.compute_seconds),
            &seconds(line.wall_seconds),
            &line.weight.map_or("-".into(), |weight| format!("{weight:.4}")),
        ]);
    }
    text
}

/// What a member has put in.
#[derive(Debug, Default)]
struct Total {
    accepted: u32,
    tokens: u64,
    compute_seconds: f64,
    bytes: u64,
    credits: usize,
    largest_weight: Option<f64>,
}

/// What each member has put in, all rounds together.
fn totals(lines: &[Line], cap: f64) -> String {
    let mut parties: BTreeMap<&str, Total> = BTreeMap::new();
    for line in lines.iter().filter(|line| line.party != "coordinator") {
        let total = parties.entry(&line.party).or_default();
        total.accepted += u32::from(line.what == "accepted");
        total.tokens = total.tokens.saturating_add(line.tokens.unwrap_or(0));
        total.compute_seconds += line.compute_seconds.unwrap_or(0.0);
        let moved = line.bytes_up.unwrap_or(0).saturating_add(line.bytes_down.unwrap_or(0));
        total.bytes = total.bytes.saturating_add(moved);
        total.credits += usize::from(line.credit.is_some());
        total.largest_weight = total.largest_weight.into_iter().chain(line.weight).reduce(f64::max);
    }
    let mut text = format!(
        "{:<14} {:>8} {:>12} {:>12} {:>12} {:>8} {:>14}\n",
        "all rounds", "accepted", "tokens", "compute", "bytes", "credits", "largest weight"
    );
    for (party, total) in parties {
        let largest = total.largest_weight.map_or_else(|| "-".to_owned(), |weight| format!("{weight:.4}"));
        let compute = format_duration(std::time::Duration::from_secs_f64(total.compute_seconds.clamp(0.0, 1e12)));
        let (Total { accepted, tokens, credits, .. }, bytes) = (&total, megabytes(total.bytes));
        writeln!(text, "{party:<14} {accepted:>8} {tokens:>12} {compute:>12} {bytes:>12} {credits:>8} {largest:>14}")
            .expect("a String takes all");
    }
    text += &format!(
        "Tokens and compute are what members state; nobody can check them. Whatever an account says, no member weighs more than {cap} in a \
         merge (charter: merge.influence_cap).\n"
    );
    text
}

fn megabytes(bytes: u64) -> String {
    let (whole, tenths) = (bytes / 1_000_000, bytes / 100_000 % 10);
    if bytes < 100_000 { format!("{bytes} B") } else { format!("{whole}.{tenths} MB") }
}
