//! What a seed stands for: a charter, members with their characters, and how bad the weather is.

use std::collections::{BTreeMap, BTreeSet};

use tapestry_core::{Digest, MemberName, SecretKey, Signed, Timestamp};
use tapestry_governance::{Charter, CharterTerms, GateTerms, HeldOutTerms, MergeTerms, RoundTerms, ScreeningTerms};
use tapestry_merge::Method;
use tapestry_merge::method::{DiLoCo, FedAvg};
use tapestry_merge::weights::{CulturallyAware, DataProportional, QualityWeighted, Uniform, Weighting};

use crate::model::{Poison, Vector};
use crate::network::Party;
use crate::random::Random;

/// When the simulated world begins, in milliseconds since 1970.
pub(crate) const START_MS: u64 = 1_800_000_000_000;

/// The number of the key that is in no charter.
pub(crate) const STRANGER: u8 = 201;

/// The number of the standby's key.
pub(crate) const STANDBY: u8 = 202;

/// How a member behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Character {
    Honest,
    /// Honest, and sometimes cannot train.
    Reluctant,
    /// Honest, and its operator changes how it takes part: keeps weights, declines, leaves, comes back.
    Wanderer,
    /// Never starts its node.
    Silent,
    /// Trains, and spoils what it contributes.
    Poisoner(Poison),
    /// Besides an ordinary node, sends the coordinator whatever might hurt the others.
    Forger,
}

/// A simulated world before its first moment.
#[derive(Debug)]
pub(crate) struct Scenario {
    pub(crate) charter: Signed<Charter>,
    pub(crate) coordinator_key: SecretKey,
    /// In the order of their names.
    pub(crate) members: Vec<Member>,
    pub(crate) weather: Weather,
    pub(crate) mirror: Option<Mirror>,
    /// When the coordinator's role changes hands.
    pub(crate) take_overs_ms: Vec<u64>,
    /// Whether strangers and forgers do harm.
    pub(crate) has_mischief: bool,
}

/// Somebody who serves bases besides the coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mirror {
    Honest,
    /// Serves wrong bytes half of the time.
    Lying,
}

#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) name: MemberName,
    pub(crate) key: SecretKey,
    pub(crate) character: Character,
}

/// How much goes wrong until [`Weather::calm_at_ms`]. Probabilities per message, write or piece of work.
#[derive(Debug, Clone)]
pub(crate) struct Weather {
    pub(crate) loss: f64,
    pub(crate) duplication: f64,
    pub(crate) max_delay_ms: u64,
    pub(crate) crash_per_write: f64,
    /// Mean time between crashes of some role that fall between writes.
    pub(crate) crash_every_ms: u64,
    pub(crate) failure_per_work: f64,
    /// How likely a write finds the disk full.
    pub(crate) full_per_write: f64,
    /// How likely a process that dies takes its machine's power with it, so that what was not synced is lost.
    pub(crate) power_per_crash: f64,
    /// Clocks are ahead by up to this much, and jump within it forwards and back, when a role restarts and in between.
    pub(crate) max_clock_skew_ms: u64,
    /// Who does not reach whom, and when.
    pub(crate) partitions: Vec<Partition>,
    /// Training takes up to this long, and now and then eight times as long.
    pub(crate) max_training_ms: u64,
    /// Faults stop here. What is promised after faults stop is then due.
    pub(crate) calm_at_ms: u64,
}

/// A way on which nothing arrives for a while. One-sided: the way back is another one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Partition {
    pub(crate) from: Party,
    pub(crate) to: Party,
    pub(crate) starts_ms: u64,
    pub(crate) ends_ms: u64,
}

impl Character {
    /// Whether its messages follow the protocol, whatever its weights are.
    pub(crate) const fn follows_protocol(self) -> bool {
        !matches!(self, Self::Forger | Self::Silent)
    }

    pub(crate) const fn has_node(self) -> bool {
        !matches!(self, Self::Silent)
    }
}

/// A key that the number decides.
pub(crate) fn key(number: u8) -> SecretKey {
    SecretKey::from_seed(&[number; 32].into())
}

impl Scenario {
    pub(crate) fn new(random: &mut Random) -> Self {
        // Mostly few: what goes wrong between many mostly goes wrong between few, in less time.
        let num_members = if random.chance(0.01) { random.between(6, 50) } else { random.between(2, 5) };
        let members: Vec<Member> = (0..num_members).map(|n| member(n, random)).collect();
        let mirror = [None, Some(Mirror::Honest), Some(Mirror::Lying)][random.index(3)];
        let weather = Weather::new(members.len(), random);
        Self::of(members, weather, mirror, random)
    }

    /// Honest members and no faults, for counting what a round costs. Training takes no time.
    pub(crate) fn calm(num_members: u64, num_rounds: u32, random: &mut Random) -> Self {
        let name = |n| format!("m{n:02}").parse().expect("a name");
        let number = |n| u8::try_from(n + 1).expect("fewer keys than numbers");
        let honest = |n| Member { name: name(n), key: key(number(n)), character: Character::Honest };
        let members = (0..num_members).map(honest).collect();
        let mut scenario = Self::of(members, Weather::calm(), None, random);
        scenario.has_mischief = false;
        scenario.take_overs_ms.clear();
        let mut terms = CharterTerms::from(scenario.charter.document.clone());
        terms.rounds = RoundTerms { num_rounds, window_ms: 600_000, min_contributions: 1, late_rounds: 0 };
        terms.merge.weighting = Weighting::Uniform(Uniform {});
        terms.merge.influence_cap = 1.0;
        terms.merge.community_held_out = BTreeMap::new();
        terms.valid_until = Timestamp::from_ms(START_MS + 1_000_000_000);
        scenario.charter = Signed::unsigned(Charter::try_from(terms).expect("sound terms"));
        for member in &scenario.members {
            scenario.charter.sign(&member.key).expect("a charter has a canonical form");
        }
        scenario
    }

    fn of(members: Vec<Member>, weather: Weather, mirror: Option<Mirror>, random: &mut Random) -> Self {
        let num_members = members.len() as u64;
        let coordinator_key = key(200);
        let few = |n: u64| u32::try_from(n).expect("a few");
        let window_ms = random.between(8_000, 40_000);
        let min_contributions = few(random.between(1, num_members));
        // Often as tight as the smallest merge allows.
        let cap = [1.0_f64, 0.5, 0.34, 0.0][random.index(4)].max(1.0 / f64::from(min_contributions));
        let quorum = num_members / 2 + 1;
        // Some charters end while their rounds run.
        let valid_ms = if random.chance(0.05) { random.between(20_000, 100_000) } else { 1_000_000_000 };
        let terms = CharterTerms {
            consortium: "Simulated".into(),
            version: 1,
            previous: None,
            members: members.iter().map(|m| (m.name.clone(), m.key.public())).collect::<BTreeMap<_, _>>(),
            coordinator: coordinator_key.public(),
            standbys: BTreeSet::from([key(STANDBY).public()]),
            quorum: few(quorum),
            base: Vector::adopted().digest(),
            open_held_out: HeldOutTerms { text: Digest::of(b"open text"), max_tokens: 100 },
            rounds: RoundTerms {
                num_rounds: few(random.between(1, 3)),
                window_ms,
                min_contributions,
                late_rounds: few(random.below(3)),
            },
            screening: ScreeningTerms { max_relative_change: 0.5, max_bpb_rise: 0.05 },
            merge: merge_terms(cap, &members, random),
            gate: GateTerms { max_bpb_rise: 0.03 },
            privacy_tier: 0,
            valid_from: Timestamp::from_ms(START_MS - 1_000_000),
            valid_until: Timestamp::from_ms(START_MS + valid_ms),
            governance: None,
        };
        let mut charter = Signed::unsigned(Charter::try_from(terms).expect("sound terms"));
        for member in members.iter().take(usize::try_from(quorum).expect("a few")) {
            charter.sign(&member.key).expect("a charter has a canonical form");
        }
        let num_take_overs = if random.chance(0.4) { random.between(1, 4) } else { 0 };
        let take_overs_ms = (0..num_take_overs).map(|_| START_MS + random.between(2_000, 80_000)).collect();
        Self { charter, coordinator_key, members, weather, mirror, take_overs_ms, has_mischief: true }
    }
}

/// One of the ways of weighing and merging.
fn merge_terms(influence_cap: f64, members: &[Member], random: &mut Random) -> MergeTerms {
    let temperature = [0.001, 0.05, 1000.0][random.index(3)];
    let weighting = match random.below(5) {
        0 => Weighting::QualityWeighted(QualityWeighted { temperature }),
        1 => Weighting::DataProportional(DataProportional {}),
        2 => Weighting::CulturallyAware(CulturallyAware { temperature, community_share: random.unit() }),
        _ => Weighting::Uniform(Uniform {}),
    };
    let method = match random.below(3) {
        0 => Method::DiLoCo(DiLoCo { learning_rate: 0.7, momentum: 0.9 }),
        _ => Method::FedAvg(FedAvg {}),
    };
    let text = |member: &Member| {
        (member.name.clone(), HeldOutTerms { text: Digest::of(member.name.as_str().as_bytes()), max_tokens: 100 })
    };
    let community_held_out =
        if weighting.needs_community_texts() { members.iter().map(text).collect() } else { BTreeMap::new() };
    let staleness_exponent = random.unit();
    MergeTerms {
        method,
        weighting,
        influence_cap,
        staleness_exponent,
        allow_data_proportional: true,
        community_held_out,
    }
}

fn member(number: u64, random: &mut Random) -> Member {
    let poisons = [Poison::NotANumber, Poison::Huge, Poison::Overflowing, Poison::WrongShape, Poison::Worse];
    let character = match random.below(14) {
        0 => Character::Silent,
        1 | 2 => Character::Poisoner(poisons[random.index(poisons.len())]),
        3 | 4 => Character::Forger,
        5 => Character::Reluctant,
        6 | 7 => Character::Wanderer,
        _ => Character::Honest,
    };
    let name = format!("m{number}").parse().expect("a name");
    Member { name, key: key(u8::try_from(number + 1).expect("a few")), character }
}

impl Weather {
    const fn calm() -> Self {
        Self {
            loss: 0.0,
            duplication: 0.0,
            max_delay_ms: 50,
            crash_per_write: 0.0,
            crash_every_ms: u64::MAX,
            failure_per_work: 0.0,
            full_per_write: 0.0,
            power_per_crash: 0.0,
            max_clock_skew_ms: 0,
            partitions: vec![],
            max_training_ms: 0,
            calm_at_ms: START_MS,
        }
    }

    fn new(num_members: usize, random: &mut Random) -> Self {
        // A fifth of the worlds have no faults at all: what breaks there is plain logic.
        let badness = if random.chance(0.2) { 0.0 } else { random.unit() };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds")]
        let scaled = |ms: f64| (ms * badness) as u64;
        Self {
            loss: 0.4 * badness,
            duplication: 0.3 * badness,
            max_delay_ms: 50 + scaled(4_000.0),
            crash_per_write: 0.08 * badness,
            crash_every_ms: if badness > 0.0 { 60_000 - scaled(50_000.0) } else { u64::MAX },
            failure_per_work: 0.2 * badness,
            full_per_write: 0.02 * badness,
            power_per_crash: 0.4,
            max_clock_skew_ms: scaled(8_000.0),
            partitions: (0..if badness > 0.0 { random.below(4) } else { 0 })
                .flat_map(|_| partition(num_members, random))
                .collect(),
            max_training_ms: 6_000,
            calm_at_ms: START_MS + if badness > 0.0 { random.between(30_000, 90_000) } else { 0 },
        }
    }
}

/// One node, or all of them, cut off from the coordinator: one way or both.
fn partition(num_members: usize, random: &mut Random) -> Vec<Partition> {
    let starts_ms = START_MS + random.below(60_000);
    let ends_ms = starts_ms + random.between(1_000, 30_000);
    let node = random.index(num_members);
    let nodes = if random.chance(0.2) { 0..num_members } else { node..node + 1 };
    let (up, down) = [(true, true), (true, false), (false, true)][random.index(3)];
    let cut = |from, to| Partition { from, to, starts_ms, ends_ms };
    let of = |node| {
        let node = Party::Node(node);
        [up.then(|| cut(node, Party::Coordinator)), down.then(|| cut(Party::Coordinator, node))]
    };
    nodes.flat_map(of).flatten().collect()
}
