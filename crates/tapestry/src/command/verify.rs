//! `tapestry verify`.

use crate::cli::VerifyCommand;
use crate::command::log;
use crate::coordinator::describe;
use crate::home::Home;
use crate::merge::{MergeInputs, merge};
use crate::progress::{Form, Reporter};
use crate::readers::Readers;
use crate::role::Machine as _;
use crate::stores::read_blobs;
use anyhow::{Result, anyhow, bail};
use serde::Serialize;
use tapestry_core::{Digest, ModelManifest, PublicKey, Timestamp};
use tapestry_ledger::TreeHash;
use tapestry_round::RoundResult;
use tapestry_round::coordinator::{Coordinator, CoordinatorEffect, CoordinatorEvent, CoordinatorInput};

/// What doing a round's merge again has found.
#[derive(Debug, Serialize)]
pub(super) struct VerifiedRound {
    round: u32,
    coordinator: PublicKey,
    num_entries: u64,
    root: TreeHash,
    num_contributions: usize,
    /// Whether the gate let the merged model become the Shared Base.
    is_published: bool,
    /// The manifest of the merged model: the same as recorded.
    model: Digest,
}

pub(crate) async fn run(command: VerifyCommand) -> Result<()> {
    let (round, home, key, json) = match command {
        VerifyCommand::Round { round, home, key, json } => (round, home, key, json),
        VerifyCommand::All { home, key, without_merges, json } => {
            return super::audit::verify_all(&Home::at(&home), key, without_merges, json).await;
        }
    };
    let home = Home::at(&home);
    let key = log::founder(&home, key).await?;
    let verified = merge_again(&home, key, round).await?;
    if json {
        println!("{}", serde_json::to_string(&verified)?);
    } else {
        let fate = if verified.is_published {
            "was published as the Shared Base"
        } else {
            "was stopped by the gate; the base stayed"
        };
        println!(
            "Round {round} holds. The log's {} entries lead to the root that was signed, in the log that {} founded; the recorded verdicts and weights are those that the \
             charter gives; merging the {} contributions again gives the recorded model\n  {}\nwhich {fate}.",
            verified.num_entries, verified.coordinator, verified.num_contributions, verified.model
        );
    }
    Ok(())
}

pub(super) async fn merge_again(home: &Home, key: PublicKey, number: u32) -> Result<VerifiedRound> {
    let (checked, entries) = log::read::<Coordinator>(home, key).await?;
    let mut state = Coordinator::empty(key);
    let mut merging = None;
    let (mut recorded, mut recorded_states) = (None, vec![]);
    let mut is_published = false;
    for entry in &entries {
        if is_decision_of(&entry.event, number) {
            check_decision(&state, entry.at, &entry.event)?;
        }
        state.apply(&entry.event)?;
        match &entry.event {
            CoordinatorEvent::MergeStarted { round, .. } if *round == number => {
                // What the coordinator had to do at this point, by its own rules.
                merging = state.pending().into_iter().next();
            }
            CoordinatorEvent::Merged { round, model, states } if *round == number => {
                (recorded, recorded_states) = (Some(*model), states.clone());
            }
            CoordinatorEvent::Ended { outcome, .. } if outcome.round == number => {
                is_published = matches!(outcome.result, RoundResult::Published { .. });
                if is_published && Some(outcome.base) != recorded {
                    bail!("round {number}: the published base {} is not the merged model {recorded:?}", outcome.base);
                }
            }
            _ => {}
        }
    }
    let (Some(CoordinatorEffect::Merge(work)), Some(recorded)) = (merging, recorded) else {
        let last = entries.iter().rev().find_map(|entry| match &entry.event {
            CoordinatorEvent::Merged { round, .. } => Some(*round),
            _ => None,
        });
        let last = last.map_or("none has".into(), |last| format!("the last that has is round {last}"));
        bail!("round {number} has not been merged; {last}");
    };
    let blobs = read_blobs(home).await?;
    let working = Reporter::new(Form::People).start("verify", format!("round {number}"), "bytes");
    let num_contributions = work.inputs.len();
    let base: ModelManifest = blobs.get_json(work.base).await?;
    let inputs = MergeInputs::read(&blobs, &Readers::default(), &work).await?;
    let merged = merge(&blobs, inputs, false, working).await?;
    let model = Digest::of_json(&ModelManifest { files: base.files, weights: merged.weights })?;
    let states = merged.states.iter().map(Digest::of_json).collect::<Result<Vec<_>, _>>()?;
    if states != recorded_states {
        bail!(
            "round {number} DOES NOT HOLD: the optimiser's state for the next round is {states:?}, and the coordinator recorded {recorded_states:?}"
        );
    }
    if model != recorded {
        bail!(
            "round {number} DOES NOT HOLD: merging the recorded contributions with the recorded weights gives model {model}, and the \
             coordinator recorded {recorded}. Show this to the other members; tapestry log show --home prints what was claimed"
        );
    }
    Ok(VerifiedRound {
        round: number,
        coordinator: key,
        num_entries: checked.num_entries,
        root: checked.root,
        num_contributions,
        is_published,
        model,
    })
}

/// Whether the event is one that the charter decides, in round `number`.
const fn is_decision_of(event: &CoordinatorEvent, number: u32) -> bool {
    match event {
        CoordinatorEvent::ContributionScreened { round, .. } | CoordinatorEvent::MergeStarted { round, .. } => {
            *round == number
        }
        _ => false,
    }
}

/// Checks that a verdict, or the weights of a merge, are those that follow from the charter and from what the log holds before them.
pub(super) fn check_decision(state: &Coordinator, at: Timestamp, recorded: &CoordinatorEvent) -> Result<()> {
    let input = match recorded {
        CoordinatorEvent::ContributionScreened { round, member, weights, screening, .. } => {
            let (member, screening) = (member.clone(), screening.clone());
            CoordinatorInput::Screened { round: *round, member, weights: *weights, screening }
        }
        _ => CoordinatorInput::Tick,
    };
    let decided = state.handle(at, input)?;
    if decided.first() == Some(recorded) {
        return Ok(());
    }
    Err(mismatch(recorded, decided.first()))
}

/// That the log does not say what the charter gives.
pub(super) fn mismatch(recorded: &CoordinatorEvent, decided: Option<&CoordinatorEvent>) -> anyhow::Error {
    let should = decided.map_or("nothing".into(), describe);
    anyhow!(
        "the log DOES NOT HOLD: by the charter, \"{should}\" follows here, and the coordinator recorded \"{}\" with other reasons or weights. Show \
         this to the other members; tapestry merge explain --home prints the recorded weights",
        describe(recorded)
    )
}
