//! Faults that no driver may have, put in to see that the simulator notices.

use tapestry_core::{Digest, Signed, Timestamp};
use tapestry_round::coordinator::{CoordinatorEvent, CoordinatorInput, LateContribution};
use tapestry_round::{Blame, News, RoundError};

use crate::Sabotage;
use crate::checks::Violation;
use crate::network::Party;
use crate::world::World;

/// So much earlier is the time with which the window is judged.
const BACK_MS: u64 = 5_000;

impl World {
    /// What a broken driver records although the machine did not take the input.
    pub(crate) fn recorded_anyway(&self, input: CoordinatorInput, error: &RoundError) -> Option<CoordinatorEvent> {
        use CoordinatorInput::{Attend, Contribute, Decline};
        use RoundError::{AlreadyAnswered, Answered, Late, OldAttendance, OtherRound};
        let state = self.coordinator.state()?;
        let open = state.round().map(|round| round.announcement.round);
        match (self.sabotage?, input, error) {
            (
                Sabotage::TakesSecondAnswers,
                Contribute { contribution, .. },
                AlreadyAnswered { .. } | Answered { .. },
            ) => open.map(|_| CoordinatorEvent::ContributionReceived { contribution }),
            (Sabotage::MixesRounds, Contribute { contribution, .. }, OtherRound { .. } | Late { .. }) => {
                open.map(|_| CoordinatorEvent::ContributionReceived { contribution })
            }
            (Sabotage::TakesTheLateForEver, Contribute { contribution, .. }, OtherRound { .. } | Late { .. }) => {
                let (round, member) = (contribution.document.round, contribution.document.member.clone());
                let allowed = round + state.charter()?.document.rounds.late_rounds;
                let into = open.filter(|open| *open > allowed)?;
                let taken = Some(LateContribution { into, contribution });
                Some(CoordinatorEvent::Late { round, member, taken, reason: "late".into() })
            }
            (Sabotage::TakesOldAttendances, Attend { attendance, .. }, OldAttendance { .. }) => {
                Some(CoordinatorEvent::Attended { attendance })
            }
            (Sabotage::BlamesBadTiming, input, error) if error.blame() == Blame::Timing => {
                let sender = match input {
                    Contribute { sender, .. } | Decline { sender, .. } | Attend { sender, .. } => sender,
                    _ => return None,
                };
                let member = state.charter()?.document.member_of(sender).ok()?.clone();
                let (round, reason) = (open.unwrap_or_default(), error.to_string());
                Some(CoordinatorEvent::MessageRefused { round, member, reason })
            }
            _ => None,
        }
    }

    /// A broken driver asks the machine with the time at which a contribution was on its way.
    pub(crate) fn takes_with_an_old_time(
        &self,
        input: &CoordinatorInput,
        now: Timestamp,
    ) -> Option<Vec<CoordinatorEvent>> {
        let is_due = self.sabotage == Some(Sabotage::JudgesByAnOldTime);
        if !(is_due && matches!(input, CoordinatorInput::Contribute { .. })) {
            return None;
        }
        let earlier = Timestamp::from_ms(now.as_ms() - BACK_MS);
        self.coordinator.state()?.handle(earlier, input.clone()).ok()
    }

    /// A broken coordinator tells one node another end of a round than the others.
    pub(crate) fn tell_another_end(&self, node: usize, news: &mut News) {
        if self.sabotage != Some(Sabotage::TellsTwoEnds) || node != 0 {
            return;
        }
        if let Some(outcome) = &mut news.outcome {
            let mut document = outcome.document.clone();
            document.base = Digest::of(b"another base");
            *outcome = Signed::by(document, self.coordinator.key()).expect("an outcome has a canonical form");
        }
    }

    /// Makes durable what the machine did not decide.
    pub(crate) fn record_anyway(&mut self, event: CoordinatorEvent) -> Result<(), Violation> {
        let now = self.coordinator.now(self.clock_ms(Party::Coordinator));
        let probability = self.crash_probability();
        let random = &mut self.random;
        let taken = self.coordinator.write(now, vec![event], &mut || Self::fate_of(random, probability))?;
        self.coordinator_wrote(taken)
    }
}
