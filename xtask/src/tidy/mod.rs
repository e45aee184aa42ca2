//! `cargo xtask tidy`: the rules of ARCHITECTURE.md that a program can check. Fast, and needs no build.

mod layers;
mod pure;
mod text;

use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

use crate::run::root;

/// Runs every rule and reports all breaches at once.
///
/// # Errors
/// The breaches, one a line.
pub(crate) fn tidy() -> Result<()> {
    let files = files()?;
    let table = layers::Table::read()?;
    let mut breaches = layers::check(&table, &layers::crates()?);
    for file in &files {
        // What is not UTF-8 is data, not text.
        let Ok(content) = String::from_utf8(std::fs::read(root().join(file))?) else { continue };
        let path = file.display().to_string();
        breaches.extend(text::check(&path, &content));
        if table.is_pure_source(&path) {
            breaches.extend(pure::check(&path, &content));
        }
    }
    if !breaches.is_empty() {
        bail!("{} breaches:\n  {}", breaches.len(), breaches.join("\n  "));
    }
    println!("xtask: {} crates and {} files are tidy", table.num_crates(), files.len());
    Ok(())
}

/// Every file of the working tree that .gitignore does not leave out, relative to the root.
///
/// A walk, not `git ls-files`: CI may check an exported tree, and what is about to be added counts too.
fn files() -> Result<Vec<PathBuf>> {
    let root = root();
    let ignored = std::fs::read_to_string(root.join(".gitignore")).context("cannot read .gitignore")?;
    let mut ignored: Vec<PathBuf> =
        ignored.lines().filter(|line| !line.is_empty()).map(|line| line.trim_matches('/').into()).collect();
    ignored.push(".git".into());
    let mut files = vec![];
    walk(&root, &root, &ignored, &mut files)?;
    files.sort();
    Ok(files)
}

fn walk(root: &Path, folder: &Path, ignored: &[PathBuf], files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let entry = entry?;
        let path = entry.path();
        let relative = path.strip_prefix(root).expect("a walk stays below its root").to_path_buf();
        let kind = entry.file_type()?;
        let is_ignored = ignored.contains(&relative) || entry.file_name() == "__pycache__";
        if kind.is_dir() && !is_ignored {
            walk(root, &path, ignored, files)?;
        } else if kind.is_file() && !is_ignored {
            files.push(relative);
        }
    }
    Ok(())
}
