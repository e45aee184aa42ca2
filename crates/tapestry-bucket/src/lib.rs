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
use s3s::dto::{DeleteObjectInput, DeleteObjectsInput, PutObjectInput};
use s3s::service::S3ServiceBuilder;
use s3s::{S3Request, S3Result, s3_error};
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

/// What the server was told to do.
#[derive(Debug, Default)]
struct Orders {
    /// Forget conditions, as a server does that does not know them.
    ignore_conditions: AtomicBool,
    /// Let nobody delete anything.
    keep_everything: AtomicBool,
    /// So many creations are done and never answered.
    num_silent_creations: AtomicU64,
}

impl Orders {
    fn check_deletion(&self) -> S3Result<()> {
        let is_kept = self.keep_everything.load(Ordering::Relaxed);
        if is_kept { Err(s3_error!(AccessDenied, "nothing is deleted here")) } else { Ok(()) }
    }
}

struct Access(Arc<Orders>);

#[async_trait]
impl S3Access for Access {
    async fn put_object(&self, request: &mut S3Request<PutObjectInput>) -> S3Result<()> {
        if self.0.ignore_conditions.load(Ordering::Relaxed) {
            request.input.if_none_match = None;
        }
        Ok(())
    }

    async fn delete_object(&self, _: &mut S3Request<DeleteObjectInput>) -> S3Result<()> {
        self.0.check_deletion()
    }

    async fn delete_objects(&self, _: &mut S3Request<DeleteObjectsInput>) -> S3Result<()> {
        self.0.check_deletion()
    }
}

/// A running server; dropped, it stops.
#[derive(Debug)]
pub struct BucketServer {
    address: SocketAddr,
    num_requests: Arc<AtomicU64>,
    orders: Arc<Orders>,
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
        let orders = Arc::<Orders>::default();
        builder.set_access(Access(Arc::clone(&orders)));
        let service = builder.build();
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let num_requests = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&num_requests);
        let one_at_a_time = Arc::new(Mutex::new(()));
        let obeyed = Arc::clone(&orders);
        let answer = move |request: Request<Incoming>| {
            counted.fetch_add(1, Ordering::Relaxed);
            let (service, one_at_a_time, obeyed) = (service.clone(), Arc::clone(&one_at_a_time), Arc::clone(&obeyed));
            async move {
                let is_conditional = request.headers().contains_key("if-none-match");
                let turn = if is_conditional { Some(one_at_a_time.lock().await) } else { None };
                let answer = Service::call(&service, request).await;
                drop(turn);
                let silent = &obeyed.num_silent_creations;
                let one_less = |num: u64| num.checked_sub(1);
                if is_conditional && silent.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).is_ok() {
                    std::future::pending::<()>().await;
                }
                answer
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
        Ok(Self { address, num_requests, orders, runtime: Some(runtime) })
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
        self.orders.ignore_conditions.store(true, Ordering::Relaxed);
    }

    /// From now on nobody may delete anything.
    pub fn keep_everything(&self) {
        self.orders.keep_everything.store(true, Ordering::Relaxed);
    }

    /// The next `num` objects that are created conditionally are created, and whoever created them is never told.
    pub fn lose_answers(&self, num: u64) {
        self.orders.num_silent_creations.store(num, Ordering::Relaxed);
    }
}
