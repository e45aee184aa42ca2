//! The world: members with their nodes, a coordinator with one face or two, and a network between them.

use super::ledger::Ledger;
use super::side::Side;
use super::{Cheat, GovernedSabotage, GovernedSummary};
use crate::checks::{Violation, require};
use crate::random::Random;
use crate::scenario;
use std::collections::{BTreeMap, BTreeSet};
use tapestry_core::{Digest, MemberName, PublicKey, SecretKey, Signed, Timestamp};
use tapestry_governance::{
    Change, Charter, CharterTerms, Choice, DecisionKind, DecisionTerms, Departure, GateTerms, Governance,
    GovernanceTerms, HeldOutTerms, KeyRotation, Leaving, MergeTerms, Proposal, RoundTerms, ScreeningTerms, Step, Vote,
};
use tapestry_ledger::{Cosignature, SignedCheckpoint, Tree, TreeHash};
use tapestry_round::coordinator::{Coordinator, CoordinatorEvent, CoordinatorInput};
use tapestry_round::node::{
    ContributedCpt, Measurement, Node, NodeEffect, NodeEvent, NodeInput, SovereignModel, TransferMetrics,
};
use tapestry_round::{Blame, Contribution, NewSteps, News, RoundError, TrainingMetrics};

const START: u64 = 1_000_000;
/// Faults stop here, and the world ends here.
const CALM: u64 = 140;
const END: u64 = 340;
/// What was decided by then, everybody knows at the end.
const SETTLED: u64 = END - 60;
const METRICS: TrainingMetrics = TrainingMetrics {
    num_tokens: 1,
    num_steps: 1,
    first_loss: 2.0,
    last_loss: 1.0,
    wall_seconds: 1.0,
    cpu_seconds: 1.0,
};

/// What travels.
#[derive(Debug, Clone)]
enum Message {
    Ask { node: usize, seen: u64, steps: u64 },
    News { node: usize, news: Box<News> },
    Said { node: usize, sender: PublicKey, said: Said },
    Confirmed { node: usize, input: NodeInput },
}

/// What a member says to the coordinator.
#[derive(Debug, Clone)]
enum Said {
    Contribution(Signed<Contribution>),
    Proposal(Box<Signed<Proposal>>),
    Vote(Signed<Vote>),
    Rotation(Signed<KeyRotation>),
    Departure(Signed<Departure>),
    Cosignature(u64, Cosignature),
}

/// A member, and its node.
#[derive(Debug)]
struct Party {
    name: MemberName,
    ledger: Ledger<Node>,
    /// A key that it has asked for.
    next_key: Option<SecretKey>,
    /// It does what the coordinator wants.
    colludes: bool,
    /// Somebody else has its key, and it cannot use it.
    is_stolen: bool,
    /// Which face of the coordinator it sees.
    side: usize,
    /// All that it has seen of the coordinator's log.
    views: Vec<(u64, TreeHash)>,
    is_stopped: bool,
}

pub(super) struct World {
    now_ms: u64,
    tick: u64,
    random: Random,
    cheat: Cheat,
    sabotage: Option<GovernedSabotage>,
    sides: Vec<Side>,
    parties: Vec<Party>,
    messages: Vec<Message>,
    censored: usize,
    num_keys: u8,
    /// How honest members have voted.
    cast: BTreeMap<(Digest, MemberName), Choice>,
    /// What the coordinator's log was before it was rewound.
    forgotten: Vec<Tree>,
    /// The charter that was in force some time before the end.
    settled: Option<Digest>,
    /// Which rounds honest nodes accepted, on which history: the root that each rests on. What follows the root, such as when exactly
    /// the round was opened, is witnessed before the next.
    accepted: BTreeMap<u32, BTreeSet<TreeHash>>,
    summary: GovernedSummary,
    pub(super) story: Vec<String>,
}

impl World {
    pub(super) fn new(seed: u64, sabotage: Option<GovernedSabotage>) -> Self {
        let mut random = Random::new(seed ^ 0x676f_7665_726e);
        let cheats =
            [Cheat::None, Cheat::None, Cheat::SplitsTheView, Cheat::Rewinds, Cheat::Censors, Cheat::MakesThingsUp];
        let cheat = cheats[random.index(cheats.len())];
        let num_members = usize::try_from(random.between(3, 7)).expect("few");
        let majority = num_members / 2 + 1;
        let witnesses = match (cheat, random.below(3)) {
            (Cheat::None, 0) => 0,
            // One may always be away for good.
            (_, 1) => num_members - 1,
            _ => majority.min(num_members - 1),
        };
        let coordinator = scenario::key(200);
        let name = |n: usize| -> MemberName { format!("m{n}").parse().expect("a name") };
        let keys: Vec<_> = (0..num_members).map(|n| scenario::key(u8::try_from(n + 1).expect("few"))).collect();
        let terms = CharterTerms {
            consortium: "Governed".into(),
            version: 1,
            previous: None,
            members: keys.iter().enumerate().map(|(n, key)| (name(n), key.public())).collect(),
            coordinator: coordinator.public(),
            standbys: BTreeSet::new(),
            quorum: u32::try_from(majority).expect("few"),
            base: Digest::of(b"base"),
            open_held_out: HeldOutTerms { text: Digest::of(b"open"), max_tokens: 100 },
            rounds: RoundTerms { num_rounds: 3, window_ms: 20_000, min_contributions: 1, late_rounds: 0 },
            screening: ScreeningTerms { max_relative_change: 0.5, max_bpb_rise: 0.05 },
            merge: MergeTerms::plain(1.0),
            gate: GateTerms { max_bpb_rise: 0.03 },
            privacy_tier: 0,
            valid_from: Timestamp::from_ms(0),
            valid_until: Timestamp::from_ms(START * 1000),
            governance: Some(GovernanceTerms {
                text: String::new(),
                decisions: DecisionTerms {
                    min_open_ms: 1000,
                    percent: DecisionKind::ALL.map(|kind| (kind, [50, 60, 75][random.index(3)])).into(),
                },
                witnesses: u32::try_from(witnesses).expect("few"),
                leaving: [Leaving::Counts, Leaving::Withdrawn][random.index(2)],
            }),
        };
        let mut charter = Signed::unsigned(Charter::try_from(terms).expect("sound terms"));
        keys.iter().for_each(|key| charter.sign(key).expect("canonical"));
        let parties = keys.into_iter().enumerate().map(|(n, key)| Party {
            name: name(n),
            ledger: Ledger::new(key),
            next_key: None,
            // Fewer than any decision needs, and not all witnesses of two histories by themselves.
            colludes: cheat != Cheat::None && n + 1 < majority && random.chance(0.4),
            is_stolen: false,
            side: 0,
            views: vec![],
            is_stopped: false,
        });
        let parties: Vec<_> = parties.collect();
        let censored = random.index(num_members);
        let mut ledger: Ledger<Coordinator> = Ledger::new(coordinator);
        let adopted = ledger.state.handle(Timestamp::from_ms(START), CoordinatorInput::AdoptCharter(charter.clone()));
        ledger.write(Timestamp::from_ms(START), adopted.expect("it binds")).expect("it is written");
        let mut world = Self {
            now_ms: START,
            tick: 0,
            random,
            cheat,
            sabotage,
            sides: vec![Side::new(ledger)],
            parties,
            messages: vec![],
            censored,
            num_keys: 50,
            cast: BTreeMap::new(),
            forgotten: vec![],
            settled: None,
            accepted: BTreeMap::new(),
            summary: GovernedSummary::default(),
            story: vec![],
        };
        for node in 0..world.parties.len() {
            let joined = world.node_takes(node, NodeInput::join(charter.clone()));
            joined.expect("it is written").expect("it joins");
        }
        world.tell(format!("{num_members} members, {witnesses} witnesses, {cheat:?}"));
        world
    }

    fn tell(&mut self, line: String) {
        self.story.push(format!("{:>4} {line}", self.tick));
    }

    const fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.now_ms)
    }

    const fn is_calm(&self) -> bool {
        self.tick >= CALM
    }

    pub(super) fn run(&mut self) -> Result<GovernedSummary, Violation> {
        for tick in 0..END {
            self.tick = tick;
            self.now_ms += self.random.between(50, 900);
            let now = self.now();
            for side in 0..self.sides.len() {
                self.sides[side].work(now)?;
                if self.sabotage == Some(GovernedSabotage::OpensUnwitnessed) {
                    self.sides[side].open_unwitnessed(now)?;
                }
            }
            if !self.is_calm() {
                self.mischief()?;
            }
            for _ in 0..self.parties.len() {
                let node = self.random.index(self.parties.len());
                self.node_acts(node)?;
            }
            for _ in 0..=self.parties.len() * 2 {
                self.deliver()?;
            }
            self.check_everybody()?;
            if tick == SETTLED {
                self.settled = self.sides[0].ledger.state.governance().map(Governance::digest);
            }
        }
        self.check_end()?;
        let adopted = self.sides[0].ledger.state.governance().map_or(0, |governance| governance.steps().len());
        self.summary.num_adopted = adopted;
        self.summary.num_rounds = self.accepted.len();
        Ok(self.summary)
    }

    /// The network: any message, at any time, perhaps twice, perhaps never.
    fn deliver(&mut self) -> Result<(), Violation> {
        if self.messages.is_empty() {
            return Ok(());
        }
        let at = self.random.index(self.messages.len());
        let message = if !self.is_calm() && self.random.chance(0.08) {
            self.messages[at].clone()
        } else {
            self.messages.swap_remove(at)
        };
        if !self.is_calm() && self.random.chance(0.1) {
            return Ok(());
        }
        match message {
            Message::Ask { node, seen, steps } => {
                let side = self.parties[node].side;
                let mut news = self.sides[side].news(seen, steps);
                self.make_things_up(&mut news);
                self.messages.push(Message::News { node, news: Box::new(news) });
                Ok(())
            }
            Message::News { node, news } => self.hears_news(node, *news),
            Message::Said { node, sender, said } => self.coordinator_hears(node, sender, said),
            Message::Confirmed { node, input } => self.node_takes(node, input).map(drop),
        }
    }

    /// What a coordinator adds that makes things up: steps nobody decided, rounds nobody witnessed.
    fn make_things_up(&mut self, news: &mut News) {
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
    fn conspiracy(&mut self, governance: &Governance) -> Step {
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

    fn mischief(&mut self) -> Result<(), Violation> {
        if self.random.chance(0.05) {
            let node = self.random.index(self.parties.len());
            self.parties[node].ledger.restart()?;
        }
        if self.random.chance(0.05) {
            let side = self.random.index(self.sides.len());
            self.sides[side].ledger.restart()?;
            self.sides[side] = Side::new(self.sides[side].ledger.clone());
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
    fn conspirators_cosign(&mut self) -> Result<(), Violation> {
        let (now, everybody) = (self.now(), self.sabotage == Some(GovernedSabotage::CosignsUnseen));
        for side in &mut self.sides {
            for party in self.parties.iter().filter(|party| party.colludes || everybody) {
                let Some(note) = side.shown() else { continue };
                let cosignature = note.cosign(&party.name, &party.ledger.key, now);
                side.cosigned(now, note.checkpoint().size, &cosignature)?;
            }
        }
        Ok(())
    }

    /// A node asks, works, and its member decides.
    fn node_acts(&mut self, node: usize) -> Result<(), Violation> {
        let party = &self.parties[node];
        if party.is_stolen {
            return self.thief_acts(node);
        }
        if party.is_stopped {
            return Ok(());
        }
        let state = &party.ledger.state;
        let seen = state.seen().map_or(0, |seen| seen.size);
        let steps = state.governance().map_or(0, |governance| governance.steps().len() as u64);
        if !state.has_seen_two_histories() && self.tick.is_multiple_of(2) {
            self.messages.push(Message::Ask { node, seen, steps });
        }
        if let Some(effect) = state.pending().into_iter().next() {
            self.node_works(node, effect)?;
        }
        if !self.is_calm() {
            self.member_decides(node)?;
        }
        self.member_votes(node)
    }

    fn say(&mut self, node: usize, said: Said) {
        let sender = self.parties[node].ledger.key.public();
        self.messages.push(Message::Said { node, sender, said });
    }

    fn node_works(&mut self, node: usize, effect: NodeEffect) -> Result<(), Violation> {
        let (key, name) = (self.parties[node].ledger.key.clone(), self.parties[node].name.clone());
        let transfer = TransferMetrics { size_bytes: 1, wall_seconds: 1.0 };
        let input = match effect {
            NodeEffect::PullBase { base } => NodeInput::BasePulled { base, transfer },
            NodeEffect::Train { round, .. } => {
                let weights = Digest::of(format!("{name} {round}").as_bytes());
                NodeInput::Trained { round, contributed: ContributedCpt::from_training(weights, METRICS) }
            }
            NodeEffect::SendContribution { contribution } => {
                let signed = Signed::by(contribution, &key).expect("canonical");
                self.say(node, Said::Contribution(signed));
                return Ok(());
            }
            NodeEffect::SendDecline { .. } | NodeEffect::SendAttendance { .. } => {
                return Err("nobody declines in this world".into());
            }
            NodeEffect::SendDeparture { departure } => {
                self.say(node, Said::Departure(departure));
                return Ok(());
            }
            NodeEffect::Cosign { checkpoint } => {
                let note: SignedCheckpoint = checkpoint.parse().map_err(|e| format!("{e}"))?;
                let (size, cosignature) = (note.checkpoint().size, note.cosign(&name, &key, self.now()));
                self.say(node, Said::Cosignature(size, cosignature));
                return Ok(());
            }
            NodeEffect::Measure { subject, model } => NodeInput::Measured(Measurement {
                subject,
                model,
                held_out_bpb: None,
                open_bpb: None,
                wall_seconds: 1.0,
            }),
            NodeEffect::BuildSovereign { base } => {
                let model = SovereignModel::new(base, Digest::of(format!("{name} {base}").as_bytes()));
                NodeInput::SovereignBuilt { model, metrics: METRICS }
            }
        };
        let taken = self.node_takes(node, input)?;
        taken.map_err(|error| format!("{name} does not take a result that was due: {error}"))
    }

    /// What members think of, now and then: a change, another key, leaving.
    fn member_decides(&mut self, node: usize) -> Result<(), Violation> {
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
    fn member_votes(&mut self, node: usize) -> Result<(), Violation> {
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
    fn thief_acts(&mut self, node: usize) -> Result<(), Violation> {
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
        let open: Vec<_> = self.sides[party_side(&self.parties, node)]
            .ledger
            .state
            .proposals()
            .iter()
            .map(|open| open.digest)
            .collect();
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

    fn hears_news(&mut self, node: usize, news: News) -> Result<(), Violation> {
        if self.sabotage == Some(GovernedSabotage::SkipsTheProof)
            && let (Some(view), Some(seen)) = (&news.log, self.parties[node].ledger.state.seen().cloned())
            && let Ok(note) = view.checkpoint.parse::<SignedCheckpoint>()
            && note.checkpoint().size > seen.size
            && !self.parties[node].ledger.state.has_seen_two_histories()
        {
            let event = NodeEvent::CheckpointSeen { checkpoint: view.checkpoint.clone() };
            let now = self.now();
            self.parties[node].ledger.write(now, vec![event.clone()])?;
            self.node_wrote(node, &[event])?;
        }
        if self.sabotage == Some(GovernedSabotage::CriesWolf)
            && let (Some(view), Some(seen)) = (&news.log, self.parties[node].ledger.state.seen().cloned())
            && let Ok(note) = view.checkpoint.parse::<SignedCheckpoint>()
            && note.checkpoint().size < seen.size
        {
            let event = NodeEvent::HistoriesDiffer { seen: seen.checkpoint, shown: view.clone() };
            let now = self.now();
            self.parties[node].ledger.write(now, vec![event.clone()])?;
            return self.node_wrote(node, &[event]);
        }
        let taken = self.node_takes(node, NodeInput::News(news))?;
        let Err(error) = taken else { return Ok(()) };
        let name = self.parties[node].name.clone();
        let is_cheat = error.blame() == Blame::Coordinator
            || matches!(error, RoundError::Signature(_) | RoundError::OtherCharter { .. });
        if is_cheat && self.cheat == Cheat::None {
            return Err(format!("{name} refuses honest news: {error}"));
        }
        self.tell(format!("{name} does not take it: {error}"));
        Ok(())
    }

    /// Feeds an input; the inner error is the machine's.
    fn node_takes(&mut self, node: usize, input: NodeInput) -> Result<Result<(), RoundError>, Violation> {
        let now = self.now();
        let ledger = &mut self.parties[node].ledger;
        match ledger.state.handle(now, input) {
            Ok(events) => {
                ledger.write(now, events.clone())?;
                self.node_wrote(node, &events).map(Ok)
            }
            Err(error) => Ok(Err(error)),
        }
    }

    fn node_wrote(&mut self, node: usize, events: &[NodeEvent]) -> Result<(), Violation> {
        let mut votes: Vec<Signed<Vote>> = vec![];
        let mut proposed = None;
        for event in events {
            match event {
                NodeEvent::Proposed { proposal } => proposed = Some(proposal.clone()),
                NodeEvent::Voted { vote } => votes.push(vote.clone()),
                NodeEvent::Decided { .. } => {
                    let proposal = proposed.take().ok_or("a decision without its proposal")?;
                    self.check_votes(&proposal, &std::mem::take(&mut votes))?;
                }
                NodeEvent::CheckpointSeen { checkpoint } => {
                    let note: SignedCheckpoint = checkpoint.parse().map_err(|e| format!("{e}"))?;
                    self.parties[node].views.push((note.checkpoint().size, note.checkpoint().root));
                }
                NodeEvent::HistoriesDiffer { .. } => {
                    let name = self.parties[node].name.clone();
                    self.tell(format!("{name} was shown two histories"));
                    let may = matches!(self.cheat, Cheat::SplitsTheView | Cheat::Rewinds);
                    require(may, || format!("{name} takes an honest coordinator for a liar"))?;
                    self.summary.num_alarms += 1;
                }
                NodeEvent::RoundAccepted { announcement, .. } if !self.parties[node].colludes => {
                    let round = announcement.document.round;
                    let root =
                        self.parties[node].ledger.state.seen().map_or_else(TreeHash::of_nothing, |seen| seen.root);
                    self.accepted.entry(round).or_default().insert(root);
                    self.check_histories(round)?;
                }
                _ => {}
            }
        }
        let party = &mut self.parties[node];
        if let Some(next) = party.next_key.take_if(|next| next.public() == party.ledger.state.key()) {
            party.ledger.key = next;
            self.summary.num_changes += 1;
        }
        Ok(())
    }

    /// Two honest nodes go by two histories only where a member has witnessed both.
    fn check_histories(&self, round: u32) -> Result<(), Violation> {
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
    fn check_votes(&self, proposal: &Signed<Proposal>, votes: &[Signed<Vote>]) -> Result<(), Violation> {
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

    fn coordinator_hears(&mut self, node: usize, sender: PublicKey, said: Said) -> Result<(), Violation> {
        if self.cheat == Cheat::Censors && node == self.censored && !matches!(said, Said::Cosignature(..)) {
            return Ok(());
        }
        let (now, side) = (self.now(), self.parties[node].side);
        let (input, confirmation) = match said {
            Said::Cosignature(size, cosignature) => {
                self.sides[side].cosigned(now, size, &cosignature)?;
                self.messages.push(Message::Confirmed { node, input: NodeInput::CosignatureSent { size } });
                return Ok(());
            }
            Said::Contribution(contribution) => {
                let round = contribution.document.round;
                let transfer = TransferMetrics { size_bytes: 1, wall_seconds: 1.0 };
                let confirmation = NodeInput::ContributionSent { round, transfer };
                (CoordinatorInput::Contribute { sender, contribution }, Some(confirmation))
            }
            Said::Proposal(proposal) => (CoordinatorInput::Propose { sender, proposal }, None),
            Said::Vote(mut vote) => {
                if self.sabotage == Some(GovernedSabotage::TurnsVotes) {
                    return self.turn_vote(side, &mut vote);
                }
                (CoordinatorInput::Vote { sender, vote }, None)
            }
            Said::Rotation(rotation) => (CoordinatorInput::Rotate { sender, rotation }, None),
            Said::Departure(departure) => {
                (CoordinatorInput::Leave { sender, departure }, Some(NodeInput::DepartureSent))
            }
        };
        match self.sides[side].input(now, input)? {
            Ok(()) => {
                let confirmed = confirmation.map(|input| Message::Confirmed { node, input });
                self.messages.extend(confirmed);
            }
            Err(error) => self.tell(format!("the coordinator does not take it: {error}")),
        }
        Ok(())
    }

    /// A coordinator that writes a vote down as it likes it: its log cannot be folded by anybody else.
    fn turn_vote(&mut self, side: usize, vote: &mut Signed<Vote>) -> Result<(), Violation> {
        vote.document.choice = Choice::Yes;
        let now = self.now();
        if self.sides[side].ledger.state.proposals().iter().any(|open| open.digest == vote.document.proposal) {
            let event = CoordinatorEvent::Voted { vote: vote.clone() };
            self.sides[side].ledger.write(now, vec![event])?;
        }
        Ok(())
    }

    fn check_everybody(&self) -> Result<(), Violation> {
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

    fn check_end(&mut self) -> Result<(), Violation> {
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

fn party_side(parties: &[Party], node: usize) -> usize {
    parties[node].side
}
