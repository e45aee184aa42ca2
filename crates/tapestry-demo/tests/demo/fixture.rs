//! The results of a made-up run of three members and a faulty one, with every kind of verdict.

use std::collections::BTreeMap;
use tapestry_core::{Digest, MemberName, Timestamp};
use tapestry_demo::results::{
    LogRecord, Measurement, MemberRecord, Mode, ModelName, ModelRecord, Phase, PhaseRecord, ProcessRecord, Results,
    Role, RoundRecord, SCHEMA, TextName,
};
use tapestry_merge::weights::WeightRecord;
use tapestry_round::{Outcome, RefusalReason, RoundResult, Verdict};

pub(crate) fn name(text: &str) -> MemberName {
    text.parse().unwrap()
}

pub(crate) fn held_out(member: &str) -> TextName {
    TextName::HeldOut { member: name(member) }
}

pub(crate) fn measured(model: ModelName, text: TextName, bpb: f64) -> Measurement {
    Measurement { model, text, bpb }
}

const MEMBERS: [(&str, &str, &str, f64); 3] = [
    ("france", "France", "labour code (fr)", 1.41),
    ("china", "China", "classics (zh)", 3.53),
    ("iran", "Iran", "Hafez (fa)", 2.18),
];

fn measurements() -> Vec<Measurement> {
    let mut all = vec![measured(ModelName::AdoptedBase, TextName::GeneralEnglish, 0.90)];
    for round in [1, 2] {
        let bpb = 0.90 + 0.005 * f64::from(round);
        all.push(measured(ModelName::SharedBase { round }, TextName::GeneralEnglish, bpb));
    }
    for (member, _, _, base) in MEMBERS {
        let text = held_out(member);
        all.push(measured(ModelName::AdoptedBase, text.clone(), base));
        for round in [1, 2] {
            let gain = 0.2 * f64::from(round);
            all.push(measured(ModelName::OwnCpt { member: name(member), round }, text.clone(), base - gain));
            all.push(measured(ModelName::SharedBase { round }, text.clone(), base - gain * 0.5));
        }
        all.push(measured(ModelName::Sovereign { member: name(member) }, text.clone(), base - 0.5));
        let english = measured(ModelName::Sovereign { member: name(member) }, TextName::GeneralEnglish, 0.93);
        all.push(english);
    }
    all
}

fn round(number: u32) -> RoundRecord {
    let mut verdicts = BTreeMap::new();
    let mut weights = Vec::new();
    for (i, (member, ..)) in MEMBERS.iter().enumerate() {
        let bpb = 0.91 + 0.01 * f64::from(u32::try_from(i).unwrap());
        verdicts
            .insert(name(member), Verdict::Accepted { bpb, relative_change: 0.02, community_bpb: None, staleness: 0 });
        let weight = 1.0 / 3.0;
        weights.push(WeightRecord {
            member: name(member),
            score_bpb: bpb,
            base_bpb: 0.95,
            floor_bpb: 0.99,
            community: None,
            num_tokens: None,
            raw_weight: weight,
            staleness: 0,
            discount: 1.0,
            cap: 0.5,
            is_capped: false,
            weight,
        });
    }
    let reasons = vec![RefusalReason::NotFinite { tensor: "model.layers.0.<b>".into(), index: 7 }];
    verdicts.insert(name("mallory"), Verdict::Refused { reasons });
    let outcome = Outcome {
        charter: Digest::of(b"charter"),
        round: number,
        base: Digest::of(&[u8::try_from(number).unwrap()]),
        result: RoundResult::Published { bpb: 0.905 },
        verdicts,
        weights,
        is_last: number == 2,
    };
    let at = |seconds: u64| Timestamp::from_ms(1_795_435_200_000 + seconds * 1000);
    let start = 20 + u64::from(number - 1) * 100;
    RoundRecord { opened_at: at(start), ended_at: at(start + 90), outcome }
}

fn phases() -> Vec<PhaseRecord> {
    let mut all = Vec::new();
    let mut add = |role, phase, round, start: u64, seconds, received, sent| {
        let started_at = Timestamp::from_ms(1_795_435_200_000 + start * 1000);
        all.push(PhaseRecord { role, phase, round, started_at, seconds, bytes_received: received, bytes_sent: sent });
    };
    add(Role::Demo, Phase::Adopt, None, 2, 9.5, 0, 0);
    for round in [1, 2] {
        let start = 20 + u64::from(round - 1) * 100;
        for (member, ..) in MEMBERS {
            let role = Role::Node(name(member));
            add(role.clone(), Phase::Pull, Some(round), start, 2.0, 271_000_000, 0);
            add(role.clone(), Phase::Train, Some(round), start + 2, 55.0, 0, 0);
            add(role, Phase::Push, Some(round), start + 57, 3.0, 0, 271_000_000);
        }
        add(Role::Coordinator, Phase::Screen, Some(round), start + 60, 12.0, 813_000_000, 0);
        add(Role::Coordinator, Phase::Merge, Some(round), start + 72, 4.0, 0, 0);
        add(Role::Coordinator, Phase::Gate, Some(round), start + 76, 6.0, 0, 0);
    }
    add(Role::Demo, Phase::Measure, None, 220, 30.0, 0, 0);
    all
}

/// A made-up run.
pub(crate) fn results() -> Results {
    let started_at = Timestamp::from_ms(1_795_435_200_000);
    let mut members: Vec<MemberRecord> = MEMBERS
        .iter()
        .map(|(member, title, texts, _)| MemberRecord {
            name: name(member),
            title: (*title).into(),
            texts: (*texts).into(),
            is_faulty: false,
        })
        .collect();
    let texts = "poisoned weights".into();
    members.push(MemberRecord { name: name("mallory"), title: "Mallory".into(), texts, is_faulty: true });
    let mut roles = vec![Role::Coordinator];
    roles.extend(members.iter().map(|m| Role::Node(m.name.clone())));
    let process = |(i, role): (usize, &Role)| ProcessRecord {
        role: role.clone(),
        started_at,
        wall_seconds: 200.0,
        cpu_seconds: 61.5,
        peak_memory_bytes: 250_000_000 + 1_000_000_000 * u64::from(i > 0),
    };
    let log = |role: &Role| LogRecord {
        role: role.clone(),
        num_entries: 17,
        root: Some(tapestry_ledger::TreeHash::of_leaf(role.to_string().as_bytes())),
        problem: None,
    };
    let sovereign = |m: &MemberRecord| ModelRecord {
        model: ModelName::Sovereign { member: m.name.clone() },
        digest: Digest::of(m.title.as_bytes()),
        path: Some(format!("models/{}", m.name)),
        size_bytes: 271_000_000,
    };
    let shared = ModelRecord {
        model: ModelName::SharedBase { round: 2 },
        digest: Digest::of(&[2]),
        path: Some("models/shared-base".into()),
        size_bytes: 271_000_000,
    };
    let base =
        ModelRecord { model: ModelName::AdoptedBase, digest: Digest::of(b"base"), path: None, size_bytes: 271_000_000 };
    Results {
        schema: SCHEMA,
        version: "0.1.0".into(),
        mode: Mode::Full,
        started_at,
        finished_at: Timestamp::from_ms(1_795_435_455_000),
        seed: 1,
        settings: BTreeMap::from([("rounds".into(), "2".into()), ("steps".into(), "60".into())]),
        charter: Digest::of(b"charter"),
        measurements: measurements(),
        rounds: vec![round(1), round(2)],
        models: [base, shared].into_iter().chain(members[..3].iter().map(sovereign)).collect(),
        phases: phases(),
        processes: roles.iter().enumerate().map(process).collect(),
        peak_memory_together_bytes: 5_000_000_000,
        logs: roles.iter().map(log).collect(),
        members,
    }
}
