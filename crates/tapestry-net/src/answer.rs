//! Answers that say no, all in one form.

use axum::Json;
use axum::body::Body;
use axum::response::IntoResponse as _;
use hyper::header::{self, HeaderValue};
use hyper::{Response, StatusCode};
use serde::{Deserialize, Serialize};

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong, for people.
    pub error: String,
    /// Whether the same request may succeed later.
    pub retry: bool,
}

/// The longest reason in other than this form that is kept.
const MAX_REASON_BYTES: usize = 4 << 10;

/// No, and why.
pub(crate) fn refusal(status: StatusCode, error: impl Into<String>, retry: bool) -> Response<Body> {
    (status, Json(ErrorBody { error: error.into(), retry })).into_response()
}

/// The reason of a refusal in this form, and the answer again.
pub(crate) async fn reason_of(answer: Response<Body>) -> (String, Response<Body>) {
    let (head, body) = answer.into_parts();
    let text = axum::body::to_bytes(body, 2 * MAX_REASON_BYTES).await.unwrap_or_default();
    let reason = serde_json::from_slice::<ErrorBody>(&text).map(|body| body.error).unwrap_or_default();
    (reason, Response::from_parts(head, Body::from(text)))
}

/// Brings the refusals of the HTTP library itself (no such route, no JSON, too long) into the form of all others.
pub(crate) async fn explained(answer: Response<Body>) -> Response<Body> {
    let status = answer.status();
    let is_json = answer.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_json || !(status.is_client_error() || status.is_server_error()) {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let text = axum::body::to_bytes(body, MAX_REASON_BYTES).await.unwrap_or_default();
    let mut error = String::from_utf8_lossy(&text).into_owned();
    if error.is_empty() {
        error = status.canonical_reason().unwrap_or("no reason given").to_owned();
    }
    let retry =
        matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT);
    head.headers.remove(header::CONTENT_LENGTH);
    head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let (_, body) = Json(ErrorBody { error, retry }).into_response().into_parts();
    Response::from_parts(head, body)
}
