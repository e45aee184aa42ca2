//! A node's driver: asks the coordinator for news, and does what the state machine waits for.

mod shown;
mod training;

use crate::activity;
use crate::clock::now;
use crate::coordinator::proving::Witness;
use crate::home::Home;
use crate::measure::measure_model;
use crate::observe::{About, Observer, Trace, about_node, node_work};
use crate::participation;
use crate::progress::Reporter;
use crate::role::Role;
use crate::settings::NodeSettings;
use crate::stores::open_blobs;
use crate::telemetry::Spans;
use crate::transfer::Transfer;
use anyhow::{Context as _, Result, bail};
use std::fs::File;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tapestry_core::{Digest, ModelManifest, SecretKey, Signed};
use tapestry_ledger::SignedCheckpoint;
use tapestry_net::{Dialer, NetError, retry_forever};
use tapestry_round::node::{
    Measurement, Node, NodeEffect, NodeEvent, NodeInput, Participation, Subject, TransferMetrics,
};
use tapestry_round::{Blame, News, RoundError, RoundResult};
use tapestry_store::BlobStore;

/// How long one request for news waits, where the idle timeout is not shorter.
const NEWS_WAIT: Duration = Duration::from_secs(30);
/// How long to wait before asking again for something that was refused for now.
const PAUSE: Duration = Duration::from_secs(2);

/// A running node.
pub(crate) struct Driver {
    home: Home,
    key: SecretKey,
    settings: NodeSettings,
    blobs: BlobStore,
    role: Role<Node>,
    dialer: Dialer,
    transfer: Transfer,
    reporter: Reporter,
    observer: Arc<Observer>,
    news_version: u64,
}

/// Whether doing an effect moved the state.
enum Done {
    /// It did: this is the input that answers it.
    Input(Box<NodeInput>),
    /// The coordinator did not take what was sent; the next news says why.
    AskForNews,
}

/// Runs the node until the loop is over and its Sovereign Model is built, or until it is told to stop.
pub(crate) async fn run(home: &Home, metrics: Option<SocketAddr>, reporter: Reporter) -> Result<()> {
    let _lock = home.lock()?;
    while run_with_one_key(home, metrics, &reporter).await? == Ended::HasAnotherKey {
        reporter.say("this member has another key now; going on with it");
    }
    Ok(())
}

/// Why a run ends.
#[derive(Debug, PartialEq, Eq)]
enum Ended {
    Complete,
    HasAnotherKey,
}

/// The node's state, with the key that it has by it: one that was asked for is taken into use where it is in force.
async fn open(home: &Home) -> Result<(Role<Node>, SecretKey)> {
    let key = home.key()?;
    let role = Role::<Node>::open(home, &key).await?;
    let expected = role.state().key();
    if expected == key.public() {
        return Ok((role, key));
    }
    if !home.change_key(expected)? {
        bail!(
            "the log in {} is of key {expected}, and this home's key is {}; a node with another key gets a home of its own",
            home.log_dir().display(),
            key.public()
        );
    }
    let key = home.key()?;
    Ok((Role::<Node>::open(home, &key).await?, key))
}

async fn run_with_one_key(home: &Home, metrics: Option<SocketAddr>, reporter: &Reporter) -> Result<Ended> {
    let settings = NodeSettings::read(home)?;
    let (role, key) = open(home).await?;
    let Some(dialer) = settings.dialer(&key)?.filter(|_| role.state().charter().is_some()) else {
        bail!("this node has not joined a consortium: tapestry node join URL --home {}", home.dir().display());
    };
    if role.state().has_seen_two_histories() {
        return Err(RoundError::TwoHistories.into());
    }
    training::check_texts(home, &settings)?;
    let blobs = open_blobs(home).await?;
    let transfer = Transfer::open(&settings.transfer, &dialer, &key, &blobs, reporter).await?;
    let _telling = activity::tell(dialer.clone(), reporter.clone());
    let observer = Arc::new(Observer::new(Spans::from_env("node")?));
    // Ends with this.
    let _metrics = match metrics {
        Some(address) => {
            let source = shown::source(home, Arc::clone(&observer), dialer.clone(), reporter.clone());
            let (address, serving) = crate::metrics::serve(address, source).await?;
            reporter.say(format!("metrics on http://{address}/metrics"));
            Some(serving)
        }
        None => None,
    };
    let (home, reporter_here, observer_here) = (home.clone(), reporter.clone(), Arc::clone(&observer));
    let mut driver = Driver {
        home,
        key,
        settings,
        blobs,
        role,
        dialer,
        transfer,
        reporter: reporter_here,
        observer: observer_here,
        news_version: 0,
    };
    let ended = tokio::select! {
        ended = driver.drive() => ended,
        signal = crate::coordinator::stop_signal() => {
            reporter.say("stopped; start again with the same command, nothing is lost");
            signal.map(|()| Ended::Complete)
        }
    };
    observer.finish().await;
    ended
}

impl Driver {
    async fn drive(&mut self) -> Result<Ended> {
        self.follow_coordinator();
        if let (Some(charter), Some(base)) = (self.role.state().charter(), self.role.state().base()) {
            self.transfer.offer(charter, base).await?;
        }
        let mut has_asked = false;
        loop {
            self.heed_operator().await?;
            let state = self.role.state();
            if state.key() != self.key.public() {
                return Ok(Ended::HasAnotherKey);
            }
            if state.is_complete() && state.is_member() && !has_asked {
                has_asked = true;
                self.take_last_news().await?;
                continue;
            }
            if state.is_complete() {
                let sovereign = state.sovereign().map(|model| model.digest().to_string()).unwrap_or_default();
                let why = if state.is_member() {
                    "the charter's rounds are over"
                } else {
                    "this member is out of the consortium"
                };
                self.reporter.say(format!("{why}; Sovereign Model {sovereign}"));
                return Ok(Ended::Complete);
            }
            match state.pending().into_iter().next() {
                // Nothing moves while it waits, so it waits for less than would be given up.
                None => self.take_news(NEWS_WAIT.min(self.settings.transfer.idle_timeout() / 2)).await?,
                Some(effect) => match self.observed(effect.clone()).await? {
                    Done::Input(input) => {
                        // What was trained is not sent against the word that was given meanwhile.
                        if matches!(*input, NodeInput::Trained { .. }) {
                            self.heed_operator().await?;
                        }
                        if self.role.state().pending().contains(&effect) {
                            self.handle(*input).await?;
                        }
                    }
                    Done::AskForNews => {
                        let version = self.news_version;
                        self.take_news(Duration::ZERO).await?;
                        if version == self.news_version {
                            tokio::time::sleep(PAUSE).await;
                        }
                    }
                },
            }
        }
    }

    /// Takes up what the operator has said meanwhile.
    async fn heed_operator(&mut self) -> Result<()> {
        let participation = participation::read(&self.home)?;
        if participation != *self.role.state().participation() {
            self.handle(NodeInput::Participate(participation)).await?;
        }
        Ok(())
    }

    /// Gives an input to the state machine and makes what follows durable.
    async fn handle(&mut self, input: NodeInput) -> Result<()> {
        let events = self.role.state().handle(now(), input)?;
        let member = self.role.state().member();
        for event in &events {
            self.observer.event(&self.reporter, event.name(), &about_node(event, member), describe(event));
        }
        self.role.record(events).await?;
        self.clean_work();
        Ok(())
    }

    /// Asks whoever has the coordinator's role, as far as this node knows, and knows where.
    fn follow_coordinator(&self) {
        let state = self.role.state();
        for (key, address) in state.coordinator_addresses() {
            if let Err(error) = self.dialer.add_server(address, *key) {
                self.reporter.say(format!("the address that was told of coordinator {key} is of no use: {error}"));
            }
        }
        if let Some(key) = state.next_coordinator().or_else(|| state.coordinator()) {
            self.dialer.prefer(key);
        }
    }

    /// Asks the coordinator where the loop is. A coordinator that breaks the charter stops this node.
    async fn take_news(&mut self, wait: Duration) -> Result<()> {
        let (path, dialer) = (self.news_path(wait), self.dialer.clone());
        let participation = self.role.state().participation();
        let news: News = tokio::select! {
            news = self.retry("ask for news", || dialer.get_json(&path)) => news?,
            () = participation::changed(&self.home, participation) => return Ok(()),
        };
        self.heed_news(news).await
    }

    /// Asks once whether members have decided anything since this node was done. Where nobody answers, it is done as far as it knows.
    async fn take_last_news(&mut self) -> Result<()> {
        let news: Result<News, NetError> = self.dialer.get_json(&self.news_path(Duration::ZERO)).await;
        match news {
            Ok(news) => self.heed_news(news).await,
            Err(error) => {
                self.reporter.say(format!("whether members have decided anything since is not known: {error}"));
                Ok(())
            }
        }
    }

    fn news_path(&self, wait: Duration) -> String {
        let state = self.role.state();
        let seen = state.seen().map_or(0, |seen| seen.size);
        let steps = state.governance().map_or(0, |governance| governance.steps().len());
        format!("/v1/news?after={}&wait_ms={}&seen={seen}&steps={steps}", self.news_version, wait.as_millis())
    }

    async fn heed_news(&mut self, news: News) -> Result<()> {
        // Where members have decided more than is told at once, the rest is asked for without waiting.
        let version = if news.governance.is_some() { self.news_version } else { news.version };
        let known = self.role.state().coordinator();
        match self.handle(NodeInput::News(news)).await {
            Ok(()) => {
                let state = self.role.state();
                if state.has_seen_two_histories() {
                    return Err(RoundError::TwoHistories.into());
                }
                if state.coordinator() != known {
                    self.follow_coordinator();
                } else if state.next_coordinator().is_some() {
                    // The one that was asked has nothing new any more; the one that follows it may not be there yet.
                    self.follow_coordinator();
                    tokio::time::sleep(PAUSE).await;
                }
            }
            Err(error) => {
                let error_kind = error.downcast_ref::<RoundError>();
                if let Some(RoundError::Deposed { .. }) = error_kind {
                    self.reporter.say(format!("news not taken: {error:#}"));
                    self.dialer.try_next();
                    tokio::time::sleep(PAUSE).await;
                    return Ok(());
                }
                if error_kind.map(RoundError::blame) == Some(Blame::Timing) {
                    self.reporter.say(format!("news not taken: {error:#}"));
                } else {
                    return Err(error.context(
                        "what the coordinator says breaks the charter; this node takes no further part. Show this to the \
                         other members",
                    ));
                }
            }
        }
        self.news_version = version;
        Ok(())
    }

    /// Repeats a request until the coordinator answers; a refusal is an answer.
    async fn retry<T, F: Future<Output = Result<T, NetError>>>(
        &self,
        what: &str,
        request: impl FnMut() -> F,
    ) -> Result<T, NetError> {
        let reporter = self.reporter.clone();
        retry_forever(request, |error, pause| {
            reporter.say(format!("cannot {what}: {error}; trying again in {:.1} s", pause.as_secs_f64()));
        })
        .await
    }

    /// Does an effect, and notes what it took.
    async fn observed(&mut self, effect: NodeEffect) -> Result<Done> {
        let (kind, round) = node_work(&effect);
        let state = self.role.state();
        let open = state.round().or_else(|| state.late_round()).map(|round| round.announcement.clone());
        let round = round.or_else(|| open.as_ref().map(|open| open.round));
        let trace = open.zip(round).map(|(open, round)| Trace::of_round(open.charter, round));
        let about = About { round, member: state.member().cloned(), phase: None };
        let began = Observer::begin();
        let done = self.execute(effect).await?;
        self.observer.end(&began, kind, 0, &about, trace);
        Ok(done)
    }

    async fn execute(&mut self, effect: NodeEffect) -> Result<Done> {
        let input = match effect {
            NodeEffect::PullBase { base } => {
                let transfer = self.pull_base(base).await?;
                NodeInput::BasePulled { base, transfer }
            }
            NodeEffect::Train { round, base } => {
                match self.contributed_cpt(round, base).await {
                    Ok(contributed) => NodeInput::Trained { round, contributed },
                    Err(error) => {
                        // The details may quote the member's texts or paths; they stay here.
                        self.reporter.say(format!("training for round {round} failed: {error:#}"));
                        NodeInput::CannotTrain { round, reason: "training failed on the node".into() }
                    }
                }
            }
            NodeEffect::SendContribution { contribution } => {
                let round = contribution.round;
                let start = Instant::now();
                let sent = self.push_weights(contribution.weights, round).await;
                let refused = || self.not_taken(round);
                let Some(size_bytes) = self.refusal_is_news(sent)? else { return Ok(refused()) };
                let signed = Signed::by(contribution, &self.key)?;
                let dialer = self.dialer.clone();
                let posted =
                    self.retry("send the contribution", || dialer.post_json("/v1/contribution", &signed)).await;
                let Some(()) = self.refusal_is_news(posted)? else { return Ok(refused()) };
                let transfer = TransferMetrics { size_bytes, wall_seconds: start.elapsed().as_secs_f64() };
                NodeInput::ContributionSent { round, transfer }
            }
            NodeEffect::SendDecline { decline } => {
                let round = decline.round;
                let signed = Signed::by(decline, &self.key)?;
                let dialer = self.dialer.clone();
                let posted = self.retry("decline the round", || dialer.post_json("/v1/decline", &signed)).await;
                let Some(()) = self.refusal_is_news(posted)? else { return Ok(Done::AskForNews) };
                NodeInput::DeclineSent { round }
            }
            NodeEffect::SendAttendance { attendance } => {
                let number = attendance.number;
                let signed = Signed::by(attendance, &self.key)?;
                let dialer = self.dialer.clone();
                let posted = self.retry("say who is present", || dialer.post_json("/v1/attendance", &signed)).await;
                let Some(()) = self.refusal_is_news(posted)? else { return Ok(Done::AskForNews) };
                NodeInput::AttendanceSent { number }
            }
            NodeEffect::SendDeparture { departure } => {
                let dialer = self.dialer.clone();
                let posted =
                    self.retry("tell that this member leaves", || dialer.post_json("/v1/departure", &departure));
                let Some(()) = self.refusal_is_news(posted.await)? else { return Ok(Done::AskForNews) };
                NodeInput::DepartureSent
            }
            NodeEffect::Cosign { checkpoint } => {
                let note: SignedCheckpoint = checkpoint.parse()?;
                let (member, size) = (self.role.state().member().context("no member")?, note.checkpoint().size);
                let line = note.cosign(member, &self.key, now()).to_line(&note.checkpoint().origin);
                let (witness, dialer) = (Witness { size, line }, self.dialer.clone());
                let posted = self.retry("witness the log", || dialer.post_json("/v1/log/cosignature", &witness)).await;
                // Where it comes too late, another checkpoint is to be witnessed, and comes with the news.
                let _: Option<()> = self.refusal_is_news(posted)?;
                NodeInput::CosignatureSent { size }
            }
            NodeEffect::Measure { subject, model } => NodeInput::Measured(self.measure(subject, model).await?),
            NodeEffect::BuildSovereign { base } => {
                let (model, metrics) = self.private_cpt(base).await?;
                NodeInput::SovereignBuilt { model, metrics }
            }
        };
        Ok(Done::Input(Box::new(input)))
    }

    /// What follows where the coordinator does not take a contribution: for a round that has ended, nothing more will.
    fn not_taken(&self, round: u32) -> Done {
        match self.role.state().late_round() {
            Some(late) if late.announcement.round == round => Done::Input(Box::new(NodeInput::LateRefused { round })),
            _ => Done::AskForNews,
        }
    }

    /// `None` where the coordinator answered, and said no: the round has moved on.
    fn refusal_is_news<T>(&self, result: Result<T, NetError>) -> Result<Option<T>> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_refusal() => {
                self.reporter.say(format!("not taken by the coordinator: {error}"));
                Ok(None)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn pull_base(&self, base: Digest) -> Result<TransferMetrics> {
        let start = Instant::now();
        let charter = self.role.state().charter().context("no charter")?;
        let mut working = self.reporter.start("pull", format!("base {}", base.short()), "bytes");
        let mut progress = |done, total| working.update(done, total);
        let size_bytes = self.transfer.pull_base(charter, base, &mut progress).await?;
        working.end();
        Ok(TransferMetrics { size_bytes, wall_seconds: start.elapsed().as_secs_f64() })
    }

    async fn push_weights(&self, weights: Digest, round: u32) -> Result<u64, NetError> {
        let mut working = self.reporter.start("push", format!("weights of round {round}"), "bytes");
        let mut progress = |done, total| working.update(done, total);
        let sent = self.transfer.push(weights, self.role.state().base(), &mut progress).await?;
        working.end();
        Ok(sent)
    }

    async fn measure(&self, subject: Subject, model: Digest) -> Result<Measurement> {
        let state = self.role.state();
        let manifest = match subject {
            Subject::OwnCpt { .. } => {
                let base = state.base().context("no base")?;
                let files = self.blobs.get_json::<ModelManifest>(base).await?.files;
                ModelManifest { files, weights: self.blobs.get_json(model).await? }
            }
            Subject::SharedBase { .. } | Subject::Sovereign => self.blobs.get_json(model).await?,
        };
        let what = match subject {
            Subject::OwnCpt { round } => format!("own CPT of round {round} on the held-out text"),
            Subject::SharedBase { round: 0 } => "adopted base on the held-out text".into(),
            Subject::SharedBase { round } => format!("Shared Base of round {round} on the held-out text"),
            Subject::Sovereign => "Sovereign Model on the held-out text".into(),
        };
        let max_tokens = self.settings.evaluation.max_tokens;
        if max_tokens == 0 {
            return Ok(Measurement { subject, model, held_out_bpb: None, open_bpb: None, wall_seconds: 0.0 });
        }
        let held_out = crate::files::read_long_text(&NodeSettings::resolve(&self.home, &self.settings.texts.held_out))?;
        let _slot = self.slot().await?;
        let start = Instant::now();
        let working = self.reporter.start("measure", what, "tokens");
        let held_out_bpb = match measure_model(&self.blobs, &manifest, held_out, max_tokens, working).await {
            Ok(measured) => Some(measured.bpb()),
            Err(error) => {
                self.reporter.say(format!("{subject:?} gives no value on the held-out text: {error:#}"));
                None
            }
        };
        let mut open_bpb = None;
        if subject == Subject::Sovereign {
            let terms = &state.charter().context("no charter")?.document.open_held_out;
            let text = String::from_utf8(self.blobs.get(terms.text).await?.to_vec())?;
            let working = self.reporter.start("measure", "Sovereign Model on the open text", "tokens");
            let measured = measure_model(&self.blobs, &manifest, text, terms.max_tokens as usize, working).await?;
            open_bpb = Some(measured.bpb());
        }
        let wall_seconds = start.elapsed().as_secs_f64();
        Ok(Measurement { subject, model, held_out_bpb, open_bpb, wall_seconds })
    }

    /// Waits for the turn of this node on a machine that several nodes share.
    async fn slot(&self) -> Result<Option<File>> {
        let Some(path) = &self.settings.machine.slot else { return Ok(None) };
        let path = NodeSettings::resolve(&self.home, path);
        let file = File::options().create(true).append(true).open(&path);
        let file = file.with_context(|| format!("cannot open the slot {}", path.display()))?;
        let locked = tokio::task::spawn_blocking(move || file.lock().map(|()| file)).await?;
        Ok(Some(locked.with_context(|| format!("cannot lock the slot {}", path.display()))?))
    }
}

/// An event for people.
pub(crate) fn describe(event: &NodeEvent) -> String {
    match event {
        NodeEvent::Joined { charter } => format!("joined {}", charter.document.consortium),
        NodeEvent::CoordinatorChanged { tenure } => {
            let tenure = &tenure.document;
            format!("{} has the coordinator's role now (tenure {})", tenure.coordinator, tenure.number)
        }
        NodeEvent::CoordinatorMoves { hand_over } => {
            format!("the coordinator's role was handed over to {}", hand_over.document.to)
        }
        NodeEvent::Participates { participation } => match participation {
            Participation::Contribute => "takes part and contributes".into(),
            Participation::KeepPrivate { .. } => "trains, and keeps the weights of each round".into(),
            Participation::Decline { .. } => "declines each round".into(),
            Participation::Away { .. } => "leaves for a while".into(),
        },
        NodeEvent::AttendanceSent { number } => {
            format!("the coordinator knows whether this member is away (attendance {number})")
        }
        NodeEvent::LateRefused { round } => format!("round {round}: what was trained comes too late to count"),
        NodeEvent::Proposed { proposal } => {
            let proposal = &proposal.document;
            format!("{} proposed: {}", proposal.member, crate::coordinator::one_line(&proposal.rationale))
        }
        NodeEvent::Voted { vote } => {
            let vote = &vote.document;
            format!("{} voted {} on proposal {}", vote.member, vote.choice, vote.proposal.short())
        }
        NodeEvent::Decided { proposal } => format!("proposal {} was adopted and is followed here", proposal.short()),
        NodeEvent::KeyRotated { rotation } => {
            format!("{} has key {} now", rotation.document.member, rotation.document.to.short())
        }
        NodeEvent::Left { departure } => format!("{} has left the consortium", departure.document.member),
        NodeEvent::CharterReplaced { charter } => {
            format!("charter version {} is followed here, by the signatures of the quorum", charter.document.version)
        }
        NodeEvent::Leaving { .. } => "this member leaves the consortium; it keeps all that it has".into(),
        NodeEvent::DepartureSent {} => "the coordinator knows that this member has left".into(),
        NodeEvent::CheckpointSeen { checkpoint } => match checkpoint.parse::<SignedCheckpoint>() {
            Ok(note) => {
                format!("the coordinator's log continues what was seen, up to entry {}", note.checkpoint().size)
            }
            Err(error) => format!("a checkpoint that cannot be read: {error}"),
        },
        NodeEvent::CosignatureSent { size } => format!("witnessed the coordinator's log up to entry {size}"),
        NodeEvent::HistoriesDiffer { .. } => {
            "THE COORDINATOR HAS SHOWN TWO HISTORIES that are not one; this node takes no part any more".into()
        }
        NodeEvent::RoundAccepted { announcement, .. } => {
            let a = &announcement.document;
            format!("round {} is open until {}, from base {}", a.round, a.closes_at, a.base.short())
        }
        NodeEvent::BaseHeld { base, transfer } => {
            format!("base {} is here ({} bytes pulled)", base.short(), transfer.size_bytes)
        }
        NodeEvent::Trained { round, contributed } => {
            let metrics = contributed.metrics();
            format!(
                "round {round}: trained on {} tokens, loss {:.3} -> {:.3}",
                metrics.num_tokens, metrics.first_loss, metrics.last_loss
            )
        }
        NodeEvent::ContributionSent { round, transfer } => {
            format!("round {round}: weights sent ({} bytes)", transfer.size_bytes)
        }
        NodeEvent::Declining { round, reason } => format!("round {round}: taking no part: {reason}"),
        NodeEvent::DeclineSent { round } => {
            format!("round {round}: the coordinator knows that this node takes no part")
        }
        NodeEvent::OutcomeAccepted { outcome } => {
            let outcome = &outcome.document;
            match &outcome.result {
                RoundResult::Published { .. } => {
                    format!("round {}: new Shared Base {}", outcome.round, outcome.base.short())
                }
                RoundResult::Abandoned { reason } => format!("round {} was abandoned: {reason}", outcome.round),
            }
        }
        NodeEvent::Measured(m) => {
            let found = m.held_out_bpb.map_or("no finite number of".into(), |bpb| format!("{bpb:.4}"));
            format!("{:?}: {found} bits per byte on the held-out text", m.subject)
        }
        NodeEvent::SovereignBuilt { model, .. } => format!("Sovereign Model {} is built", model.digest().short()),
    }
}
