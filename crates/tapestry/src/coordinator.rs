//! The coordinator's driver: turns sockets, files and the clock into inputs of the state machine, and its effects into
//! work.

pub(crate) mod api;
mod effects;
pub(crate) mod governing;
mod holding;
pub(crate) mod proving;
mod receiving;
mod shown;

pub(crate) use effects::{describe, one_line};
pub(crate) use holding::hand_over;

use crate::activity::Activity;
use crate::clock::now;
use crate::costs::CostBook;
use crate::home::Home;
use crate::metrics;
use crate::observe::{About, Observer, Trace, about_coordinator, coordinator_work, phase_name};
use crate::progress::Reporter;
use crate::readers::Readers;
use crate::role::Role;
use crate::stores::{Place, open_blobs};
use crate::telemetry::Spans;
use crate::transfer::TransferSettings;
use anyhow::{Context as _, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tapestry_core::{CanonicalError, Digest, MemberName, ModelManifest, PublicKey, SecretKey, Signed, Timestamp};
use tapestry_governance::Charter;
use tapestry_ledger::SignedCheckpoint;
use tapestry_net::{Refusals, Server, Traffic};
use tapestry_round::coordinator::{Coordinator, CoordinatorEffect, CoordinatorEvent, CoordinatorInput, Phase};
use tapestry_round::{News, RoundError, RoundResult};
use tapestry_store::{BlobStore, LogIndex, LogStore};
use tokio::sync::watch;

/// How often what moved is booked.
const BOOK_EVERY: Duration = Duration::from_secs(5);

/// The coordinator as its HTTP handlers and its effects share it.
pub(crate) struct Loop {
    key: SecretKey,
    blobs: BlobStore,
    readers: Readers,
    /// The log; whoever holds it is the only one who changes the state.
    role: tokio::sync::Mutex<Role<Coordinator>>,
    /// The state as of the last durable event, for those who only read.
    state: RwLock<Arc<Coordinator>>,
    version: watch::Sender<u64>,
    presence: Mutex<BTreeMap<MemberName, Presence>>,
    /// How many chunks the charter's base has; every later base has as many.
    base_chunks: u64,
    /// Bytes of the charter's base; every later base has as many.
    base_bytes: u64,
    reporter: Reporter,
    observer: Observer,
    costs: CostBook,
    /// What moves with whom, once the server listens.
    traffic: std::sync::OnceLock<Arc<Traffic>>,
    /// What is refused, once the server listens.
    refusals: std::sync::OnceLock<Arc<Refusals>>,
    /// Where log and blobs are.
    place: Place,
    /// The same log, for those who may have a copy of it.
    log: LogStore,
    /// What is known of the log, for proofs.
    index: LogIndex,
    /// The checkpoint that members are shown, with the cosignatures that have come.
    desk: Mutex<Option<SignedCheckpoint>>,
    /// Told when an entry could not be written because another has written it.
    overtaken: tokio::sync::Notify,
}

/// What the coordinator has seen of a member lately. Not part of the state: it is gone after a restart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Presence {
    pub(crate) last_seen: Option<Timestamp>,
    pub(crate) activity: Option<Activity>,
    /// Chunks that it was allowed to write in this round. By name, because on a bad link one chunk takes many attempts.
    pub(crate) chunks: BTreeSet<Digest>,
    pub(crate) round: u32,
}

/// Why an input was not taken.
#[derive(Debug)]
pub(crate) enum NotTaken {
    /// The state machine said so.
    Refused(RoundError),
    /// The log could not be written.
    Failed(anyhow::Error),
}

/// Puts a charter in force, for a coordinator that is not running.
pub(crate) async fn adopt_charter(home: &Home, charter: Signed<Charter>) -> Result<()> {
    let _lock = home.lock()?;
    let key = home.key()?;
    let blobs = open_blobs(home).await?;
    if !blobs.has(charter.document.base).await? {
        bail!(
            "the charter's base {} is not among the blobs of {}: this home did not draft the charter. Draft it here, or \
             copy the blobs folder of the home that did",
            charter.document.base,
            home.dir().display()
        );
    }
    let mut role = Role::<Coordinator>::open(home, &key).await?;
    let events = role.state().handle(now(), CoordinatorInput::AdoptCharter(charter))?;
    role.record(events).await
}

/// How a coordinator runs.
#[derive(Debug, Clone)]
pub(crate) struct RunOptions {
    /// The address to listen on.
    pub(crate) listen: SocketAddr,
    /// Where metrics are served, if they are.
    pub(crate) metrics: Option<SocketAddr>,
    /// Whether to wait for a role that another has.
    pub(crate) standby: bool,
    /// The coordinator whose state is copied first.
    pub(crate) from: Option<(String, PublicKey)>,
    /// Where members find this coordinator, where it takes the role and they do not know.
    pub(crate) address: Option<String>,
}

/// Runs the coordinator until it is told to stop.
pub(crate) async fn run(home: &Home, options: &RunOptions, reporter: Reporter) -> Result<()> {
    let _lock = home.lock()?;
    let (key, place) = (home.key()?, Place::of(home)?);
    let transfer = TransferSettings::of_coordinator(home)?;
    let idle = transfer.server_limits().idle_timeout;
    let getting_the_role = async {
        if let Some(from) = &options.from {
            receiving::receive(&place, &key, from, &reporter).await?;
        }
        let patience = options.standby.then_some(idle);
        holding::gain_role(&place, &key, options.address.clone(), patience, &reporter).await
    };
    tokio::select! {
        gained = getting_the_role => gained?,
        signal = stop_signal() => {
            reporter.say("stopped; start again with the same command, nothing is lost");
            return signal;
        }
    }
    let role = Role::<Coordinator>::open(home, &key).await?;
    let blobs = transfer.reserved(place.blobs().await?);
    let pulse = place.pulse().await?;
    let state = role.state().clone();
    if let Some(given) = state.hand_over() {
        reporter.say(format!(
            "the coordinator's role was handed over to {}; until it is stopped, this process gives it the log and the blobs, and tells \
             members where to go. Nothing is decided here any more",
            given.to
        ));
    }
    let charter = &state.charter().context("no charter")?.document;
    let base: ModelManifest = blobs.get_json(charter.base).await.context("the charter's base")?;
    // Contributions are screened, measured and merged one after the other, beside the base and what becomes the next.
    let num_models = charter.members.len() as u64 + 2;
    let blobs = blobs.with_much_read(num_models.saturating_mul(base.weights.data.size_bytes));
    let (version, _) = watch::channel(state.num_events());
    let index = role.index().clone();
    let shared = Arc::new(Loop {
        key: key.clone(),
        blobs,
        readers: Readers::default(),
        role: tokio::sync::Mutex::new(role),
        state: RwLock::new(Arc::new(state)),
        version,
        presence: Mutex::default(),
        base_chunks: api::num_chunks(&base),
        base_bytes: base.weights.data.size_bytes,
        reporter: reporter.clone(),
        observer: Observer::new(Spans::from_env("coordinator")?),
        costs: CostBook::open(home)?,
        traffic: std::sync::OnceLock::new(),
        refusals: std::sync::OnceLock::new(),
        log: place.log_to_read().await?,
        index,
        desk: Mutex::default(),
        place: place.clone(),
        overtaken: tokio::sync::Notify::new(),
    });
    let allowed = Arc::clone(&shared);
    let allow = Arc::new(move |peer: &PublicKey| allowed.is_allowed(peer));
    let server =
        Server::bind(options.listen, &key, allow, api::router(&shared)).await?.with_limits(transfer.server_limits());
    let address = server.local_addr();
    let _ = shared.traffic.set(server.traffic());
    let _ = shared.refusals.set(server.refusals());
    crate::files::write_atomic(&home.path("address"), format!("{address}\n").as_bytes())?;
    reporter.say(format!("listening on {address}; members join with https://{address}#{}", key.public()));

    // Ends with this.
    let _metrics = match options.metrics {
        Some(address) => {
            let (shown, blobs) = (Arc::clone(&shared), place.blobs_folder());
            let (address, serving) = metrics::serve(address, Arc::new(move || shown.metrics(&blobs))).await?;
            reporter.say(format!("metrics on http://{address}/metrics"));
            Some(serving)
        }
        None => None,
    };
    let (stop, stopped) = watch::channel(false);
    let mut serving = tokio::spawn(server.serve(async move {
        let mut stopped = stopped;
        let _ = stopped.wait_for(|stop| *stop).await;
    }));
    let ended = tokio::select! {
        ended = shared.drive() => ended,
        replaced = shared.keep_role(&pulse, idle) => replaced,
        served = &mut serving => served.context("the server stopped")?.map_err(Into::into),
        signal = stop_signal() => signal,
    };
    let _ = stop.send(true);
    // Open long polls end with the connection; nodes ask again for ever.
    let _ = tokio::time::timeout(Duration::from_secs(2), serving).await;
    shared.book_traffic();
    shared.costs.close();
    shared.observer.finish().await;
    reporter.say("stopped; start again with the same command, nothing is lost");
    ended
}

/// Waits for SIGINT or SIGTERM.
pub(crate) async fn stop_signal() -> Result<()> {
    #[cfg(unix)]
    {
        let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            signal = tokio::signal::ctrl_c() => signal?,
            _ = terminate.recv() => {}
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await?;
    Ok(())
}

impl Loop {
    /// The state as of the last durable event.
    pub(crate) fn state(&self) -> Arc<Coordinator> {
        Arc::clone(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) const fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    pub(crate) fn presence(&self) -> std::sync::MutexGuard<'_, BTreeMap<MemberName, Presence>> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn watch_version(&self) -> watch::Receiver<u64> {
        self.version.subscribe()
    }

    /// Whether a key may talk to this coordinator: the members', also those of members that were, so that they can see by what
    /// decision; those that may have its role, and its own for `tapestry status` on this machine.
    fn is_allowed(&self, peer: &PublicKey) -> bool {
        let state = self.state();
        self.may_have_the_state(peer) || state.governance().is_some_and(|known| known.was_member(peer).is_some())
    }

    /// Whether a key may have a copy of everything: of those that may have the coordinator's role.
    pub(crate) fn may_have_the_state(&self, peer: &PublicKey) -> bool {
        let state = self.state();
        let is_named = |charter: &Signed<Charter>| charter.document.check_may_coordinate(*peer).is_ok();
        *peer == self.key.public() || state.charter().is_some_and(is_named)
    }

    pub(crate) fn member_of(&self, peer: &PublicKey) -> Option<MemberName> {
        self.state().governance()?.member_of(peer).cloned()
    }

    /// Gives an input to the state machine and makes what follows durable. A misbehaving member is recorded.
    pub(crate) async fn handle(&self, sender: Option<&MemberName>, input: CoordinatorInput) -> Result<(), NotTaken> {
        let mut role = self.role.lock().await;
        let decided = role.state().handle(now(), input);
        let (events, refused) = match decided {
            Ok(events) => (events, None),
            Err(error) => {
                let refusal = sender.and_then(|sender| role.state().refusal(sender, &error));
                (refusal.into_iter().collect(), Some(error))
            }
        };
        let mut has_ended = false;
        let phase = role.state().round().map(|round| &round.phase);
        for event in &events {
            self.observer.event(&self.reporter, event.name(), &about_coordinator(event, phase), describe(event));
            self.round_ended(role.state(), event);
            has_ended |= matches!(event, CoordinatorEvent::Ended { .. });
        }
        if !events.is_empty() {
            self.book_traffic();
        }
        let recorded = role.record(events).await;
        let state = role.state().clone();
        let version = state.num_events();
        *self.state.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(state);
        self.version.send_replace(version);
        if recorded.as_ref().is_err_and(holding::is_overtaken) {
            self.overtaken.notify_one();
        }
        if has_ended {
            self.make_room();
        }
        recorded.map_err(NotTaken::Failed)?;
        refused.map_or(Ok(()), |error| Err(NotTaken::Refused(error)))
    }

    /// Does what the state waits for, one thing after the other, for ever.
    async fn drive(self: &Arc<Self>) -> Result<()> {
        let mut version = self.watch_version();
        loop {
            version.borrow_and_update();
            match self.handle(None, CoordinatorInput::Tick).await {
                Ok(()) => {}
                Err(NotTaken::Refused(error)) => return Err(error.into()),
                Err(NotTaken::Failed(error)) => return Err(error),
            }
            version.borrow_and_update();
            let state = self.state();
            if let Some(effect) = state.pending().into_iter().next() {
                let input = self.execute(effect).await?;
                match self.handle(None, input).await {
                    Ok(()) => {}
                    Err(NotTaken::Refused(error)) => self.reporter.say(format!("a result came too late: {error}")),
                    Err(NotTaken::Failed(error)) => return Err(error),
                }
                continue;
            }
            let pause = state.next_deadline().map_or(Duration::from_secs(60), |at| at.since(now()));
            tokio::select! {
                changed = version.changed() => changed?,
                () = tokio::time::sleep(pause + Duration::from_millis(5)) => {}
                () = self.keep_books() => {}
            }
        }
    }

    /// Does an effect, and books what it took.
    async fn execute(self: &Arc<Self>, effect: CoordinatorEffect) -> Result<CoordinatorInput> {
        let (kind, round, member, num_models) = coordinator_work(&effect);
        let state = self.state();
        let round = round.unwrap_or_else(|| current_round(&state));
        let trace = state.round().map(|open| Trace::of_round(open.announcement.charter, round));
        let phase = state.round().map(|open| phase_name(&open.phase));
        let began = Observer::begin();
        let input = tokio::select! {
            input = effects::execute(self, effect) => input?,
            () = self.keep_books() => unreachable!("books are kept for ever"),
        };
        let about = About { round: Some(round), member, phase };
        let cost = self.observer.end(&began, kind, num_models * self.base_bytes, &about, trace);
        self.costs.book_work(round, kind, &cost);
        Ok(input)
    }

    /// Books what moves, now and then, for ever.
    async fn keep_books(&self) {
        loop {
            tokio::time::sleep(BOOK_EVERY).await;
            self.book_traffic();
        }
    }

    /// Books what has moved since the last time to the round that is open, or else to the one that ended last.
    fn book_traffic(&self) {
        if let Some(traffic) = self.traffic.get() {
            self.costs.book_traffic(current_round(&self.state()), traffic, |key| self.member_of(key));
        }
    }

    /// Copies of what is in a bucket are not kept for ever. That they are is no failure of the round.
    fn make_room(&self) {
        let (place, blobs, reporter) = (self.place.clone(), self.blobs.clone(), self.reporter.clone());
        tokio::task::spawn_blocking(move || {
            if let Err(error) = place.trim_copies(&blobs) {
                reporter.say(format!("copies of what is in the bucket could not be removed: {error:#}"));
            }
        });
    }

    /// A round's end closes its trace.
    fn round_ended(&self, before: &Coordinator, event: &CoordinatorEvent) {
        let (CoordinatorEvent::Ended { outcome, .. }, Some(round)) = (event, before.round()) else { return };
        let announced = &round.announcement;
        let about = About { round: Some(announced.round), member: None, phase: None };
        let is_published = matches!(outcome.result, RoundResult::Published { .. });
        let result = if is_published { "published" } else { "abandoned" };
        let trace = Trace::of_round(announced.charter, announced.round);
        self.observer.round(trace, &about, announced.opened_at, is_published, result);
    }

    /// Where the loop is, signed.
    ///
    /// For somebody who has seen `seen` entries of the log, and followed `steps` steps of governance.
    pub(crate) fn news(&self, seen: u64, steps: u64) -> Result<News, CanonicalError> {
        let log = self.log_view(seen);
        let state = self.state();
        let open = state.round().filter(|round| matches!(round.phase, Phase::Collecting));
        let announcement = open.map(|round| Signed::by(round.announcement.clone(), &self.key)).transpose()?;
        let outcome = state.outcomes().last().map(|outcome| Signed::by(outcome.clone(), &self.key)).transpose()?;
        let hand_over = state.hand_over().map(|given| Signed::by(given.clone(), &self.key)).transpose()?;
        let (version, tenure, governance) = (state.num_events(), state.tenure().cloned(), state.steps_after(steps));
        Ok(News { version, tenure, hand_over, governance, log, announcement, outcome })
    }
}

/// The number of the open round, or else of the one that ended last; 0 before the first.
fn current_round(state: &Coordinator) -> u32 {
    let last = || state.outcomes().last().map_or(0, |outcome| outcome.round);
    state.round().map_or_else(last, |round| round.announcement.round)
}
