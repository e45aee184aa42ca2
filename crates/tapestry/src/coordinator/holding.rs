//! Getting, keeping and giving the coordinator's role.
//!
//! The log decides who has it: whoever writes the next entry. A standby watches the holder's sign of life and takes the role
//! when none has come for the idle time; were it wrong, the holder would find its next entry taken, and stop. Nothing is
//! decided by a clock.

use super::Loop;
use crate::clock::now;
use crate::home::Home;
use crate::progress::Reporter;
use crate::role::Role;
use crate::stores::Place;
use anyhow::{Context as _, Result, anyhow, bail};
use bytes::Bytes;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tapestry_core::{PublicKey, SecretKey, Signed};
use tapestry_round::coordinator::{Coordinator, CoordinatorInput};
use tapestry_store::{LogError, Pulse};

/// How often a standby looks at the log and at the holder's sign of life.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Waits until this key has the role, if it may have it, and takes it where it is free.
pub(super) async fn gain_role(
    place: &Place,
    key: &SecretKey,
    address: Option<String>,
    patience: Option<Duration>,
    reporter: &Reporter,
) -> Result<()> {
    let none = "no charter is in force here: draft one, have the members sign it, then `tapestry charter publish`";
    let mut role = Role::<Coordinator>::open_on(place.log_to_read().await.context(none)?, key).await?;
    role.state().charter().context(none)?;
    let pulse = place.pulse().await?;
    let mut last_sign = (pulse.last().await?, Instant::now());
    let mut is_waiting = false;
    loop {
        let state = role.state();
        let holder = state.holder();
        let given_to = state.hand_over().map(|given| given.to);
        // Who has handed it over still serves its state.
        if holder == key.public() && given_to != Some(key.public()) {
            return Ok(());
        }
        let is_ours = given_to == Some(key.public());
        let has_vanished = patience.is_some_and(|patience| last_sign.1.elapsed() > patience);
        if is_ours || (has_vanished && given_to.is_none()) {
            if take(&mut role, key, address.clone()).await? {
                reporter.say(if is_ours {
                    "the role was handed over to this coordinator, which has it now".to_owned()
                } else {
                    format!("no sign of life of {holder}; this coordinator has the role now")
                });
                return Ok(());
            }
            last_sign.1 = Instant::now();
        }
        let Some(patience) = patience else {
            bail!(
                "{holder} has the coordinator's role in {}. To wait until it vanishes or hands the role over, and then go on in \
                 its place: tapestry coordinator run --standby",
                place.name()
            );
        };
        if !is_waiting {
            reporter.say(format!(
                "standby: {holder} has the role; it is taken over {} s after its last sign of life",
                patience.as_secs()
            ));
            is_waiting = true;
        }
        tokio::time::sleep(LOOK_EVERY).await;
        // What cannot be read now can be read later; a standby has time. What is no log of this role ends it.
        match role.follow().await {
            Ok(true) => last_sign.1 = Instant::now(),
            Ok(false) => {}
            Err(error) => return Err(error.context("the log that this standby follows")),
        }
        match pulse.last().await {
            Ok(sign) if sign != last_sign.0 => last_sign = (sign, Instant::now()),
            Ok(_) => {}
            Err(error) => reporter.say(format!("cannot see the holder's sign of life: {error}")),
        }
    }
}

/// Writes that this key has the role; false where somebody else was faster.
async fn take(role: &mut Role<Coordinator>, key: &SecretKey, address: Option<String>) -> Result<bool> {
    let tenure = role.state().next_tenure(key.public(), address)?;
    let input = CoordinatorInput::TakeRole { tenure: Signed::by(tenure, key)? };
    let events = role.state().handle(now(), input)?;
    match role.record(events).await {
        Ok(()) => Ok(true),
        Err(error) if is_overtaken(&error) => {
            role.follow().await?;
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Whether an entry could not be written because another has written it.
pub(super) fn is_overtaken(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<LogError>(), Some(LogError::Taken { .. }))
}

/// What a coordinator says that finds itself replaced.
fn deposed() -> anyhow::Error {
    anyhow!(
        "another coordinator has taken the role over and writes the log now; nothing that was confirmed here is lost, and nothing \
         is decided here any more. To wait for the role again: tapestry coordinator run --standby"
    )
}

impl Loop {
    /// Gives signs of life, for ever, where the charter names anybody who would look for them; ends where another has the role.
    pub(super) async fn keep_role(self: &Arc<Self>, pulse: &Pulse, idle: Duration) -> Result<()> {
        let pause = (idle / 4).min(Duration::from_secs(10));
        let mut number = 0_u64;
        loop {
            let has_standbys = self.state().charter().is_some_and(|charter| !charter.document.standbys.is_empty());
            if has_standbys {
                match self.role.lock().await.is_overtaken().await {
                    Ok(true) => return Err(deposed()),
                    Ok(false) => {}
                    Err(error) => self.reporter.say(format!("cannot see whether another has the role: {error:#}")),
                }
                number += 1;
                let sign = format!("{} {} {number}\n", self.key.public(), now());
                if let Err(error) = pulse.beat(Bytes::from(sign)).await {
                    self.reporter.say(format!("cannot give a sign of life: {error}"));
                }
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.overtaken.notified() => return Err(deposed()),
            }
        }
    }
}

/// Gives the role to another, for a coordinator that is not running.
pub(crate) async fn hand_over(home: &Home, to: PublicKey, address: Option<String>) -> Result<()> {
    let _lock = home.lock()?;
    let key = home.key()?;
    let mut role = Role::<Coordinator>::open(home, &key).await?;
    let holder = role.state().holder();
    if holder != key.public() {
        bail!("{holder} has the coordinator's role, not this home, so it is not this home's to give");
    }
    let events = role.state().handle(now(), CoordinatorInput::HandOver { to, address })?;
    role.record(events).await.context("the role stays here")
}
