//! What each round cost the coordinator, in `HOME/costs.json`: bytes by member as the wire counted them, and the coordinator's own work.
//!
//! It is bookkeeping, not state: nothing is decided from it, the log does not sign it, and after a crash it may lack the last few seconds.
//! What members state of their training is in the log.

use crate::files;
use crate::home::Home;
use crate::observe::WorkCost;
use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};
use tapestry_core::{MemberName, PublicKey};
use tapestry_net::{Traffic, WireBytes};

const FILE: &str = "costs.json";
/// How often it is written at most, but for the end of a piece of work.
const WRITE_EVERY: Duration = Duration::from_secs(5);

/// What rounds cost, by number; 0 is what came before the first.
pub(crate) type Costs = BTreeMap<u32, RoundCosts>;

/// What one round cost the coordinator.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RoundCosts {
    pub(crate) members: BTreeMap<MemberName, Moved>,
    pub(crate) work: BTreeMap<String, WorkCost>,
}

/// Bytes on the wire, TLS and HTTP included.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Moved {
    /// From the member to the coordinator.
    pub(crate) bytes_up: u64,
    /// From the coordinator to the member.
    pub(crate) bytes_down: u64,
}

/// The file, and what is not yet in it.
#[derive(Debug)]
pub(crate) struct CostBook {
    path: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    costs: Costs,
    /// What of the traffic is in `costs`.
    seen: HashMap<PublicKey, WireBytes>,
    written: Option<Instant>,
    is_changed: bool,
}

/// What is in a home's file; nothing, where there is none.
pub(crate) fn read(home: &Home) -> Result<Costs> {
    let path = home.path(FILE);
    if !path.exists() {
        return Ok(Costs::new());
    }
    serde_json::from_str(&files::read_text(&path)?).with_context(|| {
        format!("{} is damaged; move it away, and counting starts anew (nothing else depends on it)", path.display())
    })
}

impl CostBook {
    /// Goes on with what is in `home`.
    pub(crate) fn open(home: &Home) -> Result<Self> {
        let inner = Inner { costs: read(home)?, ..Inner::default() };
        Ok(Self { path: home.path(FILE), inner: Mutex::new(inner) })
    }

    fn inner(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Books what has moved since the last time to `round`.
    pub(crate) fn book_traffic(
        &self,
        round: u32,
        traffic: &Traffic,
        member_of: impl Fn(&PublicKey) -> Option<MemberName>,
    ) {
        let mut inner = self.inner();
        for (key, now) in traffic.by_key() {
            let Some(member) = member_of(&key) else { continue };
            let before = inner.seen.insert(key, now).unwrap_or_default();
            let (up, down) = (now.received.saturating_sub(before.received), now.sent.saturating_sub(before.sent));
            if up + down > 0 {
                let moved = inner.costs.entry(round).or_default().members.entry(member).or_default();
                moved.bytes_up += up;
                moved.bytes_down += down;
                inner.is_changed = true;
            }
        }
        if inner.written.is_none_or(|at| at.elapsed() >= WRITE_EVERY) {
            self.write(&mut inner);
        }
    }

    /// Books a piece of the coordinator's own work.
    pub(crate) fn book_work(&self, round: u32, kind: &str, cost: &WorkCost) {
        let mut inner = self.inner();
        inner.costs.entry(round).or_default().work.entry(kind.to_owned()).or_default().add(cost);
        inner.is_changed = true;
        self.write(&mut inner);
    }

    /// What was booked so far.
    pub(crate) fn costs(&self) -> Costs {
        self.inner().costs.clone()
    }

    /// Writes what is not yet in the file.
    pub(crate) fn close(&self) {
        self.write(&mut self.inner());
    }

    fn write(&self, inner: &mut Inner) {
        if !inner.is_changed {
            return;
        }
        inner.written = Some(Instant::now());
        let written = serde_json::to_vec_pretty(&inner.costs).map_err(Into::into);
        match written.and_then(|text| files::write_atomic(&self.path, &text)) {
            Ok(()) => inner.is_changed = false,
            // The work is worth more than its bookkeeping.
            Err(error) => tracing::warn!("cannot write {}: {error:#}", self.path.display()),
        }
    }
}
