//! The results of a demo, read out of the logs of its roles.

use super::Demo;
use super::processes::Usages;
use crate::command::log;
use crate::home::Home;
use crate::stores::open_blobs;
use anyhow::{Context as _, Result};
use std::collections::BTreeMap;
use std::time::Duration;
use tapestry_core::{Digest, MemberName, ModelManifest, Timestamp};
use tapestry_demo::results::{
    LogRecord, Measurement, ModelName, ModelRecord, Phase, PhaseRecord, ProcessRecord, Results, Role, RoundRecord,
    SCHEMA, TextName,
};
use tapestry_ledger::Entry;
use tapestry_round::Screening;
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent};
use tapestry_round::node::{Node, NodeEvent, Subject};
use tapestry_store::BlobStore;

/// One node's name, home and log.
type NodeLog = (MemberName, Vec<Entry<NodeEvent>>);

/// Reads every log, checks it, and puts the facts together.
pub(super) async fn results(
    demo: &Demo,
    nodes: &[(String, Home)],
    usages: &Usages,
    demo_phases: Vec<PhaseRecord>,
    finished_at: Timestamp,
) -> Result<Results> {
    let coordinator_home = demo.coordinator_home();
    let key = coordinator_home.public_key()?;
    let (verified, coordinator) = log::read::<Coordinator>(&coordinator_home, key).await?;
    let record = |role, verified: log::Verified| LogRecord {
        role,
        num_entries: verified.num_entries,
        root: Some(verified.root),
        problem: None,
    };
    let mut logs = vec![record(Role::Coordinator, verified)];
    let mut node_logs: Vec<NodeLog> = vec![];
    for (name, home) in nodes {
        let (verified, entries) = log::read::<Node>(home, home.public_key()?).await?;
        let name: MemberName = name.parse()?;
        logs.push(record(Role::Node(name.clone()), verified));
        node_logs.push((name, entries));
    }
    let charter = coordinator.iter().find_map(|entry| match &entry.event {
        CoordinatorEvent::CharterAdopted { charter } => Some(charter),
        _ => None,
    });
    let charter = charter.context("the coordinator's log has no charter")?;
    let members: Vec<_> = demo.members.iter().map(|member| member.record(demo.mode())).collect();
    let mut phases = demo_phases;
    phases.extend(coordinator_phases(&coordinator));
    for (name, entries) in &node_logs {
        phases.extend(node_phases(name, entries));
    }
    phases.sort_by_key(|phase| phase.started_at);
    let rounds = rounds(&coordinator);
    let blobs = open_blobs(&coordinator_home).await?;
    let mut models = shared_models(&blobs, charter.document.base, &rounds).await?;
    for member in demo.members.iter().filter(|member| !member.is_faulty) {
        let name = member.name.clone();
        if let Some(digest) = sovereign(&node_logs, &name) {
            let path = Some(format!("models/{name}"));
            let size_bytes = size_of(&open_blobs(&demo.node_home(member)).await?, digest).await?;
            models.push(ModelRecord { model: ModelName::Sovereign { member: name }, digest, path, size_bytes });
        }
    }
    Ok(Results {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION").into(),
        mode: demo.mode(),
        started_at: demo.plan.started_at,
        finished_at,
        seed: super::SEED,
        settings: demo.settings(),
        charter: charter.digest()?,
        members,
        measurements: measurements(&coordinator, &node_logs, &rounds),
        rounds,
        models,
        phases,
        processes: processes(usages)?,
        peak_memory_together_bytes: usages.peak_bytes_together,
        logs,
    })
}

/// Bits per byte: the members' own texts from their logs, general English from the coordinator's.
fn measurements(
    coordinator: &[Entry<CoordinatorEvent>],
    nodes: &[NodeLog],
    rounds: &[RoundRecord],
) -> Vec<Measurement> {
    let mut found = vec![];
    let mut add = |model, text, bpb| found.push(Measurement { model, text, bpb });
    // The open text under each Shared Base, by digest: an abandoned round keeps the one before.
    let mut open_bpb: BTreeMap<Digest, f64> = BTreeMap::new();
    for entry in coordinator {
        match &entry.event {
            CoordinatorEvent::BaseMeasured { base, bpb } => {
                open_bpb.insert(*base, *bpb);
                add(ModelName::AdoptedBase, TextName::GeneralEnglish, *bpb);
            }
            CoordinatorEvent::ContributionScreened {
                round,
                member,
                screening: Screening::Measured { bpb: Some(bpb), .. },
                ..
            } => {
                let model = ModelName::OwnCpt { member: member.clone(), round: *round };
                add(model, TextName::GeneralEnglish, *bpb);
            }
            CoordinatorEvent::Ended { outcome, bpb } => {
                open_bpb.entry(outcome.base).or_insert(*bpb);
            }
            _ => {}
        }
    }
    for round in rounds {
        if let Some(bpb) = open_bpb.get(&round.outcome.base) {
            add(ModelName::SharedBase { round: round.outcome.round }, TextName::GeneralEnglish, *bpb);
        }
    }
    for (member, entries) in nodes {
        for entry in entries {
            let NodeEvent::Measured(measured) = &entry.event else { continue };
            let model = match measured.subject {
                Subject::SharedBase { round: 0 } => ModelName::AdoptedBase,
                Subject::SharedBase { round } => ModelName::SharedBase { round },
                Subject::OwnCpt { round } => ModelName::OwnCpt { member: member.clone(), round },
                Subject::Sovereign => ModelName::Sovereign { member: member.clone() },
            };
            if let Some(bpb) = measured.open_bpb {
                add(model.clone(), TextName::GeneralEnglish, bpb);
            }
            if let Some(bpb) = measured.held_out_bpb {
                add(model, TextName::HeldOut { member: member.clone() }, bpb);
            }
        }
    }
    found
}

fn rounds(coordinator: &[Entry<CoordinatorEvent>]) -> Vec<RoundRecord> {
    let mut opened_at = Timestamp::from_ms(0);
    let mut rounds = vec![];
    for entry in coordinator {
        match &entry.event {
            CoordinatorEvent::RoundAnnounced { announcement } => opened_at = announcement.opened_at,
            CoordinatorEvent::Ended { outcome, .. } => {
                rounds.push(RoundRecord { opened_at, ended_at: entry.at, outcome: outcome.clone() });
            }
            _ => {}
        }
    }
    rounds
}

/// Adopted base and Shared Bases.
async fn shared_models(blobs: &BlobStore, adopted: Digest, rounds: &[RoundRecord]) -> Result<Vec<ModelRecord>> {
    let mut models = vec![ModelRecord {
        model: ModelName::AdoptedBase,
        digest: adopted,
        path: Some("base".into()),
        size_bytes: size_of(blobs, adopted).await?,
    }];
    let last = rounds.last().map(|round| round.outcome.round);
    for RoundRecord { outcome, .. } in rounds {
        let (round, digest) = (outcome.round, outcome.base);
        let path = (Some(round) == last).then(|| "models/shared-base".into());
        let size_bytes = size_of(blobs, digest).await?;
        models.push(ModelRecord { model: ModelName::SharedBase { round }, digest, path, size_bytes });
    }
    Ok(models)
}

fn sovereign(nodes: &[NodeLog], member: &MemberName) -> Option<Digest> {
    let (_, entries) = nodes.iter().find(|(name, _)| name == member)?;
    entries.iter().find_map(|entry| match &entry.event {
        NodeEvent::SovereignBuilt { model, .. } => Some(model.digest()),
        _ => None,
    })
}

async fn size_of(blobs: &BlobStore, model: Digest) -> Result<u64> {
    let manifest: ModelManifest = blobs.get_json(model).await?;
    let files: u64 = manifest.files.values().map(|file| file.size_bytes).sum();
    Ok(files + manifest.weights.data.size_bytes)
}

/// A stretch of work that ended at `end`.
fn phase(role: Role, phase: Phase, round: Option<u32>, end: Timestamp, seconds: f64) -> PhaseRecord {
    let length = Duration::try_from_secs_f64(seconds).unwrap_or_default();
    let started_at = Timestamp::from_ms(end.as_ms().saturating_sub(u64::try_from(length.as_millis()).unwrap_or(0)));
    PhaseRecord { role, phase, round, started_at, seconds, bytes_received: 0, bytes_sent: 0 }
}

/// The coordinator works at one thing at a time, so that what ends at an entry began at the one that it waited for.
fn coordinator_phases(entries: &[Entry<CoordinatorEvent>]) -> Vec<PhaseRecord> {
    let mut phases = vec![];
    let mut received: BTreeMap<&MemberName, Timestamp> = BTreeMap::new();
    let (mut free_since, mut merge_started) = (Timestamp::from_ms(0), Timestamp::from_ms(0));
    for entry in entries {
        let at = entry.at;
        let mut add = |kind, round, since: Timestamp| {
            phases.push(phase(Role::Coordinator, kind, round, at, at.since(since).as_secs_f64()));
        };
        match &entry.event {
            CoordinatorEvent::ContributionReceived { contribution } => {
                received.insert(&contribution.document.member, at);
            }
            CoordinatorEvent::ContributionScreened { round, member, .. } => {
                let since = received.get(member).copied().unwrap_or(at).max(free_since);
                add(Phase::Screen, Some(*round), since);
                free_since = at;
            }
            CoordinatorEvent::MergeStarted { .. } => merge_started = at,
            CoordinatorEvent::Merged { round, .. } => {
                add(Phase::Merge, Some(*round), merge_started);
                free_since = at;
            }
            CoordinatorEvent::Ended { outcome, .. } if !outcome.weights.is_empty() => {
                add(Phase::Gate, Some(outcome.round), free_since);
                free_since = at;
            }
            _ => {}
        }
    }
    phases
}

fn node_phases(member: &MemberName, entries: &[Entry<NodeEvent>]) -> Vec<PhaseRecord> {
    let mut phases = vec![];
    let mut current = None;
    for entry in entries {
        let role = || Role::Node(member.clone());
        match &entry.event {
            NodeEvent::RoundAccepted { announcement, .. } => current = Some(announcement.document.round),
            NodeEvent::BaseHeld { transfer, .. } => phases.push(PhaseRecord {
                bytes_received: transfer.size_bytes,
                ..phase(role(), Phase::Pull, current, entry.at, transfer.wall_seconds)
            }),
            NodeEvent::Trained { round, contributed } => {
                phases.push(phase(role(), Phase::Train, Some(*round), entry.at, contributed.metrics().wall_seconds));
            }
            NodeEvent::ContributionSent { round, transfer } => phases.push(PhaseRecord {
                bytes_sent: transfer.size_bytes,
                ..phase(role(), Phase::Push, Some(*round), entry.at, transfer.wall_seconds)
            }),
            NodeEvent::Measured(measured) => {
                phases.push(phase(role(), Phase::Measure, current, entry.at, measured.wall_seconds));
            }
            NodeEvent::SovereignBuilt { metrics, .. } => {
                phases.push(phase(role(), Phase::Sovereign, None, entry.at, metrics.wall_seconds));
            }
            _ => {}
        }
    }
    phases
}

fn processes(usages: &Usages) -> Result<Vec<ProcessRecord>> {
    let record = |(name, usage): (&String, &super::processes::Usage)| -> Result<ProcessRecord> {
        let role = if name == "coordinator" { Role::Coordinator } else { Role::Node(name.parse()?) };
        let started_at = Timestamp::from_ms(usage.started_at_ms);
        Ok(ProcessRecord {
            role,
            started_at,
            wall_seconds: Timestamp::from_ms(usage.last_seen_at_ms).since(started_at).as_secs_f64(),
            cpu_seconds: usage.cpu_seconds,
            peak_memory_bytes: usage.peak_bytes,
        })
    };
    usages.by_role.iter().map(record).collect()
}
