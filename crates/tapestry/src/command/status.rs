//! `tapestry status`.

use crate::cli::StatusArgs;
use crate::clock::now;
use crate::coordinator::api::Status;
use crate::files;
use crate::home::Home;
use crate::settings::NodeSettings;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use tapestry_core::{Timestamp, format_duration};
use tapestry_net::Dialer;
use tapestry_round::RoundResult;

pub(crate) async fn run(args: &StatusArgs) -> Result<()> {
    let home = Home::at(&args.home);
    let key = home.key()?;
    let (address, coordinator) = if home.path("node.toml").exists() {
        let coordinator =
            NodeSettings::read(&home)?.coordinator.context("this node has not joined: tapestry node join URL")?;
        (coordinator.address, coordinator.key)
    } else {
        let address = files::read_text(&home.path("address")).context("this coordinator has never run")?;
        (address.trim().replace("0.0.0.0:", "127.0.0.1:"), key.public())
    };
    let dialer = Dialer::new(&address, coordinator, &key)?;
    let status: Status =
        dialer.get_json("/v1/status").await.with_context(|| format!("the coordinator at {address}"))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", describe(&status, now())?);
    }
    Ok(())
}

fn describe(status: &Status, now: Timestamp) -> Result<String> {
    let mut text = String::new();
    let bpb =
        status.base_bpb.map_or("not measured yet".into(), |bpb| format!("{bpb:.4} bits per byte on the open text"));
    writeln!(text, "{}", status.consortium)?;
    writeln!(text, "Shared Base  {} ({bpb})", status.base.short())?;
    for ended in &status.ended {
        match &ended.result {
            RoundResult::Published { bpb } => {
                writeln!(text, "Round {}      published {} ({bpb:.4})", ended.round, ended.base.short())?;
            }
            RoundResult::Abandoned { reason } => writeln!(text, "Round {}      abandoned: {reason}", ended.round)?,
        }
    }
    match &status.round {
        Some(round) => {
            let left = format_duration(round.closes_at.since(now));
            let window = if round.phase == "collecting" { format!(", open for another {left}") } else { String::new() };
            writeln!(text, "Round {} of {}  {}{window}", round.round, status.num_rounds, round.phase)?;
        }
        None if status.ended.len() >= status.num_rounds as usize => writeln!(text, "All rounds are over.")?,
        None => writeln!(text, "No round is open.")?,
    }
    if let Some(activity) = &status.coordinator_activity {
        writeln!(text, "coordinator  {activity}")?;
    }
    for (name, member) in &status.members {
        let seen =
            member.last_seen.map_or("never seen".into(), |at| format!("seen {} ago", format_duration(now.since(at))));
        let activity = member.activity.as_deref().unwrap_or("-");
        writeln!(text, "  {:<14} {:<9} {activity} ({seen})", name.as_str(), member.answer)?;
    }
    Ok(text)
}
