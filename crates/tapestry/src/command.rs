//! The commands, one file each.

pub(crate) mod account;
mod audit;
pub(crate) mod base;
pub(crate) mod charter;
pub(crate) mod decide;
pub(crate) mod dial;
pub(crate) mod eval;
pub(crate) mod generate;
pub(crate) mod log;
pub(crate) mod merge;
pub(crate) mod model;
pub(crate) mod node;
pub(crate) mod records;
pub(crate) mod status;
pub(crate) mod train;
pub(crate) mod verify;
