//! Copying everything from the coordinator that has the role, for a planned hand-over to another machine: the log commit by commit,
//! and all blobs, those of unfinished uploads too.
//!
//! The copy may begin long before the role is handed over, and goes on where it was when it is interrupted. Each commit is
//! checked as part of the log and each blob by its digest.

use crate::clock::now;
use crate::progress::Reporter;
use crate::role::Role;
use crate::stores::Place;
use anyhow::{Context as _, Result, bail, ensure};
use bytes::Bytes;
use serde::de::IgnoredAny;
use std::time::Duration;
use tapestry_core::{Digest, PublicKey, SecretKey};
use tapestry_governance::Charter;
use tapestry_ledger::{Entry, MAX_COMMIT_BYTES};
use tapestry_net::{Dialer, NetError, pull_blobs, retry_forever};
use tapestry_round::coordinator::Coordinator;
use tapestry_store::BlobStore;

/// How often the holder is asked for more.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Chunks on the way at once.
const NUM_STREAMS: usize = 4;

/// Copies log and blobs until the role is handed over to this key and all of it is here.
pub(super) async fn receive(
    place: &Place,
    key: &SecretKey,
    from: &(String, PublicKey),
    reporter: &Reporter,
) -> Result<()> {
    let source = Source { dialer: Dialer::new(&from.0, from.1, key)?, reporter };
    let blobs = place.blobs().await?;
    let mut role = source.open(place, key).await?;
    let mut num_known = 0;
    loop {
        while let Some(commit) = source.commit(role.state().num_events() + 1).await? {
            role.take(commit).await.context("what comes from the other coordinator is no continuation of its log")?;
        }
        let state = role.state();
        check_charter(state, key.public())?;
        if state.holder() == key.public() {
            return Ok(());
        }
        let given_to = state.hand_over().map(|given| given.to);
        // The log is ahead of the blobs never, so that all to which it refers come now.
        if state.num_events() > num_known || given_to.is_some() {
            let size_bytes = source.pull(&blobs).await?;
            num_known = state.num_events();
            reporter
                .say(format!("{num_known} entries of the log are here, and all blobs ({size_bytes} bytes were new)"));
        }
        match given_to {
            Some(to) if to == key.public() => return Ok(()),
            Some(to) => {
                bail!("the coordinator's role was handed over to {to}, not to this home's key {}", key.public())
            }
            None => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// The members have agreed that this key may have the role.
fn check_charter(state: &Coordinator, key: PublicKey) -> Result<()> {
    let charter = state.charter().context("no charter is in force at the other coordinator")?;
    Charter::binding(charter, now())?.check_may_coordinate(key)?;
    Ok(())
}

/// The coordinator that has the role.
struct Source<'a> {
    dialer: Dialer,
    reporter: &'a Reporter,
}

impl Source<'_> {
    /// This place's copy of the log, which is begun where there is none.
    async fn open(&self, place: &Place, key: &SecretKey) -> Result<Role<Coordinator>> {
        let log = place.log().await?;
        let founder = match log.founder().await? {
            Some(founder) => founder,
            None => {
                let first = self.commit(1).await?.context("the other coordinator has an empty log")?;
                let line = first.split(|b| *b == b'\n').next().unwrap_or_default();
                // Whether it is who it says is checked with the commit, and again by the charter in it.
                let entry = serde_json::from_slice::<Entry<IgnoredAny>>(line);
                let unnamed = "the first entry of the other coordinator's log does not name its writer";
                entry.ok().and_then(|entry| entry.writer).context(unnamed)?
            }
        };
        Role::open_founded(log, key, founder).await
    }

    /// The commit that begins with entry `first`.
    async fn commit(&self, first: u64) -> Result<Option<Bytes>> {
        let path = format!("/v1/state/log/{first}");
        match self.retry(|| self.dialer.get_bytes(&path, MAX_COMMIT_BYTES)).await {
            Ok(commit) => Ok(Some(commit)),
            Err(NetError::Refused { status: 404, .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Fetches every blob that is not here; how many bytes came.
    async fn pull(&self, blobs: &BlobStore) -> Result<u64> {
        let mut lacking = vec![];
        for first in 0..=u8::MAX {
            let path = format!("/v1/state/blobs/{first:02x}");
            let there: Vec<Digest> = self.retry(|| self.dialer.get_json(&path)).await?;
            let is_right = |digest: &Digest| digest.to_string().starts_with(&format!("{first:02x}"));
            ensure!(there.iter().all(is_right), "the other coordinator's list of blobs is in disorder");
            lacking.extend(blobs.missing(&there).await?);
        }
        let mut working = self.reporter.start("pull", "the coordinator's state", "bytes");
        let mut progress = |done, total| working.update(done, total);
        let size_bytes = pull_blobs(&self.dialer, blobs, &lacking, NUM_STREAMS, &mut progress).await?;
        working.end();
        Ok(size_bytes)
    }

    async fn retry<T, F: Future<Output = Result<T, NetError>>>(
        &self,
        request: impl FnMut() -> F,
    ) -> Result<T, NetError> {
        retry_forever(request, |error, pause| {
            self.reporter.say(format!("{error}; trying again in {:.1} s", pause.as_secs_f64()));
        })
        .await
    }
}
