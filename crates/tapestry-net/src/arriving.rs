//! A blob on its way from a connection into a store, on either side.

use bytes::Bytes;
use tapestry_core::Digest;
use tapestry_store::{Arrival, BlobStore, ChunkBuffer, PIECE_BYTES, Staged, StoreError};

/// Collects what comes into pieces and hands them on.
pub(crate) struct ArrivingBlob {
    store: BlobStore,
    digest: Digest,
    arrival: Arrival,
    piece: ChunkBuffer,
}

impl ArrivingBlob {
    pub(crate) fn new(store: &BlobStore, digest: Digest) -> Self {
        let arrival = store.arrival(digest);
        Self { store: store.clone(), digest, arrival, piece: ChunkBuffer::new(PIECE_BYTES) }
    }

    /// Bytes that have come so far.
    pub(crate) const fn size_bytes(&self) -> u64 {
        self.arrival.size_bytes() + self.piece.len() as u64
    }

    /// Forgets what has come.
    pub(crate) fn restart(&mut self) {
        *self = Self::new(&self.store, self.digest);
    }

    /// Takes what came next.
    pub(crate) async fn take(&mut self, data: &Bytes) -> Result<(), StoreError> {
        let mut rest = &data[..];
        loop {
            rest = &rest[self.piece.fill_from(rest)..];
            if !self.piece.is_full() {
                return Ok(());
            }
            let full = std::mem::replace(&mut self.piece, ChunkBuffer::new(PIECE_BYTES));
            self.arrival.write(full).await?;
        }
    }

    /// Checks that what has come is the blob, and makes it durable together with others that end at about the same time.
    pub(crate) async fn finish(mut self) -> Result<(), StoreError> {
        if !self.piece.is_empty() {
            self.arrival.write(self.piece).await?;
        }
        let staged: Staged = self.arrival.finish().await?;
        self.store.commit(vec![staged]).await.map(drop)
    }
}
