//! What members decide: the coordinator takes their documents, counts by the charter's rule, and has no say.

use super::{Answer, Coordinator, CoordinatorEvent, Phase, Round};
use crate::documents::short;
use crate::{HandOver, RoundError, Verdict};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tapestry_core::{Digest, MemberName, PublicKey, Signed, Timestamp};
use tapestry_governance::{
    Change, Charter, CharterError, Choice, Departure, Governance, KeyRotation, Leaving, Proposal, Step, Tally, Vote,
};

/// The most proposals that are open at once, and of one member.
const MAX_OPEN: (usize, usize) = (32, 4);
/// How far the proposer's clock may be from the coordinator's, so that nobody proposes in the past to shorten the vote.
const CLOCK_SLACK: Duration = Duration::from_secs(3600);
/// The most steps that are told at once.
const STEPS_AT_ONCE: usize = 4;

/// A proposal that is not decided yet.
#[derive(Debug, Clone, PartialEq)]
pub struct OpenProposal {
    /// With its signature.
    pub signed: Signed<Proposal>,
    /// What votes name.
    pub digest: Digest,
    /// The votes so far.
    pub votes: BTreeMap<MemberName, Signed<Vote>>,
}

impl OpenProposal {
    fn votes(&self) -> impl Iterator<Item = &Vote> {
        self.votes.values().map(|vote| &vote.document)
    }
}

impl Coordinator {
    /// The charter in force, and how it came about.
    #[must_use]
    pub fn governance(&self) -> Option<&Governance> {
        self.governance.as_deref()
    }

    /// Proposals that are not decided yet, oldest first.
    #[must_use]
    pub fn proposals(&self) -> &[OpenProposal] {
        &self.proposals
    }

    /// How an open proposal stands.
    #[must_use]
    pub fn tally(&self, proposal: &OpenProposal) -> Option<Tally> {
        self.governance.as_ref()?.tally(&proposal.signed.document, proposal.votes()).ok()
    }

    /// The next steps of governance after the first `after`, not all at once; none where there are none.
    #[must_use]
    pub fn steps_after(&self, after: u64) -> Option<crate::NewSteps> {
        let steps = self.governance.as_ref()?.steps();
        let rest = steps.get(usize::try_from(after).ok()?..).filter(|rest| !rest.is_empty())?;
        Some(crate::NewSteps { after, steps: rest.iter().take(STEPS_AT_ONCE).cloned().collect() })
    }

    pub(super) fn in_force(&self) -> Result<(Digest, &Charter), RoundError> {
        let governance = self.governance.as_ref().ok_or(RoundError::NoCharter)?;
        Ok((governance.digest(), &governance.charter().document))
    }

    fn governed(&self) -> Result<&Governance, RoundError> {
        self.governance.as_deref().ok_or(RoundError::NoCharter)
    }

    /// The member in force that `sender` is, if it is `member`.
    pub(super) fn check_member(&self, sender: PublicKey, member: &MemberName) -> Result<(), RoundError> {
        let governance = self.governed()?;
        match governance.member_of(&sender) {
            Some(name) if name == member => Ok(()),
            Some(name) => Err(RoundError::OtherMember { sender: name.clone(), found: member.clone() }),
            None => match governance.was_member(&sender) {
                Some(was) => Err(RoundError::NotAMember { member: was.clone() }),
                None => Err(CharterError::NotAMember { key: sender }.into()),
            },
        }
    }

    pub(super) fn adopt(&self, now: Timestamp, signed: Signed<Charter>) -> Result<Vec<CoordinatorEvent>, RoundError> {
        let Some(governance) = &self.governance else {
            let charter = Charter::binding(&signed, now)?;
            charter.check_coordinator(self.founder)?;
            Governance::found(signed.clone())?;
            return Ok(vec![CoordinatorEvent::CharterAdopted { charter: signed }]);
        };
        let found = signed.digest()?;
        if governance.knows(&found) {
            return Ok(vec![]);
        }
        let has_rules = governance.charter().document.governance.is_some();
        if has_rules || signed.document.version == 1 {
            return Err(RoundError::OtherCharter { expected: governance.digest(), found });
        }
        if self.round.is_some() {
            return Err(RoundError::NotNow { reason: "a round is open, and ends under its own charter".into() });
        }
        signed.document.check_time(now)?;
        governance.clone().as_ref().clone().follow(&Step::Founded(Box::new(signed.clone())))?;
        Ok(vec![CoordinatorEvent::CharterAdopted { charter: signed }])
    }

    pub(super) fn propose(
        &self,
        now: Timestamp,
        sender: PublicKey,
        signed: Box<Signed<Proposal>>,
    ) -> Result<Option<CoordinatorEvent>, RoundError> {
        self.check_member(sender, &signed.document.member)?;
        let digest = signed.digest()?;
        if self.decided.contains(&digest) || self.proposals.iter().any(|open| open.digest == digest) {
            return Ok(None);
        }
        let proposal = self.governed()?.check_proposal(&signed)?;
        let not_now = |reason: &str| Err(RoundError::NotNow { reason: reason.into() });
        if now.since(proposal.made_at).max(proposal.made_at.since(now)) > CLOCK_SLACK {
            return not_now("the proposal is dated more than an hour from the coordinator's clock; make it again");
        }
        let (most, of_one) = MAX_OPEN;
        let num_own = self.proposals.iter().filter(|open| open.signed.document.member == proposal.member).count();
        if self.proposals.len() >= most || num_own >= of_one {
            return not_now("too many proposals are open; wait until one is decided");
        }
        Ok(Some(CoordinatorEvent::Proposed { proposal: signed }))
    }

    pub(super) fn vote(
        &self,
        now: Timestamp,
        sender: PublicKey,
        signed: Signed<Vote>,
    ) -> Result<Option<CoordinatorEvent>, RoundError> {
        let vote = &signed.document;
        self.check_member(sender, &vote.member)?;
        let not_now = |reason: &str| Err(RoundError::NotNow { reason: reason.into() });
        let Some(open) = self.proposals.iter().find(|open| open.digest == vote.proposal) else {
            let is_decided = self.decided.contains(&vote.proposal);
            return not_now(if is_decided { "the proposal is decided" } else { "there is no such proposal here" });
        };
        self.governed()?.check_vote(&signed, open.digest)?;
        match open.votes.get(&vote.member) {
            Some(known) if known.document == *vote => Ok(None),
            Some(_) => not_now("this member has voted, and its first vote stands"),
            None if now >= open.signed.document.closes_at => not_now("the vote is closed"),
            None => Ok(Some(CoordinatorEvent::Voted { vote: signed })),
        }
    }

    pub(super) fn rotate(
        &self,
        sender: PublicKey,
        signed: Signed<KeyRotation>,
    ) -> Result<Option<CoordinatorEvent>, RoundError> {
        if self.rotations.iter().any(|known| known.document == signed.document) {
            return Ok(None);
        }
        let governance = self.governed()?;
        // Asked again with the new key, because the answer was lost.
        if governance.member_of(&sender) == Some(&signed.document.member) && sender == signed.document.to {
            return Ok(None);
        }
        self.check_member(sender, &signed.document.member)?;
        let rotation = governance.check_rotation(&signed)?;
        let others = self.rotations.iter().map(|known| &known.document);
        if others.clone().any(|other| other.member == rotation.member || other.to == rotation.to) {
            return Err(RoundError::NotNow { reason: "another rotation waits for the end of the round".into() });
        }
        Ok(Some(CoordinatorEvent::KeyRotated { rotation: signed }))
    }

    pub(super) fn leave(
        &self,
        sender: PublicKey,
        signed: Signed<Departure>,
    ) -> Result<Option<CoordinatorEvent>, RoundError> {
        let governance = self.governed()?;
        let member = &signed.document.member;
        if !governance.is_member(member) && governance.was_member(&sender) == Some(member) {
            return Ok(None);
        }
        self.check_member(sender, member)?;
        governance.check_departure(&signed)?;
        Ok(Some(CoordinatorEvent::Left { departure: signed }))
    }

    /// The decision that is due, where no round is open: of a proposal whose time is over, on which all have voted, or that was made
    /// under a charter that is not in force any more.
    pub(super) fn due_decision(&self, now: Timestamp) -> Result<Option<CoordinatorEvent>, RoundError> {
        let governance = self.governed()?;
        for open in &self.proposals {
            let proposal = &open.signed.document;
            let decided = |adopted, required: usize, reason| {
                let required = u32::try_from(required).unwrap_or(u32::MAX);
                Ok(Some(CoordinatorEvent::Decided { proposal: open.digest, adopted, required, reason }))
            };
            let tally = match governance.tally(proposal, open.votes()) {
                Ok(tally) => tally,
                Err(error) => return decided(false, 0, format!("it cannot be decided any more: {error}")),
            };
            if now < proposal.closes_at && !tally.is_complete() {
                continue;
            }
            let [yes, no, abstain] = [Choice::Yes, Choice::No, Choice::Abstain].map(|choice| tally.count(choice));
            let votes = format!(
                "{yes} for, {no} against, {abstain} abstained, of {} members; {} needed",
                tally.num_members, tally.required
            );
            if tally.is_carried() {
                // What cannot be followed is not adopted: nodes follow the same rules.
                if let Err(error) = governance.clone().follow(&step_of(open, governance)) {
                    return decided(false, tally.required, format!("{votes}; and it cannot be followed: {error}"));
                }
            }
            return decided(tally.is_carried(), tally.required, votes);
        }
        Ok(None)
    }

    /// When the next vote closes.
    pub(super) fn next_closing(&self) -> Option<Timestamp> {
        self.proposals.iter().map(|open| open.signed.document.closes_at).min()
    }

    pub(super) fn apply_charter(&mut self, signed: &Signed<Charter>) -> Result<(), RoundError> {
        match &mut self.governance {
            None => {
                signed.document.check_coordinator(self.founder)?;
                self.base = Some(signed.document.base);
                self.governance = Some(Arc::new(Governance::found(signed.clone())?));
                Ok(())
            }
            Some(_) => self.follow(&Step::Founded(Box::new(signed.clone()))),
        }
    }

    pub(super) fn apply_vote(&mut self, signed: &Signed<Vote>) -> Result<(), RoundError> {
        let vote = &signed.document;
        let open = self.proposals.iter_mut().find(|open| open.digest == vote.proposal);
        open.ok_or(RoundError::Unexpected { what: "voted" })?.votes.insert(vote.member.clone(), signed.clone());
        Ok(())
    }

    pub(super) fn apply_proposal(&mut self, signed: &Signed<Proposal>) -> Result<(), RoundError> {
        let (digest, signed) = (signed.digest()?, signed.clone());
        self.proposals.push(OpenProposal { signed, digest, votes: BTreeMap::new() });
        Ok(())
    }

    pub(super) fn apply_decision(&mut self, digest: Digest, adopted: bool) -> Result<(), RoundError> {
        let at = self.proposals.iter().position(|open| open.digest == digest);
        let open = self.proposals.remove(at.ok_or(RoundError::Unexpected { what: "decided" })?);
        self.decided.insert(digest);
        if !adopted {
            return Ok(());
        }
        let step = step_of(&open, self.governed()?);
        self.follow(&step)
    }

    pub(super) fn apply_rotation(&mut self, rotation: &Signed<KeyRotation>) -> Result<(), RoundError> {
        if self.round.is_some() {
            self.rotations.push(rotation.clone());
            return Ok(());
        }
        self.follow(&Step::Rotated(rotation.clone()))
    }

    /// What waited for the end of the round. What cannot follow any more, because its member left meanwhile, is dropped.
    pub(super) fn apply_waiting(&mut self) {
        for rotation in std::mem::take(&mut self.rotations) {
            let _ = self.follow(&Step::Rotated(rotation));
        }
    }

    pub(super) fn apply_departure(&mut self, signed: &Signed<Departure>) -> Result<(), RoundError> {
        self.follow(&Step::Left(signed.clone()))?;
        let Departure { member, reason, .. } = &signed.document;
        self.attendances.remove(member);
        self.late.remove(member);
        let governance = self.governed()?.charter().document.governance.as_ref();
        let is_withdrawn = governance.is_some_and(|terms| terms.leaving == Leaving::Withdrawn);
        if let Some(Round { answers, phase: Phase::Collecting, .. }) = &mut self.round {
            let stays = matches!(answers.get(member), Some(Answer::Received(_) | Answer::Judged(..)));
            if is_withdrawn || !stays {
                answers.insert(member.clone(), Answer::Absent(Verdict::Left { reason: short(reason) }));
            }
        }
        Ok(())
    }

    /// Takes a step, and what it means for the loop.
    fn follow(&mut self, step: &Step) -> Result<(), RoundError> {
        let governance = self.governance.as_mut().ok_or(RoundError::NoCharter)?;
        let base_before = governance.charter().document.base;
        Arc::make_mut(governance).follow(step)?;
        let digest = governance.digest();
        let charter = &governance.charter().document;
        if charter.base != base_before {
            self.base = Some(charter.base);
            // What follows from other weights says nothing of these.
            self.states.clear();
            self.late.clear();
        }
        let holder = self.tenure.as_ref().map_or(self.founder, |tenure| tenure.document.coordinator);
        if charter.check_may_coordinate(holder).is_err() {
            let number = self.tenure.as_ref().map_or(1, |tenure| tenure.document.number);
            self.hand_over = Some(HandOver { charter: digest, number, to: charter.coordinator, address: None });
        }
        Ok(())
    }
}

/// The step that a proposal becomes: with the votes of members in force, which are its proof.
fn step_of(open: &OpenProposal, governance: &Governance) -> Step {
    let votes = open.votes.values().filter(|vote| governance.is_member(&vote.document.member));
    Step::Adopted { proposal: Box::new(open.signed.clone()), votes: votes.cloned().collect() }
}

impl Coordinator {
    /// Whether a proposal changes the base to one that was not adopted before: its blobs have to be here first.
    #[must_use]
    pub fn new_base_of(&self, proposal: &Proposal) -> Option<Digest> {
        let Change::Charter(terms) = &proposal.change else { return None };
        let (_, charter) = self.in_force().ok()?;
        (terms.base != charter.base).then_some(terms.base)
    }
}
