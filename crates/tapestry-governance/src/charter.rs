//! The charter document and what makes it binding.

use crate::terms::{DecisionKind, GovernanceTerms, MAX_TEXT_BYTES};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Deref;
use std::time::Duration;
use tapestry_core::{CanonicalError, Digest, Document, MemberName, PublicKey, Quorum, Signed, SignedError, Timestamp};
use tapestry_merge::method::FedAvg;
use tapestry_merge::weights::{Uniform, WeightError, Weighting};
use tapestry_merge::{Method, MethodError};

/// The most members of one consortium: what a round's end says of all of them has to fit one entry of a log.
pub const MAX_MEMBERS: usize = 64;

/// The text of a charter: what the members agree on. Becomes a [`Charter`] once it is known to make sense.
///
/// No term has a default: whoever drafts a charter decides each one, and the members read what they sign.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CharterTerms {
    /// The name of the consortium.
    pub consortium: String,
    /// 1 for the first charter, then one more each time.
    pub version: u32,
    /// The digest of the charter that this one replaces; none for the first.
    pub previous: Option<Digest>,
    /// The members and their keys.
    pub members: BTreeMap<MemberName, PublicKey>,
    /// The key of the role that collects and merges. It has no vote.
    pub coordinator: PublicKey,
    /// Who may take that role over, where its holder has vanished or hands it on. As trusted as the coordinator: none is a
    /// choice, too.
    pub standbys: BTreeSet<PublicKey>,
    /// How many members' signatures make the charter binding.
    pub quorum: u32,
    /// The model that the consortium starts from: the digest of its manifest.
    pub base: Digest,
    /// The open text on which every contribution and every merge is measured.
    pub open_held_out: HeldOutTerms,
    /// How rounds run.
    pub rounds: RoundTerms,
    /// What a contribution must satisfy.
    pub screening: ScreeningTerms,
    /// How contributions are merged.
    pub merge: MergeTerms,
    /// What a merged base must satisfy before it is published.
    pub gate: GateTerms,
    /// The privacy tier of contributions (REQUIREMENTS S2). This version of the software offers tier 0.
    pub privacy_tier: u8,
    /// The charter does not hold before this time.
    pub valid_from: Timestamp,
    /// The charter does not hold from this time on.
    pub valid_until: Timestamp,
    /// How the consortium governs itself; absent in a charter of the form `charter/4`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub governance: Option<GovernanceTerms>,
}

/// The open held-out text: known to all members, trained on by none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldOutTerms {
    /// The digest of the UTF-8 text, at most one chunk (8 MiB) long.
    pub text: Digest,
    /// How many tokens of it are scored, from the start.
    pub max_tokens: u32,
}

/// How rounds run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoundTerms {
    /// How many rounds this charter covers.
    pub num_rounds: u32,
    /// How long a round waits for members, in milliseconds; production: 24 to 48 hours.
    pub window_ms: u64,
    /// A round with fewer accepted contributions than this is abandoned and the base stays.
    pub min_contributions: u32,
    /// By how many rounds a contribution may be late and still count, in a later round and discounted by `merge.staleness_exponent`.
    /// 0: a round takes what was trained for it, and nothing else.
    pub late_rounds: u32,
}

/// What a contribution must satisfy, beyond being well-formed and finite.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScreeningTerms {
    /// The largest L2 norm of (contribution - base) as a share of the L2 norm of the base. 0.1 is generous for CPT.
    pub max_relative_change: f64,
    /// The quality floor: bits per byte on the open held-out text may exceed the round's base by at most this share.
    pub max_bpb_rise: f64,
}

/// How contributions are merged.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MergeTerms {
    /// What is computed from the accepted contributions, with its parameters.
    pub method: Method,
    /// How much each of them counts.
    pub weighting: Weighting,
    /// The largest weight of one member, in (0, 1]. At least one over the fewest contributions that are merged, so that every merge can keep it.
    pub influence_cap: f64,
    /// A contribution that is late by `s` rounds has its weight divided by `(1 + s)` to this power; 0 counts it in full.
    pub staleness_exponent: f64,
    /// Whether members may be weighed by the number of tokens that they state. A member with much data, or a bold statement, then sets the direction for all; nobody can check it.
    pub allow_data_proportional: bool,
    /// For each member, an open text of its own community: known to all members, trained on by none. Asked for by culturally-aware weighting, and otherwise absent.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub community_held_out: BTreeMap<MemberName, HeldOutTerms>,
}

impl MergeTerms {
    /// The weighted mean with equal weights, and a discount by the root of lateness: what a consortium starts with.
    #[must_use]
    pub const fn plain(influence_cap: f64) -> Self {
        Self {
            method: Method::FedAvg(FedAvg {}),
            weighting: Weighting::Uniform(Uniform {}),
            influence_cap,
            staleness_exponent: 0.5,
            allow_data_proportional: false,
            community_held_out: BTreeMap::new(),
        }
    }
}

/// What a merged base must satisfy.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateTerms {
    /// Bits per byte on the open held-out text may exceed the charter's own base by at most this share.
    pub max_bpb_rise: f64,
}

/// Terms that no consortium could follow.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TermsError {
    /// A number is outside its range.
    #[error("charter term `{term}` must be {expected}; found {found}")]
    Range {
        /// The term.
        term: &'static str,
        /// What is possible.
        expected: String,
        /// What was found.
        found: String,
    },
    /// The method of merging cannot be used like this.
    #[error("charter term `merge.method`: {0}")]
    Method(#[from] MethodError),
    /// The way of weighing cannot be used like this.
    #[error("charter term `merge.weighting`: {0}")]
    Weighting(#[from] WeightError),
    /// Two parties have one key, so that their signatures could not be told apart.
    #[error(
        "key {key} is listed twice in the charter; every member, the coordinator and each standby has a key of its own"
    )]
    SharedKey {
        /// The key.
        key: PublicKey,
    },
}

/// A charter whose terms make sense. It binds nobody until [`Charter::binding`] has seen its quorum.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "CharterTerms", into = "CharterTerms")]
pub struct Charter(CharterTerms);

impl Document for Charter {
    const DOMAIN: &'static str = "charter/5";

    /// Charters from before there were rules for deciding are still read, and their signatures hold.
    fn domain(&self) -> &'static str {
        if self.0.governance.is_some() { Self::DOMAIN } else { "charter/4" }
    }
}

impl Deref for Charter {
    type Target = CharterTerms;

    fn deref(&self) -> &CharterTerms {
        &self.0
    }
}

impl From<Charter> for CharterTerms {
    fn from(charter: Charter) -> Self {
        charter.0
    }
}

impl TryFrom<CharterTerms> for Charter {
    type Error = TermsError;

    fn try_from(terms: CharterTerms) -> Result<Self, TermsError> {
        let num_members = u32::try_from(terms.members.len()).unwrap_or(u32::MAX);
        range("consortium", 1..=200, terms.consortium.chars().count())?;
        range("members", 1..=MAX_MEMBERS, terms.members.len())?;
        range("version", 1..=u32::MAX, terms.version)?;
        range("standbys", 0..=16, terms.standbys.len())?;
        // More than half: two charters with disjoint quorums must not both bind.
        range("quorum", num_members / 2 + 1..=num_members, terms.quorum)?;
        range("open_held_out.max_tokens", 2..=10_000_000, terms.open_held_out.max_tokens)?;
        range("rounds.num_rounds", 1..=100_000, terms.rounds.num_rounds)?;
        range("rounds.window_ms", 1_000..=31_536_000_000, terms.rounds.window_ms)?;
        range("rounds.min_contributions", 1..=num_members, terms.rounds.min_contributions)?;
        range("rounds.late_rounds", 0..=1000, terms.rounds.late_rounds)?;
        range("screening.max_relative_change", 0.0..=1000.0, terms.screening.max_relative_change)?;
        range("screening.max_bpb_rise", 0.0..=1000.0, terms.screening.max_bpb_rise)?;
        range("gate.max_bpb_rise", 0.0..=1000.0, terms.gate.max_bpb_rise)?;
        range("merge.influence_cap", f64::MIN_POSITIVE..=1.0, terms.merge.influence_cap)?;
        range("merge.staleness_exponent", 0.0..=100.0, terms.merge.staleness_exponent)?;
        check_merge(&terms)?;
        range("privacy_tier", 0..=0, terms.privacy_tier)?;
        range("valid_until", terms.valid_from.as_ms() + 1..=u64::MAX >> 11, terms.valid_until.as_ms())?;
        if let Some(governance) = &terms.governance {
            check_governance(governance, num_members)?;
        }
        if (terms.version == 1) != terms.previous.is_none() {
            let found = format!("version {} {} it", terms.version, if terms.version == 1 { "with" } else { "without" });
            let expected = "absent in version 1 and present in every later one".into();
            return Err(TermsError::Range { term: "previous", expected, found });
        }
        let mut keys = BTreeSet::from([terms.coordinator]);
        match terms.standbys.iter().chain(terms.members.values()).find(|key| !keys.insert(**key)) {
            Some(key) => Err(TermsError::SharedKey { key: *key }),
            None => Ok(Self(terms)),
        }
    }
}

fn check_governance(terms: &GovernanceTerms, num_members: u32) -> Result<(), TermsError> {
    let GovernanceTerms { text, decisions, witnesses, leaving: _ } = terms;
    range("governance.text (bytes)", 0..=MAX_TEXT_BYTES, text.len())?;
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        let expected = "text without control characters".into();
        return Err(TermsError::Range { term: "governance.text", expected, found: "some".into() });
    }
    range("governance.decisions.min_open_ms", 1_000..=31_536_000_000, decisions.min_open_ms)?;
    for kind in DecisionKind::ALL {
        let percent = decisions.percent.get(&kind).copied();
        if !percent.is_some_and(|percent| (50..=99).contains(&percent)) {
            let found = percent.map_or_else(|| format!("none for {kind}"), |percent| format!("{percent} for {kind}"));
            let expected = "from 50 to 99 for each kind of decision".into();
            return Err(TermsError::Range { term: "governance.decisions.percent", expected, found });
        }
    }
    range("governance.witnesses", 0..=num_members, *witnesses)
}

/// The ways of weighing and merging fit each other, the members, and the smallest merge that the charter lets happen.
fn check_merge(terms: &CharterTerms) -> Result<(), TermsError> {
    let merge = &terms.merge;
    merge.method.check()?;
    merge.weighting.check()?;
    let demands = merge.method.demands();
    if !demands.uses_shares && !merge.weighting.is_uniform() {
        let found = format!("`{}`, and the method `{}` counts all alike", merge.weighting.name(), merge.method.name());
        return Err(TermsError::Range { term: "merge.weighting", expected: "`uniform` for this method".into(), found });
    }
    if matches!(merge.weighting, Weighting::DataProportional(_)) && !merge.allow_data_proportional {
        let expected =
            "another, or `merge.allow_data_proportional` true: it is a capture risk that members take knowingly".into();
        return Err(TermsError::Range { term: "merge.weighting", expected, found: "`data-proportional`".into() });
    }
    // A round that reaches the minimum must be one that can be merged.
    let fewest = terms.rounds.min_contributions as usize;
    let (least, most) = (demands.min_contributions, demands.max_contributions);
    if fewest < least {
        let expected = format!("{least} or more, as the method `{}` needs", merge.method.name());
        let found = format!("{fewest} of {} members", terms.members.len());
        return Err(TermsError::Range { term: "rounds.min_contributions", expected, found });
    }
    if terms.members.len() > most {
        let expected = format!("one for more than {most} contributions, as there are {} members", terms.members.len());
        return Err(TermsError::Range { term: "merge.method", expected, found: format!("`{}`", merge.method.name()) });
    }
    check_cap(merge, fewest)?;
    let needs_texts = merge.weighting.needs_community_texts();
    let has_all = terms.members.keys().all(|member| merge.community_held_out.contains_key(member));
    let has_others = merge.community_held_out.keys().any(|member| !terms.members.contains_key(member));
    if needs_texts && (!has_all || has_others) || !needs_texts && !merge.community_held_out.is_empty() {
        let expected =
            if needs_texts { "one text for each member" } else { "absent unless the weighting is `culturally-aware`" };
        let found = format!("texts of {} for {} members", merge.community_held_out.len(), terms.members.len());
        return Err(TermsError::Range { term: "merge.community_held_out", expected: expected.into(), found });
    }
    for text in merge.community_held_out.values() {
        range("merge.community_held_out.max_tokens", 2..=10_000_000, text.max_tokens)?;
    }
    Ok(())
}

/// The cap can be kept by the smallest merge that the charter lets happen, and the method does not break it by choosing among the contributions.
#[expect(clippy::cast_precision_loss, reason = "a number of members")]
fn check_cap(merge: &MergeTerms, fewest: usize) -> Result<(), TermsError> {
    let (num_counted, why) = match &merge.method {
        Method::Krum(_) => (1, "the result of `krum` is one member's contribution"),
        Method::MultiKrum(method) => {
            (method.selected.unwrap_or(fewest - method.faulty - 2), "`multi-krum` selects among the contributions")
        }
        _ => (fewest, "a round with `rounds.min_contributions` is merged"),
    };
    let smallest = 1.0 / num_counted as f64;
    // The slack of the weights themselves: 0.333333333333 means a third.
    if smallest <= merge.influence_cap * (1.0 + 1e-12) {
        return Ok(());
    }
    let expected = format!("at least {smallest}, because {why}");
    Err(TermsError::Range { term: "merge.influence_cap", expected, found: merge.influence_cap.to_string() })
}

/// `found` must lie in `expected`; NaN lies nowhere.
fn range<T: PartialOrd + std::fmt::Debug>(
    term: &'static str,
    expected: std::ops::RangeInclusive<T>,
    found: T,
) -> Result<(), TermsError> {
    if expected.contains(&found) {
        return Ok(());
    }
    let expected = format!("from {:?} to {:?}", expected.start(), expected.end());
    Err(TermsError::Range { term, expected, found: format!("{found:?}") })
}

/// Why a charter does not bind.
#[derive(Debug, thiserror::Error)]
pub enum CharterError {
    /// Not enough members have signed it, or a signature is false.
    #[error("the charter does not bind: {0}")]
    Signatures(#[from] SignedError),
    /// Its time is over, or has not come.
    #[error("the charter holds from {from} until {until}; it is now {now}. Members must sign a new one.")]
    Expired {
        /// Start.
        from: Timestamp,
        /// End.
        until: Timestamp,
        /// The clock.
        now: Timestamp,
    },
    /// The party that acts as coordinator is not the one that the members chose.
    #[error("the charter names coordinator {expected}, not {found}")]
    NotTheCoordinator {
        /// The charter's.
        expected: PublicKey,
        /// The one found.
        found: PublicKey,
    },
    /// The party that takes the coordinator's role is none that the members chose for it.
    #[error(
        "the charter names {found} neither as coordinator nor as one of its standbys, so it cannot have that role. \
         Members can sign a charter that does"
    )]
    NotAStandby {
        /// The one found.
        found: PublicKey,
    },
    /// The key belongs to no member.
    #[error("key {key} is not a member's key in the charter")]
    NotAMember {
        /// The key.
        key: PublicKey,
    },
    /// Not canonical.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

impl Charter {
    /// The charter, if the quorum of its own members has signed it and it holds at `now`.
    ///
    /// # Errors
    /// [`CharterError::Signatures`], [`CharterError::Expired`].
    pub fn binding(signed: &Signed<Self>, now: Timestamp) -> Result<&Self, CharterError> {
        let charter = Self::signed_by_quorum(signed)?;
        charter.check_time(now)?;
        Ok(charter)
    }

    /// The charter, if the quorum of its own members has signed it, at whatever time.
    ///
    /// # Errors
    /// [`CharterError::Signatures`].
    pub fn signed_by_quorum(signed: &Signed<Self>) -> Result<&Self, CharterError> {
        signed.document.check_quorum(signed)?;
        Ok(&signed.document)
    }

    /// Checks that the quorum of this charter's members has signed another.
    ///
    /// # Errors
    /// [`CharterError::Signatures`].
    pub fn check_quorum(&self, signed: &Signed<Self>) -> Result<(), CharterError> {
        let quorum = Quorum::new(self.members.values().copied(), self.quorum as usize)
            .expect("a Charter's quorum lies within its members");
        signed.verify(&quorum)?;
        Ok(())
    }

    /// Checks that the charter holds at `now`.
    ///
    /// # Errors
    /// [`CharterError::Expired`].
    pub fn check_time(&self, now: Timestamp) -> Result<(), CharterError> {
        if (self.valid_from..self.valid_until).contains(&now) {
            return Ok(());
        }
        Err(CharterError::Expired { from: self.valid_from, until: self.valid_until, now })
    }

    /// Checks that `key` is the coordinator's.
    ///
    /// # Errors
    /// [`CharterError::NotTheCoordinator`].
    pub fn check_coordinator(&self, key: PublicKey) -> Result<(), CharterError> {
        if self.coordinator == key {
            return Ok(());
        }
        Err(CharterError::NotTheCoordinator { expected: self.coordinator, found: key })
    }

    /// The keys that may have the coordinator's role: the coordinator's, and the standbys'.
    #[must_use]
    pub fn coordinators(&self) -> BTreeSet<PublicKey> {
        self.standbys.iter().copied().chain([self.coordinator]).collect()
    }

    /// Checks that `key` is the coordinator's or a standby's.
    ///
    /// # Errors
    /// [`CharterError::NotAStandby`].
    pub fn check_may_coordinate(&self, key: PublicKey) -> Result<(), CharterError> {
        if self.coordinator == key || self.standbys.contains(&key) {
            return Ok(());
        }
        Err(CharterError::NotAStandby { found: key })
    }

    /// The member who has `key`.
    ///
    /// # Errors
    /// [`CharterError::NotAMember`].
    pub fn member_of(&self, key: PublicKey) -> Result<&MemberName, CharterError> {
        let found = self.members.iter().find(|(_, member_key)| **member_key == key);
        found.map(|(name, _)| name).ok_or(CharterError::NotAMember { key })
    }

    /// How long a round waits for members.
    #[must_use]
    pub fn window(&self) -> Duration {
        Duration::from_millis(self.rounds.window_ms)
    }
}

#[cfg(test)]
mod tests;
