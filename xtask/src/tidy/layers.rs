//! Dependencies point strictly downward in the table of layers, and the table names exactly the crates that exist.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::run::{cargo, output, root};

/// Crates that a pure crate may not even depend on: each brings a clock, files, sockets or ambient randomness.
const IMPURE_CRATES: [&str; 14] = [
    "axum",
    "fastrand",
    "getrandom",
    "hyper",
    "indicatif",
    "memmap2",
    "object_store",
    "rand",
    "reqwest",
    "rustls",
    "tempfile",
    "tokio",
    "tracing-subscriber",
    "ureq",
];

/// The table of layers in ARCHITECTURE.md: rows of layer, crate, purity and purpose.
pub(super) struct Table {
    rows: BTreeMap<String, Row>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Row {
    layer: Layer,
    is_pure: bool,
}

/// Development crates lie above every layer: they may use anything, and nothing may use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Layer {
    Shipped(u8),
    Dev,
}

/// A crate of the workspace with what it depends on.
#[derive(Debug, Default)]
pub(super) struct Crate {
    name: String,
    /// Names of the crates that it builds with, ours and foreign.
    dependencies: BTreeSet<String>,
    /// Names of the crates that only its tests use.
    dev_dependencies: BTreeSet<String>,
}

impl Table {
    /// Reads ARCHITECTURE.md.
    ///
    /// # Errors
    /// Where it cannot be read, or has no table, or names a crate twice.
    pub(super) fn read() -> Result<Self> {
        let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).context("cannot read ARCHITECTURE.md")?;
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self> {
        let mut rows = BTreeMap::new();
        for line in text.lines() {
            let cells: Vec<&str> = line.split('|').map(str::trim).collect();
            let ["", layer, name, purity, _purpose, ""] = cells[..] else { continue };
            let Some(layer) = Layer::parse(layer) else { continue };
            let name = name.trim_matches('`').to_owned();
            let is_pure = match purity {
                "pure" => true,
                "" => false,
                other => bail!("ARCHITECTURE.md: the third column of `{name}` is `pure` or empty; found `{other}`"),
            };
            if rows.insert(name.clone(), Row { layer, is_pure }).is_some() {
                bail!("ARCHITECTURE.md names `{name}` twice in its table of layers");
            }
        }
        if rows.is_empty() {
            bail!("ARCHITECTURE.md has no table of layers: rows `| L0 | `crate` | pure | purpose |`");
        }
        Ok(Self { rows })
    }

    pub(super) fn num_crates(&self) -> usize {
        self.rows.len()
    }

    /// Whether `path` is a source file of a pure crate. Integration tests may read files.
    pub(super) fn is_pure_source(&self, path: &str) -> bool {
        let Some((name, rest)) = path.strip_prefix("crates/").and_then(|path| path.split_once('/')) else {
            return false;
        };
        rest.starts_with("src/") && rest.ends_with(".rs") && self.rows.get(name).is_some_and(|row| row.is_pure)
    }
}

impl Layer {
    fn parse(text: &str) -> Option<Self> {
        match text {
            "dev" => Some(Self::Dev),
            _ => text.strip_prefix('L')?.parse().ok().map(Self::Shipped),
        }
    }
}

/// The crates of the workspace, as cargo sees them.
///
/// # Errors
/// Where cargo cannot read a manifest.
pub(super) fn crates() -> Result<Vec<Crate>> {
    let metadata = output(cargo().args(["metadata", "--no-deps", "--format-version", "1"]))?;
    let metadata: Value = serde_json::from_str(&metadata).context("cannot read cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
    let read = |package: &Value| {
        let mut found = Crate { name: package["name"].as_str()?.to_owned(), ..Crate::default() };
        for dependency in package["dependencies"].as_array()? {
            let is_dev = dependency["kind"].as_str() == Some("dev");
            let set = if is_dev { &mut found.dev_dependencies } else { &mut found.dependencies };
            set.insert(dependency["name"].as_str()?.to_owned());
        }
        Some(found)
    };
    packages.iter().map(read).collect::<Option<_>>().context("cargo metadata in an unknown form")
}

/// Every breach of the table.
pub(super) fn check(table: &Table, crates: &[Crate]) -> Vec<String> {
    let mut breaches = vec![];
    for name in table.rows.keys().filter(|name| !crates.iter().any(|c| c.name == **name)) {
        breaches.push(format!("ARCHITECTURE.md names crate `{name}`, which does not exist"));
    }
    for Crate { name, dependencies, dev_dependencies } in crates {
        let Some(row) = table.rows.get(name) else {
            breaches.push(format!("ARCHITECTURE.md lacks crate `{name}` in its table of layers"));
            continue;
        };
        for dependency in dependencies {
            match table.rows.get(dependency) {
                Some(other) if other.layer >= row.layer => breaches.push(format!(
                    "`{name}` ({}) depends on `{dependency}` ({}): a crate depends strictly downward",
                    row.layer, other.layer
                )),
                None if row.is_pure && IMPURE_CRATES.contains(&dependency.as_str()) => breaches.push(format!(
                    "`{name}` is pure and depends on `{dependency}`, which brings clock, files, sockets or randomness"
                )),
                _ => {}
            }
        }
        // A test may reach sideways, to a neighbour that it plays against, and for development crates.
        for dependency in dev_dependencies {
            match table.rows.get(dependency) {
                Some(other) if other.layer > row.layer && other.layer != Layer::Dev => breaches.push(format!(
                    "the tests of `{name}` ({}) depend upward, on `{dependency}` ({})",
                    row.layer, other.layer
                )),
                _ => {}
            }
        }
    }
    breaches
}

impl std::fmt::Display for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shipped(number) => write!(f, "L{number}"),
            Self::Dev => f.write_str("dev"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "
        | layer | crate | | what it is |
        | --- | --- | --- | --- |
        | L0 | `core` | pure | the ground |
        | L1 | `ledger` | pure | a log |
        | L1 | `merge` | | sums |
        | dev | `sim` | | a simulator |";

    fn table() -> Table {
        Table::parse(&TABLE.replace("\n        ", "\n")).expect("a table")
    }

    fn crates(edges: &[(&str, &str)], dev: &[(&str, &str)]) -> Vec<Crate> {
        let of = |name: &str, edges: &[(&str, &str)]| {
            edges.iter().filter(|(from, _)| *from == name).map(|(_, to)| (*to).to_owned()).collect()
        };
        ["core", "ledger", "merge", "sim"]
            .map(|name| Crate { name: name.into(), dependencies: of(name, edges), dev_dependencies: of(name, dev) })
            .into()
    }

    fn check_edge(edges: &[(&str, &str)], dev: &[(&str, &str)], expected: Option<&str>) {
        let breaches = check(&table(), &crates(edges, dev));
        match (&breaches[..], expected) {
            ([], None) => {}
            ([breach], Some(expected)) => assert!(breach.contains(expected), "{breach}"),
            _ => panic!("{edges:?} {dev:?}: {breaches:?}"),
        }
    }

    #[test]
    fn dependencies_point_downward() {
        check_edge(&[("ledger", "core"), ("sim", "ledger"), ("core", "serde")], &[], None);
        check_edge(&[("core", "ledger")], &[], Some("strictly downward"));
        check_edge(&[("merge", "ledger")], &[], Some("strictly downward"));
        check_edge(&[("merge", "sim")], &[], Some("strictly downward"));
    }

    #[test]
    fn tests_may_reach_sideways_but_not_up() {
        check_edge(&[], &[("merge", "ledger"), ("merge", "sim")], None);
        check_edge(&[], &[("core", "ledger")], Some("upward"));
    }

    #[test]
    fn a_pure_crate_takes_no_clock_from_a_foreign_crate() {
        check_edge(&[("ledger", "tokio")], &[], Some("is pure"));
        check_edge(&[("merge", "tokio")], &[("ledger", "tempfile")], None);
    }

    #[test]
    fn the_table_and_the_workspace_name_the_same_crates() {
        let mut too_few = crates(&[], &[]);
        too_few.pop();
        assert!(check(&table(), &too_few)[0].contains("does not exist"));
        let mut too_many = crates(&[], &[]);
        too_many.push(Crate { name: "net".into(), ..Crate::default() });
        assert!(check(&table(), &too_many)[0].contains("lacks crate `net`"));
        assert!(Table::parse("no table").is_err());
    }

    #[test]
    fn only_sources_of_pure_crates_are_held_to_purity() {
        assert!(table().is_pure_source("crates/core/src/key.rs"));
        assert!(!table().is_pure_source("crates/core/tests/golden.rs"));
        assert!(!table().is_pure_source("crates/merge/src/lib.rs"));
        assert!(!table().is_pure_source("xtask/src/main.rs"));
    }
}
