//! Members as witnesses of this log: a round opens only when enough of them have cosigned what it rests on.

use super::{Coordinator, CoordinatorEvent};
use crate::RoundError;
use tapestry_ledger::SignedCheckpoint;

/// What witnesses have cosigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Witnessed {
    /// How many entries of the log.
    pub size: u64,
    /// The checkpoint with their cosignatures.
    pub checkpoint: String,
}

impl Witnessed {
    /// What an event of the log says; `unexpected` where that is no checkpoint.
    pub(super) fn read(checkpoint: &str, unexpected: RoundError) -> Result<Self, RoundError> {
        let note: SignedCheckpoint = checkpoint.parse().map_err(|_| unexpected)?;
        Ok(Self { size: note.checkpoint().size, checkpoint: checkpoint.to_owned() })
    }
}

impl Coordinator {
    /// The checkpoint that enough members have witnessed last.
    #[must_use]
    pub const fn witnessed(&self) -> Option<&Witnessed> {
        self.witnessed.as_ref()
    }

    /// The checkpoint to show to members, where one is on record: that on which the open round rests, or else the one that they are
    /// asked to witness, with the cosignatures that have come. It stays the same until something happens that has to be witnessed
    /// anew.
    #[must_use]
    pub fn checkpoint_on_record(&self) -> Option<&Witnessed> {
        // An open round rests on what was witnessed before it, whatever has happened since.
        let is_open = self.round.is_some();
        let is_current = |witnessed: &&Witnessed| witnessed.size >= self.witness_due;
        let witnessed = self.witnessed.as_ref().filter(|witnessed| is_open || is_current(witnessed));
        witnessed.or_else(|| self.cosigned.as_ref().filter(is_current))
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

    /// What is new in the cosignatures of a checkpoint; nothing where all of them are on record.
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
        let size = note.checkpoint().size;
        if !(self.witness_due..=self.num_events).contains(&size) {
            let reason = format!("the checkpoint is of {size} entries; {} are to be witnessed", self.witness_due);
            return Err(wrong(reason));
        }
        if witnesses.is_empty() {
            return Err(wrong("no member has cosigned the checkpoint".into()));
        }
        if witnesses.len() >= governance.num_witnesses() {
            return Ok(Some(CoordinatorEvent::Witnessed { checkpoint: text }));
        }
        let on_record = self.checkpoint_on_record().map(|cosigned| cosigned.checkpoint.parse::<SignedCheckpoint>());
        let is_known = match on_record {
            Some(Ok(before)) => {
                before.checkpoint() == note.checkpoint() && before.num_signatures() >= note.num_signatures()
            }
            Some(Err(_)) | None => false,
        };
        Ok((!is_known).then_some(CoordinatorEvent::Cosigned { checkpoint: text }))
    }
}
