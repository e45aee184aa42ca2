//! What members decide, over HTTP: they send signed documents, and the state machine counts.

use super::Loop;
use super::api::{Refused, internal, seen};
use crate::clock::now;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;
use tapestry_core::{Digest, Signed, Timestamp};
use tapestry_governance::{Charter, CharterHistory, DecisionKind, Departure, KeyRotation, Proposal, Vote};
use tapestry_net::Peer;
use tapestry_round::coordinator::CoordinatorInput;

pub(super) fn router() -> Router<Arc<Loop>> {
    Router::new()
        .route("/v1/charter", get(charter))
        .route("/v1/governance", get(history))
        .route("/v1/proposals", get(proposals).post(propose))
        .route("/v1/votes", post(vote))
        .route("/v1/rotation", post(rotate))
        .route("/v1/departure", post(leave))
}

/// How a proposal stands.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct OpenVote {
    /// What votes name.
    pub(crate) digest: Digest,
    pub(crate) proposal: Signed<Proposal>,
    pub(crate) votes: Vec<Signed<Vote>>,
    pub(crate) kinds: BTreeSet<DecisionKind>,
    pub(crate) required: usize,
    pub(crate) num_members: usize,
    pub(crate) closes_at: Timestamp,
}

/// The charter in force; on what it stands, `/v1/governance` shows.
async fn charter(State(shared): State<Arc<Loop>>) -> Result<Json<Signed<Charter>>, Refused> {
    let charter = shared.state().charter().cloned();
    charter.map(Json).ok_or_else(|| Refused(StatusCode::NOT_FOUND, "no charter is in force".into(), true))
}

/// The founding charter and every step since: all that is needed to check the charter in force.
async fn history(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(peer)): Extension<Peer>,
) -> Result<Json<CharterHistory>, Refused> {
    seen(&shared, peer).await;
    let state = shared.state();
    let governance = state.governance().map(tapestry_governance::Governance::history);
    governance.map(Json).ok_or_else(|| Refused(StatusCode::NOT_FOUND, "no charter is in force".into(), true))
}

async fn proposals(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(peer)): Extension<Peer>,
) -> Result<Json<Vec<OpenVote>>, Refused> {
    seen(&shared, peer).await;
    let state = shared.state();
    let open = state.proposals().iter().map(|open| {
        let tally = state.tally(open);
        let (kinds, required, num_members) =
            tally.map_or_else(Default::default, |tally| (tally.kinds, tally.required, tally.num_members));
        OpenVote {
            digest: open.digest,
            proposal: open.signed.clone(),
            votes: open.votes.values().cloned().collect(),
            kinds,
            required,
            num_members,
            closes_at: open.signed.document.closes_at,
        }
    });
    Ok(Json(open.collect()))
}

async fn propose(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(sender)): Extension<Peer>,
    Json(proposal): Json<Box<Signed<Proposal>>>,
) -> Result<Json<()>, Refused> {
    let member = seen(&shared, sender).await;
    if let Some(base) = shared.state().new_base_of(&proposal.document)
        && !shared.blobs().has(base).await.map_err(|error| internal(&error))?
    {
        let what =
            format!("the proposed base {base} is not here; its operator takes it in with `tapestry base import`");
        return Err(Refused(StatusCode::CONFLICT, what, false));
    }
    shared.handle(member.as_ref(), CoordinatorInput::Propose { sender, proposal }).await?;
    Ok(Json(()))
}

async fn vote(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(sender)): Extension<Peer>,
    Json(vote): Json<Signed<Vote>>,
) -> Result<Json<()>, Refused> {
    let member = seen(&shared, sender).await;
    shared.handle(member.as_ref(), CoordinatorInput::Vote { sender, vote }).await?;
    Ok(Json(()))
}

async fn rotate(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(sender)): Extension<Peer>,
    Json(rotation): Json<Signed<KeyRotation>>,
) -> Result<Json<()>, Refused> {
    let member = seen(&shared, sender).await;
    shared.handle(member.as_ref(), CoordinatorInput::Rotate { sender, rotation }).await?;
    Ok(Json(()))
}

async fn leave(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(sender)): Extension<Peer>,
    Json(departure): Json<Signed<Departure>>,
) -> Result<Json<()>, Refused> {
    let member = seen(&shared, sender).await;
    tracing::debug!("{} leaves at {}", departure.document.member, now());
    shared.handle(member.as_ref(), CoordinatorInput::Leave { sender, departure }).await?;
    Ok(Json(()))
}
