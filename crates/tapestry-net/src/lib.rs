//! The transport: HTTPS (HTTP/1.1) over TLS 1.3 in which both sides prove an Ed25519 key (RFC 7250 raw public keys), and
//! the transfer of content-addressed chunks over it.
//!
//! There are no certificates and no certificate authority: a key is the identity. Which keys may connect is a question
//! that the caller answers ([`Server::bind`]), from the charter. This crate knows no charter.

mod blobs;
mod dialer;
mod error;
mod identity;
mod server;
#[cfg(test)]
mod tests;

pub use blobs::{BlobAction, BlobPolicy, blob_routes, pull_blobs, push_blobs};
pub use dialer::{Dialer, retry_forever};
pub use error::{ErrorBody, NetError};
pub use identity::Peer;
pub use server::{Allow, Server};
