//! Whole consortia in one thread, from a seed: the state machines of `tapestry-round` under a hostile world.
//!
//! A seed decides the charter, the characters of the members (honest, reluctant, silent, poisoning, forging) and the
//! weather: messages are lost, repeated, delayed and overtaken; any role dies between any two writes, or around one, and
//! starts again from its durable log; clocks are wrong; work fails and its results come twice. After every single
//! happening the promises below are checked by a second, naive book-keeping. At a certain time the faults stop (malice does
//! not), and from then on the loop must come to its end.
//!
//! What is promised:
//! - the state of each role is the fold of its log, and the log verifies, at every start and at the end;
//! - every node is on the base that the coordinator published, and believes no round or outcome that it did not;
//! - a contribution whose arrival was confirmed is judged: never lost, never replaced, whoever dies when;
//! - a node never trains twice for a round once its training is durable;
//! - a published base is exactly the merge of the accepted contributions; refused ones have no part in it;
//! - weights sum to one and keep floor and cap; poison is never accepted; the window is a rule and not a race;
//! - nobody speaks in another's name, and no honest member is blamed;
//! - a Sovereign Model never travels;
//! - every round ends once faults stop, and every node has its Sovereign Model;
//! - equal seeds give equal runs, to the last byte of every log.
//!
//! docs/simulator.md has every promise, the sabotage that shows that it can fail, and which real defect it found.
//!
//! Votes, witnesses, keys and coordinators that cheat have a world of their own: [`governed`].
//!
//! What is not simulated: bytes within a chunk.

mod checks;
mod coordinator;
pub mod governed;
mod malice;
mod model;
mod network;
mod node;
mod random;
mod role;
mod sabotage;
mod scenario;
mod store;
mod takeover;
mod transfer;
mod weighing;
mod world;

use tapestry_core::Digest;
use world::World;

/// A fault that no driver may have, put in to see that the simulator notices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sabotage {
    /// The coordinator acts on what it wrote before it is durable.
    CoordinatorSkipsSync,
    /// A node acts on what it wrote before it is durable.
    NodeSkipsSync,
    /// The coordinator's merge is not the sum that it recorded.
    MergesSomethingElse,
    /// The coordinator confirms chunks, and contributions, that are not synced yet.
    ConfirmsUnsyncedChunks,
    /// A role acts on entries that an earlier process wrote, and does not sync them first.
    TrustsUnsyncedLog,
    /// The coordinator screens something else than what was contributed, so that everything passes.
    ScreensNothing,
    /// The coordinator does not measure what it merged.
    OpensTheGate,
    /// A node sends every chunk again with each connection.
    SendsAllChunksAgain,
    /// A node keeps whatever bytes a mirror sends, under the name that it asked for.
    BelievesMirrors,
    /// A coordinator that another has replaced confirms what it could not write.
    DeposedConfirms,
    /// One byte of the coordinator's log changes where it is kept.
    ChangesAnEntry,
    /// The coordinator judges the window by the time at which a contribution was on its way.
    JudgesByAnOldTime,
    /// The coordinator records a second answer to a round.
    TakesSecondAnswers,
    /// The coordinator records a contribution to another round in the open one.
    MixesRounds,
    /// The coordinator lets every late contribution count in the open round, whatever the charter says.
    TakesTheLateForEver,
    /// The coordinator records an attendance that is older than the last.
    TakesOldAttendances,
    /// The coordinator takes bad timing for bad faith.
    BlamesBadTiming,
    /// The coordinator tells one node another end of a round than the others.
    TellsTwoEnds,
    /// The coordinator never merges.
    ForgetsToMerge,
}

/// What happened in a run where every promise was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// The digest of everything that happened and of every log.
    pub trace: Digest,
    /// Rounds that ended.
    pub num_rounds: usize,
    /// Rounds that ended with a new Shared Base.
    pub num_published: usize,
    /// Messages that arrived.
    pub num_messages: u64,
    /// Processes that died.
    pub num_crashes: u64,
    /// How many of them lost power: what they had not synced was gone.
    pub num_power_losses: u64,
    /// Entries in the coordinator's log.
    pub num_entries: u64,
    /// Contributions that counted in a later round than the one they were trained for.
    pub num_late: u64,
    /// How often another took the coordinator's role.
    pub num_tenures: u64,
    /// Members of the consortium.
    pub num_members: usize,
    /// Simulated time in milliseconds.
    pub simulated_ms: u64,
}

/// A promise that was not kept.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure {
    /// The seed: running it again gives the same.
    pub seed: u64,
    /// What was broken.
    pub violation: String,
    /// What led to it, oldest first.
    pub story: Vec<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let skipped = self.story.len().saturating_sub(60);
        writeln!(f, "seed {}: {}", self.seed, self.violation)?;
        self.story[skipped..].iter().try_for_each(|line| writeln!(f, "  {line}"))?;
        write!(f, "  again: cargo xtask sim --seed {}", self.seed)
    }
}

/// As for people: a story is long.
impl std::fmt::Debug for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

impl std::error::Error for Failure {}

/// Lives through the world of `seed`.
///
/// # Errors
/// The first promise that is broken, with the story that led to it.
pub fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<Summary, Box<Failure>> {
    World::new(seed, sabotage, false).run().map_err(|_| {
        // The story costs time, so it is told only where somebody will read it. The second run is equal to the first.
        let mut world = World::new(seed, sabotage, true);
        let violation = world.run().expect_err("equal seeds give equal runs");
        Box::new(Failure { seed, violation, story: world.story.take().unwrap_or_default() })
    })
}

/// What a round without faults costs with so many honest members, whose training takes no time. `num_rounds` of them are lived through.
///
/// # Errors
/// A promise that is broken.
pub fn calm_round(num_members: u64, num_rounds: u32) -> Result<Summary, Box<Failure>> {
    let mut random = random::Random::new(num_members);
    let scenario = scenario::Scenario::calm(num_members, num_rounds, &mut random);
    let mut world = World::of(scenario, random, None, true);
    world.run().map_err(|violation| {
        Box::new(Failure { seed: num_members, violation, story: world.story.take().unwrap_or_default() })
    })
}
