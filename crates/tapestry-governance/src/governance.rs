//! How a consortium came to the charter in force: the charter that founded it, and every step since.
//!
//! Coordinator, nodes and auditors fold the same steps by the same rules. A step carries its own proof: the votes of members, the
//! signatures of both keys, the word of who leaves. So whoever passes steps on cannot make one, leave one out in the middle, or go
//! back to an earlier one; all that they can do is to pass on nothing, which members see in the log.

use crate::proposal::{
    Change, Choice, Credit, Departure, KeyRotation, MAX_CONSULTED, MAX_CREDITS, MAX_RATIONALE_BYTES, MAX_REASON_BYTES,
    Proposal, Vote, kinds, legal_quorum,
};
use crate::terms::DecisionKind;
use crate::{Charter, CharterError, CharterTerms, GovernanceError};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use tapestry_core::{Digest, MemberName, PublicKey, Signed, Timestamp};

/// The longest that a proposal may stay open, in milliseconds: a year.
const MAX_OPEN_MS: u64 = 31_536_000_000;
/// The most steps that are followed: a bound on what is kept of a history.
pub const MAX_STEPS: usize = 100_000;

/// What moves governance on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Step {
    /// Members have decided.
    Adopted {
        /// What was proposed.
        proposal: Box<Signed<Proposal>>,
        /// The votes, one a member.
        votes: Vec<Signed<Vote>>,
    },
    /// A member has taken another key.
    Rotated(Signed<KeyRotation>),
    /// A member has left.
    Left(Signed<Departure>),
    /// Members have signed a charter with rules for deciding, in place of one without.
    Founded(Box<Signed<Charter>>),
}

/// The whole history, as members give it to a new one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CharterHistory {
    /// The charter that founded the consortium, with its signatures.
    pub founding: Signed<Charter>,
    /// Every step since.
    pub steps: Vec<Step>,
}

/// Governance as it stands: the charter in force, and how it came about.
#[derive(Debug, Clone, PartialEq)]
pub struct Governance {
    founding: Signed<Charter>,
    /// In force. Signed by nobody where members voted for it.
    charter: Signed<Charter>,
    digest: Digest,
    /// The digests of all charters, from the first to the one in force.
    charters: Vec<Digest>,
    departed: BTreeMap<MemberName, PublicKey>,
    /// Keys that were replaced or whose member was excluded or left.
    given_up: BTreeSet<PublicKey>,
    /// Every key that a member ever had, with its last name.
    keys: BTreeMap<PublicKey, MemberName>,
    /// The most rounds that any charter so far has agreed on.
    most_rounds: u32,
    /// Every key that may or might coordinate.
    coordinators: BTreeSet<PublicKey>,
    credits: Vec<Credit>,
    /// Proposals that were adopted.
    adopted: BTreeSet<Digest>,
    steps: Vec<Step>,
}

/// How a proposal stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tally {
    /// What it decides.
    pub kinds: BTreeSet<DecisionKind>,
    /// How many votes for it are needed.
    pub required: usize,
    /// Votes of members in force, by choice.
    pub votes: BTreeMap<Choice, usize>,
    /// How many members in force there are.
    pub num_members: usize,
}

impl Tally {
    /// Whether as many voted for it as are needed.
    #[must_use]
    pub fn is_carried(&self) -> bool {
        self.count(Choice::Yes) >= self.required
    }

    /// Whether all have voted.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.votes.values().sum::<usize>() == self.num_members
    }

    /// Votes of one choice.
    #[must_use]
    pub fn count(&self, choice: Choice) -> usize {
        self.votes.get(&choice).copied().unwrap_or(0)
    }

    fn words(&self) -> String {
        self.kinds.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }
}

impl Governance {
    /// Founded by a charter that the quorum of its members has signed. Whether it holds now, the caller asks.
    ///
    /// # Errors
    /// Where it does not bind.
    pub fn found(signed: Signed<Charter>) -> Result<Self, GovernanceError> {
        Charter::signed_by_quorum(&signed)?;
        let digest = signed.digest()?;
        let mut governance = Self {
            founding: signed.clone(),
            charter: signed,
            digest,
            charters: vec![],
            departed: BTreeMap::new(),
            given_up: BTreeSet::new(),
            keys: BTreeMap::new(),
            most_rounds: 0,
            coordinators: BTreeSet::new(),
            credits: vec![],
            adopted: BTreeSet::new(),
            steps: vec![],
        };
        governance.remember();
        Ok(governance)
    }

    /// Follows a whole history.
    ///
    /// # Errors
    /// At the first step that does not follow.
    pub fn of(history: &CharterHistory) -> Result<Self, GovernanceError> {
        let mut governance = Self::found(history.founding.clone())?;
        for step in &history.steps {
            governance.follow(step)?;
        }
        Ok(governance)
    }

    /// The history that leads here.
    #[must_use]
    pub fn history(&self) -> CharterHistory {
        CharterHistory { founding: self.founding.clone(), steps: self.steps.clone() }
    }

    /// The charter that founded the consortium.
    #[must_use]
    pub const fn founding(&self) -> &Signed<Charter> {
        &self.founding
    }

    /// The charter in force. Its signatures are those of the founding one; a later one stands on votes.
    #[must_use]
    pub const fn charter(&self) -> &Signed<Charter> {
        &self.charter
    }

    /// The digest of the charter in force.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// Whether a charter is or was in force here.
    #[must_use]
    pub fn knows(&self, charter: &Digest) -> bool {
        self.charters.contains(charter)
    }

    /// The digests of all charters so far, the one in force last.
    #[must_use]
    pub fn charters(&self) -> &[Digest] {
        &self.charters
    }

    /// The steps since the founding.
    #[must_use]
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// The most rounds that any charter so far has agreed on: a round may have ended under a charter that agreed on more than the
    /// one in force.
    #[must_use]
    pub const fn most_rounds(&self) -> u32 {
        self.most_rounds
    }

    /// Credits that members have voted for.
    #[must_use]
    pub fn credits(&self) -> &[Credit] {
        &self.credits
    }

    /// The members in force: of the charter, without those who left.
    pub fn members(&self) -> impl Iterator<Item = (&MemberName, &PublicKey)> {
        self.charter.document.members.iter().filter(|(name, _)| !self.departed.contains_key(*name))
    }

    /// How many members are in force.
    #[must_use]
    pub fn num_members(&self) -> usize {
        self.members().count()
    }

    /// The member in force with this key.
    #[must_use]
    pub fn member_of(&self, key: &PublicKey) -> Option<&MemberName> {
        self.members().find(|(_, own)| *own == key).map(|(name, _)| name)
    }

    /// Whether a member is in force.
    #[must_use]
    pub fn is_member(&self, name: &MemberName) -> bool {
        self.charter.document.members.contains_key(name) && !self.departed.contains_key(name)
    }

    /// Whether a key was ever a member's here.
    #[must_use]
    pub fn was_member(&self, key: &PublicKey) -> Option<&MemberName> {
        self.keys.get(key)
    }

    /// Every key that a member has or had, with the name of its member.
    pub fn all_keys(&self) -> impl Iterator<Item = (&MemberName, &PublicKey)> {
        self.keys.iter().map(|(key, name)| (name, key))
    }

    /// Every key that may have the coordinator's role, or might under an earlier charter.
    pub fn coordinators(&self) -> impl Iterator<Item = PublicKey> {
        self.coordinators.iter().copied()
    }

    /// Whether a key may have the coordinator's role, or might under an earlier charter.
    #[must_use]
    pub fn ever_coordinates(&self, key: &PublicKey) -> bool {
        self.coordinators.contains(key)
    }

    /// How many members must have witnessed a checkpoint before a round opens: never more than are in force.
    #[must_use]
    pub fn num_witnesses(&self) -> usize {
        let asked = self.charter.document.governance.as_ref().map_or(0, |terms| terms.witnesses as usize);
        asked.min(self.num_members())
    }

    /// The terms in force as those of the next charter, for a proposal to change: the next version, linked to the one in force, without
    /// members who left.
    #[must_use]
    pub fn next_terms(&self) -> CharterTerms {
        let mut terms: CharterTerms = self.charter.document.clone().into();
        terms.version = terms.version.saturating_add(1);
        terms.previous = Some(self.digest);
        terms.members.retain(|name, _| self.is_member(name));
        terms.merge.community_held_out.retain(|name, _| terms.members.contains_key(name));
        let num_members = u32::try_from(terms.members.len()).unwrap_or(u32::MAX);
        terms.quorum = legal_quorum(terms.quorum, terms.members.len());
        terms.rounds.min_contributions = terms.rounds.min_contributions.min(num_members);
        if let Some(governance) = &mut terms.governance {
            governance.witnesses = governance.witnesses.min(num_members);
        }
        terms
    }

    /// What a change decides, and what it needs.
    ///
    /// # Errors
    /// Where it cannot be decided under the charter in force, or changes nothing.
    pub fn kinds_of(&self, change: &Change) -> Result<BTreeSet<DecisionKind>, GovernanceError> {
        let current = &self.charter.document;
        if current.governance.is_none() {
            return Err(GovernanceError::NoRules);
        }
        let found = match change {
            Change::Credits(credits) => {
                check_credits(credits, |member| self.charter.document.members.contains_key(member))?;
                BTreeSet::from([DecisionKind::Credits])
            }
            Change::Charter(terms) => {
                self.check_next(terms)?;
                kinds(current, terms, |name| self.is_member(name))
            }
        };
        if found.is_empty() { Err(GovernanceError::NoChange) } else { Ok(found) }
    }

    /// A later charter is the next version, links to the one in force, can be followed, and brings back no key that was given up.
    fn check_next(&self, terms: &CharterTerms) -> Result<Charter, GovernanceError> {
        let current = &self.charter.document;
        let (version, previous) = (current.version.saturating_add(1), self.digest);
        if terms.version != version || terms.previous != Some(previous) {
            return Err(GovernanceError::NotTheNext { version, previous });
        }
        if terms.governance.is_none() {
            return Err(GovernanceError::Field {
                field: "governance",
                expected: "there: what members decide by cannot be voted away".into(),
            });
        }
        let keys = terms.members.values().chain(&terms.standbys).chain([&terms.coordinator]);
        if let Some(what) = keys.copied().find(|key| self.given_up.contains(key)) {
            return Err(GovernanceError::GivenUp { what });
        }
        Ok(Charter::try_from(terms.clone())?)
    }

    /// Checks that a proposal is a member's, under the charter in force, and can be decided.
    ///
    /// # Errors
    /// [`GovernanceError`].
    pub fn check_proposal<'a>(&self, signed: &'a Signed<Proposal>) -> Result<&'a Proposal, GovernanceError> {
        let proposal = &signed.document;
        self.check_charter(proposal.charter)?;
        signed.verify_by(&self.key_of(&proposal.member)?)?;
        check_text("rationale", &proposal.rationale, 1, MAX_RATIONALE_BYTES)?;
        let (most, longest) = MAX_CONSULTED;
        if proposal.consulted.len() > most {
            return Err(field("consulted", format!("at most {most} parties")));
        }
        for party in &proposal.consulted {
            check_text("consulted", party, 1, longest)?;
        }
        let terms = self.charter.document.governance.as_ref().ok_or(GovernanceError::NoRules)?;
        let open_ms = proposal.closes_at.as_ms().checked_sub(proposal.made_at.as_ms());
        let least = terms.decisions.min_open_ms;
        if !open_ms.is_some_and(|open| (least..=MAX_OPEN_MS).contains(&open)) {
            let expected =
                format!("from {least} (charter: governance.decisions.min_open_ms) to {MAX_OPEN_MS} ms after `made_at`");
            return Err(field("closes_at", expected));
        }
        self.kinds_of(&proposal.change)?;
        Ok(proposal)
    }

    /// Checks that a vote is a member's, for this proposal.
    ///
    /// # Errors
    /// [`GovernanceError`].
    pub fn check_vote<'a>(&self, signed: &'a Signed<Vote>, proposal: Digest) -> Result<&'a Vote, GovernanceError> {
        let vote = &signed.document;
        self.check_charter(vote.charter)?;
        let key = self.key_of(&vote.member)?;
        signed.verify_by(&key)?;
        if vote.proposal != proposal {
            let reason = format!("it is for proposal {}", vote.proposal);
            return Err(GovernanceError::Vote { member: vote.member.clone(), reason });
        }
        check_text("reason", &vote.reason, 0, MAX_REASON_BYTES)?;
        Ok(vote)
    }

    /// How a proposal stands with these votes, each of which was checked when it came.
    ///
    /// # Errors
    /// Where it cannot be decided under the charter in force.
    pub fn tally<'a>(
        &self,
        proposal: &Proposal,
        votes: impl Iterator<Item = &'a Vote>,
    ) -> Result<Tally, GovernanceError> {
        self.check_charter(proposal.charter)?;
        let found = self.kinds_of(&proposal.change)?;
        let terms = self.charter.document.governance.as_ref().ok_or(GovernanceError::NoRules)?;
        let num_members = self.num_members();
        let required =
            found.iter().map(|kind| terms.decisions.required(*kind, num_members)).max().unwrap_or(num_members);
        let mut by_choice = BTreeMap::new();
        for vote in votes.filter(|vote| self.is_member(&vote.member)) {
            *by_choice.entry(vote.choice).or_default() += 1;
        }
        Ok(Tally { kinds: found, required, votes: by_choice, num_members })
    }

    /// Checks that a member rotates its own key to one that nobody has or had.
    ///
    /// # Errors
    /// [`GovernanceError`].
    pub fn check_rotation<'a>(&self, signed: &'a Signed<KeyRotation>) -> Result<&'a KeyRotation, GovernanceError> {
        let rotation = &signed.document;
        // Under whichever charter: it cannot be replayed, since its key can be given up only once.
        if !self.knows(&rotation.charter) {
            return Err(GovernanceError::OtherCharter { expected: self.digest, found: rotation.charter });
        }
        if self.key_of(&rotation.member)? != rotation.from {
            return Err(GovernanceError::NotTheMember { member: rotation.member.clone() });
        }
        signed.verify_by(&rotation.from)?;
        signed.verify_by(&rotation.to)?;
        if self.keys.contains_key(&rotation.to) || self.coordinators.contains(&rotation.to) {
            return Err(GovernanceError::GivenUp { what: rotation.to });
        }
        self.rotated(rotation)?;
        Ok(rotation)
    }

    fn rotated(&self, rotation: &KeyRotation) -> Result<Charter, GovernanceError> {
        let mut terms: CharterTerms = self.charter.document.clone().into();
        terms.members.insert(rotation.member.clone(), rotation.to);
        terms.version = terms.version.saturating_add(1);
        terms.previous = Some(self.digest);
        Ok(Charter::try_from(terms)?)
    }

    /// Checks that it is the member itself that leaves.
    ///
    /// # Errors
    /// [`GovernanceError`].
    pub fn check_departure<'a>(&self, signed: &'a Signed<Departure>) -> Result<&'a Departure, GovernanceError> {
        let departure = &signed.document;
        if !self.knows(&departure.charter) {
            return Err(GovernanceError::OtherCharter { expected: self.digest, found: departure.charter });
        }
        signed.verify_by(&self.key_of(&departure.member)?)?;
        check_text("reason", &departure.reason, 0, MAX_REASON_BYTES)?;
        Ok(departure)
    }

    /// Takes the next step, if it carries its proof.
    ///
    /// # Errors
    /// [`GovernanceError`]; nothing has changed.
    pub fn follow(&mut self, step: &Step) -> Result<(), GovernanceError> {
        if self.steps.len() >= MAX_STEPS {
            return Err(field("steps", format!("at most {MAX_STEPS}")));
        }
        match step {
            Step::Adopted { proposal, votes } => {
                let document = self.check_proposal(proposal)?;
                let digest = proposal.digest()?;
                let mut seen = BTreeSet::new();
                for vote in votes {
                    let vote = self.check_vote(vote, digest)?;
                    if !seen.insert(&vote.member) {
                        let reason = "it is the member's second".into();
                        return Err(GovernanceError::Vote { member: vote.member.clone(), reason });
                    }
                }
                let tally = self.tally(document, votes.iter().map(|vote| &vote.document))?;
                if !tally.is_carried() {
                    let (found, required) = (tally.count(Choice::Yes), tally.required);
                    return Err(GovernanceError::Votes { found, required, kinds: tally.words() });
                }
                if !self.adopted.insert(digest) {
                    return Err(field("proposal", "one that was not decided before".into()));
                }
                match &document.change {
                    Change::Credits(credits) => self.credits.extend(credits.iter().cloned()),
                    Change::Charter(terms) => {
                        let charter = self.check_next(terms)?;
                        // Who left and is admitted again is a member like any other.
                        self.departed.retain(|name, _| !charter.members.contains_key(name));
                        self.replace(Signed::unsigned(charter))?;
                    }
                }
            }
            Step::Rotated(signed) => {
                let rotation = self.check_rotation(signed)?;
                let charter = self.rotated(rotation)?;
                self.replace(Signed::unsigned(charter))?;
            }
            Step::Left(signed) => {
                let departure = self.check_departure(signed)?;
                let key = self.key_of(&departure.member)?;
                self.departed.insert(departure.member.clone(), key);
                self.given_up.insert(key);
            }
            Step::Founded(signed) => {
                if self.charter.document.governance.is_some() {
                    return Err(field("charter", "decided by vote: the one in force has rules for that".into()));
                }
                self.check_next(&signed.document)?;
                // By the quorum of the charter that it replaces, and by its own.
                self.charter.document.check_quorum(signed)?;
                Charter::signed_by_quorum(signed)?;
                self.replace((**signed).clone())?;
            }
        }
        self.steps.push(step.clone());
        Ok(())
    }

    /// Puts a charter in force in place of the one that is. Keys that it does not name any more are given up.
    fn replace(&mut self, next: Signed<Charter>) -> Result<(), GovernanceError> {
        let digest = next.digest()?;
        let stays: BTreeSet<_> = next.document.members.values().collect();
        let gone: Vec<_> = self.charter.document.members.values().filter(|key| !stays.contains(key)).copied().collect();
        self.given_up.extend(gone);
        (self.charter, self.digest) = (next, digest);
        self.remember();
        Ok(())
    }

    fn remember(&mut self) {
        self.charters.push(self.digest);
        let charter = &self.charter.document;
        self.coordinators.extend(charter.coordinators());
        self.most_rounds = self.most_rounds.max(charter.rounds.num_rounds);
        self.keys.extend(charter.members.iter().map(|(name, key)| (*key, name.clone())));
    }

    fn check_charter(&self, found: Digest) -> Result<(), GovernanceError> {
        if found == self.digest { Ok(()) } else { Err(GovernanceError::OtherCharter { expected: self.digest, found }) }
    }

    fn key_of(&self, member: &MemberName) -> Result<PublicKey, GovernanceError> {
        let key = self.charter.document.members.get(member).filter(|_| self.is_member(member));
        key.copied().ok_or_else(|| GovernanceError::NotTheMember { member: member.clone() })
    }

    /// Checks that the charter in force holds at `now`.
    ///
    /// # Errors
    /// [`CharterError::Expired`].
    pub fn check_time(&self, now: Timestamp) -> Result<(), CharterError> {
        self.charter.document.check_time(now)
    }
}

fn check_credits(credits: &[Credit], is_known: impl Fn(&MemberName) -> bool) -> Result<(), GovernanceError> {
    if !(1..=MAX_CREDITS).contains(&credits.len()) {
        return Err(field("credits", format!("from 1 to {MAX_CREDITS}")));
    }
    for credit in credits {
        if !is_known(&credit.member) {
            return Err(GovernanceError::NotTheMember { member: credit.member.clone() });
        }
        // JSON numbers are exact up to here.
        if credit.amount >= 1 << 53 {
            return Err(field("amount", "below 2^53".into()));
        }
        check_text("unit", &credit.unit, 1, 40)?;
        check_text("what", &credit.what, 1, 200)?;
    }
    Ok(())
}

fn check_text(name: &'static str, text: &str, least: usize, most: usize) -> Result<(), GovernanceError> {
    let is_plain = !text.chars().any(|c| c.is_control() && c != '\n' && c != '\t');
    if is_plain && (least..=most).contains(&text.trim().len()) && text.len() <= most {
        return Ok(());
    }
    Err(field(name, format!("a text of {least} to {most} bytes without control characters")))
}

const fn field(field: &'static str, expected: String) -> GovernanceError {
    GovernanceError::Field { field, expected }
}

#[cfg(test)]
mod tests;
