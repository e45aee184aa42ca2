//! How the coordinator's role changes hands: a standby on the same store goes on after the holder, which may have died, or be
//! cut off from the store and not know it, or have handed the role over.

use tapestry_core::Signed;
use tapestry_round::coordinator::{Coordinator, CoordinatorInput};
use tapestry_round::{News, RoundError};

use crate::Sabotage;
use crate::checks::Violation;
use crate::coordinator::news_of;
use crate::network::{Happening, Message, Party};
use crate::scenario::{self, STANDBY};
use crate::world::World;

/// A coordinator that lives on, and whose log another writes. What it knows stays as it was.
#[derive(Debug)]
pub(crate) struct Deposed {
    state: Coordinator,
    key: tapestry_core::SecretKey,
}

impl World {
    /// The other of the two that may coordinate goes on in place of the one that does.
    pub(crate) fn takes_over(&mut self) -> Result<(), Violation> {
        // Nobody but the founder can begin a log.
        if self.coordinator.is_empty() {
            return Ok(());
        }
        let old = self.coordinator.key().clone();
        let founder = self.scenario.coordinator_key.clone();
        let other = if old.public() == founder.public() { scenario::key(STANDBY) } else { founder };
        let Some(state) = self.coordinator.state() else {
            self.tell(|| "the coordinator stays dead; a standby will start in its place".into());
            self.coordinator.pass_to(other);
            return Ok(());
        };
        let can_give = state.charter().is_some() && state.hand_over().is_none() && state.holder() == old.public();
        if can_give && self.random.chance(0.5) {
            self.must_take(CoordinatorInput::HandOver { to: other.public(), address: None })?;
            if self.coordinator.state().is_none_or(|state| state.hand_over().is_none()) {
                return Ok(());
            }
        }
        let Some(state) = self.coordinator.state().cloned() else { return Ok(()) };
        self.tell(|| "the coordinator is cut off from its store, and a standby will start in its place".into());
        self.deposed = Some(Deposed { state, key: old });
        self.coordinator.pass_to(other);
        self.pushed.clear();
        let at_ms = self.now_ms + self.random.between(100, 5_000);
        self.plan(at_ms, Happening::Starts { party: Party::Coordinator });
        Ok(())
    }

    /// What a process that starts on the log has to do first, where another had the role before it.
    pub(crate) fn takes_role(&mut self) -> Result<(), Violation> {
        let Some(state) = self.coordinator.state() else { return Ok(()) };
        if let Some(to) = state.hand_over().map(|given| given.to)
            && to != self.coordinator.key().public()
        {
            // Who has handed it over is started again and again, until its operator starts the other one.
            let founder = self.scenario.coordinator_key.clone();
            let other = if founder.public() == to { founder } else { scenario::key(STANDBY) };
            self.coordinator.pass_to(other);
            return self.start(Party::Coordinator, false);
        }
        let key = self.coordinator.key().clone();
        let Some(state) = self.coordinator.state().filter(|state| state.holder() != key.public()) else {
            return Ok(());
        };
        let tenure = state.next_tenure(key.public(), None).map_err(|error| format!("a standby may not: {error}"))?;
        let tenure = Signed::by(tenure, &key).expect("canonical");
        self.must_take(CoordinatorInput::TakeRole { tenure })
    }

    /// Some of what is sent to the coordinator goes to the deposed one, whose address the node has. Whether it went there.
    pub(crate) fn deposed_hears(&mut self, from: Party, message: &Message) -> Result<bool, Violation> {
        let (Some(deposed), Party::Node(_)) = (&self.deposed, from) else { return Ok(false) };
        // It gives up soon after the store has a chance to tell it; once all is calm, at once.
        if self.is_calm() || self.random.chance(0.05) {
            self.deposed = None;
            return Ok(false);
        }
        if self.random.chance(0.6) {
            return Ok(false);
        }
        let now = self.coordinator.now(self.clock_ms(Party::Coordinator));
        let sender = self.key_of(from);
        let (input, confirmation, contribution) = match message {
            Message::Ask { .. } => {
                let news: News = news_of(&deposed.state, &deposed.key);
                self.send(Party::Deposed, from, Message::News(Box::new(news)));
                return Ok(true);
            }
            Message::Contribute(contribution, manifest) if self.store.lacks(manifest).is_empty() => {
                let document = contribution.document.clone();
                let confirmation = Message::Confirmed { round: document.round };
                let contribution = contribution.clone();
                (CoordinatorInput::Contribute { sender, contribution }, confirmation, Some(document))
            }
            Message::Decline(decline) => {
                let confirmation = Message::DeclineConfirmed { round: decline.document.round };
                (CoordinatorInput::Decline { sender, decline: decline.clone() }, confirmation, None)
            }
            Message::Attend(attendance) => {
                let confirmation = Message::AttendanceConfirmed { number: attendance.document.number };
                (CoordinatorInput::Attend { sender, attendance: attendance.clone() }, confirmation, None)
            }
            _ => return Ok(false),
        };
        match deposed.state.handle(now, input) {
            Ok(events) if events.is_empty() || self.sabotage == Some(Sabotage::DeposedConfirms) => {
                // It was in the log before another took it over, so the confirmation is true.
                if let Some(document) = contribution {
                    self.checks.confirmed(&document)?;
                }
                self.send(Party::Deposed, from, confirmation);
            }
            Err(RoundError::HandedOver { .. }) => {}
            // It would have to write, and the store does not let it: the entry's number is taken.
            Ok(_) | Err(_) => {
                self.tell(|| "the deposed coordinator finds its next entry taken, and stops".into());
                self.deposed = None;
            }
        }
        Ok(true)
    }
}
