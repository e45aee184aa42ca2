//! Proving the log to members: its checkpoint, its files in the layout of C2SP tlog-tiles, and proofs; and taking the
//! cosignatures of those who have checked.

use super::api::{Refused, internal, seen};
use super::{Loop, NotTaken};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::sync::{Arc, PoisonError};
use tapestry_core::PublicKey;
use tapestry_ledger::tile::Tile;
use tapestry_ledger::{Cosignature, SignedCheckpoint, TreeHash};
use tapestry_net::Peer;
use tapestry_round::LogView;
use tapestry_round::coordinator::CoordinatorInput;

pub(super) fn router() -> Router<Arc<Loop>> {
    Router::new()
        .route("/v1/log/checkpoint", get(checkpoint))
        .route("/v1/log/tile/{*path}", get(tile))
        .route("/v1/log/inclusion", get(inclusion))
        .route("/v1/log/consistency", get(consistency))
        .route("/v1/log/cosignature", post(cosign))
}

/// That a member has witnessed a checkpoint.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Witness {
    /// How many entries.
    pub(crate) size: u64,
    /// The line of its cosignature.
    pub(crate) line: String,
}

/// A proof of inclusion or consistency (RFC 6962, 2.1), with the root that it leads to.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Proof {
    pub(crate) root: TreeHash,
    pub(crate) hashes: Vec<TreeHash>,
}

impl Loop {
    /// The checkpoint on which the open round rests, or else the one that members are asked to witness.
    pub(super) fn shown_checkpoint(&self) -> Option<SignedCheckpoint> {
        let state = self.state();
        let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
        let recorded = state.checkpoint_on_record();
        if let Some(recorded) = recorded
            && desk.as_ref().is_none_or(|note| note.checkpoint().size != recorded.size)
        {
            *desk = recorded.checkpoint.parse().ok();
        }
        if recorded.is_none() && desk.as_ref().is_none_or(|note| note.checkpoint().size < state.witness_due()) {
            *desk = self.index.checkpoint();
        }
        desk.clone()
    }

    /// What a member is shown of the log that has seen `from` entries of it.
    pub(super) fn log_view(&self, from: u64) -> Option<LogView> {
        let note = self.shown_checkpoint()?;
        let size = note.checkpoint().size;
        // Who has seen more than there is asks for what cannot be proved.
        let consistency = self.index.consistency(from.min(size), size)?;
        Some(LogView { checkpoint: note.to_string(), from, consistency })
    }

    /// Takes a member's cosignature: it is in the log before the member is told so.
    async fn witness(&self, peer: PublicKey, witness: Witness) -> Result<(), Refused> {
        let state = self.state();
        let no_member = || Refused(StatusCode::FORBIDDEN, "only members witness the log".into(), false);
        let governance = state.governance().ok_or_else(no_member)?;
        let member = governance.member_of(&peer).ok_or_else(no_member)?;
        let wrong = |what: String| Refused(StatusCode::FORBIDDEN, what, false);
        let shown = self.shown_checkpoint().filter(|note| note.checkpoint().size == witness.size);
        let shown = shown.ok_or_else(|| {
            Refused(StatusCode::CONFLICT, "another checkpoint is to be witnessed by now".into(), false)
        })?;
        let cosignature = Cosignature::parse_line(&witness.line, &shown.checkpoint().origin);
        let cosignature = cosignature.map_err(|error| wrong(error.to_string()))?;
        let verified = cosignature.verify(shown.checkpoint(), &peer);
        verified.map_err(|error| wrong(error.to_string()))?;
        if cosignature.member() != member {
            return Err(wrong("it is another member's".into()));
        }
        let note = {
            let mut desk = self.desk.lock().unwrap_or_else(PoisonError::into_inner);
            let note = desk.as_mut().filter(|note| note.checkpoint() == shown.checkpoint());
            let Some(note) = note else { return Ok(()) };
            note.add(&cosignature);
            note.clone()
        };
        if state.wants_witnesses() {
            let checkpoint = note.to_string();
            match self.handle(None, CoordinatorInput::Witnessed { checkpoint }).await {
                // Something else happened meanwhile, which is to be witnessed, too.
                Err(NotTaken::Refused(error)) => tracing::debug!("not taken: {error}"),
                handled => handled?,
            }
        }
        Ok(())
    }
}

async fn cosign(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(peer)): Extension<Peer>,
    Json(witness): Json<Witness>,
) -> Result<Json<()>, Refused> {
    seen(&shared, peer).await;
    shared.witness(peer, witness).await.map(Json)
}

/// The newest checkpoint that members have cosigned or are asked to.
async fn checkpoint(State(shared): State<Arc<Loop>>) -> Result<String, Refused> {
    let none = || Refused(StatusCode::NOT_FOUND, "the log is empty".into(), true);
    shared.shown_checkpoint().map(|note| note.to_string()).ok_or_else(none)
}

async fn tile(State(shared): State<Arc<Loop>>, Path(path): Path<String>) -> Result<Bytes, Refused> {
    let none = || Refused(StatusCode::NOT_FOUND, "there is no such file in the log".into(), false);
    let tile = Tile::parse(&format!("tile/{path}")).ok_or_else(none)?;
    let content = shared.index.tile(&tile).await.map_err(|error| internal(&error))?;
    content.map(Bytes::from).ok_or_else(none)
}

#[derive(Deserialize)]
struct InclusionQuery {
    /// The number of the entry, from 1.
    entry: u64,
    /// Of how many entries.
    size: u64,
}

async fn inclusion(
    State(shared): State<Arc<Loop>>,
    Query(query): Query<InclusionQuery>,
) -> Result<Json<Proof>, Refused> {
    let hashes = query.entry.checked_sub(1).and_then(|index| shared.index.inclusion(index, query.size));
    proof(hashes, shared.index.root(query.size))
}

#[derive(Deserialize)]
struct ConsistencyQuery {
    from: u64,
    to: u64,
}

async fn consistency(
    State(shared): State<Arc<Loop>>,
    Query(query): Query<ConsistencyQuery>,
) -> Result<Json<Proof>, Refused> {
    proof(shared.index.consistency(query.from, query.to), shared.index.root(query.to))
}

fn proof(hashes: Option<Vec<TreeHash>>, root: Option<TreeHash>) -> Result<Json<Proof>, Refused> {
    let none = || Refused(StatusCode::NOT_FOUND, "the log has no such entries".into(), false);
    let (hashes, root) = hashes.zip(root).ok_or_else(none)?;
    Ok(Json(Proof { root, hashes }))
}
