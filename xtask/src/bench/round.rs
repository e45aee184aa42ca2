//! `cargo xtask bench round`: rounds of the Shared-Base Loop between real processes on this machine, TLS, hashing and syncing on.
//!
//! A round is counted as its peers count theirs: from its announcement, which is the moment in which the base before it was
//! published, until its outcome is durable at the coordinator. In between every member pulls the base, hands it to its
//! trainer, takes back the weights, and sends them whole; the coordinator screens each contribution, measures it on the open
//! text, merges, holds the result against the gate, and publishes. The first round is left out: processes start in it. What is
//! trivial is the training (a constant is added to every weight) and the texts (64 tokens).

mod consortium;
mod links;
mod log;
mod members;
mod peer;
mod report;
mod tokenizer;
mod trainer;

pub(super) use trainer::train;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use self::consortium::{Consortium, Plan};
use self::log::RoundTimes;
use self::report::{Found, Row};
use super::limits::Limits;
use super::models::{M135, Shape, TINY};
use super::{Options, machine};

/// A consortium that is measured.
struct Work {
    name: &'static str,
    title: &'static str,
    num_members: usize,
    /// Rounds after the first.
    num_rounds: u32,
}

/// What Flower is compared with.
const ROUND: &str = "round-2";

struct Bench<'a> {
    options: &'a Options,
    folder: PathBuf,
    binary: PathBuf,
    shape: &'static Shape,
    limits: Limits,
}

/// Runs all works that are asked for.
///
/// # Errors
/// When the bench cannot run, or ours fails at any work.
pub(super) fn run(options: &Options) -> Result<()> {
    let folder = options.dir.clone().map_or_else(|| Ok(super::target_folder()?.join("bench-round")), anyhow::Ok)?;
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let folder = folder.canonicalize()?;
    let binary = super::our_binary(options)?;
    for fact in machine::facts(&folder) {
        eprintln!("{fact}");
    }
    let peers = peer::find(options.peers.as_deref());
    if peers.is_none() {
        eprintln!("peers: absent, so nothing is compared; bench/peers/setup.sh DIR gets them, then --peers DIR");
    }
    eprintln!("limits of this machine:");
    let limits = Limits::measure(&folder, if options.quick { 32 << 20 } else { 1 << 30 })?;
    let shape = if options.quick { &TINY } else { &M135 };
    let bench = Bench { options, folder, binary, shape, limits };
    let works = [
        Work {
            name: ROUND,
            title: "round, 2 members",
            num_members: 2,
            num_rounds: u32::try_from(options.repeat.unwrap_or(3))?,
        },
        Work { name: "alone", title: "goodput of one member", num_members: 1, num_rounds: 1 },
        Work { name: "round-8", title: "coordinator's memory with 8 members", num_members: 8, num_rounds: 0 },
    ];
    let mut rows = vec![];
    for work in works.iter().filter(|work| options.wants(work.name, false)) {
        if let Some(reason) = bench.no_room(work) {
            eprintln!("{}: skipped: {reason}", work.name);
            continue;
        }
        let mut found = bench.measure(work).with_context(|| format!("bench of {}", work.title))?;
        if let (ROUND, Some(peers), false) = (work.name, &peers, options.quick) {
            // One that counts is enough, unless more are asked for: they take as long as all else together.
            let num_rounds = options.repeat.unwrap_or(1) + 1;
            eprintln!("Flower, {num_rounds} rounds ...");
            let _used = machine::UsedMemory::fill(&bench.folder)?;
            let flower = peer::run(peers, &bench.folder.join("flower"), num_rounds)?;
            report::compare(&mut found, flower);
        }
        rows.extend(found);
    }
    if options.wants("link", false) {
        rows.extend(links::narrow_link(&bench).context("bench of the narrow link")?);
    }
    if options.wants("resent", false) {
        rows.extend(links::killed(&bench).context("bench of what is sent twice")?);
    }
    if options.wants("members", false) {
        rows.extend(members::scaling(&bench).context("bench of many members")?);
    }
    if rows.is_empty() {
        bail!("nothing was measured: no work with such a name, or no room for it");
    }
    for row in &rows {
        if options.json { println!("{}", row.json()) } else { println!("{}", row.line()) }
    }
    Ok(())
}

impl Bench<'_> {
    /// Why the disk is too small. At its fullest, a member has the base, the same for its trainer, what that gave back, and
    /// that as blobs; the coordinator the base, the contributions of all and what it merged.
    fn no_room(&self, work: &Work) -> Option<String> {
        let rounds = u64::from(work.num_rounds) + 1;
        let num_copies = work.num_members as u64 * (3 + 2 * rounds + 1) + 2 + rounds * (work.num_members as u64 + 1);
        let needed = num_copies * self.shape.size_bytes();
        let free = machine::free_bytes(&self.folder);
        (free < needed).then(|| {
            let [needed, free] = [needed, free].map(machine::gigabytes);
            format!("needs {needed:.0} GB of disk, and {free:.0} GB are free at {}", self.folder.display())
        })
    }

    fn plan(&self, num_members: usize, num_rounds: u32) -> Plan<'_> {
        Plan {
            binary: &self.binary,
            folder: self.folder.join("consortium"),
            models: &self.folder,
            shape: self.shape,
            num_members,
            num_rounds,
        }
    }

    /// Ends a consortium, and removes it unless it is to be kept.
    fn end(&self, consortium: Consortium) -> Result<()> {
        if self.options.keep {
            drop(consortium);
            return Ok(());
        }
        consortium.remove()
    }

    fn measure(&self, work: &Work) -> Result<Vec<Row>> {
        let last = work.num_rounds + 1;
        eprintln!("{}: {} members, {last} rounds ...", work.title, work.num_members);
        // One more than is measured, so that nobody turns to its Sovereign Model meanwhile.
        let mut consortium = Consortium::make(&self.plan(work.num_members, last + 1))?;
        nix::unistd::sync();
        // Where only the coordinator's memory counts, that of the machine does not.
        let _used = if work.num_rounds > 0 { Some(machine::UsedMemory::fill(&self.folder)?) } else { None };
        consortium.start_coordinator()?;
        consortium.join(None)?;
        consortium.start_nodes()?;
        let mut found = Found::default();
        for round in 1..=last {
            let round = u64::from(round);
            consortium.wait(&format!("round {round}"), |consortium| {
                Ok(consortium.log("coordinator")?.iter().any(|entry| entry.is("ended") && entry.round() == Some(round)))
            })?;
            found.taken.push(consortium.taken()?);
        }
        consortium.wait("all nodes to hold the new base", |consortium| {
            let holds = |member: &String| -> Result<bool> {
                let log = consortium.log(member)?;
                let is_last =
                    |entry: &log::Entry| entry.is("outcome_accepted") && entry.round() == Some(u64::from(last));
                Ok(log.iter().skip_while(|entry| !is_last(entry)).any(|entry| entry.is("base_held")))
            };
            consortium.members().iter().map(holds).try_fold(true, |all, one| Ok(all && one?))
        })?;
        let coordinator = consortium.log("coordinator")?;
        let nodes: Vec<_> = consortium.members().iter().map(|member| consortium.log(member)).collect::<Result<_>>()?;
        for round in 1..=last {
            let times = RoundTimes::of(u64::from(round), &coordinator, &nodes)?;
            eprintln!("{}", report::story(round, &times));
            found.rounds.push(times);
        }
        found.transfers = nodes.iter().flatten().filter_map(log::Transfer::of).collect();
        self.end(consortium)?;
        Ok(match work.name {
            ROUND => found.round_rows(self.shape.size_bytes(), &self.limits),
            "alone" => found.goodput_rows(self.shape.size_bytes(), &self.limits),
            _ => found.memory_rows(work.name),
        })
    }
}

/// Where the base is made, and what a node needs of it beyond its weights.
fn make_base(folder: &Path, shape: &Shape) -> Result<PathBuf> {
    let base = super::models::make(folder, shape, 1)?.remove(0);
    std::fs::write(base.join(tokenizer::FILE), tokenizer::json())?;
    Ok(base)
}
