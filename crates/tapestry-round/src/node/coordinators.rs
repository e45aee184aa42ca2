//! Whom a node takes for the coordinator: the charter's, until a standby that the charter names has taken the role.

use super::{Node, NodeEvent};
use crate::documents::is_address;
use crate::{HandOver, RoundError, Tenure};
use std::collections::BTreeMap;
use tapestry_core::{PublicKey, Signed};
use tapestry_governance::Governance;

/// What a node knows of the coordinator's role.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Role {
    /// How it was taken last; none while the charter's coordinator has it.
    pub(super) tenure: Option<Tenure>,
    /// Where to find those who have or will have it, as far as they or their predecessors said.
    pub(super) addresses: BTreeMap<PublicKey, String>,
    /// To whom it was handed over last.
    pub(super) hand_over: Option<HandOver>,
}

impl Node {
    /// The key that has the coordinator's role, as far as this node knows; none before it has joined.
    #[must_use]
    pub fn coordinator(&self) -> Option<PublicKey> {
        // Until another takes the role, whoever founded the log has it, even where members have chosen another since.
        let founder = self.governance()?.founding().document.coordinator;
        Some(self.role.tenure.as_ref().map_or(founder, |tenure| tenure.coordinator))
    }

    /// The key to which the holder has given the role, where it has and this node does not know yet that it was taken.
    #[must_use]
    pub fn next_coordinator(&self) -> Option<PublicKey> {
        let number = self.role.tenure.as_ref().map_or(1, |tenure| tenure.number);
        self.role.hand_over.as_ref().filter(|given| given.number == number).map(|given| given.to)
    }

    /// Addresses of coordinators that this node was told, beyond those that its operator knows.
    #[must_use]
    pub const fn coordinator_addresses(&self) -> &BTreeMap<PublicKey, String> {
        &self.role.addresses
    }

    /// Takes up who has the role. Who had it before is not followed any more.
    pub(super) fn take_tenure(
        &mut self,
        governance: &Governance,
        tenure: Option<Signed<Tenure>>,
        events: &mut Vec<NodeEvent>,
    ) -> Result<(), RoundError> {
        let known = self.role.tenure.as_ref().map_or(1, |tenure| tenure.number);
        let charter = &governance.charter().document;
        let holder = self.coordinator().unwrap_or(charter.coordinator);
        let found = tenure.as_ref().map_or(1, |tenure| tenure.document.number);
        if found < known {
            return Err(RoundError::Deposed { known, coordinator: holder, found });
        }
        let Some(signed) = tenure else { return Ok(()) };
        let claimed = signed.document.coordinator;
        let tenure = signed.verify_by(&claimed)?;
        super::check_charter(governance, tenure.charter)?;
        if found == known {
            // Of two who say that they took the role at the same turn, one lies.
            if claimed != holder {
                let reason = format!("{claimed} claims tenure {found}, which {holder} has");
                return Err(RoundError::Role { reason });
            }
            return Ok(());
        }
        charter.check_may_coordinate(claimed)?;
        check_address(tenure.address.as_deref())?;
        self.push(events, NodeEvent::CoordinatorChanged { tenure: signed })
    }

    /// Takes up who will have the role.
    pub(super) fn take_hand_over(
        &mut self,
        governance: &Governance,
        signed: Signed<HandOver>,
        events: &mut Vec<NodeEvent>,
    ) -> Result<(), RoundError> {
        let charter = &governance.charter().document;
        let hand_over = signed.verify_by(&self.coordinator().unwrap_or(charter.coordinator))?;
        super::check_charter(governance, hand_over.charter)?;
        charter.check_may_coordinate(hand_over.to)?;
        check_address(hand_over.address.as_deref())?;
        let known = self.role.tenure.as_ref().map_or(1, |tenure| tenure.number);
        if hand_over.number != known {
            let reason = format!("tenure {} is handed over, and {known} is the one that runs", hand_over.number);
            return Err(RoundError::Role { reason });
        }
        if self.role.hand_over.as_ref() == Some(hand_over) {
            return Ok(());
        }
        self.push(events, NodeEvent::CoordinatorMoves { hand_over: signed })
    }

    pub(super) fn apply_tenure(&mut self, tenure: &Tenure) {
        self.learn_address(tenure.coordinator, tenure.address.as_deref());
        self.role.tenure = Some(tenure.clone());
    }

    pub(super) fn apply_hand_over(&mut self, hand_over: &HandOver) {
        self.learn_address(hand_over.to, hand_over.address.as_deref());
        self.role.hand_over = Some(hand_over.clone());
    }

    fn learn_address(&mut self, key: PublicKey, address: Option<&str>) {
        if let Some(address) = address {
            self.role.addresses.insert(key, address.to_owned());
        }
    }
}

fn check_address(address: Option<&str>) -> Result<(), RoundError> {
    if address.is_none_or(is_address) {
        return Ok(());
    }
    Err(RoundError::Role { reason: "the address that comes with it is none".into() })
}
