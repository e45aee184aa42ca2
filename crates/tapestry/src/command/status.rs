//! `tapestry status`, once or for as long as somebody watches.

use crate::activity::Activity;
use crate::cli::StatusArgs;
use crate::clock::now;
use crate::command::dial;
use crate::coordinator::api::{Status, verdict_in_words};
use crate::home::Home;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;
use tapestry_core::{Timestamp, format_duration};
use tapestry_net::{Dialer, NetError, retry_forever};
use tapestry_round::RoundResult;

/// How often a watcher looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

pub(crate) async fn run(args: &StatusArgs) -> Result<()> {
    let home = Home::at(&args.home);
    let dialer = dial::coordinator(&home).await?;
    if args.watch {
        return watch(&dialer, args.json).await;
    }
    let mut status = ask(&dialer).await;
    // Where the coordinator's role has moved, somebody else may answer.
    for _ in 1..dialer.num_servers() {
        if status.is_ok() {
            break;
        }
        status = ask(&dialer).await;
    }
    let status = status.with_context(|| format!("the coordinator at {}", dialer.address()))?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&status)?);
    } else {
        print!("{}", describe(&status, now())?);
    }
    Ok(())
}

async fn ask(dialer: &Dialer) -> Result<Status, NetError> {
    dialer.get_json("/v1/status").await
}

/// Shows the status again and again until all rounds are over.
async fn watch(dialer: &Dialer, json: bool) -> Result<()> {
    let draws = !json && std::io::stdout().is_terminal();
    let mut shown: Vec<String> = vec![];
    loop {
        let away = |error: &NetError, pause: Duration| {
            eprintln!("{error}; trying again in {:.0} s", pause.as_secs_f64().ceil());
        };
        let status = retry_forever(|| ask(dialer), away).await?;
        let is_over = status.round.is_none() && status.ended.len() >= status.num_rounds as usize;
        let mut out = std::io::stdout().lock();
        if draws {
            // Home, each line cleared to its end, then the rest of the screen.
            let text = describe(&status, now())?.replace('\n', "\x1b[K\n");
            write!(out, "\x1b[H{text}\x1b[K\n(Ctrl-C ends this view, and nothing else)\x1b[K\n\x1b[J")?;
        } else if json {
            let line = serde_json::to_string(&status)?;
            if shown.first() != Some(&line) {
                writeln!(out, "{line}")?;
                shown = vec![line];
            }
        } else {
            for line in changes(&status)? {
                if !shown.contains(&line) {
                    writeln!(out, "{}  {line}", now())?;
                    shown.push(line);
                }
            }
        }
        out.flush()?;
        drop(out);
        if is_over {
            return Ok(());
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// What is said once, when it changes, to whoever does not look at a terminal.
fn changes(status: &Status) -> Result<Vec<String>> {
    let mut text = String::new();
    for ended in &status.ended {
        for (name, verdict) in &ended.verdicts {
            let (answer, reason) = verdict_in_words(verdict);
            writeln!(text, "Round {} {name} {answer}{}", ended.round, because(reason.as_ref()))?;
        }
    }
    text += &rounds(status)?;
    if let Some(round) = &status.round {
        writeln!(text, "Round {} of {} {} until {}", round.round, status.num_rounds, round.phase, round.closes_at)?;
        for (name, member) in &status.members {
            writeln!(text, "Round {} {name} {}{}", round.round, member.answer, because(member.reason.as_ref()))?;
            if let Some(activity) = &member.activity {
                let end = if activity.is_end { " done" } else { "" };
                writeln!(text, "Round {} {name} {} {}{end}", round.round, activity.what, activity.detail)?;
            }
        }
    }
    Ok(text.lines().map(str::to_owned).collect())
}

fn because(reason: Option<&String>) -> String {
    reason.filter(|reason| !reason.is_empty()).map_or(String::new(), |reason| format!(": {reason}"))
}

/// The rounds that have ended.
fn rounds(status: &Status) -> Result<String> {
    let mut text = String::new();
    for ended in &status.ended {
        match &ended.result {
            RoundResult::Published { bpb } => {
                writeln!(text, "Round {}      published {} ({bpb:.4})", ended.round, ended.base.short())?;
            }
            RoundResult::Abandoned { reason } => writeln!(text, "Round {}      abandoned: {reason}", ended.round)?,
        }
    }
    Ok(text)
}

fn describe(status: &Status, now: Timestamp) -> Result<String> {
    let mut text = String::new();
    let bpb =
        status.base_bpb.map_or("not measured yet".into(), |bpb| format!("{bpb:.4} bits per byte on the open text"));
    writeln!(text, "{}", status.consortium)?;
    writeln!(text, "Shared Base  {} ({bpb})", status.base.short())?;
    text += &rounds(status)?;
    match &status.round {
        Some(round) => {
            let left = format_duration(round.closes_at.since(now));
            let window = match round.phase.as_str() {
                "collecting" if round.closes_at > now => {
                    format!(", open for another {left}, until {}", round.closes_at)
                }
                "collecting" => ", its window has closed; what came in time is being screened".into(),
                _ => String::new(),
            };
            writeln!(text, "Round {} of {}  {}{window}", round.round, status.num_rounds, round.phase)?;
            let awaited: Vec<_> =
                status.members.iter().filter(|(_, m)| m.answer == "awaited").map(|(name, _)| name.as_str()).collect();
            if round.phase == "collecting" && !awaited.is_empty() {
                writeln!(text, "awaited      {}", awaited.join(", "))?;
            }
        }
        None if status.ended.len() >= status.num_rounds as usize => writeln!(text, "All rounds are over.")?,
        None => writeln!(text, "No round is open.")?,
    }
    if let Some(activity) = &status.coordinator_activity {
        writeln!(text, "coordinator  {}", activity.in_words())?;
    }
    for (name, member) in &status.members {
        let seen =
            member.last_seen.map_or("never seen".into(), |at| format!("seen {} ago", format_duration(now.since(at))));
        let activity = member.activity.as_ref().map_or("-".into(), Activity::in_words);
        let reason = member.reason.as_ref().filter(|reason| !reason.is_empty());
        let reason = reason.map_or(String::new(), |reason| format!("{reason}; "));
        writeln!(text, "  {:<14} {:<9} {reason}{activity} ({seen})", name.as_str(), member.answer)?;
    }
    Ok(text)
}
