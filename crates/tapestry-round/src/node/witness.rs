//! A node as a witness of the coordinator's log: it follows one history, cosigns what continues it, and keeps the proof of any
//! other that it is shown.

use super::{Node, NodeEvent};
use crate::{LogView, RoundError};
use tapestry_core::PublicKey;
use tapestry_ledger::{SignedCheckpoint, TreeHash, verify_consistency};

/// The newest of the coordinator's log that this node has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How many entries.
    pub size: u64,
    /// Their root.
    pub root: TreeHash,
    /// The checkpoint as it was shown.
    pub checkpoint: String,
}

/// What checking a view of the log finds.
pub(super) enum Checked {
    /// Nothing new.
    Known,
    /// It continues what was seen.
    Continues(NodeEvent),
    /// It does not.
    Differs(NodeEvent),
}

impl Node {
    /// The newest of the coordinator's log that this node has seen.
    #[must_use]
    pub const fn seen(&self) -> Option<&Seen> {
        self.seen.as_ref()
    }

    /// Whether this node was shown two histories, and takes no part any more.
    #[must_use]
    pub const fn has_seen_two_histories(&self) -> bool {
        self.has_seen_two_histories
    }

    /// Checks that a checkpoint, such as another member was shown, is of this consortium's log and signed by somebody who may write it.
    ///
    /// # Errors
    /// [`RoundError::Log`].
    pub fn check_checkpoint(&self, checkpoint: &str) -> Result<(), RoundError> {
        let view = LogView { checkpoint: checkpoint.to_owned(), from: 0, consistency: vec![] };
        self.read_view(&view).map(drop)
    }

    /// Checks a view of the coordinator's log against what was seen of it before.
    pub(super) fn check_view(&self, view: &LogView) -> Result<Checked, RoundError> {
        let (note, size) = self.read_view(view)?;
        let root = note.checkpoint().root;
        let Some(seen) = &self.seen else {
            return Ok(Checked::Continues(NodeEvent::CheckpointSeen { checkpoint: note.to_string() }));
        };
        let differs = || {
            let (seen, shown) = (seen.checkpoint.clone(), view.clone());
            Ok(Checked::Differs(NodeEvent::HistoriesDiffer { seen, shown }))
        };
        let old = RoundError::OldView { from: view.from, found: size, seen: seen.size };
        match size {
            _ if size < seen.size => Err(old),
            _ if size == seen.size => {
                if root == seen.root {
                    Ok(Checked::Known)
                } else {
                    differs()
                }
            }
            // Asked before the last view came; the next answer begins where this node is.
            _ if view.from != seen.size => Err(old),
            _ => match verify_consistency(seen.size, seen.root, size, root, &view.consistency) {
                Ok(()) => Ok(Checked::Continues(NodeEvent::CheckpointSeen { checkpoint: note.to_string() })),
                Err(_) => differs(),
            },
        }
    }

    /// Compares what this node has seen with what another member was shown. The proof leads from the smaller to the larger.
    pub(super) fn compare(&self, view: LogView) -> Result<Vec<NodeEvent>, RoundError> {
        if self.has_seen_two_histories {
            return Ok(vec![]);
        }
        let (note, size) = self.read_view(&view)?;
        let Some(seen) = &self.seen else {
            return Err(RoundError::Log { reason: "nothing of it has been seen here yet".into() });
        };
        let root = note.checkpoint().root;
        let is_one = match size.cmp(&seen.size) {
            std::cmp::Ordering::Equal => root == seen.root,
            std::cmp::Ordering::Less => verify_consistency(size, root, seen.size, seen.root, &view.consistency).is_ok(),
            std::cmp::Ordering::Greater => {
                verify_consistency(seen.size, seen.root, size, root, &view.consistency).is_ok()
            }
        };
        let seen = seen.checkpoint.clone();
        Ok(if is_one { vec![] } else { vec![NodeEvent::HistoriesDiffer { seen, shown: view }] })
    }

    /// The checkpoint of a view: of this consortium's log, by somebody who may write it.
    fn read_view(&self, view: &LogView) -> Result<(SignedCheckpoint, u64), RoundError> {
        let wrong = |reason: String| RoundError::Log { reason };
        let governance = self.governance().ok_or(RoundError::NoCharter)?;
        let note: SignedCheckpoint = view.checkpoint.parse().map_err(|error| wrong(format!("{error}")))?;
        let origin = tapestry_ledger::origin(governance.founding().document.coordinator);
        if note.checkpoint().origin != origin {
            return Err(wrong(format!("a checkpoint of {}, not of {origin}", note.checkpoint().origin)));
        }
        // The holder's, or of one before it whose entries the log still has.
        if !self.coordinators().any(|key| note.verify_by(&key).is_ok()) {
            return Err(wrong("a checkpoint that nobody signed who may write it".into()));
        }
        let size = note.checkpoint().size;
        Ok((note, size))
    }

    fn coordinators(&self) -> impl Iterator<Item = PublicKey> {
        let governance = self.governance();
        let named = governance.into_iter().flat_map(tapestry_governance::Governance::coordinators);
        self.coordinator().into_iter().chain(named)
    }

    /// How many entries the members have witnessed, as a view shows, if as many have as the charter asks, and it is what this node
    /// has seen itself.
    pub(super) fn witnessed(&self, view: Option<&LogView>) -> Result<u64, RoundError> {
        let governance = self.governance().ok_or(RoundError::NoCharter)?;
        let needed = governance.num_witnesses();
        if needed == 0 {
            return Ok(self.seen.as_ref().map_or(0, |seen| seen.size));
        }
        let wrong = |reason: String| RoundError::Log { reason };
        let view = view.ok_or_else(|| wrong("a round is announced, and no checkpoint comes with it".into()))?;
        let (note, size) = self.read_view(view)?;
        let seen = self.seen.as_ref().filter(|seen| (seen.size, seen.root) == (size, note.checkpoint().root));
        if seen.is_none() {
            let seen = self.seen.as_ref().map_or(0, |seen| seen.size);
            return Err(RoundError::OldView { from: view.from, found: size, seen });
        }
        let mut found = 0;
        // Whoever has left since was a witness under this charter all the same.
        for (member, key) in &governance.charter().document.members {
            let cosigned = note.cosigned_at(member, key).map_err(|error| wrong(error.to_string()))?;
            found += usize::from(cosigned.is_some());
        }
        if found < needed {
            let asked = "the charter asks for (governance.witnesses)";
            return Err(wrong(format!("a round rests on what {found} members have witnessed; {asked} {needed}")));
        }
        if self.witnessed_round.is_some_and(|before| size <= before) {
            return Err(wrong(format!("a round rests on the {size} entries that the round before it rested on")));
        }
        Ok(size)
    }

    pub(super) fn apply_seen(&mut self, text: &str) -> Result<(), RoundError> {
        let note: SignedCheckpoint = text.parse().map_err(|_| RoundError::Unexpected { what: "checkpoint_seen" })?;
        let (size, root) = (note.checkpoint().size, note.checkpoint().root);
        self.seen = Some(Seen { size, root, checkpoint: text.to_owned() });
        self.is_cosigned = false;
        Ok(())
    }
}
