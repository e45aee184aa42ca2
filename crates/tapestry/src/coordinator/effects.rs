//! What the coordinator's state machine asks to have done: measuring, screening, merging. All of it streams, so that
//! memory does not grow with the model or with the number of members.

use super::Loop;
use crate::measure::{measure_model, measure_read, value_if_finite};
use crate::merge::{MergeInputs, merge};
use crate::screen::screen_weights;
use anyhow::{Context as _, Result};
use std::sync::Arc;
use tapestry_core::{ModelManifest, WeightsManifest};
use tapestry_governance::HeldOutTerms;
use tapestry_governance::KeyRotation;
use tapestry_ledger::SignedCheckpoint;
use tapestry_round::coordinator::{CoordinatorEffect, CoordinatorEvent, CoordinatorInput};
use tapestry_round::{RoundResult, Screening, Verdict};
use tapestry_store::{BlobStore, StoreError};

/// Does what is asked and returns the input that answers it.
pub(super) async fn execute(shared: &Arc<Loop>, effect: CoordinatorEffect) -> Result<CoordinatorInput> {
    let state = shared.state();
    let charter = &state.charter().context("an effect without a charter")?.document;
    let held_out = charter.open_held_out.clone();
    let max_change = charter.screening.max_relative_change;
    let blobs = &shared.blobs;
    let read_text = async || read_open_text(blobs, &held_out).await.context("the open held-out text");
    let max_tokens = held_out.max_tokens as usize;
    let community = &charter.merge.community_held_out;
    match effect {
        CoordinatorEffect::MeasureBase { base } => {
            let manifest: ModelManifest = blobs.get_json(base).await?;
            let working = shared.reporter.start("gate", "adopted base on the open text", "tokens");
            let bpb = measure_model(blobs, &manifest, read_text().await?, max_tokens, working).await?;
            Ok(CoordinatorInput::BaseMeasured { base, bpb: bpb.bpb() })
        }
        CoordinatorEffect::MeasureCommunity { base, member } => {
            let manifest: ModelManifest = blobs.get_json(base).await?;
            let terms = community.get(&member).context("a community without a text")?;
            let text =
                read_open_text(blobs, terms).await.with_context(|| format!("the open text of {member}'s community"))?;
            let working =
                shared.reporter.start("measure", format!("base on the open text of {member}'s community"), "tokens");
            // A base that gives no finite value there ends the round, not the coordinator.
            let measured = measure_model(blobs, &manifest, text, terms.max_tokens as usize, working).await;
            Ok(CoordinatorInput::CommunityMeasured { base, member, bpb: value_if_finite(measured)? })
        }
        CoordinatorEffect::Screen { round, member, base, weights: contribution } => {
            let base: ModelManifest = blobs.get_json(base).await?;
            let screening = match read_manifest(blobs, contribution, &base).await? {
                Err(what) => Screening::Malformed { what },
                Ok(weights) => {
                    let working = shared.reporter.start("screen", format!("round {round}, {member}"), "bytes");
                    let of_base = shared.readers.open(blobs, &base.weights)?;
                    let reader = shared.readers.open(blobs, &weights)?;
                    let screening = screen_weights(of_base, Arc::clone(&reader), working).await?;
                    match screening {
                        Screening::Measured { relative_change, .. } if relative_change <= max_change => {
                            let model = ModelManifest { files: base.files, weights };
                            let working =
                                shared.reporter.start("measure", format!("round {round}, {member}"), "tokens");
                            let text = read_text().await?;
                            let again = Arc::clone(&reader);
                            let measured = measure_read(blobs, &model, again, text, max_tokens, working).await;
                            // A model that gives no finite value is a bad contribution, not a defect here.
                            let bpb = value_if_finite(measured)?;
                            let community_bpb = match community.get(&member) {
                                Some(terms) => {
                                    let text = read_open_text(blobs, terms).await?;
                                    let detail = format!("round {round}, {member} on the open text of its community");
                                    let working = shared.reporter.start("measure", detail, "tokens");
                                    let max_tokens = terms.max_tokens as usize;
                                    let measured = measure_read(blobs, &model, reader, text, max_tokens, working).await;
                                    value_if_finite(measured)?
                                }
                                None => None,
                            };
                            Screening::Measured { relative_change, bpb, community_bpb }
                        }
                        other => other,
                    }
                }
            };
            Ok(CoordinatorInput::Screened { round, member, weights: contribution, screening })
        }
        CoordinatorEffect::Merge(work) => {
            let round = work.round;
            let base: ModelManifest = blobs.get_json(work.base).await?;
            let working = shared.reporter.start("merge", format!("round {round}"), "bytes");
            let merged = merge(blobs, MergeInputs::read(blobs, &shared.readers, &work).await?, true, working).await?;
            let mut states = vec![];
            for state in merged.states {
                states.push(blobs.put_json(&state).await?);
            }
            let model = blobs.put_json(&ModelManifest { files: base.files, weights: merged.weights }).await?;
            Ok(CoordinatorInput::Merged { round, model, states })
        }
        CoordinatorEffect::MeasureMerged { round, model } => {
            let manifest: ModelManifest = blobs.get_json(model).await?;
            let working =
                shared.reporter.start("gate", format!("round {round}, merged base on the open text"), "tokens");
            // A merged model that gives no finite value is for the gate to refuse, not a reason to stop.
            let reader = shared.readers.open(blobs, &manifest.weights)?;
            let measured = measure_read(blobs, &manifest, reader, read_text().await?, max_tokens, working).await;
            let bpb = value_if_finite(measured)?.unwrap_or(f64::INFINITY);
            Ok(CoordinatorInput::MergedMeasured { round, model, bpb })
        }
    }
}

/// An open text that the charter names.
async fn read_open_text(blobs: &BlobStore, terms: &HeldOutTerms) -> Result<String> {
    let bytes = blobs.get(terms.text).await?;
    String::from_utf8(bytes.to_vec()).context("it is not UTF-8")
}

/// A contribution's manifest, if it describes weights like the base's; or what is wrong with it.
///
/// # Errors
/// Where the store fails, which is not its member's doing.
async fn read_manifest(
    blobs: &BlobStore,
    digest: tapestry_core::Digest,
    base: &ModelManifest,
) -> Result<Result<WeightsManifest, String>> {
    let weights: WeightsManifest = match blobs.get_json(digest).await {
        Ok(weights) => weights,
        Err(error @ StoreError::NotJson { .. }) => return Ok(Err(error.to_string())),
        Err(error) => return Err(error).context("a contribution's manifest"),
    };
    let checked = weights.check().and_then(|()| weights.check_matches(&base.weights));
    Ok(checked.map(|()| weights).map_err(|error| error.to_string()))
}

/// The first line of what somebody wrote, not too long.
pub(crate) fn one_line(text: &str) -> String {
    let line: String = text.trim().lines().next().unwrap_or_default().chars().take(120).collect();
    if line.len() < text.trim().len() { format!("{line} ...") } else { line }
}

/// An event for people.
pub(crate) fn describe(event: &CoordinatorEvent) -> String {
    match event {
        CoordinatorEvent::CharterAdopted { charter } => {
            format!("charter of {} is in force", charter.document.consortium)
        }
        CoordinatorEvent::RoleTaken { tenure } => {
            let tenure = &tenure.document;
            format!("{} has the coordinator's role now (tenure {})", tenure.coordinator, tenure.number)
        }
        CoordinatorEvent::RoleHandedOver { hand_over } => {
            format!("the coordinator's role is handed over to {}", hand_over.to)
        }
        CoordinatorEvent::Proposed { proposal } => {
            let proposal = &proposal.document;
            format!("{} proposes: {}", proposal.member, one_line(&proposal.rationale))
        }
        CoordinatorEvent::Voted { vote } => {
            let vote = &vote.document;
            let reason = if vote.reason.is_empty() { String::new() } else { format!(": {}", one_line(&vote.reason)) };
            format!("{} votes {} on proposal {}{reason}", vote.member, vote.choice, vote.proposal.short())
        }
        CoordinatorEvent::Decided { proposal, adopted, reason, .. } => {
            let what = if *adopted { "ADOPTED" } else { "not adopted" };
            format!("proposal {} is {what}: {reason}", proposal.short())
        }
        CoordinatorEvent::KeyRotated { rotation } => {
            let KeyRotation { member, from, to, .. } = &rotation.document;
            format!("{member} takes key {} in place of {}", to.short(), from.short())
        }
        CoordinatorEvent::Left { departure } => {
            let departure = &departure.document;
            format!("{} has left the consortium: {}", departure.member, one_line(&departure.reason))
        }
        CoordinatorEvent::Cosigned { checkpoint } => match checkpoint.parse::<SignedCheckpoint>() {
            Ok(note) => {
                let (found, size) = (note.num_signatures() - 1, note.checkpoint().size);
                format!("{found} of the members that are needed have witnessed the log's first {size} entries")
            }
            Err(error) => format!("what members have witnessed cannot be read: {error}"),
        },
        CoordinatorEvent::Witnessed { checkpoint } => match checkpoint.parse::<SignedCheckpoint>() {
            Ok(note) => format!(
                "{} members have witnessed the log's first {} entries",
                note.num_signatures() - 1,
                note.checkpoint().size
            ),
            Err(error) => format!("what members have witnessed cannot be read: {error}"),
        },
        CoordinatorEvent::BaseMeasured { base, bpb } => {
            format!("adopted base {}: {bpb:.4} bits per byte on the open text", base.short())
        }
        CoordinatorEvent::CommunityMeasured { base, member, bpb } => {
            let found = bpb.map_or("no finite number of".into(), |bpb| format!("{bpb:.4}"));
            format!("base {} on the open text of {member}'s community: {found} bits per byte", base.short())
        }
        CoordinatorEvent::RoundAnnounced { announcement: a } => {
            format!("round {} announced, open until {}", a.round, a.closes_at)
        }
        CoordinatorEvent::ContributionReceived { contribution } => {
            let contribution = &contribution.document;
            format!("round {}: contribution of {} has arrived", contribution.round, contribution.member)
        }
        CoordinatorEvent::ContributionScreened { round, member, verdict, .. } => match verdict {
            Verdict::Accepted { bpb, relative_change, staleness, .. } => {
                let late = if *staleness > 0 { format!(", {staleness} rounds late") } else { String::new() };
                format!("round {round}: {member} accepted ({bpb:.4} bits per byte, change {relative_change:.4}{late})")
            }
            Verdict::Refused { reasons } => {
                let reasons: Vec<_> = reasons.iter().map(ToString::to_string).collect();
                format!("round {round}: {member} REFUSED: {}", reasons.join("; "))
            }
            other => format!("round {round}: {member}: {other:?}"),
        },
        CoordinatorEvent::MessageRefused { member, reason, .. } => format!("message of {member} refused: {reason}"),
        CoordinatorEvent::Declined { decline } => {
            let decline = &decline.document;
            format!("round {}: {} declines: {}", decline.round, decline.member, decline.reason)
        }
        CoordinatorEvent::Missing { round, member, reason } => format!("round {round}: {member} is MISSING: {reason}"),
        CoordinatorEvent::Late { round, member, reason, .. } => format!("round {round}: {member} is LATE: {reason}"),
        CoordinatorEvent::Attended { attendance } => {
            let attendance = &attendance.document;
            let what = if attendance.is_present { "is back" } else { "leaves for a while" };
            let reason = Some(&attendance.reason).filter(|reason| !reason.is_empty());
            format!("{} {what}{}", attendance.member, reason.map_or(String::new(), |reason| format!(": {reason}")))
        }
        CoordinatorEvent::MergeStarted { round, weights } => {
            format!("round {round}: merging {} contributions", weights.len())
        }
        CoordinatorEvent::Merged { round, model, .. } => format!("round {round}: merged model {}", model.short()),
        CoordinatorEvent::Ended { outcome, .. } => match &outcome.result {
            RoundResult::Published { bpb } => format!(
                "round {}: Shared Base {} published ({bpb:.4} bits per byte on the open text)",
                outcome.round,
                outcome.base.short()
            ),
            RoundResult::Abandoned { reason } => format!("round {} abandoned: {reason}", outcome.round),
        },
    }
}
