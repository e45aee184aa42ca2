//! The part of a transfer that makes blobs smaller where that pays.

use crate::blobs::MAX_DIGESTS;
use crate::economy::{Advice, Economy, Processors, Sample};
use crate::planes::{self, Tried};
use crate::{Dialer, NetError};
use bytes::Bytes;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;
use tapestry_core::Digest;
use tapestry_store::{BlobStore, StoreError};
use tokio::sync::OnceCell;

/// What is known of blobs and helps to make them smaller. Without hints nothing is compressed.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    /// Bytes of an element of the weights in the blobs: 2 or 4.
    pub element_bytes: Option<u8>,
    /// For a blob, another one that is like it and that the receiver may have: the chunk at the same place in the base.
    pub bases: Arc<HashMap<Digest, Digest>>,
    /// What the link carries, in bytes a second, where that is known; where not, it is measured.
    pub link_bytes_per_second: Option<f64>,
}

/// Which way blobs go.
#[derive(Debug, Clone, Copy)]
enum Direction {
    There,
    Here,
}

/// One transfer between a store and the other side.
pub(crate) struct Lean {
    pub(crate) dialer: Dialer,
    pub(crate) store: BlobStore,
    hints: Hints,
    economy: Economy,
    /// What the dialer had sent and received when this began.
    moved_before: (u64, u64),
    /// The other side knows the encoding.
    is_known: OnceCell<bool>,
    /// The bases that the other side has.
    bases_there: OnceCell<HashSet<Digest>>,
    /// The other side did not take it, or sent nonsense: no more of it.
    is_over: AtomicBool,
}

impl Lean {
    pub(crate) fn new(dialer: &Dialer, store: &BlobStore, hints: &Hints) -> Self {
        Self {
            dialer: dialer.clone(),
            store: store.clone(),
            hints: hints.clone(),
            economy: Economy::new(Instant::now(), Processors::now(), hints.link_bytes_per_second),
            moved_before: dialer.bytes_moved(),
            is_known: OnceCell::new(),
            bases_there: OnceCell::new(),
            is_over: AtomicBool::new(false),
        }
    }

    /// What to do with the next blob, by what has gone over the link in this direction.
    fn advice(&self, direction: Direction) -> Advice {
        let (now, before) = (self.dialer.bytes_moved(), self.moved_before);
        let wire_bytes = match direction {
            Direction::There => now.0 - before.0,
            Direction::Here => now.1 - before.1,
        };
        self.economy.advice(Instant::now(), wire_bytes, Processors::now)
    }

    async fn is_known(&self) -> bool {
        let ask = async || {
            let names: Result<Vec<String>, _> = self.dialer.get_json("/v1/blobs/encodings").await;
            names.is_ok_and(|names| names.iter().any(|name| name == planes::NAME))
        };
        *self.is_known.get_or_init(ask).await
    }

    async fn base_there(&self, digest: Digest) -> Option<Digest> {
        let base = *self.hints.bases.get(&digest)?;
        let ask = async || {
            let mut there: HashSet<Digest> = self.hints.bases.values().copied().collect();
            let asked: Vec<Digest> = there.iter().copied().take(MAX_DIGESTS).collect();
            there.retain(|digest| asked.contains(digest));
            match self.dialer.post_json::<_, Vec<Digest>>("/v1/blobs/missing", &asked).await {
                Ok(missing) => {
                    let missing: HashSet<Digest> = missing.into_iter().collect();
                    there.retain(|digest| !missing.contains(digest));
                }
                Err(_) => there.clear(),
            }
            there
        };
        let there = self.bases_there.get_or_init(ask).await;
        // Both sides need it.
        (there.contains(&base) && self.store.has(base).await.unwrap_or(false)).then_some(base)
    }

    /// The bytes of an element, if this is the time to do something with them.
    async fn advised(&self, direction: Direction) -> Option<(u8, Advice)> {
        let element_bytes = self.hints.element_bytes?;
        if self.is_over.load(Ordering::Relaxed) {
            return None;
        }
        let advice = self.advice(direction);
        (advice != Advice::Plain && self.is_known().await).then_some((element_bytes, advice))
    }

    /// Sends a blob in a smaller form. `None` where that does not pay or did not work; then it is to be sent as it is.
    pub(crate) async fn push(&self, path: &str, digest: Digest) -> Result<Option<u64>, NetError> {
        let Some((element_bytes, advice)) = self.advised(Direction::There).await else { return Ok(None) };
        let base = self.base_there(digest).await;
        let tried = planes::encode_blob(&self.store, digest, element_bytes, base).await?;
        self.weigh(advice, &tried);
        if advice == Advice::Sample && self.advice(Direction::There) != Advice::Encode {
            return Ok(None);
        }
        let Some(encoded) = tried.encoded else { return Ok(None) };
        match self.dialer.put_encoded(path, encoded, base).await {
            Ok(()) => Ok(Some(tried.size_bytes)),
            Err(error) => {
                self.give_up(&error);
                Ok(None)
            }
        }
    }

    /// Fetches a blob in a smaller form, as [`Self::push`].
    pub(crate) async fn pull(&self, path: &str, digest: Digest) -> Result<Option<u64>, NetError> {
        let Some((element_bytes, Advice::Encode)) = self.advised(Direction::Here).await else { return Ok(None) };
        let mut asked = format!("{path}?planes={element_bytes}");
        let mut base = self.hints.bases.get(&digest).copied();
        if let Some(held) = base {
            if self.store.has(held).await? {
                asked.push_str(&format!("&base={held}"));
            } else {
                base = None;
            }
        }
        let (content, is_encoded) = match self.dialer.get_maybe_encoded(&asked).await {
            Ok(answer) => answer,
            Err(error) => {
                self.give_up(&error);
                return Ok(None);
            }
        };
        let Some(content) = self.decoded(content, is_encoded, base).await? else { return Ok(None) };
        let size = content.len() as u64;
        match self.store.put_expected(digest, content).await {
            Ok(()) => Ok(Some(size)),
            Err(error @ StoreError::WrongContent { .. }) => {
                self.give_up(&error.into());
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn decoded(&self, content: Bytes, is_encoded: bool, base: Option<Digest>) -> Result<Option<Bytes>, NetError> {
        if !is_encoded {
            return Ok(Some(content));
        }
        match planes::decode_blob(&self.store, content, base).await? {
            Ok(content) => Ok(Some(content)),
            Err(error) => {
                tracing::warn!(%error, "what came compressed cannot be read; it is fetched as it is");
                self.is_over.store(true, Ordering::Relaxed);
                Ok(None)
            }
        }
    }

    /// A blob has come as it is; what would it have been?
    pub(crate) async fn came_plain(&self, digest: Digest) {
        let Some((element_bytes, Advice::Sample)) = self.advised(Direction::Here).await else { return };
        let mut base = self.hints.bases.get(&digest).copied();
        if let Some(held) = base
            && !self.store.has(held).await.unwrap_or(false)
        {
            base = None;
        }
        // What cannot be read now cannot be sampled; the transfer itself will say so if it matters.
        if let Ok(tried) = planes::encode_blob(&self.store, digest, element_bytes, base).await {
            self.weigh(Advice::Sample, &tried);
        }
    }

    fn weigh(&self, advice: Advice, tried: &Tried) {
        if advice == Advice::Sample {
            let sample = tried.sample();
            self.economy.sampled(sample);
            let Sample { ratio, bytes_per_second } = sample;
            tracing::info!(ratio, bytes_per_second, "compressing a chunk was tried");
        }
    }

    fn give_up(&self, error: &NetError) {
        // A broken connection says nothing about the encoding.
        if !error.is_transient() {
            self.is_over.store(true, Ordering::Relaxed);
        }
        tracing::warn!(%error, "a compressed chunk did not go through; it is moved as it is");
    }
}
