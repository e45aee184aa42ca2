//! The promises, checked by a count of their own.

use super::Cheat;
use super::side::Side;
use super::world::{Party, World};
use crate::checks::{Violation, require};
use std::collections::BTreeSet;
use tapestry_core::Signed;
use tapestry_governance::{Change, Choice, Governance, Proposal, Vote};
use tapestry_ledger::{Tree, TreeHash};

/// How many ticks members may take to witness what they are asked to.
const PATIENCE: u64 = 80;

impl World {
    /// Two honest nodes go by two histories only where a member has witnessed both.
    pub(super) fn check_histories(&self, round: u32) -> Result<(), Violation> {
        let histories = &self.accepted[&round];
        let governance = self.sides[0].ledger.state.governance().ok_or("no charter")?;
        let is_majority = 2 * governance.num_witnesses() > governance.num_members();
        let may = histories.len() <= 1 || !is_majority || self.parties.iter().any(|party| party.colludes);
        // A rewind before the round was ever witnessed by anybody who is honest is no second history; it is the only one.
        require(may || self.cheat == Cheat::Rewinds, || {
            format!("round {round} was accepted on {} histories", histories.len())
        })
    }

    /// As many members as the weightiest kind of the decision needs have voted for it, and as they did vote.
    pub(super) fn check_votes(&self, proposal: &Signed<Proposal>, votes: &[Signed<Vote>]) -> Result<(), Violation> {
        let digest = proposal.digest().map_err(|e| e.to_string())?;
        let mut yes = BTreeSet::new();
        for vote in votes.iter().map(|vote| &vote.document) {
            let honest =
                self.parties.iter().find(|party| party.name == vote.member).filter(|p| !p.colludes && !p.is_stolen);
            if let Some(party) = honest {
                let cast = self.cast.get(&(digest, party.name.clone()));
                require(cast == Some(&vote.choice), || {
                    format!("the vote of {} is counted as {}", party.name, vote.choice)
                })?;
            }
            if vote.proposal == digest && vote.choice == Choice::Yes {
                yes.insert(vote.member.clone());
            }
        }
        let Change::Charter(terms) = &proposal.document.change else { return Ok(()) };
        require(2 * yes.len() > terms.members.len().min(self.parties.len()) - 1, || {
            format!("a charter is followed for which {} of {} voted", yes.len(), self.parties.len())
        })
    }

    pub(super) fn check_everybody(&self) -> Result<(), Violation> {
        for side in &self.sides {
            for open in side.ledger.state.proposals() {
                for vote in open.votes.values().map(|vote| &vote.document) {
                    let honest = self.parties.iter().find(|party| party.name == vote.member);
                    let honest = honest.filter(|party| !party.colludes && !party.is_stolen);
                    let cast = self.cast.get(&(open.digest, vote.member.clone()));
                    let is_so = honest.is_none() || cast == Some(&vote.choice);
                    require(is_so, || format!("the vote of {} is written down as {}", vote.member, vote.choice))?;
                }
            }
        }
        for party in self.parties.iter().filter(|party| !party.colludes) {
            let state = &party.ledger.state;
            let has_stranger =
                state.governance().is_some_and(|g| g.members().any(|(name, _)| name.as_str() == "mallory"));
            require(!has_stranger, || format!("{} follows a charter with a stranger in it", party.name))?;
            // One node's views are one history: each two belong to one log that there was.
            let own = &self.sides[party.side].ledger.tree;
            let is_in = |tree: &Tree, view: &(u64, TreeHash)| tree.root(view.0) == Some(view.1);
            let belong = |pair: &[(u64, TreeHash)]| {
                self.forgotten.iter().chain([own]).any(|tree| pair.iter().all(|view| is_in(tree, view)))
            };
            require(party.views.windows(2).all(belong), || format!("what {} has seen is not one history", party.name))?;
            let is_growing = party.views.windows(2).all(|pair| pair[0].0 < pair[1].0);
            require(is_growing, || format!("{} has seen the log shrink", party.name))?;
        }
        Ok(())
    }

    /// Members that are there and honest are not asked for ever to witness what they have witnessed.
    pub(super) fn check_witnesses(&mut self) -> Result<(), Violation> {
        let state = &self.sides[0].ledger.state;
        let is_able = |party: &&Party| !party.is_stolen && !party.is_stopped && party.ledger.state.is_member();
        let num_able = self.parties.iter().filter(is_able).count();
        let needed = state.governance().map_or(0, Governance::num_witnesses);
        if self.cheat != Cheat::None || !self.is_calm() || !state.wants_witnesses() || num_able < needed {
            self.unwitnessed_since = None;
            return Ok(());
        }
        let since = *self.unwitnessed_since.get_or_insert(self.tick);
        require(self.tick - since < PATIENCE, || format!("nobody witnesses the log since tick {since}"))
    }

    pub(super) fn check_end(&mut self) -> Result<(), Violation> {
        let witnessed = |side: &Side| side.ledger.state.witnessed().is_some();
        self.summary.num_witnessed = self.sides.iter().filter(|side| witnessed(side)).count();
        if self.cheat != Cheat::None {
            return Ok(());
        }
        let state = &self.sides[0].ledger.state;
        let governance = state.governance().ok_or("no charter")?;
        require(!state.outcomes().is_empty(), || "no round has ended".into())?;
        for party in self.parties.iter().filter(|party| !party.is_stolen) {
            let node = &party.ledger.state;
            if governance.member_of(&party.ledger.key.public()) == Some(&party.name) && node.is_member() {
                let settled = self.settled.ok_or("it ended too early")?;
                let is_known = node.governance().is_some_and(|known| known.knows(&settled));
                require(is_known, || format!("{} has not learned what was decided", party.name))?;
            } else {
                require(node.is_over(), || format!("{} is out, and does not know", party.name))?;
                require(node.sovereign().is_some(), || format!("{} is out, and has no model of its own", party.name))?;
            }
        }
        Ok(())
    }
}
