//! Names of members: short, lower-case, safe as a file name and in a log line.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The name of a member inside one consortium: 1 to 40 of `a-z`, `0-9`, `-`, starting with a letter.
///
/// It names a folder and appears in URLs, so nothing that a path or a terminal could interpret is allowed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MemberName(String);

/// A text that cannot be a member's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a member's name has 1 to 40 of a-z, 0-9 and '-', starting with a letter; found {found:?}")]
pub struct NameError {
    found: String,
}

impl MemberName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for MemberName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        let starts = text.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        let inside = text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        if starts && inside && text.len() <= 40 {
            Ok(Self(text.to_owned()))
        } else {
            Err(NameError { found: text.chars().take(60).collect() })
        }
    }
}

impl TryFrom<String> for MemberName {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        text.parse()
    }
}

impl From<MemberName> for String {
    fn from(name: MemberName) -> Self {
        name.0
    }
}

impl fmt::Display for MemberName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_safe_names_parse() {
        for good in ["france", "a", "south-korea", "lab2"] {
            assert!(good.parse::<MemberName>().is_ok(), "{good}");
        }
        for bad in ["", "France", "2lab", "../x", "a/b", "a b", "é", &"a".repeat(41)] {
            assert!(bad.parse::<MemberName>().is_err(), "{bad}");
        }
    }
}
