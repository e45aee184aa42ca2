//! What is told to those who watch a role from outside: lines of its log, counts for `/metrics`, spans for OpenTelemetry. Nothing in a
//! round depends on any of it, and nothing of it holds a text, a path or a key that is secret.

use crate::clock::now;
use crate::logs;
use crate::progress::Reporter;
use crate::telemetry::{Span, Spans};
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tapestry_core::{Digest, MemberName, Timestamp};
use tapestry_round::coordinator::{CoordinatorEffect, CoordinatorEvent, Phase};
use tapestry_round::node::{NodeEffect, NodeEvent, Subject};

/// One for each role that runs.
#[derive(Debug)]
pub(crate) struct Observer {
    num_events: Mutex<BTreeMap<&'static str, u64>>,
    work: Mutex<BTreeMap<&'static str, WorkCost>>,
    spans: Spans,
}

/// What an event or a piece of work is about.
#[derive(Debug, Clone, Default)]
pub(crate) struct About {
    pub(crate) round: Option<u32>,
    pub(crate) member: Option<MemberName>,
    pub(crate) phase: Option<&'static str>,
}

/// What pieces of work of one kind took.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WorkCost {
    /// How many pieces.
    pub(crate) num: u64,
    pub(crate) wall_seconds: f64,
    /// Processor time of this whole process meanwhile, what it served to others included.
    pub(crate) cpu_seconds: f64,
    /// Bytes of weights that the work is about.
    pub(crate) size_bytes: u64,
}

/// A piece of work under way.
#[derive(Debug)]
pub(crate) struct Began {
    at: Timestamp,
    start: Instant,
    cpu_seconds: f64,
}

/// The trace that all parts of one round belong to, on whatever machine they ran: it follows from the charter and the round, so that
/// nothing has to be sent along.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Trace {
    pub(crate) id: [u8; 16],
    pub(crate) root: [u8; 8],
}

impl Trace {
    pub(crate) fn of_round(charter: Digest, round: u32) -> Self {
        let digest = Digest::of(format!("tapestry trace of round {round} of {charter}").as_bytes());
        let (mut id, mut root) = ([0; 16], [0; 8]);
        id.copy_from_slice(&digest.as_bytes()[..16]);
        root.copy_from_slice(&digest.as_bytes()[16..24]);
        Self { id, root }
    }
}

impl WorkCost {
    /// Adds another such piece.
    pub(crate) fn add(&mut self, other: &Self) {
        self.num += other.num;
        self.wall_seconds += other.wall_seconds;
        self.cpu_seconds += other.cpu_seconds;
        self.size_bytes = self.size_bytes.saturating_add(other.size_bytes);
    }
}

impl Observer {
    /// With spans where the environment asks for them.
    pub(crate) fn new(spans: Spans) -> Self {
        Self { num_events: Mutex::default(), work: Mutex::default(), spans }
    }

    /// An event that is about to become durable.
    pub(crate) fn event(&self, reporter: &Reporter, name: &'static str, about: &About, text: String) {
        *self.num_events.lock().unwrap_or_else(PoisonError::into_inner).entry(name).or_default() += 1;
        if logs::is_json() && reporter.is_for_people() {
            logs::event(name, about, &text);
        } else {
            reporter.say(text);
        }
    }

    /// Events by name, since this process started.
    pub(crate) fn num_events(&self) -> BTreeMap<&'static str, u64> {
        self.num_events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Work by kind, since this process started.
    pub(crate) fn work(&self) -> BTreeMap<&'static str, WorkCost> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn begin() -> Began {
        Began { at: now(), start: Instant::now(), cpu_seconds: crate::metrics::cpu_seconds() }
    }

    /// A piece of work is done.
    pub(crate) fn end(
        &self,
        began: &Began,
        kind: &'static str,
        size_bytes: u64,
        about: &About,
        trace: Option<Trace>,
    ) -> WorkCost {
        let cost = WorkCost {
            num: 1,
            wall_seconds: began.start.elapsed().as_secs_f64(),
            cpu_seconds: (crate::metrics::cpu_seconds() - began.cpu_seconds).max(0.0),
            size_bytes,
        };
        self.work.lock().unwrap_or_else(PoisonError::into_inner).entry(kind).or_default().add(&cost);
        if let Some(trace) = trace {
            let mut span = Span::new(trace, kind, began.at, began.at.plus(began.start.elapsed())).about(about);
            if size_bytes > 0 {
                span = span.number("tapestry.size_bytes", size_bytes);
            }
            self.spans.send(span);
        }
        cost
    }

    /// A round from its announcement to its end, the root of its trace.
    pub(crate) fn round(&self, trace: Trace, about: &About, opened_at: Timestamp, published: bool, result: &str) {
        self.spans.send(Span::root(trace, "round", opened_at, now()).about(about).outcome(published, result));
    }

    /// Sends what waits to be sent, for a moment at most.
    pub(crate) async fn finish(&self) {
        self.spans.finish(Duration::from_secs(5)).await;
    }
}

/// What an event of a coordinator is about.
pub(crate) fn about_coordinator(event: &CoordinatorEvent, phase: Option<&Phase>) -> About {
    let (round, member) = match event {
        CoordinatorEvent::CharterAdopted { .. }
        | CoordinatorEvent::RoleTaken { .. }
        | CoordinatorEvent::RoleHandedOver { .. }
        | CoordinatorEvent::Decided { .. }
        | CoordinatorEvent::Cosigned { .. }
        | CoordinatorEvent::Witnessed { .. }
        | CoordinatorEvent::BaseMeasured { .. } => (None, None),
        CoordinatorEvent::Proposed { proposal } => (None, Some(&proposal.document.member)),
        CoordinatorEvent::Voted { vote } => (None, Some(&vote.document.member)),
        CoordinatorEvent::KeyRotated { rotation } => (None, Some(&rotation.document.member)),
        CoordinatorEvent::Left { departure } => (None, Some(&departure.document.member)),
        CoordinatorEvent::CommunityMeasured { member, .. } => (None, Some(member)),
        CoordinatorEvent::RoundAnnounced { announcement } => (Some(announcement.round), None),
        CoordinatorEvent::ContributionReceived { contribution } => {
            (Some(contribution.document.round), Some(&contribution.document.member))
        }
        CoordinatorEvent::Attended { attendance } => (None, Some(&attendance.document.member)),
        CoordinatorEvent::Declined { decline } => (Some(decline.document.round), Some(&decline.document.member)),
        CoordinatorEvent::Late { round, member, .. }
        | CoordinatorEvent::ContributionScreened { round, member, .. }
        | CoordinatorEvent::MessageRefused { round, member, .. }
        | CoordinatorEvent::Missing { round, member, .. } => (Some(*round), Some(member)),
        CoordinatorEvent::MergeStarted { round, .. } | CoordinatorEvent::Merged { round, .. } => (Some(*round), None),
        CoordinatorEvent::Ended { outcome, .. } => (Some(outcome.round), None),
    };
    About { round: round.filter(|round| *round > 0), member: member.cloned(), phase: phase.map(phase_name) }
}

/// The name of a round's phase.
pub(crate) const fn phase_name(phase: &Phase) -> &'static str {
    match phase {
        Phase::Collecting => "collecting",
        Phase::Merging { .. } => "merging",
        Phase::Gating { .. } => "gating",
    }
}

/// What an event of a node is about.
pub(crate) fn about_node(event: &NodeEvent, member: Option<&MemberName>) -> About {
    let round = match event {
        NodeEvent::RoundAccepted { announcement, .. } => Some(announcement.document.round),
        NodeEvent::OutcomeAccepted { outcome } => Some(outcome.document.round),
        NodeEvent::Trained { round, .. }
        | NodeEvent::ContributionSent { round, .. }
        | NodeEvent::Declining { round, .. }
        | NodeEvent::LateRefused { round }
        | NodeEvent::DeclineSent { round } => Some(*round),
        NodeEvent::Measured(measurement) => round_of(measurement.subject),
        NodeEvent::Joined { .. }
        | NodeEvent::Proposed { .. }
        | NodeEvent::Voted { .. }
        | NodeEvent::Decided { .. }
        | NodeEvent::KeyRotated { .. }
        | NodeEvent::Left { .. }
        | NodeEvent::CharterReplaced { .. }
        | NodeEvent::Leaving { .. }
        | NodeEvent::DepartureSent {}
        | NodeEvent::CheckpointSeen { .. }
        | NodeEvent::CosignatureSent { .. }
        | NodeEvent::HistoriesDiffer { .. }
        | NodeEvent::CoordinatorChanged { .. }
        | NodeEvent::CoordinatorMoves { .. }
        | NodeEvent::Participates { .. }
        | NodeEvent::AttendanceSent { .. }
        | NodeEvent::BaseHeld { .. }
        | NodeEvent::SovereignBuilt { .. } => None,
    };
    About { round, member: member.cloned(), phase: None }
}

pub(crate) const fn round_of(subject: Subject) -> Option<u32> {
    match subject {
        Subject::SharedBase { round } | Subject::OwnCpt { round } => Some(round),
        Subject::Sovereign => None,
    }
}

/// What an effect of a coordinator is: its kind, its round where it names one, its member, and how often the size of a model it reads.
pub(crate) fn coordinator_work(effect: &CoordinatorEffect) -> (&'static str, Option<u32>, Option<MemberName>, u64) {
    match effect {
        CoordinatorEffect::MeasureBase { .. } => ("measure_base", None, None, 1),
        CoordinatorEffect::MeasureCommunity { member, .. } => ("measure_community", None, Some(member.clone()), 1),
        CoordinatorEffect::Screen { round, member, .. } => ("screen", Some(*round), Some(member.clone()), 2),
        CoordinatorEffect::Merge(work) => {
            ("merge", Some(work.round), None, 1 + work.inputs.len() as u64 + work.states.len() as u64)
        }
        CoordinatorEffect::MeasureMerged { round, .. } => ("gate", Some(*round), None, 1),
    }
}

/// What an effect of a node is: its kind, and its round where it names one.
pub(crate) const fn node_work(effect: &NodeEffect) -> (&'static str, Option<u32>) {
    match effect {
        NodeEffect::PullBase { .. } => ("pull", None),
        NodeEffect::Train { round, .. } => ("train", Some(*round)),
        NodeEffect::SendContribution { contribution } => ("push", Some(contribution.round)),
        NodeEffect::SendDecline { decline } => ("decline", Some(decline.round)),
        NodeEffect::SendAttendance { .. } => ("attend", None),
        NodeEffect::SendDeparture { .. } => ("leave", None),
        NodeEffect::Cosign { .. } => ("witness", None),
        NodeEffect::Measure { subject, .. } => ("measure", round_of(*subject)),
        NodeEffect::BuildSovereign { .. } => ("build_sovereign", None),
    }
}
