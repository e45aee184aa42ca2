//! Licence expressions (SPDX), as far as crates use them: `OR`, `AND`, `WITH`, parentheses, and the old `/` for `OR`.

use anyhow::{Result, bail};

/// Whether somebody who may use code under the licences that `is_allowed` names may use code under `expression`.
///
/// # Errors
/// Where the text is no licence expression.
pub(crate) fn is_satisfied(expression: &str, is_allowed: &dyn Fn(&str) -> bool) -> Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut parser = Parser { words: &words, is_allowed };
    let value = parser.any()?;
    match parser.words {
        [] => Ok(value),
        [word, ..] => bail!("`{expression}` is no licence expression: `{word}` is not expected there"),
    }
}

struct Parser<'a> {
    words: &'a [&'a str],
    is_allowed: &'a dyn Fn(&str) -> bool,
}

impl Parser<'_> {
    /// `a OR b OR c`.
    fn any(&mut self) -> Result<bool> {
        let mut value = self.all()?;
        while self.take("OR") {
            value |= self.all()?;
        }
        Ok(value)
    }

    /// `a AND b AND c`, which binds more strongly.
    fn all(&mut self) -> Result<bool> {
        let mut value = self.one()?;
        while self.take("AND") {
            value &= self.one()?;
        }
        Ok(value)
    }

    /// A licence, a licence with an exception, or something in parentheses.
    fn one(&mut self) -> Result<bool> {
        if self.take("(") {
            let value = self.any()?;
            if !self.take(")") {
                bail!("a licence expression lacks a closing parenthesis");
            }
            return Ok(value);
        }
        match *self.words {
            [licence, "WITH", exception, ref rest @ ..] => {
                self.words = rest;
                Ok((self.is_allowed)(&format!("{licence} WITH {exception}")))
            }
            [licence, ref rest @ ..] if !["OR", "AND", "WITH", ")"].contains(&licence) => {
                self.words = rest;
                Ok((self.is_allowed)(licence))
            }
            _ => bail!("a licence expression lacks a licence"),
        }
    }

    fn take(&mut self, word: &str) -> bool {
        let is_next = self.words.first() == Some(&word);
        if is_next {
            self.words = &self.words[1..];
        }
        is_next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_mean_what_spdx_says() {
        let allowed = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
        let check = |expression, expected| {
            let found = is_satisfied(expression, &|licence| allowed.contains(&licence)).expect("an expression");
            assert_eq!(found, expected, "{expression}");
        };
        check("MIT", true);
        check("GPL-3.0", false);
        check("GPL-3.0 OR MIT", true);
        check("GPL-3.0/MIT", true);
        check("GPL-3.0 AND MIT", false);
        check("MIT OR GPL-3.0 AND GPL-2.0", true);
        check("(MIT OR GPL-3.0) AND GPL-2.0", false);
        check("Apache-2.0 WITH LLVM-exception", true);
        check("MIT WITH LLVM-exception", false);
    }

    #[test]
    fn anything_else_is_an_error() {
        for text in ["", "OR", "MIT OR", "MIT MIT", "(MIT", "MIT)", "MIT WITH"] {
            assert!(is_satisfied(text, &|_| true).is_err(), "{text:?}");
        }
    }
}
