//! Where everything heavy and everything that must not be lost is kept: content-addressed blobs, and logs.
//!
//! * [`BlobStore`]: chunks of at most 8 MiB under their BLAKE3 digests; every read is checked. Models, weights and files
//!   are lists of chunks, so transfer, resumption, deduplication and integrity are one mechanism.
//! * [`WeightsReader`], [`WeightsWriter`]: weights in constant memory, for synchronous code; [`pieces`] cuts them for
//!   arithmetic.
//! * [`LogStore`], [`RoleLog`]: numbered entries in commits, each written once; [`ExportedLog`]: a log as files for others.
//!
//! Both stand on the `object_store` crate: a folder by default, memory in tests, a bucket when a disk is too small.
//!
//! # Durability
//! In a folder, content is written under a temporary name, synced, then linked or renamed to its name, and the folder is
//! synced; blobs that are written at about the same time share these syncs. So a name shows all of the content or does not exist, whatever crashes; and what a call has confirmed is on
//! stable storage. Temporary files that a crash left are removed when the folder is opened.
//!
//! # What this is not
//! It holds no lock: one process per folder is the binary's business (a log survives two writers, since one of them is
//! refused; a blob store's clean-up may make another process's write fail, never succeed wrongly). Nothing is deleted
//! here, and nothing is encrypted.

mod arrival;
mod blob;
mod blocking;
mod bucket;
mod buffer;
mod departure;
mod disk;
mod error;
mod export;
mod filling;
mod folder;
mod http;
mod index;
mod log;
mod migration;
mod models;
mod objects;
mod pack;
mod pulse;
mod role_log;
mod s3;
mod scan;
mod stream;
mod verified;
mod weights;

pub use arrival::Arrival;
pub use blob::{BlobStore, Staged, chunk_digests};
pub use buffer::{ChunkBuffer, PIECE_BYTES};
pub use departure::Departure;
pub use error::{LogError, StoreError};
pub use export::{ExportFault, ExportedLog, write_export};
pub use index::LogIndex;
pub use log::LogStore;
pub use migration::migrate;
pub use object_store::ObjectStore;
pub use pulse::Pulse;
pub use role_log::{LogContent, RoleLog, read_log, verify_log, verify_log_on};
pub use s3::{S3Credentials, S3Settings};
pub use scan::ChunkScan;
pub use weights::{Piece, WeightsReader, WeightsWriter, pieces};
