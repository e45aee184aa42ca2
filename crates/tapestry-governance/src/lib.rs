//! The charter: who the members are, what they train, and by which rules their work is merged.
//!
//! Pure rules over signed documents. Nothing here decides by who runs a machine: the operator of the coordinator appears
//! in a charter as a key that members chose, and can change none of its terms.

mod charter;
mod error;
mod governance;
mod proposal;
mod terms;

pub use charter::{
    Charter, CharterError, CharterTerms, GateTerms, HeldOutTerms, MAX_MEMBERS, MergeTerms, RoundTerms, ScreeningTerms,
    TermsError,
};
pub use error::GovernanceError;
pub use governance::{CharterHistory, Governance, MAX_STEPS, Step, Tally};
pub use proposal::{
    Change, Choice, Credit, CreditKind, Departure, KeyRotation, MAX_CONSULTED, MAX_CREDITS, MAX_RATIONALE_BYTES,
    MAX_REASON_BYTES, Proposal, Vote, kinds, legal_quorum,
};
pub use terms::{DecisionKind, DecisionTerms, GovernanceTerms, Leaving, MAX_TEXT_BYTES};
