//! The public face of the model crate: reference values, folders, and what is refused.

#![expect(clippy::unwrap_used, reason = "tests")]

mod bpb;
mod chat;
mod families;
mod fixture;
mod folder;
mod gguf;
mod golden;
mod smollm2;
mod tokens;
