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
    Charter, CharterTerms, Choice, DecisionKind, DecisionTerms, Departure, GateTerms, Governance, GovernanceTerms,
    HeldOutTerms, KeyRotation, Leaving, MergeTerms, Proposal, RoundTerms, ScreeningTerms, Vote,
};
use tapestry_ledger::{Cosignature, SignedCheckpoint, Tree, TreeHash};
use tapestry_round::coordinator::{Coordinator, CoordinatorInput};
use tapestry_round::node::{
    ContributedCpt, Measurement, Node, NodeEffect, NodeEvent, NodeInput, SovereignModel, TransferMetrics,
};
use tapestry_round::{Blame, Contribution, News, RoundError, TrainingMetrics};

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
pub(super) enum Message {
    Ask { node: usize, seen: u64, steps: u64 },
    News { node: usize, news: Box<News> },
    Said { node: usize, sender: PublicKey, said: Box<Said> },
    Confirmed { node: usize, input: Box<NodeInput> },
}

/// What a member says to the coordinator.
#[derive(Debug, Clone)]
pub(super) enum Said {
    Contribution(Signed<Contribution>),
    Proposal(Box<Signed<Proposal>>),
    Vote(Signed<Vote>),
    Rotation(Signed<KeyRotation>),
    Departure(Signed<Departure>),
    Cosignature(u64, Cosignature),
}

/// A member, and its node.
#[derive(Debug)]
pub(super) struct Party {
    pub(super) name: MemberName,
    pub(super) ledger: Ledger<Node>,
    /// A key that it has asked for.
    pub(super) next_key: Option<SecretKey>,
    /// It does what the coordinator wants.
    pub(super) colludes: bool,
    /// Somebody else has its key, and it cannot use it.
    pub(super) is_stolen: bool,
    /// Which face of the coordinator it sees.
    pub(super) side: usize,
    /// All that it has seen of the coordinator's log.
    pub(super) views: Vec<(u64, TreeHash)>,
    pub(super) is_stopped: bool,
}

pub(super) struct World {
    pub(super) now_ms: u64,
    pub(super) tick: u64,
    pub(super) random: Random,
    pub(super) cheat: Cheat,
    pub(super) sabotage: Option<GovernedSabotage>,
    pub(super) sides: Vec<Side>,
    pub(super) parties: Vec<Party>,
    pub(super) messages: Vec<Message>,
    pub(super) censored: usize,
    pub(super) num_keys: u8,
    /// How honest members have voted.
    pub(super) cast: BTreeMap<(Digest, MemberName), Choice>,
    /// What the coordinator's log was before it was rewound.
    pub(super) forgotten: Vec<Tree>,
    /// The charter that was in force some time before the end.
    pub(super) settled: Option<Digest>,
    /// Since when members are asked to witness the log, and have not.
    pub(super) unwitnessed_since: Option<u64>,
    /// Which rounds honest nodes accepted, on which history: the root that each rests on. What follows the root, such as when exactly
    /// the round was opened, is witnessed before the next.
    pub(super) accepted: BTreeMap<u32, BTreeSet<TreeHash>>,
    pub(super) summary: GovernedSummary,
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
            unwitnessed_since: None,
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

    pub(super) fn tell(&mut self, line: String) {
        self.story.push(format!("{:>4} {line}", self.tick));
    }

    pub(super) const fn now(&self) -> Timestamp {
        Timestamp::from_ms(self.now_ms)
    }

    pub(super) const fn is_calm(&self) -> bool {
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
            if self.random.chance(0.05) {
                self.coordinator_dies()?;
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
            self.check_witnesses()?;
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
            Message::Said { node, sender, said } => self.coordinator_hears(node, sender, *said),
            Message::Confirmed { node, input } => self.node_takes(node, *input).map(drop),
        }
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

    pub(super) fn say(&mut self, node: usize, said: Said) {
        let sender = self.parties[node].ledger.key.public();
        self.messages.push(Message::Said { node, sender, said: Box::new(said) });
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
    pub(super) fn node_takes(&mut self, node: usize, input: NodeInput) -> Result<Result<(), RoundError>, Violation> {
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

    fn coordinator_hears(&mut self, node: usize, sender: PublicKey, said: Said) -> Result<(), Violation> {
        if self.cheat == Cheat::Censors && node == self.censored && !matches!(said, Said::Cosignature(..)) {
            return Ok(());
        }
        let (now, side) = (self.now(), self.parties[node].side);
        let (input, confirmation) = match said {
            Said::Cosignature(size, cosignature) => {
                let is_too_early = self.sabotage == Some(GovernedSabotage::ConfirmsTooEarly);
                self.sides[side].cosigned(now, size, &cosignature, is_too_early)?;
                self.messages.push(Message::Confirmed { node, input: Box::new(NodeInput::CosignatureSent { size }) });
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
                let confirmed = confirmation.map(|input| Message::Confirmed { node, input: Box::new(input) });
                self.messages.extend(confirmed);
            }
            Err(error) => self.tell(format!("the coordinator does not take it: {error}")),
        }
        Ok(())
    }
}
