//! Who has the coordinator's role, and how it changes hands.
//!
//! The log decides: whoever writes its next entry first has the role, and what the one before writes after that is no
//! entry of this log. Here it is decided who may try, and what the change means for everything else: nothing. The round
//! goes on where it was.

use super::{Coordinator, CoordinatorEvent};
use crate::documents::is_address;
use crate::{HandOver, RoundError, Tenure};
use std::collections::BTreeSet;
use tapestry_core::{PublicKey, Signed};

impl Coordinator {
    /// The key that has the coordinator's role: the log's writer.
    #[must_use]
    pub fn holder(&self) -> PublicKey {
        self.tenure.as_ref().map_or(self.founder, |tenure| tenure.document.coordinator)
    }

    /// The number of the tenure, from 1.
    #[must_use]
    pub fn tenure_number(&self) -> u64 {
        self.tenure.as_ref().map_or(1, |tenure| tenure.document.number)
    }

    /// How the holder took the role; none where it is the charter's coordinator and always was.
    #[must_use]
    pub const fn tenure(&self) -> Option<&Signed<Tenure>> {
        self.tenure.as_ref()
    }

    /// To whom the role was handed over, where nobody has taken it yet.
    #[must_use]
    pub const fn hand_over(&self) -> Option<&HandOver> {
        self.hand_over.as_ref()
    }

    /// What `key` has to sign to take the role now.
    ///
    /// # Errors
    /// Where it may not.
    pub fn next_tenure(&self, key: PublicKey, address: Option<String>) -> Result<Tenure, RoundError> {
        let (charter, _) = self.in_force()?;
        let tenure = Tenure { charter, number: self.tenure_number() + 1, coordinator: key, address };
        self.check_tenure(&tenure)?;
        Ok(tenure)
    }

    pub(super) fn check_take(&self, signed: &Signed<Tenure>) -> Result<(), RoundError> {
        let tenure = signed.verify_by(&signed.document.coordinator)?;
        self.check_tenure(tenure)
    }

    fn check_tenure(&self, tenure: &Tenure) -> Result<(), RoundError> {
        let (expected, charter) = self.in_force()?;
        let refused = |reason: String| Err(RoundError::Role { reason });
        charter.check_may_coordinate(tenure.coordinator)?;
        if tenure.charter != expected {
            return Err(RoundError::OtherCharter { expected, found: tenure.charter });
        }
        if tenure.coordinator == self.holder() {
            return refused(format!("{} has it already", tenure.coordinator));
        }
        if let Some(HandOver { to, .. }) = self.hand_over.as_ref().filter(|given| given.to != tenure.coordinator) {
            return refused(format!("it was handed over to {to}, and to nobody else"));
        }
        let due = self.tenure_number() + 1;
        if tenure.number != due {
            return refused(format!("tenure {due} is due, not {}", tenure.number));
        }
        check_address(tenure.address.as_deref())
    }

    pub(super) fn give_away(&self, to: PublicKey, address: Option<String>) -> Result<HandOver, RoundError> {
        let (charter, terms) = self.in_force()?;
        terms.check_may_coordinate(to)?;
        if to == self.holder() {
            return Err(RoundError::Role { reason: format!("{to} has it already") });
        }
        check_address(address.as_deref())?;
        Ok(HandOver { charter, number: self.tenure_number(), to, address })
    }

    /// Who may take the log over after an event, where the event changes that: what the ledger's entry names as successors.
    #[must_use]
    pub fn successors(&self, event: &CoordinatorEvent) -> Option<BTreeSet<PublicKey>> {
        match event {
            CoordinatorEvent::Decided { adopted: true, .. } if self.hand_over.is_some() => {
                self.hand_over.as_ref().map(|given| [given.to].into())
            }
            CoordinatorEvent::CharterAdopted { .. }
            | CoordinatorEvent::Decided { adopted: true, .. }
            | CoordinatorEvent::RoleTaken { .. } => Some(self.charter()?.document.coordinators()),
            CoordinatorEvent::RoleHandedOver { hand_over } => Some([hand_over.to].into()),
            _ => None,
        }
    }
}

fn check_address(address: Option<&str>) -> Result<(), RoundError> {
    match address.filter(|address| !is_address(address)) {
        None => Ok(()),
        Some(address) => {
            let shown: String = address.chars().take(80).filter(|c| !c.is_control()).collect();
            Err(RoundError::Role {
                reason: format!("an address is HOST:PORT, such as example.org:7443; found {shown:?}"),
            })
        }
    }
}
