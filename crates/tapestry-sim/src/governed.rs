//! Consortia that govern themselves, from a seed: proposals, votes, new keys, lost keys, departures, witnesses, and coordinators
//! that cheat.
//!
//! A second, smaller world beside the first: weights and transfers are trivial here, and everything about who decides is real.
//! The state machines, the logs with their trees, checkpoints, proofs and cosignatures, and the signatures are those of the
//! binary. Messages are lost, repeated and overtaken; roles die and fold their logs again.
//!
//! What is promised:
//! - no honest node ever follows a charter that fewer members voted for than the one before it asks, by a count of its own; nobody's
//!   vote is counted otherwise than it was cast;
//! - with more than half of the members as witnesses, two honest nodes accept one round on two histories only where some member
//!   has cosigned both;
//! - one node's view of the coordinator's log is one history, always;
//! - who is shown another history takes no part from then on; and nothing that an honest coordinator does, under any loss, delay
//!   and crash, is taken for one;
//! - who rewinds its log, forks it, censors a member, or makes up steps and announcements, changes no charter and opens no round
//!   that rests on anything else than what members have witnessed;
//! - fewer members than a decision needs, together with the coordinator and with stolen keys, decide nothing;
//! - under an honest coordinator, once faults stop, every member in force follows the coordinator's charter, and who left or was
//!   excluded goes on alone.

mod ledger;
mod members;
mod promises;
mod side;
mod world;

use crate::Failure;

/// How the coordinator of a world behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cheat {
    /// It does what it should.
    None,
    /// It keeps two histories and shows one to each half of the members.
    SplitsTheView,
    /// It forgets its last entries, and writes others.
    Rewinds,
    /// It drops whatever a member sends.
    Censors,
    /// It tells of steps that were not decided, and of rounds that nobody witnessed.
    MakesThingsUp,
}

/// A fault that no role may have, put in to see that the simulator notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GovernedSabotage {
    /// Nodes take whatever log they are shown, without a proof.
    SkipsTheProof,
    /// The coordinator opens rounds that nobody has witnessed.
    OpensUnwitnessed,
    /// Honest members cosign whatever they are asked to.
    CosignsUnseen,
    /// The coordinator tells members that it has their cosignatures before they are in its log.
    ConfirmsTooEarly,
    /// The coordinator counts a vote as it likes.
    TurnsVotes,
    /// Nodes take an old view for a lie.
    CriesWolf,
}

/// What happened in a world where every promise was kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct GovernedSummary {
    /// Rounds that honest nodes accepted, each counted once.
    pub num_rounds: usize,
    /// Decisions that were adopted.
    pub num_adopted: usize,
    /// Nodes that were shown two histories and stopped.
    pub num_alarms: usize,
    /// New keys, departures and exclusions.
    pub num_changes: usize,
    /// Checkpoints that enough members witnessed.
    pub num_witnessed: usize,
}

/// Lives through the governed world of `seed`.
///
/// # Errors
/// The first promise that is broken, with the story that led to it.
pub fn run_governed(seed: u64, sabotage: Option<GovernedSabotage>) -> Result<GovernedSummary, Box<Failure>> {
    let mut world = world::World::new(seed, sabotage);
    world.run().map_err(|violation| Box::new(Failure { seed, violation, story: std::mem::take(&mut world.story) }))
}
