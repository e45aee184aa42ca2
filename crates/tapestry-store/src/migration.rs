//! Taking a log over from its older form: one file an entry, each chained to the one before it and signed for itself
//! (`log-entry/2`).
//!
//! Every entry is checked as it was checked then, and becomes an entry of the same number, time and event; its digest in the
//! old chain stays with it. The old files are not touched, so that their signatures can be checked for as long as anybody wants.

use crate::role_log::read_log;
use crate::{LogError, LogStore};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeSet;
use tapestry_core::{Digest, Document, PublicKey, SecretKey, Signed, Timestamp};
use tapestry_ledger::Entry;

/// As many entries are taken over in one commit.
const NUM_AT_ONCE: u64 = 256;

/// An entry of the older form.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct OlderEntry {
    seq: u64,
    previous: Digest,
    writer: PublicKey,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    successors: Option<BTreeSet<PublicKey>>,
    at: Timestamp,
    event: Value,
}

impl Document for OlderEntry {
    const DOMAIN: &'static str = "log-entry/2";
}

/// Takes over what is in the older form and not yet in the present one; how many entries that was. May be interrupted and
/// done again. `key` founded the log and was the last to write it.
///
/// # Errors
/// Where the old log does not verify, or another had it last; nothing of it is changed.
pub async fn migrate(store: &LogStore, key: &SecretKey) -> Result<u64, LogError> {
    let num_older = store.listing().await?.num_older;
    let older = read_older(store, num_older, key.public()).await?;
    let mut log = match read_log::<Value>(store, key.public()).await {
        Ok(log) => log.chain,
        // What is there of the present form verifies; the rest is what we are here for.
        Err(LogError::OlderForm { num_left, .. }) => {
            let mut chain = tapestry_ledger::Chain::new(key.public());
            while chain.num_entries() < num_older - num_left {
                let content = store.read_existing(chain.num_entries() + 1).await?;
                chain.accept::<Value>(&content).map_err(|error| store.wrong(error))?;
            }
            chain
        }
        Err(error) => return Err(error),
    };
    let mut num_taken = 0;
    while log.num_entries() < num_older {
        let first = log.num_entries();
        let range = usize::try_from(first).unwrap_or(usize::MAX)
            ..usize::try_from((first + NUM_AT_ONCE).min(num_older)).unwrap_or(usize::MAX);
        num_taken += range.len() as u64;
        let entries = older[range].iter().cloned();
        let content = log.seal_entries(entries, key).map_err(|error| store.wrong(error))?;
        let mut next = log.clone();
        next.accept::<Value>(&content).map_err(|error| store.wrong(error))?;
        store.append(first + 1, content.into()).await?;
        log = next;
    }
    Ok(num_taken)
}

/// The entries of the older form, checked as they were then, in the present form.
async fn read_older(store: &LogStore, num_older: u64, key: PublicKey) -> Result<Vec<Entry<Value>>, LogError> {
    let refused = |reason: String| LogError::CannotMigrate { place: store.place().to_owned(), reason };
    let mut previous = Digest::of(format!("tapestry:log/1\n{key}").as_bytes());
    let (mut writer, mut successors, mut last_at) = (key, BTreeSet::new(), Timestamp::from_ms(0));
    let mut entries = vec![];
    for seq in 1..=num_older {
        let content = store.read_older(seq).await?;
        let signed: Signed<OlderEntry> = serde_json::from_slice(&content)
            .map_err(|error| refused(format!("entry {seq} cannot be read: {error}")))?;
        let entry = &signed.document;
        let is_next = entry.seq == seq && entry.previous == previous && entry.at >= last_at;
        let may_write = entry.writer == writer || successors.contains(&entry.writer);
        if !is_next || !may_write {
            return Err(refused(format!(
                "entry {seq} does not follow from the one before it; is this the key that founded it?"
            )));
        }
        let verified = signed.verify_by(&entry.writer).map_err(|error| refused(format!("entry {seq}: {error}")));
        verified?;
        previous = signed.digest().map_err(|error| refused(error.to_string()))?;
        let OlderEntry { at, event, successors: named, writer: by, .. } = signed.document;
        (writer, last_at) = (by, at);
        if let Some(named) = &named {
            successors.clone_from(named);
        }
        let founder = (seq == 1).then_some(key);
        entries.push(Entry { seq, writer: founder, after: None, successors: named, was: Some(previous), at, event });
    }
    if writer != key {
        let reason =
            format!("{writer} had it last; give the role back to {key} with the older version, then migrate there");
        return Err(refused(reason));
    }
    Ok(entries)
}
