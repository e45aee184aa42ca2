//! How a node follows what members decide: step by step, each with its own proof; and how its member takes another key or leaves.

use super::{Node, NodeEvent};
use crate::{NewSteps, RoundError};
use std::sync::Arc;
use tapestry_core::{Digest, MemberName, PublicKey, Signed, Timestamp};
use tapestry_governance::{CharterHistory, Departure, Governance, GovernanceError, KeyRotation, Proposal, Step, Vote};

/// A proposal whose proof is being written to the log.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Gathered {
    proposal: Box<Signed<Proposal>>,
    votes: Vec<Signed<Vote>>,
}

impl Node {
    /// The charter in force, and how it came about.
    #[must_use]
    pub fn governance(&self) -> Option<&Governance> {
        self.membership.as_ref().map(|membership| &*membership.governance)
    }

    /// The key of this node's member.
    #[must_use]
    pub const fn key(&self) -> PublicKey {
        self.key
    }

    /// Who may take this node's log over after an event, where the event changes that: its own next key.
    #[must_use]
    pub fn successors(&self, event: &NodeEvent) -> Option<std::collections::BTreeSet<PublicKey>> {
        match event {
            NodeEvent::KeyRotated { rotation } if rotation.document.to == self.key => Some([self.key].into()),
            _ => None,
        }
    }

    /// Whether this node's member is one in force: it has neither left nor been excluded.
    #[must_use]
    pub fn is_member(&self) -> bool {
        let Some(membership) = &self.membership else { return false };
        let own = membership.governance.member_of(&self.key);
        self.departure.is_none() && own.is_some() && own == membership.member.as_ref()
    }

    /// What this member has to sign to leave.
    ///
    /// # Errors
    /// Where it is no member.
    pub fn departure(&self, reason: String) -> Result<Departure, RoundError> {
        let (charter, member) = self.own()?;
        Ok(Departure { charter, member, reason })
    }

    /// What this member has to sign, with both keys, to take another key.
    ///
    /// # Errors
    /// Where it is no member.
    pub fn rotation(&self, to: PublicKey) -> Result<KeyRotation, RoundError> {
        let (charter, member) = self.own()?;
        Ok(KeyRotation { charter, member, from: self.key, to })
    }

    /// The charter in force and this member's name, which every document of it carries.
    ///
    /// # Errors
    /// Where it is no member.
    pub fn own(&self) -> Result<(Digest, MemberName), RoundError> {
        let membership = self.membership.as_ref().ok_or(RoundError::NoCharter)?;
        let member = membership.member.clone().ok_or(RoundError::NoCharter)?;
        if self.is_member() {
            Ok((membership.governance.digest(), member))
        } else {
            Err(RoundError::NotAMember { member })
        }
    }

    /// Joins by a whole history: the founding charter, and every step since.
    pub(super) fn join(&self, now: Timestamp, history: &CharterHistory) -> Result<Vec<NodeEvent>, RoundError> {
        let governance = Governance::of(history).map_err(|error| match error {
            GovernanceError::Charter(error) => error.into(),
            error => RoundError::Governance(error),
        })?;
        governance.check_time(now)?;
        if let Some(membership) = &self.membership {
            let (expected, found) = (membership.governance.digest(), governance.digest());
            // The same consortium, now or earlier: what is new comes with the news.
            if membership.governance.knows(&found) || governance.knows(&expected) {
                return Ok(vec![]);
            }
            return Err(RoundError::OtherCharter { expected, found });
        }
        governance.charter().document.member_of(self.key)?;
        if governance.member_of(&self.key).is_none() {
            return Err(GovernanceError::GivenUp { what: self.key }.into());
        }
        let mut events = vec![NodeEvent::Joined { charter: history.founding.clone() }];
        for step in &history.steps {
            events.extend(events_of(step)?);
        }
        // By the same rules by which the log will be read.
        let mut next = self.clone();
        events.iter().try_for_each(|event| next.apply(event))?;
        Ok(events)
    }

    /// Takes up steps that are new: none left out, none twice.
    pub(super) fn take_steps(&mut self, new: &NewSteps, events: &mut Vec<NodeEvent>) -> Result<(), RoundError> {
        let known = self.governance().map_or(0, |governance| governance.steps().len() as u64);
        for (step, number) in new.steps.iter().zip(new.after..) {
            let next = known.max(self.governance().map_or(0, |governance| governance.steps().len() as u64));
            if number < next {
                continue;
            }
            if number > next {
                // Asked from elsewhere; the next answer begins where this node is.
                return Ok(());
            }
            let mut governance = self.governance().ok_or(RoundError::NoCharter)?.clone();
            governance.follow(step).map_err(RoundError::FalseStep)?;
            for event in events_of(step)? {
                self.push(events, event)?;
            }
        }
        Ok(())
    }

    pub(super) fn apply_decision(&mut self, digest: Digest) -> Result<(), RoundError> {
        let gathered = self.gathered.take().ok_or(RoundError::Unexpected { what: "decided" })?;
        if gathered.proposal.digest()? != digest {
            return Err(RoundError::Unexpected { what: "decided" });
        }
        self.apply_step(&Step::Adopted { proposal: gathered.proposal, votes: gathered.votes })
    }

    pub(super) fn apply_vote(&mut self, vote: &Signed<Vote>) -> Result<(), RoundError> {
        let gathered = self.gathered.as_mut().ok_or(RoundError::Unexpected { what: "voted" })?;
        gathered.votes.push(vote.clone());
        Ok(())
    }

    pub(super) fn apply_proposal(&mut self, proposal: &Signed<Proposal>) {
        self.gathered = Some(Gathered { proposal: Box::new(proposal.clone()), votes: vec![] });
    }

    pub(super) fn apply_step(&mut self, step: &Step) -> Result<(), RoundError> {
        let membership = self.membership.as_mut().ok_or(RoundError::NoCharter)?;
        let base_before = membership.governance.charter().document.base;
        Arc::make_mut(&mut membership.governance).follow(step)?;
        if let Step::Rotated(rotation) = step
            && rotation.document.from == self.key
        {
            self.key = rotation.document.to;
            // What was cosigned with the old key may have come too late.
            self.is_cosigned = false;
        }
        let base = membership.governance.charter().document.base;
        if base != base_before {
            (self.base, self.is_base_held) = (Some(base), false);
        }
        if !self.is_member() {
            // What it had begun, it keeps; nothing of it is sent any more.
            (self.round, self.late) = (None, None);
        }
        Ok(())
    }

    pub(super) fn leave(&self, signed: Signed<Departure>) -> Result<Vec<NodeEvent>, RoundError> {
        let membership = self.membership.as_ref().ok_or(RoundError::NoCharter)?;
        if self.departure.is_some() {
            return Ok(vec![]);
        }
        membership.governance.check_departure(&signed)?;
        self.expect(Some(&signed.document.member) == membership.member.as_ref(), "departure")?;
        Ok(vec![NodeEvent::Leaving { departure: signed }])
    }
}

/// The entries of a node's log that a step becomes: each part of its proof is one, so that none is too long.
fn events_of(step: &Step) -> Result<Vec<NodeEvent>, RoundError> {
    Ok(match step {
        Step::Adopted { proposal, votes } => {
            let mut events = vec![NodeEvent::Proposed { proposal: proposal.clone() }];
            events.extend(votes.iter().map(|vote| NodeEvent::Voted { vote: vote.clone() }));
            events.push(NodeEvent::Decided { proposal: proposal.digest()? });
            events
        }
        Step::Rotated(rotation) => vec![NodeEvent::KeyRotated { rotation: rotation.clone() }],
        Step::Left(departure) => vec![NodeEvent::Left { departure: departure.clone() }],
        Step::Founded(charter) => vec![NodeEvent::CharterReplaced { charter: (**charter).clone() }],
    })
}
