//! Waiting for the store from ordinary, synchronous code.
//!
//! Reading weights for training and merging is synchronous: it runs on plain threads, under rayon, inside
//! `spawn_blocking`. A handle of the caller's runtime would be missing on the first and panic on a runtime's own threads.
//! So the store has one small runtime of its own for this, which lives as long as the process.

use crate::StoreError;
use std::future::Future;
use std::io;
use std::sync::OnceLock;
use std::sync::mpsc;
use tokio::runtime::{Builder, Runtime};

/// Runs `future` to its end while the calling thread waits. Works on every thread; on a thread of an async runtime it
/// holds up that runtime's other work, so call it from `spawn_blocking` there.
pub(crate) fn wait<T: Send + 'static>(
    future: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let (sender, receiver) = mpsc::sync_channel(1);
    runtime()?.spawn(async move {
        // The receiver is gone only when the waiting thread is, and then nobody wants the answer.
        let _ = sender.send(future.await);
    });
    receiver.recv().unwrap_or(Err(StoreError::Interrupted))
}

fn runtime() -> Result<&'static Runtime, StoreError> {
    static RUNTIME: OnceLock<io::Result<Runtime>> = OnceLock::new();
    let built = RUNTIME.get_or_init(|| {
        // One thread drives; the file system's calls go to a few more.
        Builder::new_multi_thread().worker_threads(1).max_blocking_threads(8).thread_name("store").enable_all().build()
    });
    built
        .as_ref()
        .map_err(|e| StoreError::file("start the threads of", "the store", io::Error::new(e.kind(), e.to_string())))
}
