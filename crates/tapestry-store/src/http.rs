//! HTTP for stores that are not on this machine: hyper and rustls, which the transport uses too, so that no second client is
//! built in. Which certificates are believed is the operating system's decision.

use async_trait::async_trait;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::TokioExecutor;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// A slower body than this is given up: bytes a second.
const SLOWEST: u64 = 64 << 10;

/// Makes clients that give up when nothing has come for so long.
#[derive(Debug)]
pub(crate) struct Connector {
    pub(crate) idle: Duration,
}

#[derive(Debug)]
struct Service {
    client: Client<HttpsConnector<TcpConnector>, HttpRequestBody>,
    idle: Duration,
}

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let failed = |source| object_store::Error::Generic { store: "HTTP", source };
        let provider = Arc::new(tapestry_tls::to_foreign_servers());
        let connector = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(provider)
            .map_err(|error| failed(format!("the system's certificates cannot be read: {error}").into()))?;
        // Whether plain HTTP is allowed was decided when the endpoint was read.
        let connector = connector.https_or_http().enable_http1().build();
        let client = Client::builder(TokioExecutor::new()).pool_idle_timeout(self.idle).build(connector);
        Ok(HttpClient::new(Service { client, idle: self.idle }))
    }
}

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // What is sent is one chunk at most; how much of it has gone is not visible from here.
        let patience = self.idle + Duration::from_secs(request.body().size_hint().lower() / SLOWEST);
        let answered = tokio::time::timeout(patience, self.client.request(request)).await.map_err(|_| silence())?;
        let (head, body) = answered.map_err(unreachable)?.into_parts();
        let (idle, patience) = (self.idle, Box::pin(tokio::time::sleep(self.idle)));
        Ok(HttpResponse::from_parts(head, HttpResponseBody::new(Answer { body, idle, patience })))
    }
}

/// The body of an answer, given up when nothing of it comes for the idle time.
struct Answer {
    body: Incoming,
    idle: Duration,
    patience: Pin<Box<Sleep>>,
}

impl Body for Answer {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let this = &mut *self;
        if let Poll::Ready(frame) = Pin::new(&mut this.body).poll_frame(context) {
            this.patience.as_mut().reset(Instant::now() + this.idle);
            return Poll::Ready(frame.map(|frame| frame.map_err(|e| HttpError::new(HttpErrorKind::Interrupted, e))));
        }
        this.patience.as_mut().poll(context).map(|()| Some(Err(silence())))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

fn silence() -> HttpError {
    HttpError::new(HttpErrorKind::Timeout, io::Error::new(io::ErrorKind::TimedOut, "nothing came for the idle time"))
}

fn unreachable(error: hyper_util::client::legacy::Error) -> HttpError {
    let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
    HttpError::new(kind, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    /// Where a list of TLS begins that has this name and, after its two lengths, these first entries.
    fn offers(hello: &[u8], extension: [u8; 2], first: &[u8]) -> bool {
        hello.windows(6 + first.len()).any(|window| window[..2] == extension && window[6..] == *first)
    }

    #[tokio::test]
    async fn a_bucket_is_offered_the_post_quantum_exchange_first_and_x25519_beside_it() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let url = format!("https://{}/", listener.local_addr().expect("it is bound"));
        let hello = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().expect("the client connects");
            let mut head = [0; 5];
            stream.read_exact(&mut head).expect("a record's head");
            let mut hello = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
            stream.read_exact(&mut hello).expect("the record");
            hello
        });
        let connector = Connector { idle: Duration::from_secs(10) };
        let client = connector.connect(&ClientOptions::new()).expect("the system's certificates are there");
        let request = hyper::Request::get(url).body(HttpRequestBody::empty()).expect("a request");
        client.execute(request).await.expect_err("the server goes away");
        let hello = hello.join().expect("it was read");
        // Supported groups: X25519MLKEM768, then X25519. Key shares: 1216 bytes for the first, and the second follows.
        assert!(offers(&hello, [0, 10], &[0x11, 0xec, 0, 29]), "{hello:?}");
        assert!(offers(&hello, [0, 51], &[0x11, 0xec, 0x04, 0xc0]), "{hello:?}");
        assert!(hello.windows(4).any(|window| window == [0, 29, 0, 32]), "{hello:?}");
    }
}
