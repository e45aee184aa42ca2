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

mod split;

pub use split::DOCUMENT_SEPARATOR;
pub(crate) use split::{Parts, Shares, split};

use crate::atomic::{self, AtomicError};
use std::path::{Path, PathBuf};
use tapestry_core::MemberName;

/// A member's text files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemberTexts {
    /// The member.
    pub name: MemberName,
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
    /// Per member, in the order asked for.
    pub members: Vec<MemberTexts>,
    /// General English for rehearsal; shares no document with the held-out part.
    pub general_english_train: PathBuf,
    /// The open held-out text of the charter.
    pub general_english_held_out: PathBuf,
}

/// 60% contributed, 30% private, 10% held out.
pub(crate) const MEMBER_SHARES: Shares = Shares { contributed: 60, private: 30 };
/// Half for rehearsal, half held out.
pub(crate) const GENERAL_ENGLISH_SHARES: Shares = Shares { contributed: 50, private: 0 };

/// Writes a member's parts.
pub(crate) fn write_member(folder: &Path, name: &MemberName, parts: &Parts) -> Result<MemberTexts, AtomicError> {
    let folder = folder.join(name.as_str());
    let texts = MemberTexts {
        name: name.clone(),
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
