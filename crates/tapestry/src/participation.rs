//! How this member takes part: a small file in the node's home, which a running node looks at between any two things that it does.

use crate::files;
use crate::home::Home;
use anyhow::{Context as _, Result};
use std::time::Duration;
use tapestry_round::node::Participation;

/// How often a node that waits for news looks at the file.
const LOOK_EVERY: Duration = Duration::from_secs(1);

const FILE: &str = "participation.toml";

/// What the operator has said last; contributing, where nothing was ever said.
///
/// # Errors
/// Where the file cannot be understood: whether weights may leave is not a thing to guess.
pub(crate) fn read(home: &Home) -> Result<Participation> {
    let path = home.path(FILE);
    if !path.exists() {
        return Ok(Participation::Contribute);
    }
    let text = files::read_text(&path)?;
    toml::from_str(&text).with_context(|| {
        format!("in {}; write it anew with `tapestry node participate --home {}`", path.display(), home.dir().display())
    })
}

/// Says how to take part from now on; a running node hears it within a second or when it has done what it is doing.
pub(crate) fn write(home: &Home, participation: &Participation) -> Result<()> {
    files::write_atomic(&home.path(FILE), toml::to_string(participation)?.as_bytes())
}

/// Waits until the operator says something else than `known`.
pub(crate) async fn changed(home: &Home, known: &Participation) {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        // What cannot be read is found by whoever reads it next.
        if !read(home).is_ok_and(|now| now == *known) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_read_back_and_nonsense_is_an_error() {
        let dir = tempfile::tempdir().expect("a folder");
        let home = Home::at(dir.path());
        assert_eq!(read(&home).expect("reads"), Participation::Contribute);
        for said in [
            Participation::Away { reason: "\u{201c}harvest\u{201d} = 1\n".into() },
            Participation::KeepPrivate { reason: String::new() },
            Participation::Decline { reason: "no".into() },
            Participation::Contribute,
        ] {
            write(&home, &said).expect("writes");
            assert_eq!(read(&home).expect("reads"), said);
        }
        std::fs::write(home.path(FILE), "mode = \"perhaps\"").expect("writes");
        let error = format!("{:#}", read(&home).expect_err("refused"));
        assert!(error.contains("participation.toml") && error.contains("node participate"), "{error}");
    }
}
