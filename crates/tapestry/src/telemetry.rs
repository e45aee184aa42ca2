//! Spans of rounds for OpenTelemetry: OTLP over HTTP in its JSON form, to the collector that the standard environment variables name.
//! Where they name none, no connection is made.
//!
//! Only `http://`: a collector runs beside the role, and forwards from there with what TLS and credentials its operator uses. Spans wait
//! in a bounded queue and are dropped when it is full; nothing waits for a collector.
//!
//! # Source
//! OpenTelemetry Protocol specification 1.x, "OTLP/HTTP" and "JSON Protobuf Encoding"; environment variables as in "OpenTelemetry Protocol
//! Exporter".

use crate::observe::{About, Trace};
use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HOST, HeaderName, HeaderValue};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tapestry_core::Timestamp;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};

/// More spans than this wait for nobody.
const QUEUE: usize = 2048;
/// Spans of one request.
const BATCH: usize = 512;
/// How long spans are gathered.
const GATHER: Duration = Duration::from_secs(2);
/// The longest that one request takes.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests for one batch, where the collector is away or asks for patience.
const NUM_TRIES: u32 = 4;

/// A span that has ended.
#[derive(Debug)]
pub(crate) struct Span(Value);

/// Where spans go; nowhere, where nothing is configured.
#[derive(Debug)]
pub(crate) struct Spans {
    queue: Mutex<Option<(mpsc::Sender<Span>, JoinHandle<()>)>>,
    num_dropped: AtomicU64,
}

/// What the environment says.
struct Settings {
    endpoint: Uri,
    headers: Vec<(HeaderName, HeaderValue)>,
    service: String,
}

fn attribute(key: &str, value: &Value) -> Value {
    json!({ "key": key, "value": value })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Span {
    fn with(trace: Trace, id: [u8; 8], name: &str, start: Timestamp, end: Timestamp) -> Self {
        let nanos = |at: Timestamp| format!("{}000000", at.as_ms());
        Self(json!({
            "traceId": hex(&trace.id), "spanId": hex(&id), "name": name, "kind": 1,
            "startTimeUnixNano": nanos(start), "endTimeUnixNano": nanos(end), "attributes": [], "status": {},
        }))
    }

    /// A part of a round.
    pub(crate) fn new(trace: Trace, name: &str, start: Timestamp, end: Timestamp) -> Self {
        let mut id = [0; 8];
        if getrandom::fill(&mut id).is_err() || id == [0; 8] {
            id = start.as_ms().to_be_bytes();
        }
        let mut span = Self::with(trace, id, name, start, end);
        span.0["parentSpanId"] = hex(&trace.root).into();
        span
    }

    /// A whole round.
    pub(crate) fn root(trace: Trace, name: &str, start: Timestamp, end: Timestamp) -> Self {
        Self::with(trace, trace.root, name, start, end)
    }

    fn push(&mut self, key: &str, value: &Value) {
        if let Some(list) = self.0["attributes"].as_array_mut() {
            list.push(attribute(key, value));
        }
    }

    pub(crate) fn about(mut self, about: &About) -> Self {
        if let Some(round) = about.round {
            self.push("tapestry.round", &json!({ "intValue": round.to_string() }));
        }
        if let Some(member) = &about.member {
            self.push("tapestry.member", &json!({ "stringValue": member.as_str() }));
        }
        self
    }

    pub(crate) fn number(mut self, key: &str, number: u64) -> Self {
        self.push(key, &json!({ "intValue": number.to_string() }));
        self
    }

    pub(crate) fn outcome(mut self, is_good: bool, what: &str) -> Self {
        self.push("tapestry.result", &json!({ "stringValue": what }));
        self.0["status"] = json!({ "code": if is_good { 1 } else { 2 } });
        self
    }
}

impl Spans {
    /// As the environment says: on where an endpoint is named, off otherwise.
    ///
    /// # Errors
    /// Where it asks for something that cannot be done here; a role does not start without what its operator asked for.
    pub(crate) fn from_env(role: &'static str) -> Result<Self> {
        let settings = Settings::read(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()), role)?;
        let queue = settings.map(|settings| {
            let (send, receive) = mpsc::channel(QUEUE);
            (send, tokio::spawn(export(settings, receive)))
        });
        Ok(Self { queue: Mutex::new(queue), num_dropped: AtomicU64::new(0) })
    }

    /// Hands a span over. Never waits.
    pub(crate) fn send(&self, span: Span) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((queue, _)) = queue.as_ref() else { return };
        if queue.try_send(span).is_err() && self.num_dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!("spans are dropped: the OpenTelemetry collector takes them too slowly");
        }
    }

    /// Sends what is left, `patience` long at most.
    pub(crate) async fn finish(&self, patience: Duration) {
        let queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some((queue, task)) = queue {
            drop(queue);
            let _ = tokio::time::timeout(patience, task).await;
        }
    }
}

impl Settings {
    fn read(env: &dyn Fn(&str) -> Option<String>, role: &str) -> Result<Option<Self>> {
        if env("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
            || env("OTEL_TRACES_EXPORTER").as_deref() == Some("none")
        {
            return Ok(None);
        }
        let whole = env("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        let base = || Some(format!("{}/v1/traces", env("OTEL_EXPORTER_OTLP_ENDPOINT")?.trim_end_matches('/')));
        let Some(endpoint) = whole.or_else(base) else { return Ok(None) };
        let uri = endpoint.parse::<Uri>().ok();
        let uri = uri.filter(|uri| uri.scheme_str() == Some("http") && uri.host().is_some()).with_context(|| {
            format!(
                "the OTLP endpoint {endpoint} is not of the form http://HOST:4318. Run a collector on this machine and let it forward \
                 over TLS"
            )
        })?;
        let protocol = env("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            .or_else(|| env("OTEL_EXPORTER_OTLP_PROTOCOL"))
            .unwrap_or_default();
        if !["", "http/json", "http/protobuf"].contains(&protocol.as_str()) {
            bail!(
                "OTEL_EXPORTER_OTLP_PROTOCOL is {protocol}; spans are sent as http/json, which a collector takes on its HTTP port (4318)"
            );
        }
        let given =
            env("OTEL_EXPORTER_OTLP_TRACES_HEADERS").or_else(|| env("OTEL_EXPORTER_OTLP_HEADERS")).unwrap_or_default();
        let mut headers = vec![];
        for pair in given.split(',').filter(|pair| !pair.trim().is_empty()) {
            // The value may be a secret, so the message leaves it out.
            let wrong = "OTEL_EXPORTER_OTLP_HEADERS is not a list NAME=VALUE,...";
            let (name, value) = pair.split_once('=').context(wrong)?;
            let mut value = HeaderValue::from_str(value.trim()).map_err(|_| anyhow::anyhow!(wrong))?;
            value.set_sensitive(true);
            headers.push((name.trim().parse::<HeaderName>().map_err(|_| anyhow::anyhow!(wrong))?, value));
        }
        let service = env("OTEL_SERVICE_NAME").unwrap_or_else(|| format!("tapestry-{role}"));
        Ok(Some(Self { endpoint: uri, headers, service }))
    }

    /// The body of a request.
    fn body(&self, spans: Vec<Span>) -> Value {
        let text = |text: &str| json!({ "stringValue": text });
        let version = env!("CARGO_PKG_VERSION");
        let spans: Vec<Value> = spans.into_iter().map(|span| span.0).collect();
        json!({ "resourceSpans": [{
            "resource": { "attributes": [
                attribute("service.name", &text(&self.service)),
                attribute("service.version", &text(version)),
            ] },
            "scopeSpans": [{ "scope": { "name": "tapestry", "version": version }, "spans": spans }],
        }] })
    }

    async fn post(&self, body: Bytes) -> Result<StatusCode> {
        let authority = self.endpoint.authority().context("no host")?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((host, authority.port_u16().unwrap_or(80))).await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
        let path = self.endpoint.path_and_query().map_or("/", |path| path.as_str());
        let mut request = Request::post(path).header(HOST, authority.as_str()).header(CONTENT_TYPE, "application/json");
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        // The connection may end with the answer; it is the answer that counts.
        let mut running = JoinSet::new();
        running.spawn(connection);
        Ok(sender.send_request(request.body(Full::new(body))?).await?.status())
    }
}

/// Sends what comes until the queue is closed and empty.
async fn export(settings: Settings, mut queue: mpsc::Receiver<Span>) {
    while let Some(first) = queue.recv().await {
        let mut spans = vec![first];
        let gathered = tokio::time::sleep(GATHER);
        tokio::pin!(gathered);
        while spans.len() < BATCH {
            tokio::select! {
                span = queue.recv() => match span {
                    Some(span) => spans.push(span),
                    None => break,
                },
                () = &mut gathered => break,
            }
        }
        let num_spans = spans.len();
        if let Err(error) = send_batch(&settings, spans).await {
            tracing::warn!("{num_spans} spans were not taken by {}: {error:#}", settings.endpoint);
        }
    }
}

async fn send_batch(settings: &Settings, spans: Vec<Span>) -> Result<()> {
    let body = Bytes::from(settings.body(spans).to_string());
    let mut pause = Duration::from_millis(500);
    for attempt in 1.. {
        let sent = tokio::time::timeout(REQUEST_TIMEOUT, settings.post(body.clone())).await;
        let (reason, may_retry) = match sent {
            Ok(Ok(status)) if status.is_success() => return Ok(()),
            Ok(Ok(status)) => (format!("it answers {status}"), matches!(status.as_u16(), 429 | 502 | 503 | 504)),
            Ok(Err(error)) => (format!("{error:#}"), true),
            Err(_) => ("it does not answer".to_owned(), true),
        };
        if !may_retry || attempt == NUM_TRIES {
            bail!(reason);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Settings>> {
        let pairs: Vec<_> = pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let env = move |name: &str| pairs.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone());
        Settings::read(&env, "node")
    }

    #[test]
    fn nothing_is_exported_unless_an_endpoint_is_named() {
        assert!(read(&[]).expect("fine").is_none());
        assert!(read(&[("OTEL_SERVICE_NAME", "x")]).expect("fine").is_none());
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318/");
        for off in [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")] {
            assert!(read(&[endpoint, off]).expect("fine").is_none());
        }
        let settings = read(&[endpoint]).expect("fine").expect("on");
        assert_eq!(settings.endpoint.to_string(), "http://localhost:4318/v1/traces");
        assert_eq!(settings.service, "tapestry-node");
        let whole = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://[::1]:9/elsewhere");
        let settings = read(&[endpoint, whole]).expect("fine").expect("on");
        assert_eq!(settings.endpoint.to_string(), "http://[::1]:9/elsewhere");
    }

    #[test]
    fn what_cannot_be_done_is_refused_and_no_secret_is_shown() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://localhost:4318");
        let cases = [
            (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector:4318")], "http://HOST:4318"),
            (vec![("OTEL_EXPORTER_OTLP_ENDPOINT", "collector")], "http://HOST:4318"),
            (vec![endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "4318"),
            (vec![endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "token=a,hush hush=secret")], "NAME=VALUE"),
        ];
        for (pairs, expected) in cases {
            let error = format!("{:#}", read(&pairs).err().expect(expected));
            assert!(error.contains(expected) && !error.contains("secret"), "{error}");
        }
        let headers =
            read(&[endpoint, ("OTEL_EXPORTER_OTLP_HEADERS", "a=b, c=d=e")]).expect("fine").expect("on").headers;
        assert_eq!(format!("{headers:?}"), r#"[("a", Sensitive), ("c", Sensitive)]"#);
    }
}
