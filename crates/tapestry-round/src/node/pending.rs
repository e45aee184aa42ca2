//! What a node waits to have done: all of it follows from the state.

use super::{Node, NodeEffect, NodeRound, Progress, Subject};
use crate::Announcement;
use tapestry_core::Digest;

impl Node {
    /// What this state waits to have done, most urgent first. Empty while only the coordinator can move things on.
    #[must_use]
    pub fn pending(&self) -> Vec<NodeEffect> {
        let (Some(membership), Some(member), Some(base)) = (&self.membership, self.member(), self.base) else {
            return vec![];
        };
        if self.has_seen_two_histories {
            return vec![];
        }
        let mut effects = vec![];
        if let Some(departure) = self.departure.as_ref().filter(|_| !self.is_departure_sent) {
            effects.push(NodeEffect::SendDeparture { departure: departure.clone() });
        }
        let measure =
            |subject, model| (!self.measured.contains(&subject)).then_some(NodeEffect::Measure { subject, model });
        if !self.is_member() {
            // It goes on with the last base that it has.
            effects.extend(self.pending_sovereign(self.held.unwrap_or(base)));
            return effects;
        }
        if let Some(seen) = self.seen.as_ref().filter(|_| !self.is_cosigned) {
            effects.push(NodeEffect::Cosign { checkpoint: seen.checkpoint.clone() });
        }
        effects.extend(self.pending_attendance(membership, member));
        if let Some(answer) = self.round.as_ref().and_then(|round| round.pending_answer(member)) {
            effects.push(answer);
            return effects;
        }
        if let Some(late) = &self.late {
            let NodeRound { announcement: Announcement { round, base, .. }, .. } = late;
            let train = NodeEffect::Train { round: *round, base: *base };
            effects.push(late.pending_answer(member).unwrap_or(train));
            return effects;
        }
        if self.is_base_wanted() && !self.is_base_held {
            effects.push(NodeEffect::PullBase { base });
            return effects;
        }
        match &self.round {
            Some(NodeRound { progress: Progress::Accepted, announcement }) => {
                effects.push(NodeEffect::Train { round: announcement.round, base });
            }
            Some(NodeRound {
                progress: Progress::Sent(trained) | Progress::Declined { kept: Some(trained) },
                announcement,
            }) => {
                effects.extend(measure(Subject::OwnCpt { round: announcement.round }, trained.weights()));
            }
            _ => {}
        }
        if self.is_base_held {
            let rounds_done = self.last_outcome.as_ref().map_or(0, |outcome| outcome.round);
            effects.extend(measure(Subject::SharedBase { round: rounds_done }, base));
        }
        if self.is_over() {
            effects.extend(self.pending_sovereign(base));
        }
        effects
    }

    /// Whether there is no further round for this node: all that the charter agrees on have ended, or its member is none any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let Some(membership) = &self.membership else { return false };
        let rounds_done = self.last_outcome.as_ref().map_or(0, |outcome| outcome.round);
        !self.is_member() || self.round.is_none() && rounds_done >= membership.charter().rounds.num_rounds
    }

    fn pending_sovereign(&self, base: Digest) -> Option<NodeEffect> {
        match self.sovereign.as_ref().filter(|model| model.base() == base) {
            None => Some(NodeEffect::BuildSovereign { base }),
            Some(model) => {
                let (subject, model) = (Subject::Sovereign, model.digest());
                (!self.measured.contains(&subject)).then_some(NodeEffect::Measure { subject, model })
            }
        }
    }
}
