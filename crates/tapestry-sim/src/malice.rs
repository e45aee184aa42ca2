//! What a forging member and a stranger try. None of it may have any effect but a line in the log.

use std::collections::BTreeMap;

use tapestry_core::{Digest, SecretKey, Signed};
use tapestry_round::{Announcement, Attendance, Contribution, Decline, News, Outcome, RoundResult};

use crate::model::{Manifest, Poison, Vector};
use crate::network::{Message, Party};
use crate::scenario::{Character, STRANGER, key};
use crate::world::World;

impl World {
    /// One malicious act, of a forging member or of a stranger.
    pub(crate) fn mischief(&mut self) {
        let is_forger = |n: &usize| self.scenario.members[*n].character == Character::Forger;
        let forgers: Vec<usize> = (0..self.nodes.len()).filter(is_forger).collect();
        let from = match forgers.len() {
            0 => Party::Stranger,
            n if self.random.chance(0.8) => Party::Node(forgers[self.random.index(n)]),
            _ => Party::Stranger,
        };
        let number = match from {
            Party::Node(node) => u8::try_from(node + 1).expect("a few"),
            _ => STRANGER,
        };
        if self.random.chance(0.3) {
            self.lie_to_a_node(&key(number));
        } else {
            self.lie_to_the_coordinator(from, &key(number));
        }
    }

    fn lie_to_the_coordinator(&mut self, from: Party, own: &SecretKey) {
        let seen: Vec<_> = self
            .seen
            .iter()
            .filter_map(|message| match message {
                Message::Contribute(signed, weights) => Some((signed.clone(), weights.clone())),
                _ => None,
            })
            .collect();
        if seen.is_empty() {
            return;
        }
        // The newest is the most tempting: its round is still open.
        let at = if self.random.chance(0.6) { seen.len() - 1 } else { self.random.index(seen.len()) };
        let (signed, weights) = seen[at].clone();
        let mine = self.scenario.members.iter().find(|m| m.key.public() == own.public()).map(|m| m.name.clone());
        let own_name = mine.unwrap_or_else(|| "stranger".parse().expect("a name"));
        let honest = signed.document.clone();
        let model = self.blobs.find(&honest.weights).cloned().unwrap_or_else(Vector::adopted);
        let poisoned_model = model.poisoned(Poison::Huge, &mut self.random);
        let poisoned = poisoned_model.manifest();
        let sign = |document: Contribution| Signed::by(document, own).expect("canonical");
        let other = Digest::of(&self.random.next().to_le_bytes());
        let attendance = |random: &mut crate::random::Random, member| Attendance {
            charter: honest.charter,
            member,
            number: random.between(1, 3),
            is_present: random.chance(0.5),
            reason: "x".repeat(random.index(2 * Decline::MAX_REASON_BYTES)),
        };
        self.push_all(from, &poisoned_model);
        let message = match self.random.below(12) {
            // Somebody else's contribution, as it is.
            0 => Message::Contribute(signed, weights),
            // Under somebody else's name.
            1 => {
                let document = Contribution { weights: poisoned.digest(), ..honest };
                Message::Contribute(sign(document), poisoned)
            }
            // Somebody else's signature on something else.
            2 => {
                let document = Contribution { weights: poisoned.digest(), ..honest };
                Message::Contribute(Signed { document, signatures: signed.signatures }, poisoned)
            }
            3 => Message::Contribute(sign(Contribution { member: own_name, base: other, ..honest }), weights),
            4 => {
                let round = honest.round + 1;
                Message::Contribute(sign(Contribution { member: own_name, round, ..honest }), weights)
            }
            5 => Message::Contribute(sign(Contribution { member: own_name, charter: other, ..honest }), weights),
            // Of its own, poisoned, perhaps after a good one.
            6 => {
                let document = Contribution { member: own_name, weights: poisoned.digest(), ..honest };
                Message::Contribute(sign(document), poisoned)
            }
            // Weights that were never sent.
            7 => Message::Contribute(sign(Contribution { member: own_name, weights: other, ..honest }), weights),
            // Something that is no weights at all.
            8 => {
                let document = Contribution { member: own_name, weights: weights_of_nothing().digest(), ..honest };
                Message::Contribute(sign(document), weights_of_nothing())
            }
            // Somebody's word that is old.
            9 if self.random.chance(0.5) && self.attendances_seen().next().is_some() => {
                let num_seen = self.attendances_seen().count();
                let number = self.random.index(num_seen);
                Message::Attend(self.attendances_seen().nth(number).expect("counted").clone())
            }
            9 => {
                let member = if self.random.chance(0.5) { own_name } else { honest.member.clone() };
                Message::Attend(Signed::by(attendance(&mut self.random, member), own).expect("canonical"))
            }
            // An old round's, again, with the signature that it had, as if it were late.
            10 => Message::Contribute(self.oldest_of(&own_name).unwrap_or(signed), weights),
            _ => {
                let member = if self.random.chance(0.5) { own_name } else { honest.member };
                let reason = "x".repeat(self.random.index(2 * Decline::MAX_REASON_BYTES));
                let decline = Decline { charter: honest.charter, round: honest.round, member, reason };
                Message::Decline(Signed::by(decline, own).expect("canonical"))
            }
        };
        self.send(from, Party::Coordinator, message);
    }

    /// Puts chunks where anybody may put them: they are content, and nothing follows from them.
    fn push_all(&mut self, from: Party, model: &Vector) {
        let connection = self.connects();
        for chunk in model.chunks() {
            let digest = if self.random.chance(0.1) { Digest::of(b"false") } else { chunk.digest() };
            self.send(from, Party::Coordinator, Message::Push { connection, digest, chunk });
        }
    }

    fn attendances_seen(&self) -> impl Iterator<Item = &Signed<Attendance>> {
        self.seen.iter().filter_map(|message| match message {
            Message::Attend(signed) => Some(signed),
            _ => None,
        })
    }

    fn oldest_of(&self, member: &tapestry_core::MemberName) -> Option<Signed<Contribution>> {
        self.seen.iter().find_map(|message| match message {
            Message::Contribute(signed, _) if signed.document.member == *member => Some(signed.clone()),
            _ => None,
        })
    }

    /// News that the coordinator never signed.
    fn lie_to_a_node(&mut self, own: &SecretKey) {
        let node = self.random.index(self.nodes.len());
        let charter = self.scenario.charter.digest().expect("canonical");
        let base = Vector::adopted().poisoned(Poison::Huge, &mut self.random).digest();
        let now = tapestry_core::Timestamp::from_ms(self.now_ms);
        let round = u32::try_from(self.random.between(1, 4)).expect("a few");
        let announcement = Announcement { charter, round, base, opened_at: now, closes_at: now };
        let outcome = Outcome {
            charter,
            round,
            base,
            result: RoundResult::Published { bpb: 0.1 },
            verdicts: BTreeMap::new(),
            weights: vec![],
            is_last: true,
        };
        let mut news = News {
            version: self.random.next(),
            announcement: Some(Signed::by(announcement, own).expect("canonical")),
            outcome: Some(Signed::by(outcome, own).expect("canonical")),
            ..News::default()
        };
        match self.random.below(4) {
            0 => news.outcome = None,
            1 => news.announcement = None,
            2 => self.put_signature_of_coordinator(&mut news),
            _ => {}
        }
        self.send(Party::Stranger, Party::Node(node), Message::News(Box::new(news)));
    }

    /// Moves the coordinator's signature from what it signed to what it did not.
    fn put_signature_of_coordinator(&self, news: &mut News) {
        let Some(outcome) = self.checks.outcomes().last() else { return };
        let real = Signed::by(outcome.clone(), self.coordinator.key()).expect("canonical");
        if let Some(forged) = &mut news.outcome {
            forged.signatures = real.signatures;
        }
    }
}

/// A manifest of no chunks, which are all there.
const fn weights_of_nothing() -> Manifest {
    Manifest(vec![])
}
