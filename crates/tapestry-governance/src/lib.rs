//! The charter: who the members are, what they train, and by which rules their work is merged.
//!
//! Pure rules over signed documents. Nothing here decides by who runs a machine: the operator of the coordinator appears
//! in a charter as a key that members chose, and can change none of its terms.

mod charter;

pub use charter::{
    Charter, CharterError, CharterTerms, GateTerms, HeldOutTerms, MergeTerms, RoundTerms, ScreeningTerms, TermsError,
};
