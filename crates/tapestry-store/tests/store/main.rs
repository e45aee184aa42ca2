//! The store as its users see it: real folders, crashes, damage, a full disk, rivals.
#![expect(clippy::unwrap_used, reason = "tests")]

mod blobs;
mod bucket;
mod crash;
mod faulty;
mod logs;
mod models;
mod packs;
mod weights;
