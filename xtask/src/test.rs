//! `cargo xtask test`: everything that CI runs, cheapest first.

use anyhow::Result;

use crate::run::{cargo, step};

/// Builds and tests the workspace with the one release profile, so that heavy dependencies compile once.
pub(crate) fn test() -> Result<()> {
    step("tests", cargo().args(["test", "--release", "--workspace", "--locked"]))
}
