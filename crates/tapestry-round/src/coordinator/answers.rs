//! What members answer: whose word it is, for which round, and whether it comes in time.

use super::{Answer, Coordinator, CoordinatorEvent, LateContribution, Phase, Round};
use crate::documents::short;
use crate::{Attendance, Blame, Contribution, Decline, RoundError, Verdict};
use tapestry_core::{Digest, MemberName, PublicKey, Signed, Timestamp};
use tapestry_governance::Charter;

impl Answer {
    pub(super) fn away(attendance: &Attendance) -> Self {
        Self::Absent(Verdict::Away { reason: short(&attendance.reason) })
    }

    fn contribution(&self) -> Option<&Contribution> {
        match self {
            Self::Received(signed) | Self::Judged(signed, _) => Some(&signed.document),
            Self::Absent(_) => None,
        }
    }
}

impl Coordinator {
    /// What is recorded when a message of `sender` was not taken: what the member did wrong, and what came too late. Nothing more
    /// once a member has made [`Coordinator::MAX_REFUSALS`] of them in a round, so that it cannot fill the log.
    #[must_use]
    pub fn refusal(&self, sender: &MemberName, error: &RoundError) -> Option<CoordinatorEvent> {
        if self.num_refused.get(sender).is_some_and(|n| *n >= Self::MAX_REFUSALS) {
            return None;
        }
        let member = sender.clone();
        if let RoundError::Late { round, reason } = error {
            return Some(CoordinatorEvent::Late { round: *round, member, taken: None, reason: reason.clone() });
        }
        let round = self.round.as_ref().map_or(0, |round| round.announcement.round);
        let reason = error.to_string();
        (error.blame() == Blame::Member).then_some(CoordinatorEvent::MessageRefused { round, member, reason })
    }

    /// Whether a member may send weights now, before it says what they are; the number of the round that they would count in.
    ///
    /// # Errors
    /// Why not.
    pub fn takes_weights_of(&self, member: &MemberName, now: Timestamp) -> Result<u32, RoundError> {
        let (_, charter) = self.in_force()?;
        if let Some(given) = &self.hand_over {
            return Err(RoundError::HandedOver { to: given.to });
        }
        let due = self.due();
        if let Some(round) = self.round.as_ref().filter(|round| round.is_open(now)) {
            let known = round.answers.get(member);
            return match known {
                None | Some(Answer::Absent(Verdict::Away { .. })) => Ok(due),
                Some(answer) if answer.contribution().is_some_and(|known| known.round < due) => Ok(due),
                Some(Answer::Absent(Verdict::Missing)) if charter.rounds.late_rounds > 0 => Ok(due),
                Some(_) => Err(RoundError::AlreadyAnswered { member: member.clone(), round: due }),
            };
        }
        let has_answered = self.round.as_ref().and_then(|round| round.answers.get(member)?.contribution()).is_some();
        if has_answered || charter.rounds.late_rounds == 0 || self.is_complete() {
            return Err(RoundError::NoRound);
        }
        Ok(due)
    }

    /// What follows from a contribution; nothing where it was received before.
    pub(super) fn check_contribution(
        &self,
        now: Timestamp,
        sender: PublicKey,
        signed: Signed<Contribution>,
    ) -> Result<Option<CoordinatorEvent>, RoundError> {
        let contribution = &signed.document;
        let member = &contribution.member;
        let charter = self.check_sender(sender, member, contribution.charter)?;
        signed.verify_by(&sender)?;
        let newest = self.taken.get(member);
        if newest == Some(contribution) {
            return Ok(None);
        }
        let number = contribution.round;
        let expected = self.base_of(number).ok_or(RoundError::OtherRound { expected: self.due(), found: number })?;
        if number == self.due() && self.round.is_none() {
            return Err(RoundError::NoRound);
        }
        if contribution.base != expected {
            return Err(RoundError::OtherBase { round: number, expected, found: contribution.base });
        }
        let answered = || RoundError::AlreadyAnswered { member: member.clone(), round: number };
        // The newest counts, and for each round there is one.
        if newest.is_some_and(|newest| newest.round >= number) {
            return Err(if number < self.due() { self.replayed(number) } else { answered() });
        }
        if let Some(round) = self.round.as_ref().filter(|round| round.announcement.round == number) {
            let is_in_time = match round.answers.get(member) {
                // The same weights are in this round already. Were they put in again, a screening that is under way could be
                // taken for one against the other base.
                Some(Answer::Received(late) | Answer::Judged(late, _))
                    if late.document.weights == contribution.weights =>
                {
                    return Ok(None);
                }
                // Whoever contributes is not away, whichever of its two messages comes first.
                None | Some(Answer::Received(_) | Answer::Judged(..) | Answer::Absent(Verdict::Away { .. })) => {
                    round.is_open(now)
                }
                Some(Answer::Absent(Verdict::Missing)) => false,
                Some(Answer::Absent(_)) => {
                    return Err(RoundError::Answered { member: member.clone(), round: number });
                }
            };
            if is_in_time {
                return Ok(Some(CoordinatorEvent::ContributionReceived { contribution: signed }));
            }
        } else {
            // The round has ended. Whoever declined it has nothing to add; whoever only had a late one in it has.
            let outcome = self.outcomes.get(number as usize - 1).ok_or(answered())?;
            if matches!(outcome.verdicts.get(member), None | Some(Verdict::Declined { .. })) {
                return Err(self.replayed(number));
            }
        }
        let (into, reason) = self.late_into(charter, now, contribution)?;
        let (round, member) = (number, member.clone());
        let taken = Some(LateContribution { into, contribution: signed });
        Ok(Some(CoordinatorEvent::Late { round, member, taken, reason }))
    }

    /// The round in which a late contribution counts, and why it may.
    fn late_into(
        &self,
        charter: &Charter,
        now: Timestamp,
        contribution: &Contribution,
    ) -> Result<(u32, String), RoundError> {
        let due = self.due();
        let takes_now = |round: &Round| {
            let answer = round.answers.get(&contribution.member);
            round.is_open(now) && contribution.round < due && !matches!(answer, Some(Answer::Absent(_)))
        };
        let into = match &self.round {
            Some(round) if !takes_now(round) => due + 1,
            _ => due,
        };
        let (late_by, limit) = (into - contribution.round, charter.rounds.late_rounds);
        let late = |reason| Err(RoundError::Late { round: contribution.round, reason });
        if late_by > limit {
            return late(format!(
                "its window has closed; it could count {late_by} rounds later, and the charter takes what is late by at most {limit} \
                 (rounds.late_rounds)"
            ));
        }
        if into > charter.rounds.num_rounds {
            return late(
                "its window has closed, and no round follows in which it could count (charter: rounds.num_rounds)"
                    .into(),
            );
        }
        Ok((into, format!("counts in round {into}, {late_by} later (charter: rounds.late_rounds {limit})")))
    }

    /// `true` where the answer is new, `false` where it was received before.
    pub(super) fn check_decline(
        &self,
        now: Timestamp,
        sender: PublicKey,
        signed: &Signed<Decline>,
    ) -> Result<bool, RoundError> {
        let decline = &signed.document;
        self.check_sender(sender, &decline.member, decline.charter)?;
        let round = self.round.as_ref().ok_or(RoundError::NoRound)?;
        let number = round.announcement.round;
        if decline.round != number {
            return Err(RoundError::OtherRound { expected: number, found: decline.round });
        }
        signed.verify_by(&sender)?;
        check_reason(&decline.reason)?;
        let late = || {
            let reason = "its window has closed (charter: rounds.window_ms)".into();
            Err(RoundError::Late { round: number, reason })
        };
        match round.answers.get(&decline.member) {
            Some(Answer::Absent(Verdict::Declined { reason })) if *reason == short(&decline.reason) => Ok(false),
            Some(Answer::Absent(Verdict::Missing)) => late(),
            // Away says as much.
            Some(Answer::Absent(Verdict::Away { .. })) => Ok(round.is_open(now)),
            // It is the contribution that was late which counts; its member has no other for this round.
            Some(answer) if answer.contribution().is_some_and(|known| known.round < number) => Ok(false),
            Some(Answer::Absent(_)) => {
                Err(RoundError::AlreadyAnswered { member: decline.member.clone(), round: number })
            }
            Some(_) => Err(RoundError::Answered { member: decline.member.clone(), round: number }),
            None if round.is_open(now) => Ok(true),
            None => late(),
        }
    }

    /// `true` where it is new, `false` where it was received before.
    pub(super) fn check_attendance(&self, sender: PublicKey, signed: &Signed<Attendance>) -> Result<bool, RoundError> {
        let attendance = &signed.document;
        self.check_sender(sender, &attendance.member, attendance.charter)?;
        signed.verify_by(&sender)?;
        check_reason(&attendance.reason)?;
        let known = self.attendances.get(&attendance.member);
        if known == Some(attendance) {
            return Ok(false);
        }
        let (last, found) = (known.map_or(0, |known| known.number), attendance.number);
        if found > last { Ok(true) } else { Err(RoundError::OldAttendance { last, found }) }
    }

    /// The members that are away.
    pub(super) fn away(&self) -> impl Iterator<Item = &Attendance> {
        self.attendances.values().filter(|attendance| !attendance.is_present)
    }

    pub(super) fn apply_attendance(&mut self, attendance: &Attendance) {
        if let Some(Round { answers, phase: Phase::Collecting, .. }) = &mut self.round {
            match answers.get(&attendance.member) {
                None if !attendance.is_present => {
                    answers.insert(attendance.member.clone(), Answer::away(attendance));
                }
                Some(Answer::Absent(Verdict::Away { .. })) if attendance.is_present => {
                    answers.remove(&attendance.member);
                }
                _ => {}
            }
        }
        self.attendances.insert(attendance.member.clone(), attendance.clone());
    }

    /// The number of the open round, or of the next.
    fn due(&self) -> u32 {
        u32::try_from(self.outcomes.len() + 1).unwrap_or(u32::MAX)
    }

    /// The base that a round starts from, where it is known already.
    fn base_of(&self, number: u32) -> Option<Digest> {
        let known = number.checked_sub(1).and_then(|before| self.bases.get(before as usize)).copied();
        known.or_else(|| self.base.filter(|_| number == self.due()))
    }

    fn replayed(&self, found: u32) -> RoundError {
        RoundError::OtherRound { expected: self.due(), found }
    }

    /// The charter, if `sender` may speak for `member` under it.
    fn check_sender(
        &self,
        sender: PublicKey,
        member: &MemberName,
        charter_digest: Digest,
    ) -> Result<&Charter, RoundError> {
        let (expected, charter) = self.in_force()?;
        self.check_member(sender, member)?;
        // What was made under an earlier charter of this consortium says for which round it is.
        if self.governance().is_none_or(|governance| !governance.knows(&charter_digest)) {
            return Err(RoundError::OtherCharter { expected, found: charter_digest });
        }
        Ok(charter)
    }
}

fn check_reason(reason: &str) -> Result<(), RoundError> {
    let (found, limit) = (reason.len(), Decline::MAX_REASON_BYTES);
    if found > limit { Err(RoundError::TooLong { field: "reason", found, limit }) } else { Ok(()) }
}
