//! What members do by themselves, and what those do who mean harm: the coordinator, members that conspire, thieves of keys.

use super::side::Side;
use super::world::{Said, World};
use super::{Cheat, GovernedSabotage};
use crate::checks::Violation;
use crate::scenario;
use tapestry_core::Signed;
use tapestry_governance::{Change, Choice, Governance, Proposal, Step, Vote};
use tapestry_ledger::SignedCheckpoint;
use tapestry_round::coordinator::CoordinatorEvent;
use tapestry_round::node::NodeInput;
use tapestry_round::{NewSteps, News};

impl World {
    /// What a coordinator adds that makes things up: steps nobody decided, rounds nobody witnessed.
    pub(super) fn make_things_up(&mut self, news: &mut News) {
        if self.cheat != Cheat::MakesThingsUp || !self.random.chance(0.3) {
            return;
        }
        let Some(governance) = self.sides[0].ledger.state.governance().cloned() else { return };
        match self.random.below(3) {
            0 => {
                let step = self.conspiracy(&governance);
                news.governance = Some(NewSteps { after: governance.steps().len() as u64, steps: vec![step] });
            }
            1 => news.log = None,
            _ => {
                // The same checkpoint without the cosignatures.
                let key = &self.sides[0].ledger.key;
                if let Some(view) = &mut news.log
                    && let Ok(note) = view.checkpoint.parse::<SignedCheckpoint>()
                {
                    view.checkpoint = SignedCheckpoint::by(note.checkpoint().clone(), key).to_string();
                }
            }
        }
    }

    /// The admission of a stranger, with the votes of all who conspire or whose key is stolen, and some that were copied from elsewhere.
    pub(super) fn conspiracy(&mut self, governance: &Governance) -> Step {
        let mut terms = governance.next_terms();
        terms.members.insert("mallory".parse().expect("a name"), scenario::key(250).public());
        terms.quorum = tapestry_governance::legal_quorum(terms.quorum, terms.members.len());
        let now = self.now();
        let by = self.parties.iter().find(|party| party.colludes || party.is_stolen).unwrap_or(&self.parties[0]);
        let proposal = Proposal {
            charter: governance.digest(),
            member: by.name.clone(),
            change: Change::Charter(Box::new(terms)),
            rationale: "They asked for it.".into(),
            consulted: vec![],
            made_at: now,
            closes_at: now.plus(std::time::Duration::from_secs(2)),
        };
        let proposal = Signed::by(proposal, &by.ledger.key).expect("canonical");
        let digest = proposal.digest().expect("canonical");
        let votes = self.parties.iter().filter(|party| party.colludes || party.is_stolen).map(|party| {
            let (charter, member) = (governance.digest(), party.name.clone());
            let vote = Vote { charter, proposal: digest, member, choice: Choice::Yes, reason: String::new() };
            Signed::by(vote, &party.ledger.key).expect("canonical")
        });
        Step::Adopted { proposal: Box::new(proposal), votes: votes.collect() }
    }

    /// A coordinator dies and starts again: it has what is in its log, and nothing else.
    pub(super) fn coordinator_dies(&mut self) -> Result<(), Violation> {
        let side = self.random.index(self.sides.len());
        self.sides[side].ledger.restart()?;
        self.sides[side] = Side::new(self.sides[side].ledger.clone());
        Ok(())
    }

    pub(super) fn mischief(&mut self) -> Result<(), Violation> {
        if self.random.chance(0.05) {
            let node = self.random.index(self.parties.len());
            self.parties[node].ledger.restart()?;
        }
        if self.random.chance(0.01)
            && self.parties.len() >= 5
            && !self.parties.iter().any(|p| p.is_stolen || p.colludes)
        {
            let node = self.random.index(self.parties.len());
            self.tell(format!("the key of {} is stolen", self.parties[node].name));
            self.parties[node].is_stolen = true;
        }
        match self.cheat {
            Cheat::SplitsTheView if self.sides.len() == 1 && self.random.chance(0.02) => {
                self.tell("the coordinator splits the view".into());
                let other = self.sides[0].clone();
                self.sides.push(other);
                for (n, party) in self.parties.iter_mut().enumerate() {
                    party.side = n % 2;
                }
            }
            Cheat::Rewinds if self.random.chance(0.01) => {
                let commits = self.sides[0].ledger.num_commits();
                let kept = 1 + self.random.index(commits);
                self.tell(format!("the coordinator forgets {} of {commits} commits", commits - kept));
                self.forgotten.push(self.sides[0].ledger.tree.clone());
                self.sides[0] = Side::new(self.sides[0].ledger.cut(kept)?);
            }
            _ => {}
        }
        if self.sides.len() == 2 {
            self.conspirators_cosign()?;
        }
        Ok(())
    }

    /// Members that conspire witness both histories.
    pub(super) fn conspirators_cosign(&mut self) -> Result<(), Violation> {
        let (now, everybody) = (self.now(), self.sabotage == Some(GovernedSabotage::CosignsUnseen));
        for side in &mut self.sides {
            for party in self.parties.iter().filter(|party| party.colludes || everybody) {
                let Some(note) = side.shown() else { continue };
                let cosignature = note.cosign(&party.name, &party.ledger.key, now);
                side.cosigned(now, note.checkpoint().size, &cosignature, false)?;
            }
        }
        Ok(())
    }

    /// What members think of, now and then: a change, another key, leaving.
    pub(super) fn member_decides(&mut self, node: usize) -> Result<(), Violation> {
        if !self.random.chance(0.02) {
            return Ok(());
        }
        let party = &self.parties[node];
        let (side, key, name) = (party.side, party.ledger.key.clone(), party.name.clone());
        let Some(governance) = self.sides[side].ledger.state.governance().cloned() else { return Ok(()) };
        if governance.member_of(&key.public()) != Some(&name) {
            return Ok(());
        }
        // Who conspires stays the smaller part: nobody else goes.
        let may_go = !self.parties.iter().any(|party| party.colludes || party.is_stolen);
        match self.random.below(12) {
            0 if may_go && governance.num_members() > 3 => {
                let Ok(departure) = party.ledger.state.departure("Our own way.".into()) else { return Ok(()) };
                self.tell(format!("{name} leaves"));
                let departure = Signed::by(departure, &key).expect("canonical");
                let _ = self.node_takes(node, NodeInput::Leave { departure })?;
            }
            1 | 2 if party.next_key.is_none() => {
                self.num_keys += 1;
                let next = scenario::key(self.num_keys);
                let Ok(rotation) = party.ledger.state.rotation(next.public()) else { return Ok(()) };
                let mut signed = Signed::by(rotation, &key).expect("canonical");
                signed.sign(&next).expect("canonical");
                self.parties[node].next_key = Some(next);
                self.say(node, Said::Rotation(signed));
            }
            _ => {
                let mut terms = governance.next_terms();
                match self.random.below(5) {
                    0 => terms.rounds.window_ms = self.random.between(10_000, 30_000),
                    1 => terms.rounds.num_rounds = u32::try_from(self.random.between(3, 8)).expect("few"),
                    2 => terms.gate.max_bpb_rise = self.random.unit(),
                    3 => {
                        let stolen = self.parties.iter().find(|party| party.is_stolen).map(|party| party.name.clone());
                        let Some(name) = stolen.filter(|name| governance.is_member(name)) else { return Ok(()) };
                        self.num_keys += 1;
                        terms.members.insert(name, scenario::key(self.num_keys).public());
                    }
                    _ if may_go && terms.members.len() > 4 => {
                        let gone = self.random.index(terms.members.len());
                        let gone = terms.members.keys().nth(gone).cloned();
                        gone.and_then(|gone| terms.members.remove(&gone));
                        terms.quorum = tapestry_governance::legal_quorum(terms.quorum, terms.members.len());
                        let few = u32::try_from(terms.members.len()).expect("few");
                        if let Some(rules) = &mut terms.governance {
                            rules.witnesses = rules.witnesses.min(few);
                        }
                    }
                    _ => return Ok(()),
                }
                let made_at = self.now();
                let closes_at = made_at.plus(std::time::Duration::from_millis(self.random.between(1000, 20_000)));
                let proposal = Proposal {
                    charter: governance.digest(),
                    member: name,
                    change: Change::Charter(Box::new(terms)),
                    rationale: "It is better so.".into(),
                    consulted: vec![],
                    made_at,
                    closes_at,
                };
                self.say(node, Said::Proposal(Box::new(Signed::by(proposal, &key).expect("canonical"))));
            }
        }
        Ok(())
    }

    /// An honest member votes once on each proposal that it knows, and never for a stranger.
    pub(super) fn member_votes(&mut self, node: usize) -> Result<(), Violation> {
        let party = &self.parties[node];
        let (name, key, colludes) = (party.name.clone(), party.ledger.key.clone(), party.colludes);
        let state = &self.sides[party.side].ledger.state;
        let Some(governance) =
            state.governance().filter(|governance| governance.member_of(&key.public()) == Some(&name))
        else {
            return Ok(());
        };
        let charter = governance.digest();
        let open: Vec<_> = state.proposals().iter().map(|open| (open.digest, open.signed.clone())).collect();
        for (proposal, signed) in open {
            let is_bad = matches!(&signed.document.change, Change::Charter(terms) if terms.members.keys().any(|m| m.as_str() == "mallory"));
            let likes = self.random.chance(0.7);
            let known = self.cast.get(&(proposal, name.clone())).copied();
            let choice = known.unwrap_or(match (colludes, is_bad) {
                (true, _) => Choice::Yes,
                (false, true) => Choice::No,
                (false, false) if likes => Choice::Yes,
                (false, false) => Choice::No,
            });
            if !self.random.chance(0.3) {
                continue;
            }
            self.cast.insert((proposal, name.clone()), choice);
            let vote = Vote { charter, proposal, member: name.clone(), choice, reason: String::new() };
            self.say(node, Said::Vote(Signed::by(vote, &key).expect("canonical")));
        }
        Ok(())
    }

    /// Whoever has a stolen key proposes a stranger, votes for it, and takes the key for itself.
    pub(super) fn thief_acts(&mut self, node: usize) -> Result<(), Violation> {
        let party = &self.parties[node];
        let (name, key) = (party.name.clone(), party.ledger.key.clone());
        let Some(governance) = self.sides[party.side].ledger.state.governance().cloned() else { return Ok(()) };
        let is_valid = governance.member_of(&key.public()) == Some(&name);
        if self.random.chance(0.1)
            && let Step::Adopted { proposal, votes } = self.conspiracy(&governance)
        {
            self.say(node, Said::Proposal(proposal));
            for vote in votes {
                self.say(node, Said::Vote(vote));
            }
        }
        let open: Vec<_> =
            self.sides[self.parties[node].side].ledger.state.proposals().iter().map(|open| open.digest).collect();
        let is_time = self.tick.is_multiple_of(3);
        for proposal in open.into_iter().filter(|_| is_time) {
            let vote = Vote {
                charter: governance.digest(),
                proposal,
                member: name.clone(),
                choice: Choice::Yes,
                reason: String::new(),
            };
            self.say(node, Said::Vote(Signed::by(vote, &key).expect("canonical")));
        }
        if !is_valid && governance.is_member(&name) {
            // Recovered: from here on what the thief says is nobody's, which is checked where it arrives.
            return Ok(());
        }
        Ok(())
    }

    /// A coordinator that writes a vote down as it likes it: its log cannot be folded by anybody else.
    pub(super) fn turn_vote(&mut self, side: usize, vote: &mut Signed<Vote>) -> Result<(), Violation> {
        vote.document.choice = Choice::Yes;
        let now = self.now();
        if self.sides[side].ledger.state.proposals().iter().any(|open| open.digest == vote.document.proposal) {
            let event = CoordinatorEvent::Voted { vote: vote.clone() };
            self.sides[side].ledger.write(now, vec![event])?;
        }
        Ok(())
    }
}
