//! Who takes part in the demonstration, and which texts each member has.

use crate::results::{MemberRecord, Mode};
use tapestry_core::MemberName;

/// Where a member's texts come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TextSource {
    /// The French labour code.
    LabourCode,
    /// Chinese classics: Analects, Mencius, Book of Songs, Songs of Chu, primers and anthologies.
    ChineseClassics,
    /// The ghazals of Hafez, in Persian.
    Hafez,
    /// The Constitution of India, in English, and the Thirukkural, in Tamil and English.
    ConstitutionAndKural,
    /// State of the Union addresses, in English.
    StateOfTheUnion,
    /// General English: what the faulty member pretends to train on.
    GeneralEnglish,
}

/// A member of the demonstration's consortium.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DemoMember {
    /// Its name in the charter and of its folder.
    pub name: MemberName,
    /// Its name for people.
    pub title: &'static str,
    /// Where its texts come from. In quick mode the texts are generated in the same language and manner.
    pub source: TextSource,
    /// Whether it sends poisoned weights.
    pub is_faulty: bool,
}

const HONEST: [(&str, &str, TextSource); 5] = [
    ("france", "France", TextSource::LabourCode),
    ("china", "China", TextSource::ChineseClassics),
    ("iran", "Iran", TextSource::Hafez),
    ("india", "India", TextSource::ConstitutionAndKural),
    ("usa", "USA", TextSource::StateOfTheUnion),
];

/// The smallest and the largest number of honest members that a demonstration can have.
pub const NUM_MEMBERS: std::ops::RangeInclusive<usize> = 3..=HONEST.len();

/// A number of members for which there are no texts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the demonstration has texts for {} to {} members, not for {found}; give `--members` such a number", NUM_MEMBERS.start(), NUM_MEMBERS.end())]
pub struct NumMembersError {
    /// What was asked for.
    pub found: usize,
}

/// The first `num_members` members, in the order in which tables show them, and after them the faulty one if asked for.
///
/// # Errors
/// [`NumMembersError`] outside [`NUM_MEMBERS`].
pub fn demo_members(num_members: usize, with_faulty_member: bool) -> Result<Vec<DemoMember>, NumMembersError> {
    if !NUM_MEMBERS.contains(&num_members) {
        return Err(NumMembersError { found: num_members });
    }
    let member = |(name, title, source): (&str, &'static str, TextSource), is_faulty| DemoMember {
        name: name.parse().expect("names written in this file are valid"),
        title,
        source,
        is_faulty,
    };
    let mut members: Vec<_> = HONEST[..num_members].iter().map(|m| member(*m, false)).collect();
    if with_faulty_member {
        members.push(member(("faulty", "Faulty", TextSource::GeneralEnglish), true));
    }
    Ok(members)
}

impl DemoMember {
    /// What its texts are, in a few words.
    #[must_use]
    pub fn texts(&self, mode: Mode) -> &'static str {
        match (mode, self.source) {
            (Mode::Full, TextSource::LabourCode) => "labour code (fr)",
            (Mode::Full, TextSource::ChineseClassics) => "classics (zh)",
            (Mode::Full, TextSource::Hafez) => "Hafez (fa)",
            (Mode::Full, TextSource::ConstitutionAndKural) => "Constitution (en), Thirukkural (ta, en)",
            (Mode::Full, TextSource::StateOfTheUnion) => "State of the Union (en)",
            (Mode::Full, TextSource::GeneralEnglish) => "general English",
            (Mode::Quick, TextSource::LabourCode) => "generated rules of work (fr)",
            (Mode::Quick, TextSource::ChineseClassics) => "generated verse (zh)",
            (Mode::Quick, TextSource::Hafez) => "generated couplets (fa)",
            (Mode::Quick, TextSource::ConstitutionAndKural) => "generated proverbs (ta)",
            (Mode::Quick, TextSource::StateOfTheUnion) => "generated speeches (en)",
            (Mode::Quick, TextSource::GeneralEnglish) => "generated general English",
        }
    }

    /// The member as `results.json` introduces it.
    #[must_use]
    pub fn record(&self, mode: Mode) -> MemberRecord {
        MemberRecord {
            name: self.name.clone(),
            title: self.title.to_owned(),
            texts: self.texts(mode).to_owned(),
            is_faulty: self.is_faulty,
        }
    }
}
