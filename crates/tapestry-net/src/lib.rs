//! The transport: HTTPS (HTTP/1.1) over TLS 1.3 in which both sides prove an Ed25519 key (RFC 7250 raw public keys), and
//! the transfer of content-addressed chunks over it.
//!
//! There are no certificates and no certificate authority: a key is the identity. Which keys may connect is a question
//! that the caller answers ([`Server::bind`]), from the charter. This crate knows no charter.

mod answer;
mod arriving;
mod blobs;
mod crowd;
mod dialer;
mod driver;
mod economy;
mod error;
mod identity;
mod lean;
mod mirrors;
mod pace;
mod planes;
mod rules;
mod server;
mod servers;
mod throttle;
mod traffic;
mod transfer;

pub use answer::ErrorBody;
pub use blobs::{BlobAction, BlobPolicy, blob_routes};
pub use dialer::Dialer;
pub use error::NetError;
pub use identity::Peer;
pub use lean::Hints;
pub use mirrors::Mirrors;
pub use rules::{Refusals, Rule};
pub use server::{Allow, Server, ServerLimits};
pub use throttle::MIN_BYTES_PER_SECOND;
pub use traffic::{Traffic, WireBytes};
pub use transfer::{pull_blobs, pull_blobs_from, push_blobs, push_blobs_like, retry_forever};
