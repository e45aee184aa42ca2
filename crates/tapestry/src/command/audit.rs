//! `tapestry verify all`: every decision of a coordinator's log made again, by the rules that its charter gave at that moment.

use super::log;
use super::verify::{check_decision, merge_again, mismatch};
use crate::home::Home;
use crate::role::Machine as _;
use crate::stores::Place;
use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use std::collections::BTreeMap;
use tapestry_core::{Document, MemberName, PublicKey, Signed};
use tapestry_ledger::{Entry, SignedCheckpoint};
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent, CoordinatorInput, Phase};
use tapestry_store::{LogIndex, read_log};

/// Makes every decision of the log again, and every merge unless they are left out.
pub(super) async fn verify_all(home: &Home, key: Option<PublicKey>, without_merges: bool, as_json: bool) -> Result<()> {
    let key = log::founder(home, key).await?;
    let store = Place::of(home)?.log_to_read().await?;
    let content = read_log::<CoordinatorEvent>(&store, key).await?;
    let mut state = Coordinator::empty(key);
    let mut num_checked: BTreeMap<&'static str, u64> = BTreeMap::new();
    let mut rounds = vec![];
    for entry in &content.entries {
        check(&state, entry, &content.index).with_context(|| format!("log entry {}", entry.seq))?;
        let applied = state.apply(&entry.event);
        applied.with_context(|| format!("log entry {} cannot follow from those before it", entry.seq))?;
        *num_checked.entry(entry.event.name()).or_default() += 1;
        if let CoordinatorEvent::Merged { round, .. } = &entry.event {
            rounds.push(*round);
        }
    }
    let mut merges = vec![];
    if !without_merges {
        for round in &rounds {
            merges.push(merge_again(home, key, *round).await?);
        }
    }
    let charter = state.charter().context("no charter is in force there")?;
    let (num_entries, root) = (content.chain.num_entries(), content.chain.root());
    let count = |name| num_checked.get(name).copied().unwrap_or(0);
    if as_json {
        let found = json!({
            "founder": key, "num_entries": num_entries, "root": root, "charter_version": charter.document.version,
            "events": num_checked, "merges": merges,
        });
        println!("{found}");
        return Ok(());
    }
    println!("All of it holds: {num_entries} entries of the log that {key} founded, root {root}.");
    println!(
        "  charter      version {} in force, after {} decisions by vote ({} votes), {} new keys, {} departures",
        charter.document.version,
        count("decided"),
        count("voted"),
        count("key_rotated"),
        count("left")
    );
    println!(
        "  witnesses    {} checkpoints, each cosigned by as many members as the charter asked",
        count("witnessed")
    );
    println!(
        "  rounds       {} opened by the charter's terms; {} contributions, each signed by its member; {} verdicts and {} weight tables \
         as the charter gives them",
        count("round_announced"),
        count("contribution_received") + count("late"),
        count("contribution_screened"),
        count("merge_started")
    );
    match without_merges {
        true => println!("  merges       left out ({} were made)", rounds.len()),
        false => println!("  merges       {} made again, with the recorded result", merges.len()),
    }
    Ok(())
}

/// Checks that an event is what the rules give in this state, or is signed by the member that it is of.
fn check(state: &Coordinator, entry: &Entry<CoordinatorEvent>, index: &LogIndex) -> Result<()> {
    let (event, at) = (&entry.event, entry.at);
    let input = match event {
        CoordinatorEvent::CharterAdopted { charter } => CoordinatorInput::AdoptCharter(charter.clone()),
        CoordinatorEvent::RoleTaken { tenure } => CoordinatorInput::TakeRole { tenure: tenure.clone() },
        CoordinatorEvent::Proposed { proposal } => {
            let sender = sender(state, &proposal.document.member)?;
            CoordinatorInput::Propose { sender, proposal: proposal.clone() }
        }
        CoordinatorEvent::Voted { vote } => {
            // A vote came in time, though it may have been written a moment after the vote closed.
            signed_by(state, &vote.document.member, vote)?;
            return Ok(());
        }
        CoordinatorEvent::KeyRotated { rotation } => {
            let sender = sender(state, &rotation.document.member)?;
            CoordinatorInput::Rotate { sender, rotation: rotation.clone() }
        }
        CoordinatorEvent::Left { departure } => {
            let sender = sender(state, &departure.document.member)?;
            CoordinatorInput::Leave { sender, departure: departure.clone() }
        }
        CoordinatorEvent::Cosigned { checkpoint } | CoordinatorEvent::Witnessed { checkpoint } => {
            let note: SignedCheckpoint = checkpoint.parse()?;
            let (size, found) = (note.checkpoint().size, note.checkpoint().root);
            let is_own = index.root(size) == Some(found);
            ensure!(is_own, "what members witnessed ({size} entries, root {found}) is NOT the beginning of this log");
            CoordinatorInput::Witnessed { checkpoint: checkpoint.clone() }
        }
        CoordinatorEvent::ContributionScreened { .. } | CoordinatorEvent::MergeStarted { .. } => {
            return check_decision(state, at, event);
        }
        CoordinatorEvent::Ended { bpb, .. } => {
            match state.round().map(|round| (&round.phase, round.announcement.round)) {
                Some((Phase::Gating { model, .. }, round)) => {
                    CoordinatorInput::MergedMeasured { round, model: *model, bpb: *bpb }
                }
                _ => CoordinatorInput::Tick,
            }
        }
        CoordinatorEvent::RoundAnnounced { announcement } => {
            let opened_at = announcement.opened_at;
            ensure!(opened_at <= at, "round {} is dated after its entry", announcement.round);
            return expect(event, state.handle(opened_at, CoordinatorInput::Tick)?);
        }
        CoordinatorEvent::Decided { .. } | CoordinatorEvent::Missing { .. } => CoordinatorInput::Tick,
        CoordinatorEvent::ContributionReceived { contribution } => {
            return signed_by(state, &contribution.document.member, contribution);
        }
        CoordinatorEvent::Late { taken: Some(late), member, .. } => {
            return signed_by(state, member, &late.contribution);
        }
        CoordinatorEvent::Declined { decline } => return signed_by(state, &decline.document.member, decline),
        CoordinatorEvent::Attended { attendance } => {
            return signed_by(state, &attendance.document.member, attendance);
        }
        // What was measured, done or said: the merges are made again below, the rest is on record.
        CoordinatorEvent::RoleHandedOver { .. }
        | CoordinatorEvent::BaseMeasured { .. }
        | CoordinatorEvent::CommunityMeasured { .. }
        | CoordinatorEvent::MessageRefused { .. }
        | CoordinatorEvent::Late { taken: None, .. }
        | CoordinatorEvent::Merged { .. } => return Ok(()),
    };
    expect(event, state.handle(at, input)?)
}

fn expect(recorded: &CoordinatorEvent, decided: Vec<CoordinatorEvent>) -> Result<()> {
    if decided.first() == Some(recorded) { Ok(()) } else { Err(mismatch(recorded, decided.first())) }
}

/// The key of a member in force.
fn sender(state: &Coordinator, member: &MemberName) -> Result<PublicKey> {
    let governance = state.governance().context("no charter is in force yet")?;
    let found = governance.members().find(|(name, _)| *name == member);
    Ok(*found.with_context(|| format!("{member} is no member in force"))?.1)
}

fn signed_by<T: Document + Serialize>(state: &Coordinator, member: &MemberName, signed: &Signed<T>) -> Result<()> {
    let key = sender(state, member)?;
    match signed.verify_by(&key) {
        Ok(_) => Ok(()),
        Err(error) => bail!("the log DOES NOT HOLD: what it says of {member} is not {member}'s: {error}"),
    }
}
