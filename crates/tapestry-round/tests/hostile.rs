//! Whatever bytes arrive: no document is taken that its signer did not sign, and nothing panics.
#![expect(clippy::unwrap_used, reason = "a test")]

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use tapestry_core::{Digest, Document, SecretKey, Signed, Timestamp};
use tapestry_governance::{Charter, CharterTerms, GateTerms, HeldOutTerms, MergeTerms, RoundTerms, ScreeningTerms};
use tapestry_round::coordinator::{Coordinator, CoordinatorInput};
use tapestry_round::node::{Node, NodeInput};
use tapestry_round::{
    Announcement, Attendance, Contribution, Decline, HandOver, News, Outcome, RoundResult, Tenure, TrainingMetrics,
};

const NUM_MUTATIONS: u32 = 4_000;

fn key(n: u8) -> SecretKey {
    SecretKey::from_seed(&[n; 32].into())
}

const fn at(ms: u64) -> Timestamp {
    Timestamp::from_ms(ms)
}

/// Numbers that look random and are the same each time (xorshift64*, Vigna 2016).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33).unwrap() % bound
    }

    /// A few changes of the kind that breaks parsers: bits, numbers, names, cuts, repetitions.
    fn mutated(&mut self, bytes: &[u8]) -> Vec<u8> {
        let mut bytes = bytes.to_vec();
        for _ in 0..=self.below(3) {
            if bytes.is_empty() {
                return bytes;
            }
            let (from, to) = (self.below(bytes.len()), self.below(bytes.len()));
            let range = from.min(to)..from.max(to);
            match self.below(7) {
                0 => bytes[from] ^= 1 << self.below(8),
                1 => bytes[from] = b"\"{}[],:0-9e.\\u"[self.below(14)],
                2 => bytes.truncate(from),
                3 => drop(bytes.drain(range)),
                4 => {
                    let copy = bytes[range].to_vec();
                    bytes.splice(to..to, copy);
                }
                5 => {
                    let number = ["1e999", "-1", "18446744073709551616", "0.1", "null", "[[[[[[[["][self.below(6)];
                    let digits = bytes.iter().position(u8::is_ascii_digit).unwrap_or(from);
                    bytes.splice(digits..=digits, number.bytes());
                }
                _ => {
                    let word = ["\"__proto__\":1,", "\u{202e}", "\\u0000", "\u{feff}"][self.below(4)];
                    bytes.splice(from..from, word.bytes());
                }
            }
        }
        bytes
    }
}

fn charter() -> Signed<Charter> {
    let member = |name: &str, n| (name.parse().unwrap(), key(n).public());
    let terms = CharterTerms {
        consortium: "Test".into(),
        version: 1,
        previous: None,
        members: BTreeMap::from([member("france", 1), member("china", 2), member("iran", 3)]),
        coordinator: key(9).public(),
        standbys: [key(8).public()].into(),
        quorum: 2,
        base: Digest::of(b"base"),
        open_held_out: HeldOutTerms { text: Digest::of(b"text"), max_tokens: 2048 },
        rounds: RoundTerms { num_rounds: 2, window_ms: 60_000, min_contributions: 2, late_rounds: 1 },
        screening: ScreeningTerms { max_relative_change: 0.1, max_bpb_rise: 0.1 },
        merge: MergeTerms::plain(0.5),
        gate: GateTerms { max_bpb_rise: 0.03 },
        privacy_tier: 0,
        valid_from: at(0),
        valid_until: at(10_000_000),
        governance: None,
    };
    let mut signed = Signed::unsigned(Charter::try_from(terms).unwrap());
    for n in 1..=2 {
        signed.sign(&key(n)).unwrap();
    }
    signed
}

fn joined() -> Node {
    let mut node = Node::new(key(1).public());
    for event in node.handle(at(1), NodeInput::join(charter())).unwrap() {
        node.apply(&event).unwrap();
    }
    node
}

fn collecting() -> Coordinator {
    let mut coordinator = Coordinator::new(key(9).public());
    let base = Digest::of(b"base");
    for input in [CoordinatorInput::AdoptCharter(charter()), CoordinatorInput::BaseMeasured { base, bpb: 1.0 }] {
        for event in coordinator.handle(at(1), input).unwrap() {
            coordinator.apply(&event).unwrap();
        }
    }
    coordinator
}

/// Changes a signed document thousands of times. `takes` gives it to a state machine and says whether it was taken.
fn nothing_else_is_taken<T>(original: &Signed<T>, takes: impl Fn(Signed<T>) -> bool)
where
    T: Document + Serialize + DeserializeOwned + Clone + PartialEq + std::fmt::Debug,
{
    assert!(takes(original.clone()), "the original is taken: {original:?}");
    let bytes = serde_json::to_vec(original).unwrap();
    let (mut random, mut num_parsed) = (Random(0x9E37_79B9_7F4A_7C15), 0);
    for _ in 0..NUM_MUTATIONS {
        let mutated = random.mutated(&bytes);
        let Ok(parsed) = serde_json::from_slice::<Signed<T>>(&mutated) else { continue };
        num_parsed += 1;
        let (says, is_same) = (format!("{parsed:?}"), parsed.document == original.document);
        let is_taken = takes(parsed);
        assert!(!is_taken || is_same, "{says}\nwas never signed: {}", String::from_utf8_lossy(&mutated));
    }
    assert!(num_parsed > 20, "only {num_parsed} of the changed documents could be read: the changes are too coarse");
}

const METRICS: TrainingMetrics = TrainingMetrics {
    num_tokens: 1,
    num_steps: 1,
    first_loss: 2.0,
    last_loss: 1.0,
    wall_seconds: 1.0,
    cpu_seconds: 1.0,
};

#[test]
fn what_a_coordinator_is_told() {
    let (coordinator, charter) = (collecting(), charter().digest().unwrap());
    let (sender, base, weights) = (key(1).public(), Digest::of(b"base"), Digest::of(b"weights"));
    let member: tapestry_core::MemberName = "france".parse().unwrap();
    let contribution = Contribution { charter, round: 1, base, member: member.clone(), weights, metrics: METRICS };
    let signed = Signed::by(contribution, &key(1)).unwrap();
    let takes = |input| coordinator.handle(at(2), input).is_ok_and(|events| !events.is_empty());
    nothing_else_is_taken(&signed, |contribution| takes(CoordinatorInput::Contribute { sender, contribution }));
    let decline = Decline { charter, round: 1, member: member.clone(), reason: "no \u{1f33e}".into() };
    let signed = Signed::by(decline, &key(1)).unwrap();
    nothing_else_is_taken(&signed, |decline| takes(CoordinatorInput::Decline { sender, decline }));
    let attendance = Attendance { charter, member, number: 1, is_present: false, reason: "harvest".into() };
    let signed = Signed::by(attendance, &key(1)).unwrap();
    nothing_else_is_taken(&signed, |attendance| takes(CoordinatorInput::Attend { sender, attendance }));
    let tenure = coordinator.next_tenure(key(8).public(), Some("standby.example:7443".into())).unwrap();
    let signed = Signed::by(tenure, &key(8)).unwrap();
    nothing_else_is_taken(&signed, |tenure| takes(CoordinatorInput::TakeRole { tenure }));
}

#[test]
fn what_a_node_is_told() {
    let (node, charter) = (joined(), charter().digest().unwrap());
    let says = |tenure, hand_over, announcement, outcome| {
        let news = News { version: 1, tenure, hand_over, announcement, outcome, ..News::default() };
        node.handle(at(2), NodeInput::News(news)).is_ok_and(|events| !events.is_empty())
    };
    let base = Digest::of(b"base");
    let announcement = Announcement { charter, round: 1, base, opened_at: at(1), closes_at: at(60_001) };
    let signed = Signed::by(announcement, &key(9)).unwrap();
    nothing_else_is_taken(&signed, |announcement| says(None, None, Some(announcement), None));
    let outcome = Outcome {
        charter,
        round: 1,
        base: Digest::of(b"next"),
        result: RoundResult::Published { bpb: 0.9 },
        verdicts: BTreeMap::new(),
        weights: vec![],
        is_last: false,
    };
    let signed = Signed::by(outcome, &key(9)).unwrap();
    nothing_else_is_taken(&signed, |outcome| says(None, None, None, Some(outcome)));
    let address = Some("standby.example:7443".to_owned());
    let tenure = Tenure { charter, number: 2, coordinator: key(8).public(), address: address.clone() };
    let signed = Signed::by(tenure, &key(8)).unwrap();
    nothing_else_is_taken(&signed, |tenure| says(Some(tenure), None, None, None));
    let hand_over = HandOver { charter, number: 1, to: key(8).public(), address };
    let signed = Signed::by(hand_over, &key(9)).unwrap();
    nothing_else_is_taken(&signed, |hand_over| says(None, Some(hand_over), None, None));
}

#[test]
fn what_members_are_asked_to_follow() {
    let node = Node::new(key(1).public());
    nothing_else_is_taken(&charter(), |charter| node.handle(at(2), NodeInput::join(charter)).is_ok());
}
