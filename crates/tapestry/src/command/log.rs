//! `tapestry log`.

use crate::cli::{LogArgs, LogCommand};
use crate::home::Home;
use crate::role::Machine;
use crate::stores::Place;
use anyhow::{Context as _, Result};
use serde::Serialize;
use tapestry_core::{Digest, PublicKey, Signed};
use tapestry_governance::Charter;
use tapestry_ledger::Entry;
use tapestry_ledger::TreeHash;
use tapestry_round::coordinator::Coordinator;
use tapestry_round::node::Node;

/// What a check of a log found.
#[derive(Debug, Serialize)]
pub(crate) struct Verified {
    pub(crate) role: &'static str,
    pub(crate) key: PublicKey,
    pub(crate) num_entries: u64,
    pub(crate) root: TreeHash,
}

pub(crate) async fn run(command: LogCommand) -> Result<()> {
    match command {
        LogCommand::Verify(args) => {
            let home = Home::at(&args.home);
            let verified = verify(&home, args.key).await?;
            if args.json {
                println!("{}", serde_json::to_string(&verified)?);
            } else {
                println!(
                    "The log of this {} holds: {} entries, which lead to the root that its writer signed, founded by {}.\nroot {}",
                    verified.role, verified.num_entries, verified.key, verified.root
                );
            }
            Ok(())
        }
        LogCommand::Show(args) => show(&args).await,
    }
}

fn is_node(home: &Home) -> bool {
    home.path("node.toml").exists()
}

/// Whose log lies in a home: `key`, where it is given. Otherwise a node's own key; and for a coordinator, which may have taken
/// the role over, whoever the log itself says, which its charter then has to confirm.
pub(crate) async fn founder(home: &Home, key: Option<PublicKey>) -> Result<PublicKey> {
    match key {
        Some(key) => Ok(key),
        None if is_node(home) => home.public_key(),
        None => match Place::of(home)?.log_to_read().await?.founder().await? {
            Some(founder) => Ok(founder),
            None => home.public_key(),
        },
    }
}

/// Checks the chain and that the events can follow from one another.
pub(crate) async fn verify(home: &Home, key: Option<PublicKey>) -> Result<Verified> {
    let key = founder(home, key).await?;
    if is_node(home) {
        read::<Node>(home, key).await.map(|(verified, _)| Verified { role: "node", ..verified })
    } else {
        read::<Coordinator>(home, key).await.map(|(verified, _)| Verified { role: "coordinator", ..verified })
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

/// The state that a role's log adds up to, checked.
pub(crate) async fn fold<M: Machine>(home: &Home, key: PublicKey) -> Result<M> {
    let mut state = M::empty(key);
    for entry in read::<M>(home, key).await?.1 {
        state.apply(&entry.event)?;
    }
    Ok(state)
}

async fn show(args: &LogArgs) -> Result<()> {
    let home = Home::at(&args.home);
    let key = founder(&home, args.key).await?;
    if is_node(&home) {
        let (_, entries) = read::<Node>(&home, key).await?;
        print(&entries, args.json, crate::node::describe)
    } else {
        let (_, entries) = read::<Coordinator>(&home, key).await?;
        print(&entries, args.json, crate::coordinator::describe)
    }
}

fn print<E: Serialize>(entries: &[Entry<E>], json: bool, describe: impl Fn(&E) -> String) -> Result<()> {
    for entry in entries {
        if json {
            println!("{}", serde_json::to_string(entry)?);
        } else {
            println!("{:>5}  {}  {}", entry.seq, entry.at, describe(&entry.event));
        }
    }
    Ok(())
}
