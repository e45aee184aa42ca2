//! Rules for every text file: length, and nothing that is true on one machine only.

/// Above this, a source file is split.
const MAX_RUST_LINES: usize = 600;

/// Folders of the machines that Tapestry is developed on. In pieces, so that this file keeps its own rule.
const MACHINE_PATHS: [&str; 3] = [concat!("/", "work/"), concat!("/", "root/"), concat!("/home/", "user/")];

/// Hosts of package registries. Inputs are fetched through the ordinary package clients, whose configuration knows
/// which host to ask; a host in a committed file would go past that.
const REGISTRY_HOSTS: [&str; 6] = [
    concat!("crates", ".io"),
    concat!("pypi", ".org"),
    concat!("files.python", "hosted.org"),
    concat!("registry.npm", "js.org"),
    concat!("conda", ".anaconda.org"),
    concat!("proxy.gol", "ang.org"),
];

/// Every breach in one file.
pub(super) fn check(path: &str, content: &str) -> Vec<String> {
    let mut breaches = vec![];
    let num_lines = content.lines().count();
    if path.ends_with(".rs") && num_lines > MAX_RUST_LINES {
        breaches.push(format!("{path}: {num_lines} lines; at most {MAX_RUST_LINES}: split it"));
    }
    // Cargo writes where it got things from into its lock file.
    let is_written_by_cargo = path == "Cargo.lock";
    for (index, line) in content.lines().enumerate() {
        let number = index + 1;
        for folder in MACHINE_PATHS.iter().filter(|folder| has_path(line, folder)) {
            breaches.push(format!("{path}:{number}: names `{folder}`, a folder of one machine"));
        }
        for host in REGISTRY_HOSTS.iter().filter(|host| line.contains(**host) && !is_written_by_cargo) {
            breaches.push(format!("{path}:{number}: names the package registry `{host}`; use a package client"));
        }
    }
    breaches
}

/// Whether `line` holds the absolute path `folder`, not a longer path or an address that contains it.
fn has_path(line: &str, folder: &str) -> bool {
    line.match_indices(folder).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "_-.}*/~".contains(c))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_finds_its_breach() {
        let check_one = |path: &str, content: &str, expected: &str| {
            let breaches = check(path, content);
            assert!(breaches.len() == 1 && breaches[0].contains(expected), "{breaches:?}");
        };
        check_one("a.rs", &"\n".repeat(601), "601 lines");
        check_one("a.md", &format!("see {}main", MACHINE_PATHS[0]), "a.md:1");
        check_one("a.toml", &format!("\nurl = \"https://{}\"", REGISTRY_HOSTS[1]), "a.toml:2");
    }

    #[test]
    fn what_only_looks_like_a_breach_is_none() {
        assert!(check("a.rs", &"\n".repeat(600)).is_empty());
        assert!(check("a.md", &"\n".repeat(601)).is_empty());
        assert!(check("a.md", &format!("crates{}x and https://example.org{0}x", MACHINE_PATHS[0])).is_empty());
        assert!(check("Cargo.lock", REGISTRY_HOSTS[0]).is_empty());
    }
}
