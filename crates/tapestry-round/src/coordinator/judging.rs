//! Verdicts, the gate, and what members are told of a round: all of it follows from the charter and from what was measured.

use super::{Answer, Coordinator, Phase};
use crate::documents::short;
use crate::{Outcome, RefusalReason, RoundError, RoundResult, Screening, Verdict};
use tapestry_core::{Digest, MemberName};
use tapestry_merge::weights::WeightRecord;

impl Coordinator {
    /// The verdict that follows from what was measured and from the charter.
    pub(super) fn judge(
        &self,
        number: u32,
        member: &MemberName,
        weights: Digest,
        screening: &Screening,
    ) -> Result<Verdict, RoundError> {
        const LATE_RESULT: RoundError = RoundError::Unexpected { what: "screening result" };
        let (_, charter) = self.in_force()?;
        let round = self.round.as_ref().filter(|round| round.announcement.round == number).ok_or(LATE_RESULT)?;
        let staleness = match round.answers.get(member) {
            Some(Answer::Received(signed)) if signed.document.weights == weights => {
                number - signed.document.round.min(number)
            }
            _ => return Err(LATE_RESULT),
        };
        let limit = charter.screening.max_relative_change;
        let floor = self.floor(charter);
        let reasons = match screening {
            Screening::Malformed { what } => vec![RefusalReason::Malformed { what: short(what) }],
            Screening::NotFinite { tensor, index } => {
                vec![RefusalReason::NotFinite { tensor: short(tensor), index: *index }]
            }
            Screening::Measured { relative_change, bpb, community_bpb } => {
                // Written so that a NaN is refused.
                let is_near = *relative_change <= limit;
                let accepted = bpb.filter(|bpb| is_near && *bpb <= floor);
                let lacks_score = charter.merge.weighting.needs_community_texts() && community_bpb.is_none();
                if let Some(bpb) = accepted.filter(|_| !lacks_score) {
                    let (relative_change, community_bpb) = (*relative_change, *community_bpb);
                    return Ok(Verdict::Accepted { bpb, relative_change, community_bpb, staleness });
                }
                let mut reasons = vec![];
                if accepted.is_some() {
                    return Ok(Verdict::Refused { reasons: vec![RefusalReason::NoCommunityScore {}] });
                }
                if !is_near {
                    reasons.push(RefusalReason::ChangeTooLarge { relative_change: *relative_change, limit });
                }
                if is_near || bpb.is_some_and(|bpb| bpb > floor) {
                    reasons.push(RefusalReason::BelowFloor { bpb: *bpb, floor });
                }
                reasons
            }
        };
        Ok(Verdict::Refused { reasons })
    }

    /// The charter's gate over the merged model.
    pub(super) fn gate(&self, number: u32, model: Digest, bpb: f64) -> Result<Outcome, RoundError> {
        const LATE_RESULT: RoundError = RoundError::Unexpected { what: "measurement of a merged model" };
        let (_, charter) = self.in_force()?;
        let round = self.round.as_ref().filter(|round| round.announcement.round == number).ok_or(LATE_RESULT)?;
        let Phase::Gating { weights, model: expected, .. } = &round.phase else { return Err(LATE_RESULT) };
        if *expected != model {
            return Err(LATE_RESULT);
        }
        let adopted = self.measured.get(&charter.base).copied().ok_or(LATE_RESULT)?;
        let limit = adopted * (1.0 + charter.gate.max_bpb_rise);
        if bpb <= limit {
            return self.outcome(model, RoundResult::Published { bpb }, weights.clone());
        }
        let found = if bpb < f64::MAX { format!("{bpb:.4}") } else { "no finite number of".into() };
        let reason = format!(
            "the merged model has {found} bits per byte on the open held-out text; the charter's gate allows {limit:.4}"
        );
        let base = round.announcement.base;
        self.outcome(base, RoundResult::Abandoned { reason }, weights.clone())
    }

    pub(super) fn outcome(
        &self,
        base: Digest,
        result: RoundResult,
        weights: Vec<WeightRecord>,
    ) -> Result<Outcome, RoundError> {
        let (digest, charter) = self.in_force()?;
        let round = self.round.as_ref().ok_or(RoundError::NoRound)?;
        let verdict = |answer: &Answer| match answer {
            Answer::Judged(_, verdict) | Answer::Absent(verdict) => Some(verdict.clone()),
            Answer::Received(_) => None,
        };
        let verdicts =
            round.answers.iter().filter_map(|(name, answer)| Some((name.clone(), verdict(answer)?))).collect();
        let number = round.announcement.round;
        let is_last = number >= charter.rounds.num_rounds;
        Ok(Outcome { charter: digest, round: number, base, result, verdicts, weights, is_last })
    }
}
