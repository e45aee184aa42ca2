//! What members may ask of the coordinator. The connection has proved a key of the charter before anything here runs.

use super::{Loop, NotTaken, governing, proving};
use crate::activity::Activity;
use crate::clock::now;
use crate::observe::phase_name;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tapestry_core::{CHUNK_BYTES, Digest, MemberName, ModelManifest, PublicKey, Signed, Timestamp, WeightsManifest};
use tapestry_net::{BlobAction, Peer, blob_routes};
use tapestry_round::coordinator::{Answer, Coordinator, CoordinatorInput, Round};
use tapestry_round::{Attendance, Blame, Contribution, Decline, News, RoundResult, Verdict};
use tapestry_store::StoreError;

/// The longest JSON body that is read.
pub(super) const MAX_JSON_BYTES: usize = 1 << 20;
/// The longest wait of one request for news.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// An error for the asker, in the form that all routes share.
pub(super) struct Refused(pub(super) StatusCode, pub(super) String, pub(super) bool);

#[derive(Serialize)]
struct ErrorBody {
    error: String,
    retry: bool,
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        (self.0, Json(ErrorBody { error: self.1, retry: self.2 })).into_response()
    }
}

impl From<NotTaken> for Refused {
    fn from(error: NotTaken) -> Self {
        match error {
            NotTaken::Refused(error) => {
                let status = match error.blame() {
                    Blame::Timing => StatusCode::CONFLICT,
                    Blame::Member => StatusCode::FORBIDDEN,
                    _ => StatusCode::INTERNAL_SERVER_ERROR,
                };
                Self(status, error.to_string(), false)
            }
            NotTaken::Failed(error) => internal(&error),
        }
    }
}

/// The details stay in the coordinator's own output; they are not for members.
pub(super) fn internal(error: &dyn std::fmt::Display) -> Refused {
    tracing::error!("{error:#}");
    Refused(
        StatusCode::INTERNAL_SERVER_ERROR,
        "the coordinator cannot do that now; its operator knows why".into(),
        true,
    )
}

/// The number of a contribution's chunks beyond those of the base that a member may write in one round: its manifest, and
/// a margin for a second attempt.
const EXTRA_CHUNKS: u64 = 64;

pub(super) fn router(shared: &Arc<Loop>) -> Router {
    let policy_of = Arc::clone(shared);
    let policy = Arc::new(move |peer: &PublicKey, action: BlobAction| match action {
        BlobAction::Read(_) => policy_of.may_read(peer),
        BlobAction::Write(digest) => policy_of.may_write(peer, digest),
    });
    Router::new()
        .merge(governing::router())
        .merge(proving::router())
        .route("/v1/news", get(news))
        .route("/v1/contribution", post(contribute))
        .route("/v1/decline", post(decline))
        .route("/v1/attendance", post(attend))
        .route("/v1/activity", post(activity))
        .route("/v1/status", get(status))
        .route("/v1/state/log/{seq}", get(log_commit))
        .route("/v1/state/blobs/{first}", get(blob_digests))
        .layer(DefaultBodyLimit::max(MAX_JSON_BYTES))
        .with_state(Arc::clone(shared))
        .merge(blob_routes(shared.blobs().clone(), policy))
}

impl Loop {
    /// Models are for members in force, and for those who may have this role.
    fn may_read(&self, peer: &PublicKey) -> Result<(), String> {
        if self.member_of(peer).is_some() || self.may_have_the_state(peer) {
            return Ok(());
        }
        Err("models are for members; this key's member has left or was excluded".into())
    }

    /// Weights are taken only while they could count, from members who have not answered, and not without end.
    fn may_write(&self, peer: &PublicKey, digest: Digest) -> Result<(), String> {
        let member = self.member_of(peer).ok_or("only members may send weights")?;
        let round = self.state().takes_weights_of(&member, now()).map_err(|error| error.to_string())?;
        let mut presence = self.presence();
        let seen = presence.entry(member).or_default();
        if seen.round != round {
            seen.round = round;
            seen.chunks.clear();
        }
        let limit = 2 * self.base_chunks + EXTRA_CHUNKS;
        if seen.chunks.len() as u64 >= limit && !seen.chunks.contains(&digest) {
            return Err(format!(
                "{limit} different chunks were sent in this round already; the model has half as many"
            ));
        }
        seen.chunks.insert(digest);
        Ok(())
    }
}

pub(super) async fn seen(shared: &Loop, peer: PublicKey) -> Option<MemberName> {
    let member = shared.member_of(&peer)?;
    shared.presence().entry(member.clone()).or_default().last_seen = Some(now());
    Some(member)
}

#[derive(Deserialize)]
struct NewsQuery {
    #[serde(default)]
    after: u64,
    /// How many entries of the log the asker has seen.
    #[serde(default)]
    seen: u64,
    /// How many steps of governance it has followed.
    #[serde(default)]
    steps: u64,
    #[serde(default)]
    wait_ms: u64,
}

/// Answers at once where there is something newer than `after`, else when there is, or when `wait_ms` have passed.
async fn news(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(peer)): Extension<Peer>,
    Query(query): Query<NewsQuery>,
) -> Result<Json<News>, Refused> {
    seen(&shared, peer).await;
    let mut version = shared.watch_version();
    let is_over = shared.state().hand_over().is_some();
    let wait = if is_over { Duration::ZERO } else { Duration::from_millis(query.wait_ms).min(MAX_WAIT) };
    let _ = tokio::time::timeout(wait, version.wait_for(|version| *version > query.after)).await;
    shared.news(query.seen, query.steps).map(Json).map_err(|error| internal(&error))
}

async fn contribute(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(sender)): Extension<Peer>,
    Json(contribution): Json<Signed<Contribution>>,
) -> Result<Json<()>, Refused> {
    let member = seen(&shared, sender).await;
    shared.check_complete(&contribution.document).await?;
    shared.handle(member.as_ref(), CoordinatorInput::Contribute { sender, contribution }).await?;
    Ok(Json(()))
}

impl Loop {
    /// A contribution counts as received only when all of it is here. What cannot be a manifest is received, and then
    /// refused by the screening, with its reason in the log.
    async fn check_complete(&self, contribution: &Contribution) -> Result<(), Refused> {
        let blobs = self.blobs();
        let incomplete = |what: String| Refused(StatusCode::PRECONDITION_FAILED, what, true);
        let is_there = blobs.has(contribution.weights).await.map_err(|error| internal(&error))?;
        if !is_there {
            return Err(incomplete("the manifest of the weights is not here yet; send it first".into()));
        }
        let manifest = match blobs.get_json::<WeightsManifest>(contribution.weights).await {
            Ok(manifest) => manifest,
            Err(StoreError::NotJson { .. }) => return Ok(()),
            Err(error) => return Err(internal(&error)),
        };
        if manifest.check().is_err() {
            return Ok(());
        }
        let missing = blobs.missing(&manifest.data.chunks).await.map_err(|error| internal(&error))?;
        if missing.is_empty() {
            return Ok(());
        }
        Err(incomplete(format!("{} chunks of the weights are not here yet; send them first", missing.len())))
    }
}

async fn decline(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(sender)): Extension<Peer>,
    Json(decline): Json<Signed<Decline>>,
) -> Result<Json<()>, Refused> {
    let member = seen(&shared, sender).await;
    shared.handle(member.as_ref(), CoordinatorInput::Decline { sender, decline }).await?;
    Ok(Json(()))
}

async fn attend(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(sender)): Extension<Peer>,
    Json(attendance): Json<Signed<Attendance>>,
) -> Result<Json<()>, Refused> {
    let member = seen(&shared, sender).await;
    shared.handle(member.as_ref(), CoordinatorInput::Attend { sender, attendance }).await?;
    Ok(Json(()))
}

/// The commit of the log that begins with an entry, as it is stored, for those who may have this role.
async fn log_commit(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(first): Path<u64>,
) -> Result<Bytes, Refused> {
    shared.check_may_have_the_state(&peer)?;
    let commit = shared.log.read(first).await.map_err(|error| internal(&error))?;
    commit.ok_or_else(|| Refused(StatusCode::NOT_FOUND, format!("no commit begins with entry {first}"), false))
}

/// The blobs whose digests begin with a byte, for those who may have this role.
async fn blob_digests(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(peer)): Extension<Peer>,
    Path(first): Path<String>,
) -> Result<Json<Vec<Digest>>, Refused> {
    shared.check_may_have_the_state(&peer)?;
    let byte = u8::from_str_radix(&first, 16).ok().filter(|_| first.len() == 2);
    let byte =
        byte.ok_or_else(|| Refused(StatusCode::NOT_FOUND, "two hexadecimal digits are asked for".into(), false))?;
    shared.blobs().digests(byte).await.map(Json).map_err(|error| internal(&error))
}

impl Loop {
    fn check_may_have_the_state(&self, peer: &PublicKey) -> Result<(), Refused> {
        if self.may_have_the_state(peer) {
            return Ok(());
        }
        let error = "only the charter's coordinator and its standbys may have the coordinator's state";
        Err(Refused(StatusCode::FORBIDDEN, error.into(), false))
    }
}

/// What a node is doing, for `tapestry status`; forgotten at the next restart.
async fn activity(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(sender)): Extension<Peer>,
    Json(activity): Json<Activity>,
) -> Result<Json<()>, Refused> {
    if let Some(member) = seen(&shared, sender).await {
        shared.presence().entry(member).or_default().activity = Some(activity.tamed());
    }
    Ok(Json(()))
}

/// Where the loop stands, for people.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Status {
    pub(crate) consortium: String,
    pub(crate) base: Digest,
    pub(crate) base_bpb: Option<f64>,
    pub(crate) num_rounds: u32,
    pub(crate) round: Option<RoundStatus>,
    pub(crate) ended: Vec<EndedRound>,
    pub(crate) coordinator_activity: Option<Activity>,
    pub(crate) members: BTreeMap<MemberName, MemberStatus>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct RoundStatus {
    pub(crate) round: u32,
    pub(crate) phase: String,
    pub(crate) closes_at: Timestamp,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct EndedRound {
    pub(crate) round: u32,
    pub(crate) result: RoundResult,
    pub(crate) base: Digest,
    pub(crate) verdicts: BTreeMap<MemberName, Verdict>,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct MemberStatus {
    pub(crate) answer: String,
    /// By which term of the charter, or in the member's words.
    pub(crate) reason: Option<String>,
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) activity: Option<Activity>,
}

async fn status(
    State(shared): State<Arc<Loop>>,
    Extension(Peer(peer)): Extension<Peer>,
) -> Result<Json<Status>, Refused> {
    seen(&shared, peer).await;
    let state = shared.state();
    let status = shared.status(&state);
    status.map(Json).ok_or_else(|| Refused(StatusCode::NOT_FOUND, "no charter is in force".into(), true))
}

impl Loop {
    fn status(&self, state: &Coordinator) -> Option<Status> {
        let charter = &state.charter()?.document;
        let base = state.base()?;
        let round = state.round();
        let presence = self.presence();
        let member_status = |name: &MemberName| {
            let seen = presence.get(name).cloned().unwrap_or_default();
            let (answer, reason) = round.map_or(("-", None), |round| round_answer(round, name));
            MemberStatus { answer: answer.into(), reason, last_seen: seen.last_seen, activity: seen.activity }
        };
        let ended = state.outcomes().iter().map(|outcome| EndedRound {
            round: outcome.round,
            result: outcome.result.clone(),
            base: outcome.base,
            verdicts: outcome.verdicts.clone(),
        });
        Some(Status {
            consortium: charter.consortium.clone(),
            base,
            base_bpb: state.measured_bpb(&base),
            num_rounds: charter.rounds.num_rounds,
            round: round.map(|round| RoundStatus {
                round: round.announcement.round,
                phase: phase_name(&round.phase).into(),
                closes_at: round.announcement.closes_at,
            }),
            ended: ended.collect(),
            coordinator_activity: self.reporter.latest().filter(|step| !step.is_end).map(Activity::from),
            members: charter.members.keys().map(|name| (name.clone(), member_status(name))).collect(),
        })
    }
}

/// A member's answer to the open round in a word, and why where there is a reason.
pub(super) fn round_answer(round: &Round, member: &MemberName) -> (&'static str, Option<String>) {
    let number = round.announcement.round;
    match round.answers.get(member) {
        None => ("awaited", None),
        Some(Answer::Received(signed)) if signed.document.round < number => {
            ("received", Some(format!("late, trained for round {}", signed.document.round)))
        }
        Some(Answer::Received(_)) => ("received", None),
        Some(Answer::Judged(_, verdict) | Answer::Absent(verdict)) => verdict_in_words(verdict),
    }
}

/// A verdict in a word, and why where there is a reason: by which term of the charter, or in the member's words.
pub(crate) fn verdict_in_words(verdict: &Verdict) -> (&'static str, Option<String>) {
    match verdict {
        Verdict::Accepted { staleness: 0, .. } => ("accepted", None),
        Verdict::Accepted { staleness, .. } => {
            ("accepted", Some(format!("late by {staleness} (charter: rounds.late_rounds)")))
        }
        Verdict::Refused { reasons } => {
            ("refused", Some(reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")))
        }
        Verdict::Declined { reason } => ("declined", Some(reason.clone())),
        Verdict::Away { reason } => ("away", Some(reason.clone())),
        Verdict::Left { reason } => ("left", Some(reason.clone())),
        Verdict::Missing => ("missing", Some("no answer within the window (charter: rounds.window_ms)".into())),
    }
}

/// How many chunks the base has, which bounds what a member may send in a round.
pub(super) fn num_chunks(manifest: &ModelManifest) -> u64 {
    manifest.weights.data.size_bytes.div_ceil(CHUNK_BYTES)
}
