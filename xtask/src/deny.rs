//! `cargo xtask deny`: the licences, sources and bans of deny.toml, checked on what `cargo tree` says is built.
//!
//! Does what `cargo deny check licenses bans sources` does, without anything to install. What it does not do: look for
//! known vulnerabilities, which needs a database (`cargo deny check advisories` reads the same file).

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail};

use crate::run::{cargo, output, root};
use crate::spdx;

/// Runs the check.
///
/// # Errors
/// Every crate that breaks a rule, and the rule.
pub(crate) fn deny() -> Result<()> {
    let text = std::fs::read_to_string(root().join("deny.toml")).context("cannot read deny.toml")?;
    let policy = Policy::parse(&text)?;
    let mut command = cargo();
    command.args(["tree", "--workspace", "--locked", "--edges", "normal,build,dev", "--prefix", "none"]);
    command.args(["--no-dedupe", "--format", "{p}\t{l}"]);
    policy.targets.iter().for_each(|target| {
        command.args(["--target", target]);
    });
    let packages = parse_tree(&output(&mut command)?)?;
    let mut problems: Vec<String> = packages.iter().filter_map(|package| policy.problem(package)).collect();
    let twice = with_several_versions(&packages);
    match (twice.is_empty(), policy.multiple_versions.as_str()) {
        (true, _) | (false, "allow") => {}
        (false, "warn") => println!("xtask: built in several versions: {}", twice.join(", ")),
        (false, _) => problems.push(format!("built in several versions: {}", twice.join(", "))),
    }
    if !problems.is_empty() {
        bail!("deny.toml forbids:\n  {}", problems.join("\n  "));
    }
    println!("xtask: {} crates, all under allowed licences and from the default registry", packages.len());
    Ok(())
}

/// A crate as `cargo tree` shows it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Package {
    name: String,
    version: String,
    /// A folder, a git address or another registry; empty for the default registry.
    source: String,
    licence: String,
}

fn parse_tree(text: &str) -> Result<BTreeSet<Package>> {
    let mut packages = BTreeSet::new();
    for line in text.lines().filter(|line| !line.is_empty()) {
        let (package, licence) =
            line.split_once('\t').with_context(|| format!("cannot read `{line}` of cargo tree"))?;
        let package = package.replace(" (proc-macro)", "");
        let mut words = package.splitn(3, ' ');
        let (Some(name), Some(version)) = (words.next(), words.next()) else {
            bail!("cannot read `{line}` of cargo tree");
        };
        packages.insert(Package {
            name: name.into(),
            version: version.into(),
            source: words.next().unwrap_or_default().trim_matches(['(', ')']).into(),
            licence: licence.into(),
        });
    }
    Ok(packages)
}

fn with_several_versions(packages: &BTreeSet<Package>) -> Vec<String> {
    let mut versions: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in packages {
        versions.entry(&package.name).or_default().insert(&package.version);
    }
    versions.retain(|_, versions| versions.len() > 1);
    versions.keys().map(|name| (*name).to_owned()).collect()
}

/// The part of deny.toml that we enforce.
#[derive(Debug)]
struct Policy {
    targets: Vec<String>,
    licences: Vec<String>,
    /// Licences that one crate may have in addition.
    exceptions: BTreeMap<String, Vec<String>>,
    /// Crates that may not be built, each with the reason.
    banned: BTreeMap<String, String>,
    multiple_versions: String,
}

impl Policy {
    fn parse(text: &str) -> Result<Self> {
        let table: toml::Table = text.parse().context("deny.toml is no TOML")?;
        let at = |section: &str, key: &str| {
            table.get(section).and_then(|s| s.get(key)).with_context(|| format!("deny.toml lacks `{section}.{key}`"))
        };
        for key in ["unknown-registry", "unknown-git"] {
            if at("sources", key)?.as_str() != Some("deny") {
                bail!("deny.toml: `sources.{key}` must be \"deny\"; cargo xtask deny knows no other rule");
            }
        }
        let mut exceptions = BTreeMap::new();
        for (name, entry) in named(at("licenses", "exceptions")?)? {
            exceptions.insert(name, strings(entry.get("allow").context("an exception lacks `allow`")?)?);
        }
        let mut banned = BTreeMap::new();
        for (name, entry) in named(at("bans", "deny")?)? {
            let reason = entry.get("reason").and_then(toml::Value::as_str).context("a ban lacks its `reason`")?;
            banned.insert(name, reason.to_owned());
        }
        let multiple_versions = at("bans", "multiple-versions")?.as_str().context("not a text")?.to_owned();
        let targets = strings(at("graph", "targets")?)?;
        Ok(Self { targets, licences: strings(at("licenses", "allow")?)?, exceptions, banned, multiple_versions })
    }

    fn problem(&self, package: &Package) -> Option<String> {
        let Package { name, version, source, licence } = package;
        if let Some(reason) = self.banned.get(name) {
            return Some(format!("{name} {version} is banned: {reason}"));
        }
        let is_ours = std::path::Path::new(source).starts_with(root());
        if !source.is_empty() && !is_ours {
            return Some(format!("{name} {version} comes from {source}, not from the default registry"));
        }
        let exception = self.exceptions.get(name);
        let is_allowed = |licence: &str| {
            self.licences.iter().chain(exception.into_iter().flatten()).any(|allowed| allowed == licence)
        };
        // A crate that names no licence has a file instead; an exception says that somebody read it.
        let is_fine = match (licence.as_str(), exception) {
            ("", exception) => Ok(exception.is_some()),
            (licence, _) => spdx::is_satisfied(licence, &is_allowed),
        };
        match is_fine {
            Ok(true) => None,
            Ok(false) => Some(format!("{name} {version} is under `{licence}`, which `licenses.allow` does not grant")),
            Err(error) => Some(format!("{name} {version}: {error}")),
        }
    }
}

/// A list of tables, each with the crate that it is about.
fn named(value: &toml::Value) -> Result<Vec<(String, &toml::Table)>> {
    let entries = value.as_array().context("deny.toml: expected a list of tables")?;
    let entry = |entry: &'_ toml::Value| -> Option<String> { Some(entry.get("crate")?.as_str()?.to_owned()) };
    entries
        .iter()
        .map(|value| Some((entry(value)?, value.as_table()?)))
        .collect::<Option<_>>()
        .context("deny.toml: every exception and ban has a `crate`")
}

fn strings(value: &toml::Value) -> Result<Vec<String>> {
    let list = value.as_array().context("deny.toml: expected a list of texts")?;
    list.iter().map(|v| Some(v.as_str()?.to_owned())).collect::<Option<_>>().context("deny.toml: expected a text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy() -> Policy {
        Policy::parse(
            r#"
            graph.targets = ["x"]
            licenses.allow = ["MIT"]
            licenses.exceptions = [{ crate = "odd", allow = ["MPL-2.0"] }]
            bans.multiple-versions = "warn"
            bans.deny = [{ crate = "openssl-sys", reason = "one TLS stack" }]
            sources.unknown-registry = "deny"
            sources.unknown-git = "deny"
            "#,
        )
        .expect("a policy")
    }

    #[test]
    fn every_rule_finds_its_offender_and_nothing_else() {
        let check = |line: &str, expected: Option<&str>| {
            let packages = parse_tree(line).expect("parses");
            let found = policy().problem(packages.first().expect("one package"));
            match (&found, expected) {
                (None, None) => {}
                (Some(found), Some(expected)) => assert!(found.contains(expected), "{found}"),
                _ => panic!("{line}: {found:?}"),
            }
        };
        check("good v1.0.0\tMIT OR GPL-3.0", None);
        check("macro v1.0.0 (proc-macro)\tMIT", None);
        check("bad v1.0.0\tGPL-3.0", Some("GPL-3.0"));
        check("odd v1.0.0\tMPL-2.0", None);
        check("other v1.0.0\tMPL-2.0", Some("MPL-2.0"));
        check("nameless v1.0.0\t", Some("does not grant"));
        check("openssl-sys v1.0.0\tMIT", Some("one TLS stack"));
        check("forked v1.0.0 (https://example.org/x?rev=1#abc)\tMIT", Some("not from the default registry"));
        check("elsewhere v1.0.0 (registry `mirror`)\tMIT", Some("not from the default registry"));
    }

    #[test]
    fn the_file_in_the_repository_parses() {
        let text = std::fs::read_to_string(root().join("deny.toml")).expect("reads");
        let policy = Policy::parse(&text).expect("parses");
        assert!(policy.licences.contains(&"Apache-2.0".to_owned()));
    }
}
