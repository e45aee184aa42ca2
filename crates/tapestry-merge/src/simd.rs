//! The widest vector instructions that this processor has.

/// Runs `work` compiled for the widest vector registers of this processor.
///
/// Only what is inlined into `work` profits. The results are those of ordinary code: the compiler neither reorders nor
/// fuses floating-point operations.
#[inline(always)]
pub(crate) fn dispatch<R>(work: impl FnOnce() -> R) -> R {
    pulp::Arch::new().dispatch(work)
}
