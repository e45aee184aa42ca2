//! A real S3-compatible server on this machine, for tests: the crates `s3s` and `s3s-fs`, on a socket, with signed requests.
//!
//! `s3s-fs` looks whether an object exists and then writes it, which is not one step; here requests that create an object
//! conditionally wait for one another, so that they are. It runs on a thread of its own until it is dropped, and keeps its
//! objects as files in a folder: what a test damages there is damaged.

use async_trait::async_trait;
use hyper::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use s3s::access::S3Access;
use s3s::auth::SimpleAuth;
use s3s::dto::PutObjectInput;
use s3s::service::S3ServiceBuilder;
use s3s::{S3Request, S3Result};
use s3s_fs::FileSystem;
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tokio::net::TcpListener;
use tokio::sync::Mutex;

/// The access key that the server knows.
pub const ACCESS_KEY: &str = "test-access-key";
/// Its secret.
pub const SECRET_KEY: &str = "test-secret-key";

/// Forgets conditions when it is told to, as a server does that does not know them.
struct Careless(Arc<AtomicBool>);

#[async_trait]
impl S3Access for Careless {
    async fn put_object(&self, request: &mut S3Request<PutObjectInput>) -> S3Result<()> {
        if self.0.load(Ordering::Relaxed) {
            request.input.if_none_match = None;
        }
        Ok(())
    }
}

/// A running server; dropped, it stops.
#[derive(Debug)]
pub struct BucketServer {
    address: SocketAddr,
    num_requests: Arc<AtomicU64>,
    ignores_conditions: Arc<AtomicBool>,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for BucketServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // A test may be asynchronous itself, and must not wait.
            runtime.shutdown_background();
        }
    }
}

impl BucketServer {
    /// Serves the folders in `root`, each as a bucket. `root` and the buckets must exist.
    ///
    /// # Errors
    /// Where the folder cannot be used, or no port is free.
    pub fn start(root: &Path) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let files = FileSystem::new(root).map_err(|error| io::Error::other(format!("{error:?}")))?;
        let mut builder = S3ServiceBuilder::new(files);
        builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
        let ignores_conditions = Arc::<AtomicBool>::default();
        builder.set_access(Careless(Arc::clone(&ignores_conditions)));
        let service = builder.build();
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let num_requests = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&num_requests);
        let one_at_a_time = Arc::new(Mutex::new(()));
        let answer = move |request: Request<Incoming>| {
            counted.fetch_add(1, Ordering::Relaxed);
            let (service, one_at_a_time) = (service.clone(), Arc::clone(&one_at_a_time));
            async move {
                let is_conditional = request.headers().contains_key("if-none-match");
                let _turn = if is_conditional { Some(one_at_a_time.lock().await) } else { None };
                Service::call(&service, request).await
            }
        };
        runtime.spawn(async move {
            let listener = TcpListener::from_std(listener)?;
            while let Ok((stream, _)) = listener.accept().await {
                let answer = answer.clone();
                tokio::spawn(async move {
                    // Clients may go at any time.
                    let connection = hyper::server::conn::http1::Builder::new();
                    let _ = connection.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
                });
            }
            Ok::<_, io::Error>(())
        });
        Ok(Self { address, num_requests, ignores_conditions, runtime: Some(runtime) })
    }

    /// `http://127.0.0.1:PORT`.
    #[must_use]
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests it was asked so far.
    #[must_use]
    pub fn num_requests(&self) -> u64 {
        self.num_requests.load(Ordering::Relaxed)
    }

    /// From now on it lets anybody write anything, as old servers do that ignore `If-None-Match`.
    pub fn ignore_conditions(&self) {
        self.ignores_conditions.store(true, Ordering::Relaxed);
    }
}
