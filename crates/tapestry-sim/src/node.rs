//! A node's driver: turns news into inputs and effects into work and messages.

use tapestry_core::{Digest, Signed};
use tapestry_round::RoundError;
use tapestry_round::TrainingMetrics;
use tapestry_round::node::{
    ContributedCpt, Measurement, NodeEffect, NodeEvent, NodeInput, Participation, SovereignModel, TransferMetrics,
};

use crate::checks::Violation;
use crate::model::Vector;
use crate::network::{Happening, Message, Party};
use crate::role::Taken;
use crate::scenario::Character;
use crate::transfer::Transfer;
use crate::world::World;

pub(crate) const TRANSFER: TransferMetrics = TransferMetrics { size_bytes: 32, wall_seconds: 0.001 };

impl World {
    pub(crate) fn node_starts(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].role.state().is_some_and(|state| state.charter().is_none()) {
            let charter = self.scenario.charter.clone();
            let joined = self.node_takes(node, NodeInput::join(charter))?;
            if let Err(error) = joined
                && !self.is_expired()
            {
                return Err(format!("node {node} cannot join: {error}"));
            }
        }
        self.node_wakes(node)
    }

    /// A node asks where the loop is, and does what is left to do.
    pub(crate) fn node_wakes(&mut self, node: usize) -> Result<(), Violation> {
        if self.nodes[node].role.state().is_none() {
            return Ok(());
        }
        let version = self.nodes[node].version;
        self.send(Party::Node(node), Party::Coordinator, Message::Ask { version });
        self.start_node_work(node)?;
        let at_ms = self.now_ms + self.random.between(2_000, 5_000);
        self.plan(at_ms, Happening::Wakes { party: Party::Node(node), life: self.nodes[node].role.life() });
        Ok(())
    }

    /// Feeds an input; the inner error is the machine's.
    pub(crate) fn node_takes(&mut self, node: usize, input: NodeInput) -> Result<Result<(), RoundError>, Violation> {
        let (clock_ms, probability) = (self.clock_ms(Party::Node(node)), self.crash_probability());
        let random = &mut self.random;
        match self.nodes[node].role.input(clock_ms, input, &mut || Self::fate_of(random, probability))? {
            Ok(taken) => self.node_wrote(node, &taken).map(Ok),
            Err(error) => Ok(Err(error)),
        }
    }

    fn node_wrote(&mut self, node: usize, taken: &Taken<NodeEvent>) -> Result<(), Violation> {
        for (_, event) in &taken.events {
            self.tell(|| format!("node {node} writes {}", event.name()));
            self.checks.node_event(node, event)?;
        }
        if taken.died {
            self.died(Party::Node(node));
            return Ok(());
        }
        self.start_node_work(node)
    }

    pub(crate) fn node_hears(&mut self, node: usize, from: Party, message: Message) -> Result<(), Violation> {
        if self.nodes[node].role.state().is_none() || !self.scenario.members[node].character.has_node() {
            return Ok(());
        }
        let answer = match message {
            Message::News(news) => {
                let version = Some(news.version);
                if from == Party::Coordinator && version == self.nodes[node].version {
                    return Ok(());
                }
                let answer = self.node_takes(node, NodeInput::News(*news))?;
                // What the one before has said may come after what its successor says.
                let is_old = matches!(answer, Err(RoundError::Deposed { .. }));
                if from == Party::Coordinator && !is_old {
                    self.nodes[node].version = version;
                    return match answer {
                        Err(error) if !self.is_expired() => Err(format!("node {node} refuses honest news: {error}")),
                        _ => Ok(()),
                    };
                }
                answer
            }
            Message::Confirmed { round } => {
                self.node_takes(node, NodeInput::ContributionSent { round, transfer: TRANSFER })?
            }
            Message::NotTaken { round } => {
                // As the binary does: what is for the open round is tried again, what is late is not.
                let late = self.nodes[node].role.state().and_then(|state| state.late_round());
                if late.is_none_or(|late| late.announcement.round != round) {
                    return Ok(());
                }
                self.node_takes(node, NodeInput::LateRefused { round })?
            }
            Message::DeclineConfirmed { round } => self.node_takes(node, NodeInput::DeclineSent { round })?,
            Message::AttendanceConfirmed { number } => self.node_takes(node, NodeInput::AttendanceSent { number })?,
            other => return self.transfer_goes_on(node, other),
        };
        // Late and repeated messages are not taken, and that is all.
        if let Err(error) = answer {
            self.tell(|| format!("node {node} does not take it: {error}"));
        }
        Ok(())
    }

    fn start_node_work(&mut self, node: usize) -> Result<(), Violation> {
        let is_calm = self.is_calm();
        for effect in self.nodes[node].role.take_work() {
            self.tell(|| format!("node {node} starts {}", name(&effect)));
            let life = self.nodes[node].role.life();
            let mut is_done = is_calm || !self.random.chance(self.scenario.weather.failure_per_work);
            let takes_ms = match &effect {
                NodeEffect::Train { round, .. } => {
                    self.checks.training_starts(node, *round)?;
                    // At times longer than the window.
                    let max_ms = if self.random.chance(0.1) {
                        self.scenario.weather.max_training_ms * 8
                    } else {
                        self.scenario.weather.max_training_ms
                    };
                    self.random.between(max_ms / 12, max_ms)
                }
                NodeEffect::Measure { .. } | NodeEffect::BuildSovereign { .. } => self.random.between(50, 1_000),
                // What goes over the network ends with an answer, and is given up after a while without one.
                NodeEffect::PullBase { .. }
                | NodeEffect::SendContribution { .. }
                | NodeEffect::SendDecline { .. }
                | NodeEffect::SendAttendance { .. }
                | NodeEffect::SendDeparture { .. }
                | NodeEffect::Cosign { .. } => {
                    is_done = false;
                    self.send_effect(node, &effect)?;
                    self.random.between(1_000, 4_000)
                }
            };
            let at_ms = self.now_ms + takes_ms;
            self.plan(at_ms, Happening::NodeWorked { node, life, effect, is_done });
        }
        Ok(())
    }

    fn send_effect(&mut self, node: usize, effect: &NodeEffect) -> Result<(), Violation> {
        let key = self.nodes[node].role.key().clone();
        let message = match effect {
            NodeEffect::PullBase { base } => {
                let connection = self.connects();
                let can_be_mirror = self.scenario.mirror.is_some() && self.random.chance(0.5);
                let source = if can_be_mirror { Party::Mirror } else { Party::Coordinator };
                self.nodes[node].download = Some(Transfer::new(connection, *base, source));
                self.send(Party::Node(node), source, Message::PullManifest { connection, model: *base });
                return Ok(());
            }
            NodeEffect::SendContribution { contribution } => {
                let manifest = self.nodes[node].store.manifest(&contribution.weights).cloned();
                let manifest = manifest.ok_or_else(|| format!("node {node} lost what it trained"))?;
                self.never_sovereign(node, &contribution.weights)?;
                let connection = self.connects();
                let signed = Signed::by(contribution.clone(), &key).expect("a contribution has a canonical form");
                let mut upload = Transfer::new(connection, contribution.weights, Party::Coordinator);
                upload.contribution = Some(signed);
                self.nodes[node].upload = Some(upload);
                Message::Offer { connection, manifest }
            }
            NodeEffect::SendDecline { decline } => {
                Message::Decline(Signed::by(decline.clone(), &key).expect("a decline has a canonical form"))
            }
            NodeEffect::SendAttendance { attendance } => {
                Message::Attend(Signed::by(attendance.clone(), &key).expect("an attendance has a canonical form"))
            }
            NodeEffect::SendDeparture { .. } | NodeEffect::Cosign { .. } => {
                return Err("nobody leaves or witnesses in this world (see `governed`)".into());
            }
            NodeEffect::Train { .. } | NodeEffect::Measure { .. } | NodeEffect::BuildSovereign { .. } => return Ok(()),
        };
        if matches!(message, Message::Attend(_)) {
            self.seen.push(message.clone());
        }
        self.send(Party::Node(node), Party::Coordinator, message);
        Ok(())
    }

    /// The operator says otherwise how its member takes part; once it is calm, that it contributes.
    pub(crate) fn changes_mind(&mut self, node: usize) -> Result<(), Violation> {
        let reason = "é".repeat(self.random.index(600));
        let participation = match self.random.below(6) {
            _ if self.is_calm() => Participation::Contribute,
            0 => Participation::KeepPrivate { reason },
            1 => Participation::Decline { reason },
            2 | 3 => Participation::Away { reason },
            _ => Participation::Contribute,
        };
        let is_settled = self.is_calm();
        let is_taken = self.nodes[node].role.state().is_some_and(|state| state.charter().is_some())
            && self.node_takes(node, NodeInput::Participate(participation))?.is_ok();
        if !(is_settled && is_taken) {
            let at_ms = self.now_ms + self.random.between(2_000, 20_000);
            self.plan(at_ms, Happening::ChangesMind { node });
        }
        Ok(())
    }

    /// The Sovereign Model never travels.
    fn never_sovereign(&self, node: usize, weights: &Digest) -> Result<(), Violation> {
        let sovereign = self.nodes[node].role.state().and_then(|state| state.sovereign());
        match sovereign {
            Some(model) if model.digest() == *weights => Err(format!("node {node} contributes its Sovereign Model")),
            _ => Ok(()),
        }
    }

    pub(crate) fn node_worked(
        &mut self,
        node: usize,
        life: u32,
        effect: &NodeEffect,
        is_done: bool,
    ) -> Result<(), Violation> {
        let role = &self.nodes[node].role;
        if role.state().is_none() || role.life() != life {
            return Ok(());
        }
        // A transfer that makes progress is not given up.
        if self.has_progressed(node, effect) {
            let at_ms = self.now_ms + self.random.between(1_000, 4_000);
            self.plan(at_ms, Happening::NodeWorked { node, life, effect: effect.clone(), is_done });
            return Ok(());
        }
        let role = &mut self.nodes[node].role;
        let was_due = role.state().is_some_and(|state| state.pending().contains(effect));
        role.work_ended(effect);
        if !is_done {
            return Ok(());
        }
        let Some(input) = self.node_result(node, effect)? else { return Ok(()) };
        match self.node_takes(node, input)? {
            Err(error) if was_due => Err(format!("node {node} does not take a result that was due: {error}")),
            _ => Ok(()),
        }
    }

    fn node_result(&mut self, node: usize, effect: &NodeEffect) -> Result<Option<NodeInput>, Violation> {
        Ok(match effect {
            NodeEffect::Train { round, base } => {
                if self.scenario.members[node].character == Character::Reluctant && self.random.chance(0.4) {
                    let reason = "brûlé ".repeat(300);
                    return Ok(Some(NodeInput::CannotTrain { round: *round, reason }));
                }
                let base = self.held(node, base)?;
                let mut weights = base.trained(node, &mut self.random);
                if let Character::Poisoner(poison) = self.scenario.members[node].character {
                    weights = base.poisoned(poison, &mut self.random);
                }
                let digest = weights.digest();
                if !self.keep(Party::Node(node), &weights) {
                    return Ok(None);
                }
                let metrics = self.metrics();
                Some(NodeInput::Trained { round: *round, contributed: ContributedCpt::from_training(digest, metrics) })
            }
            NodeEffect::Measure { subject, model } => {
                let held_out_bpb = self.held(node, model)?.open_bpb();
                // A model that gives no finite value is not measured; the driver tries again and again.
                let held_out_bpb = Some(held_out_bpb).filter(|bpb| bpb.is_finite());
                let (subject, model) = (*subject, *model);
                let measurement = Measurement { subject, model, held_out_bpb, open_bpb: None, wall_seconds: 0.5 };
                Some(NodeInput::Measured(measurement))
            }
            NodeEffect::BuildSovereign { base } => {
                let model = self.held(node, base)?.trained(node + 100, &mut self.random);
                if !self.keep(Party::Node(node), &model) {
                    return Ok(None);
                }
                let model = SovereignModel::new(*base, model.digest());
                Some(NodeInput::SovereignBuilt { model, metrics: self.metrics() })
            }
            NodeEffect::PullBase { .. }
            | NodeEffect::SendContribution { .. }
            | NodeEffect::SendDecline { .. }
            | NodeEffect::SendAttendance { .. }
            | NodeEffect::SendDeparture { .. }
            | NodeEffect::Cosign { .. } => None,
        })
    }

    fn held(&self, node: usize, digest: &Digest) -> Result<Vector, Violation> {
        let model = self.nodes[node].store.find(digest).ok_or_else(|| format!("node {node} has no model {digest}"))?;
        if model.digest() == *digest { Ok(model) } else { Err(format!("node {node} works on wrong bytes of {digest}")) }
    }

    /// Numbers with many digits, which must survive the log and the signature to the last bit.
    fn metrics(&mut self) -> TrainingMetrics {
        TrainingMetrics {
            num_tokens: self.random.below(1 << 50),
            num_steps: self.random.below(1000),
            first_loss: 10.0 * self.random.unit(),
            last_loss: self.random.unit() * 1e-7,
            wall_seconds: 1e9 * self.random.unit(),
            cpu_seconds: self.random.unit(),
        }
    }
}

const fn name(effect: &NodeEffect) -> &'static str {
    match effect {
        NodeEffect::PullBase { .. } => "pulling a base",
        NodeEffect::Train { .. } => "training",
        NodeEffect::SendContribution { .. } => "sending its contribution",
        NodeEffect::SendDecline { .. } => "declining",
        NodeEffect::SendAttendance { .. } => "saying whether it is there",
        NodeEffect::SendDeparture { .. } => "leaving",
        NodeEffect::Cosign { .. } => "witnessing",
        NodeEffect::Measure { .. } => "measuring",
        NodeEffect::BuildSovereign { .. } => "its Sovereign Build",
    }
}
