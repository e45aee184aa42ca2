//! A coordinator, or one of the faces of one that cheats: its log, and what it shows of it. As the binary does it.

use super::ledger::Ledger;
use crate::checks::Violation;
use tapestry_core::{Digest, Signed, Timestamp};
use tapestry_ledger::{Cosignature, SignedCheckpoint};
use tapestry_round::coordinator::{Coordinator, CoordinatorEffect, CoordinatorEvent, CoordinatorInput, Phase};
use tapestry_round::{Announcement, Blame, LogView, News, RoundError, Screening};

#[derive(Debug, Clone)]
pub(super) struct Side {
    pub(super) ledger: Ledger<Coordinator>,
    desk: Option<SignedCheckpoint>,
}

impl Side {
    pub(super) const fn new(ledger: Ledger<Coordinator>) -> Self {
        Self { ledger, desk: None }
    }

    /// Gives an input to the state machine; the inner error is the machine's.
    pub(super) fn input(
        &mut self,
        now: Timestamp,
        input: CoordinatorInput,
    ) -> Result<Result<(), RoundError>, Violation> {
        match self.ledger.state.handle(now, input) {
            Ok(events) => self.ledger.write(now, events).map(Ok),
            Err(error) if error.blame() == Blame::Internal => {
                Err(format!("an inner error of the coordinator: {error}"))
            }
            Err(error) => Ok(Err(error)),
        }
    }

    /// Lets time pass, and does one thing that waits to be done.
    pub(super) fn work(&mut self, now: Timestamp) -> Result<(), Violation> {
        if let Err(error) = self.input(now, CoordinatorInput::Tick)? {
            return Err(format!("the coordinator refuses the time: {error}"));
        }
        let Some(effect) = self.ledger.state.pending().into_iter().next() else { return Ok(()) };
        let input = match effect {
            CoordinatorEffect::MeasureBase { base } => CoordinatorInput::BaseMeasured { base, bpb: 1.0 },
            CoordinatorEffect::MeasureCommunity { base, member } => {
                CoordinatorInput::CommunityMeasured { base, member, bpb: Some(1.0) }
            }
            CoordinatorEffect::Screen { round, member, weights, .. } => {
                let screening = Screening::Measured { relative_change: 0.01, bpb: Some(1.0), community_bpb: None };
                CoordinatorInput::Screened { round, member, weights, screening }
            }
            CoordinatorEffect::Merge(work) => {
                let named: String =
                    work.inputs.iter().map(|input| format!("{} {}\n", input.member, input.weights)).collect();
                let model = Digest::of(format!("round {}\n{named}", work.round).as_bytes());
                CoordinatorInput::Merged { round: work.round, model, states: vec![] }
            }
            CoordinatorEffect::MeasureMerged { round, model } => {
                CoordinatorInput::MergedMeasured { round, model, bpb: 1.0 }
            }
        };
        match self.input(now, input)? {
            Ok(()) => Ok(()),
            Err(error) => Err(format!("a result that was due is not taken: {error}")),
        }
    }

    /// Opens the round that is due without waiting for anybody.
    pub(super) fn open_unwitnessed(&mut self, now: Timestamp) -> Result<(), Violation> {
        let state = &self.ledger.state;
        let (Some(governance), Some(base)) = (state.governance(), state.base()) else { return Ok(()) };
        if !state.wants_witnesses() || state.is_complete() || state.measured_bpb(&base).is_none() {
            return Ok(());
        }
        let round = u32::try_from(state.outcomes().len() + 1).expect("few");
        let closes_at = now.plus(governance.charter().document.window());
        let announcement = Announcement { charter: governance.digest(), round, base, opened_at: now, closes_at };
        self.ledger.write(now, vec![CoordinatorEvent::RoundAnnounced { announcement }])
    }

    /// The checkpoint on which the open round rests, or that members are asked to witness.
    pub(super) fn shown(&mut self) -> Option<SignedCheckpoint> {
        let state = &self.ledger.state;
        let recorded = state.checkpoint_on_record();
        if let Some(recorded) = recorded
            && self.desk.as_ref().is_none_or(|note| note.checkpoint().size != recorded.size)
        {
            self.desk = recorded.checkpoint.parse().ok();
        }
        if recorded.is_none() && self.desk.as_ref().is_none_or(|note| note.checkpoint().size < state.witness_due()) {
            self.desk = self.ledger.chain.sealed().cloned();
        }
        self.desk.clone()
    }

    fn view(&mut self, from: u64) -> Option<LogView> {
        let note = self.shown()?;
        let size = note.checkpoint().size;
        let consistency = self.ledger.tree.consistency(from.min(size), size)?;
        Some(LogView { checkpoint: note.to_string(), from, consistency })
    }

    pub(super) fn news(&mut self, seen: u64, steps: u64) -> News {
        let log = self.view(seen);
        let (state, key) = (&self.ledger.state, &self.ledger.key);
        let open = state.round().filter(|round| matches!(round.phase, Phase::Collecting));
        News {
            version: state.num_events(),
            tenure: state.tenure().cloned(),
            hand_over: None,
            governance: state.steps_after(steps),
            log,
            announcement: open.map(|round| Signed::by(round.announcement.clone(), key).expect("canonical")),
            outcome: state.outcomes().last().map(|outcome| Signed::by(outcome.clone(), key).expect("canonical")),
        }
    }

    /// Takes a cosignature: it is in the log before the member is told so, unless it `waits_for_all`.
    pub(super) fn cosigned(
        &mut self,
        now: Timestamp,
        size: u64,
        cosignature: &Cosignature,
        waits_for_all: bool,
    ) -> Result<(), Violation> {
        let Some(note) = self.shown().filter(|note| note.checkpoint().size == size) else { return Ok(()) };
        let governance = self.ledger.state.governance().ok_or("no charter")?;
        let key = governance.members().find(|(name, _)| *name == cosignature.member()).map(|(_, key)| *key);
        if key.is_none_or(|key| cosignature.verify(note.checkpoint(), &key).is_err()) {
            return Ok(());
        }
        let needed = if waits_for_all { governance.num_witnesses() } else { 1 };
        let desk = self.desk.as_mut().ok_or("a desk")?;
        desk.add(cosignature);
        if self.ledger.state.wants_witnesses() && desk.num_signatures() > needed {
            let checkpoint = desk.to_string();
            let _ = self.input(now, CoordinatorInput::Witnessed { checkpoint })?;
        }
        Ok(())
    }
}
