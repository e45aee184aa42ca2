//! Members as witnesses of this log: a round opens only when enough of them have cosigned what it rests on.

use super::{Coordinator, CoordinatorEvent};
use crate::RoundError;
use tapestry_ledger::SignedCheckpoint;

/// What the witnesses have cosigned last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnessed {
    /// How many entries of the log.
    pub size: u64,
    /// The checkpoint with their cosignatures.
    pub checkpoint: String,
}

impl Coordinator {
    /// The checkpoint that members have witnessed last.
    #[must_use]
    pub const fn witnessed(&self) -> Option<&Witnessed> {
        self.witnessed.as_ref()
    }

    /// How many entries the next round rests on: a checkpoint of at least so many has to be witnessed before it opens.
    #[must_use]
    pub const fn witness_due(&self) -> u64 {
        self.witness_due
    }

    /// Whether members have yet to witness what the next round rests on.
    #[must_use]
    pub fn wants_witnesses(&self) -> bool {
        let needed = self.governance().is_some_and(|governance| governance.num_witnesses() > 0);
        let is_done = self.witnessed.as_ref().is_some_and(|witnessed| witnessed.size >= self.witness_due);
        needed && !is_done && self.round.is_none() && self.hand_over.is_none()
    }

    pub(super) fn check_witnessed(&self, text: String) -> Result<Option<CoordinatorEvent>, RoundError> {
        if !self.wants_witnesses() {
            return Ok(None);
        }
        let governance = self.governance().ok_or(RoundError::NoCharter)?;
        let wrong = |reason: String| RoundError::Log { reason };
        let note: SignedCheckpoint = text.parse().map_err(|error| wrong(format!("{error}")))?;
        if note.checkpoint().origin != tapestry_ledger::origin(self.founder) {
            return Err(wrong("a checkpoint of another log".into()));
        }
        let signed = note.verify_all(&self.holder(), governance.members());
        let witnesses = signed.map_err(|error| wrong(error.to_string()))?;
        let (found, needed) = (witnesses.len(), governance.num_witnesses());
        if found < needed {
            return Err(wrong(format!(
                "{found} members have cosigned; {needed} are needed (charter: governance.witnesses)"
            )));
        }
        let size = note.checkpoint().size;
        if !(self.witness_due..=self.num_events).contains(&size) {
            let reason = format!("the checkpoint is of {size} entries; {} are to be witnessed", self.witness_due);
            return Err(wrong(reason));
        }
        Ok(Some(CoordinatorEvent::Witnessed { checkpoint: text }))
    }

    pub(super) fn apply_witnessed(&mut self, checkpoint: &str) -> Result<(), RoundError> {
        let note: SignedCheckpoint = checkpoint.parse().map_err(|_| RoundError::Unexpected { what: "witnessed" })?;
        self.witnessed = Some(Witnessed { size: note.checkpoint().size, checkpoint: checkpoint.to_owned() });
        Ok(())
    }
}
