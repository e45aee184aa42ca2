//! `tapestry log`.

use super::dial;
use crate::cli::{CompareArgs, ExportArgs, LogCommand, ProveArgs, ShowArgs, VerifyLogArgs};
use crate::clock::now;
use crate::coordinator::proving::Proof;
use crate::files;
use crate::home::Home;
use crate::observe::{About, about_coordinator, about_node};
use crate::role::{Machine, Role};
use crate::stores::Place;
use anyhow::{Context as _, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;
use tapestry_core::{Digest, PublicKey, Signed};
use tapestry_governance::{Charter, Governance};
use tapestry_ledger::tile::Tile;
use tapestry_ledger::{Chain, Entry, SignedCheckpoint, TreeHash, verify_consistency, verify_inclusion};
use tapestry_net::Dialer;
use tapestry_round::LogView;
use tapestry_round::coordinator::Coordinator;
use tapestry_round::node::{Node, NodeInput};
use tapestry_store::{ExportedLog, LogStore, migrate, read_log, write_export};

/// What a check of a log found.
#[derive(Debug, Serialize)]
pub(crate) struct Verified {
    pub(crate) role: &'static str,
    pub(crate) key: PublicKey,
    pub(crate) num_entries: u64,
    pub(crate) root: TreeHash,
}

/// The coordinator has shown two histories: the command ends with a code of its own.
#[derive(Debug)]
pub(crate) struct TwoHistories;

impl std::error::Error for TwoHistories {}

impl std::fmt::Display for TwoHistories {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("THE COORDINATOR HAS SHOWN TWO HISTORIES of its log that are not one")
    }
}

pub(crate) async fn run(command: LogCommand) -> Result<()> {
    match command {
        LogCommand::Verify(args) => verify_any(&args).await,
        LogCommand::Show(args) => show(&args).await,
        LogCommand::Export(args) => export(&args).await,
        LogCommand::Prove(args) => prove(&args).await,
        LogCommand::Checkpoint(args) => checkpoint(&Home::at(&args.home)).await,
        LogCommand::Compare(args) => compare(&args).await,
        LogCommand::Migrate(args) => {
            let home = Home::at(&args.home);
            let _lock = home.lock()?;
            let log = Place::of(&home)?.log().await?;
            match migrate(&log, &home.key()?).await? {
                0 => println!("There is nothing in the older form to be taken over."),
                count => {
                    println!("{count} entries are taken over; the old files stay beside them, with their signatures.")
                }
            }
            Ok(())
        }
    }
}

pub(crate) fn is_node(home: &Home) -> bool {
    home.path("node.toml").exists()
}

/// Whose log lies in a home: `key`, where it is given; otherwise whoever the log itself says founded it, which its charter then
/// has to confirm.
pub(crate) async fn founder(home: &Home, key: Option<PublicKey>) -> Result<PublicKey> {
    match key {
        Some(key) => Ok(key),
        None => match Place::of(home)?.log_to_read().await?.founder().await? {
            Some(founder) => Ok(founder),
            None => home.public_key(),
        },
    }
}

/// The entries of a role's log, checked.
pub(crate) async fn read<M: Machine>(home: &Home, key: PublicKey) -> Result<(Verified, Vec<Entry<M::Event>>)> {
    let log = Place::of(home)?.log_to_read().await?;
    let (chain, entries) = tapestry_store::verify_log_on::<M::Event>(&log, key).await?;
    let mut state = M::empty(key);
    for entry in &entries {
        let applied = state.apply(&entry.event);
        applied.with_context(|| format!("log entry {} cannot follow from those before it", entry.seq))?;
    }
    let verified = Verified { role: "role", key, num_entries: chain.num_entries(), root: chain.root() };
    Ok((verified, entries))
}

/// The charter in force and the base that was published last, as a role's log says, checked.
pub(crate) async fn published(home: &Home) -> Result<(Signed<Charter>, Digest)> {
    let key = founder(home, None).await?;
    let none = "no charter is in force there yet";
    if is_node(home) {
        let state = fold::<Node>(home, key).await?;
        Ok((state.charter().context(none)?.clone(), state.base().context(none)?))
    } else {
        let state = fold::<Coordinator>(home, key).await?;
        Ok((state.charter().context(none)?.clone(), state.base().context(none)?))
    }
}

/// How the charter in force came about, as a role's log says, checked.
pub(crate) async fn governance(home: &Home) -> Result<Governance> {
    let key = founder(home, None).await?;
    let governance = if is_node(home) {
        fold::<Node>(home, key).await?.governance().cloned()
    } else {
        fold::<Coordinator>(home, key).await?.governance().cloned()
    };
    governance.context("no charter is in force there yet")
}

/// The state that a role's log adds up to, checked.
pub(crate) async fn fold<M: Machine>(home: &Home, key: PublicKey) -> Result<M> {
    let mut state = M::empty(key);
    for entry in read::<M>(home, key).await?.1 {
        state.apply(&entry.event)?;
    }
    Ok(state)
}

/// A log that was read and checked, wherever it is, with events that need not be known.
struct Loaded {
    chain: Chain,
    checkpoint: SignedCheckpoint,
    entries: Vec<Entry<Value>>,
}

impl Loaded {
    async fn of(home: Option<&Path>, export: Option<&Path>, key: Option<PublicKey>) -> Result<Self> {
        if let Some(export) = export {
            let log = ExportedLog::read(export, key)?;
            let entries = log.entries().map(serde_json::from_slice).collect::<Result<_, _>>()?;
            return Ok(Self { chain: log.chain, checkpoint: log.checkpoint, entries });
        }
        let home = Home::at(home.context("give --home or an export")?);
        let log = Place::of(&home)?.log_to_read().await?;
        let content = read_log::<Value>(&log, founder(&home, key).await?).await?;
        let checkpoint = content.chain.sealed().context("the log is empty")?.clone();
        Ok(Self { chain: content.chain, checkpoint, entries: content.entries })
    }

    /// A node's log begins with joining, a coordinator's with its charter.
    fn is_node(&self) -> bool {
        self.entries.first().is_some_and(|entry| entry.event["type"] == "joined")
    }

    /// Folds the events, and calls with each and the state after it.
    fn fold<M: Machine>(&self, mut seen: impl FnMut(&Entry<Value>, &M::Event, &M) -> Result<()>) -> Result<M> {
        let mut state = M::empty(self.chain.founder());
        for entry in &self.entries {
            let cannot = || format!("log entry {} cannot follow from those before it", entry.seq);
            let event: M::Event = serde_json::from_value(entry.event.clone()).with_context(cannot)?;
            state.apply(&event).with_context(cannot)?;
            seen(entry, &event, &state)?;
        }
        Ok(state)
    }

    /// Checks that the events follow from one another, and that nobody but members has cosigned; who has.
    fn check(&self) -> Result<(&'static str, Vec<String>)> {
        let mut cosigners = vec![];
        let role = if self.is_node() {
            self.fold::<Node>(|_, _, _| Ok(()))?;
            ensure!(
                self.checkpoint.num_signatures() == 1,
                "the checkpoint carries a signature by nobody who is known here"
            );
            "node"
        } else {
            let state = self.fold::<Coordinator>(|_, _, _| Ok(()))?;
            if let Some(governance) = state.governance() {
                let witnesses = self.checkpoint.verify_all(&self.chain.writer(), governance.all_keys())?;
                cosigners.extend(witnesses.iter().map(ToString::to_string));
            }
            "coordinator"
        };
        Ok((role, cosigners))
    }
}

async fn verify_any(args: &VerifyLogArgs) -> Result<()> {
    let log = Loaded::of(args.home.as_deref(), args.export.as_deref(), args.key).await?;
    let (role, cosigners) = log.check()?;
    let (num_entries, root, founder) = (log.chain.num_entries(), log.chain.root(), log.chain.founder());
    if args.json {
        let key = founder;
        println!(
            "{}",
            json!({ "role": role, "key": key, "num_entries": num_entries, "root": root, "cosigned_by": cosigners })
        );
        return Ok(());
    }
    println!(
        "The log of this {role} holds: {num_entries} entries, which lead to the root that its writer signed, and follow from one \
         another; founded by {founder}.\nroot {root}"
    );
    if !cosigners.is_empty() {
        println!("cosigned by {}", cosigners.join(", "));
    }
    Ok(())
}

async fn show(args: &ShowArgs) -> Result<()> {
    let log = Loaded::of(args.home.as_deref(), args.export.as_deref(), args.key).await?;
    let mut lines = vec![];
    let mut take = |entry: &Entry<Value>, about: &About, version: Option<u32>, text: String| -> Result<()> {
        let kind = entry.event["type"].as_str().unwrap_or_default();
        let is_asked = entry.seq >= args.from
            && (args.events.is_empty() || args.events.iter().any(|event| event == kind))
            && (args.member.is_none() || args.member == about.member)
            && (args.round.is_none() || args.round == about.round);
        if is_asked {
            let version = version.map_or_else(|| "  -".to_owned(), |version| format!("v{version:<2}"));
            lines.push(if args.json {
                serde_json::to_string(entry)?
            } else {
                format!("{:>5}  {}  {version}  {text}", entry.seq, entry.at)
            });
        }
        Ok(())
    };
    if log.is_node() {
        log.fold::<Node>(|entry, event, state| {
            let version = state.charter().map(|charter| charter.document.version);
            take(entry, &about_node(event, state.member()), version, crate::node::describe(event))
        })?;
    } else {
        log.fold::<Coordinator>(|entry, event, state| {
            let version = state.charter().map(|charter| charter.document.version);
            take(entry, &about_coordinator(event, None), version, crate::coordinator::describe(event))
        })?;
    }
    let skipped = args.last.map_or(0, |last| lines.len().saturating_sub(last));
    lines.iter().skip(skipped).for_each(|line| println!("{line}"));
    Ok(())
}

async fn export(args: &ExportArgs) -> Result<()> {
    let home = Home::at(&args.home);
    if args.from_coordinator {
        fetch_export(&dial::coordinator(&home).await?, &args.out).await?;
    } else {
        let log = Place::of(&home)?.log_to_read().await?;
        let content = read_log::<Value>(&log, founder(&home, None).await?).await?;
        let checkpoint = content.chain.sealed().context("the log is empty")?;
        write_export(&content.index, checkpoint, &args.out).await?;
    }
    let log = Loaded::of(None, Some(&args.out), None).await?;
    let (role, cosigners) = log.check()?;
    println!(
        "{} entries of this {role}'s log are in {}; check them anywhere with: tapestry log verify {1}",
        log.chain.num_entries(),
        args.out.display()
    );
    if !cosigners.is_empty() {
        println!("cosigned by {}", cosigners.join(", "));
    }
    Ok(())
}

/// Fetches the files of a log, as any other tool for C2SP tlog-tiles would.
async fn fetch_export(dialer: &Dialer, out: &Path) -> Result<()> {
    ensure!(!out.exists(), "{} exists; give another --out", out.display());
    let note = dialer.get_bytes("/v1/log/checkpoint", tapestry_ledger::note::MAX_NOTE_BYTES).await?;
    let note = String::from_utf8(note.to_vec()).context("the checkpoint is no text")?;
    let checkpoint: SignedCheckpoint = note.parse()?;
    let mut name = out.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let partial = out.with_file_name(name);
    if partial.exists() {
        fs::remove_dir_all(&partial)?;
    }
    // As many entries as a consortium could have; what is claimed beyond is not fetched.
    ensure!(
        checkpoint.checkpoint().size <= 1 << 32,
        "the coordinator claims a log of {} entries",
        checkpoint.checkpoint().size
    );
    for tile in Tile::all(checkpoint.checkpoint().size) {
        let content = dialer.get_bytes(&format!("/v1/log/{}", tile.path()), 17 << 20).await?;
        files::write_atomic(&partial.join(tile.path()), &content)?;
    }
    files::write_atomic(&partial.join("checkpoint"), note.as_bytes())?;
    ExportedLog::read(&partial, None).context("what the coordinator gave is no log")?;
    fs::rename(&partial, out)?;
    Ok(())
}

async fn prove(args: &ProveArgs) -> Result<()> {
    let home = args.home.as_deref().map(Home::at);
    let asks = home.as_ref().filter(|home| is_node(home));
    let (checkpoint, proof, subject) = if let Some(home) = asks {
        // Of the coordinator's log, and checked here.
        let dialer = dial::coordinator(home).await?;
        let note = dialer.get_bytes("/v1/log/checkpoint", tapestry_ledger::note::MAX_NOTE_BYTES).await?;
        let checkpoint: SignedCheckpoint = String::from_utf8(note.to_vec())?.parse()?;
        let size = checkpoint.checkpoint().size;
        let path = match (args.entry, args.from) {
            (Some(entry), _) => format!("/v1/log/inclusion?entry={entry}&size={size}"),
            (None, from) => format!("/v1/log/consistency?from={}&to={size}", from.unwrap_or(0)),
        };
        let proof: Proof = dialer.get_json(&path).await?;
        let subject = match args.entry {
            Some(entry) => Some(remote_leaf(&dialer, entry, size).await?),
            None => None,
        };
        (checkpoint, proof, subject)
    } else {
        let (index, checkpoint, leaf) = local_index(home.as_ref(), args).await?;
        let size = checkpoint.checkpoint().size;
        let hashes = match (args.entry, args.from) {
            (Some(entry), _) => entry.checked_sub(1).and_then(|at| index.inclusion(at, size)),
            (None, from) => index.consistency(from.unwrap_or(0), size),
        };
        let hashes = hashes.with_context(|| format!("the log has {size} entries"))?;
        (checkpoint, Proof { root: index.root(size).unwrap_or_else(TreeHash::of_nothing), hashes }, leaf)
    };
    let (size, root) = (checkpoint.checkpoint().size, checkpoint.checkpoint().root);
    ensure!(proof.root == root, "the proof is of another root than the checkpoint's");
    let shown = match (args.entry, subject) {
        (Some(entry), Some(leaf)) => {
            verify_inclusion(TreeHash::of_leaf(&leaf), entry - 1, size, &proof.hashes, root)?;
            json!({ "entry": entry, "leaf": String::from_utf8_lossy(&leaf), "hashes": proof.hashes, "checkpoint": checkpoint.to_string() })
        }
        _ => json!({ "from": args.from, "to": size, "hashes": proof.hashes, "checkpoint": checkpoint.to_string() }),
    };
    println!("{}", serde_json::to_string_pretty(&shown)?);
    Ok(())
}

/// The bytes of an entry, out of the coordinator's bundle that holds it.
async fn remote_leaf(dialer: &Dialer, entry: u64, size: u64) -> Result<Vec<u8>> {
    let index =
        entry.checked_sub(1).filter(|index| *index < size).with_context(|| format!("the log has {size} entries"))?;
    let tile = Tile::all(size).into_iter().find(|tile| tile.range().contains(&index));
    let tile = tile.context("no bundle has it")?;
    let content = dialer.get_bytes(&format!("/v1/log/{}", tile.path()), 17 << 20).await?;
    let entries = tapestry_ledger::tile::unbundle(&content, tile.width).context("the bundle is damaged")?;
    let at = usize::try_from(index - tile.range().start)?;
    Ok(entries.get(at).context("the bundle is damaged")?.to_vec())
}

/// A log that is here, for proofs: its tree, its last checkpoint, and the entry that is asked for.
async fn local_index(
    home: Option<&Home>,
    args: &ProveArgs,
) -> Result<(tapestry_ledger::Tree, SignedCheckpoint, Option<Vec<u8>>)> {
    let at = args.entry.map(|entry| usize::try_from(entry.saturating_sub(1))).transpose()?;
    if let Some(export) = &args.export {
        let log = ExportedLog::read(export, None)?;
        let leaf = at.and_then(|at| log.entries().nth(at).map(<[u8]>::to_vec));
        return Ok((log.tree(), log.checkpoint, leaf));
    }
    let home = home.context("give --home or --export")?;
    let store: LogStore = Place::of(home)?.log_to_read().await?;
    let content = read_log::<Value>(&store, founder(home, None).await?).await?;
    let leaves = content.index.entries(0..content.index.size()).await?.context("the log is empty")?;
    let mut tree = tapestry_ledger::Tree::default();
    tree.extend(leaves.iter().map(|leaf| TreeHash::of_leaf(leaf)));
    let leaf = at.and_then(|at| leaves.get(at).map(|leaf| leaf.to_vec()));
    Ok((tree, content.chain.sealed().context("the log is empty")?.clone(), leaf))
}

async fn checkpoint(home: &Home) -> Result<()> {
    let key = founder(home, None).await?;
    if is_node(home) {
        let state = fold::<Node>(home, key).await?;
        let seen = state.seen().context("this node has seen nothing of the coordinator's log yet")?;
        print!("{}", seen.checkpoint);
    } else {
        let store = Place::of(home)?.log_to_read().await?;
        let content = read_log::<Value>(&store, key).await?;
        print!("{}", content.chain.sealed().context("the log is empty")?);
    }
    Ok(())
}

async fn compare(args: &CompareArgs) -> Result<()> {
    let home = Home::at(&args.home);
    ensure!(is_node(&home), "{} is not a node's home", home.dir().display());
    let text = files::read_text(&args.checkpoint)?;
    let other: SignedCheckpoint = text.parse().with_context(|| format!("in {}", args.checkpoint.display()))?;
    let state = fold::<Node>(&home, founder(&home, None).await?).await?;
    state.check_checkpoint(&text).with_context(|| format!("in {}", args.checkpoint.display()))?;
    let seen = state.seen().context("this node has seen nothing of the coordinator's log yet")?;
    let (own, others) = ((seen.size, seen.root), (other.checkpoint().size, other.checkpoint().root));
    let (old, new) = if own.0 <= others.0 { (own, others) } else { (others, own) };
    let mut consistency = vec![];
    if old.0 < new.0 {
        // The coordinator signed both, so it has to be able to show that one continues the other.
        let asked: Result<Proof, _> =
            dial::coordinator(&home).await?.get_json(&format!("/v1/log/consistency?from={}&to={}", old.0, new.0)).await;
        match asked {
            Ok(proof) => consistency = proof.hashes,
            Err(error) if error.is_refusal() => eprintln!("the coordinator gives no proof: {error}"),
            Err(error) => {
                return Err(error).context("the coordinator has to be asked for the proof, and does not answer");
            }
        }
        if verify_consistency(old.0, old.1, new.0, new.1, &consistency).is_ok() {
            println!(
                "One history: what the other member was shown ({} entries) and what was seen here ({}) belong together.",
                others.0, own.0
            );
            return Ok(());
        }
    } else if old.1 == new.1 {
        println!("One history: both have seen the same {} entries.", own.0);
        return Ok(());
    }
    let view = LogView { checkpoint: text, from: own.0, consistency };
    let Ok(_lock) = home.lock() else {
        eprintln!("The node is running, so that this is not in its log yet: stop it, and run this command again.");
        return Err(TwoHistories.into());
    };
    let mut role = Role::<Node>::open(&home, &home.key()?).await?;
    let events = role.state().handle(now(), NodeInput::Compare { view })?;
    if events.is_empty() && !role.state().has_seen_two_histories() {
        bail!("the checkpoints differ, and the node's state machine does not find so; please report this");
    }
    role.record(events).await?;
    eprintln!(
        "What was seen here: {} entries, root {}.\nWhat the other was shown: {} entries, root {}.\nBoth are signed by the coordinator; both \
         are in this node's log (tapestry log show --event histories_differ --json), and the node takes no part any more.",
        own.0, own.1, others.0, others.1
    );
    Err(TwoHistories.into())
}
