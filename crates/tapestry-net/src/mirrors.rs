//! Others that may have what the coordinator has.
//!
//! A mirror is asked first and trusted with nothing: what it sends is checked against the digest that was asked for, and what it does
//! not have, or does not give, comes from the coordinator. What a mirror had sent of a chunk when it broke off is kept.

use crate::arriving::ArrivingBlob;
use crate::{Dialer, NetError};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tapestry_core::Digest;
use tapestry_store::{BlobStore, StoreError};

/// How long a mirror that failed is not asked.
const PAUSE: Duration = Duration::from_secs(60);

/// Diallers of mirrors, which share the load. Cheap to clone; clones remember together who failed.
#[derive(Debug, Clone, Default)]
pub struct Mirrors(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    mirrors: Vec<Mirror>,
    turn: AtomicUsize,
}

#[derive(Debug)]
struct Mirror {
    dialer: Dialer,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Good,
    FailedAt(Instant),
    /// It sent something else than was asked for.
    Wrong,
}

impl Mirrors {
    /// Asks these, one after the other in turn.
    #[must_use]
    pub fn new(dialers: Vec<Dialer>) -> Self {
        let mirrors = dialers.into_iter().map(|dialer| Mirror { dialer, state: Mutex::new(State::Good) });
        Self(Arc::new(Shared { mirrors: mirrors.collect(), turn: AtomicUsize::new(0) }))
    }

    /// Fetches a blob from whoever of them has it. `None` where nobody gave it; what came of it is then in what is returned with it.
    pub(crate) async fn pull(
        &self,
        store: &BlobStore,
        digest: Digest,
        path: &str,
    ) -> Result<Result<u64, ArrivingBlob>, NetError> {
        let mirrors = &self.0.mirrors;
        let turn = if mirrors.is_empty() { 0 } else { self.0.turn.fetch_add(1, Ordering::Relaxed) % mirrors.len() };
        let mut blob = ArrivingBlob::new(store, digest);
        for mirror in mirrors[turn..].iter().chain(&mirrors[..turn]).filter(|mirror| mirror.is_asked()) {
            match mirror.dialer.get_blob(path, &mut blob).await {
                Ok(()) => {}
                Err(error @ NetError::Store(_)) => return Err(error),
                Err(error) => {
                    // That it does not have this one says nothing about the others.
                    if !matches!(error, NetError::Refused { status: 404, .. }) {
                        mirror.failed(State::FailedAt(Instant::now()), &error);
                    }
                    continue;
                }
            }
            let size = blob.size_bytes();
            match blob.finish().await {
                Ok(()) => return Ok(Ok(size)),
                Err(error @ StoreError::WrongContent { .. }) => mirror.failed(State::Wrong, &error.into()),
                Err(error) => return Err(error.into()),
            }
            blob = ArrivingBlob::new(store, digest);
        }
        Ok(Err(blob))
    }
}

impl Mirror {
    fn is_asked(&self) -> bool {
        match *self.state.lock().unwrap_or_else(PoisonError::into_inner) {
            State::Good => true,
            State::FailedAt(at) => at.elapsed() >= PAUSE,
            State::Wrong => false,
        }
    }

    fn failed(&self, state: State, error: &NetError) {
        tracing::warn!(mirror = self.dialer.address(), %error, "a mirror failed; others are asked");
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}
