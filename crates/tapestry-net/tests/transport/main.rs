//! The transport over real sockets on loopback.
#![expect(clippy::unwrap_used, reason = "tests")]

mod blobs;
mod fixture;
mod identity;
mod lean;
mod limits;
mod mirrors;
mod moving;
mod raw;
mod requests;
