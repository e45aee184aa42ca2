//! What is refused, by the rule that it broke: counted always, and said in the log so seldom that nobody can fill a disk with it.

use crate::crowd::network_of;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tapestry_core::PublicKey;

/// A rule that a server holds strangers and members to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// TLS is spoken, with raw keys.
    Tls,
    /// It is TLS 1.3.
    TlsVersion,
    /// Keys are agreed on so that a quantum computer of later does not find them.
    KeyExchange,
    /// A key is shown.
    KeyShown,
    /// It is the asker's own.
    KeyProved,
    /// It is one that is let in.
    KeyListed,
    /// A handshake ends in time.
    HandshakeTime,
    /// Few handshakes of one network are under way at once.
    HandshakesOfNetwork,
    /// So many connections are open at most, of one key and of all.
    Connections,
    /// A request's head comes in time.
    HeadTime,
    /// It has a bounded length.
    HeadSize,
    /// A request's body keeps moving.
    BodyPace,
    /// It has a bounded length.
    BodySize,
    /// Who asks takes the answer.
    AnswerPace,
    /// A request is one that is known here, and can be read.
    Request,
    /// It is one that this member may make now.
    Permission,
}

impl Rule {
    /// All of them, in the order of a connection's life.
    pub const ALL: [Self; 16] = [
        Self::Tls,
        Self::TlsVersion,
        Self::KeyExchange,
        Self::KeyShown,
        Self::KeyProved,
        Self::KeyListed,
        Self::HandshakeTime,
        Self::HandshakesOfNetwork,
        Self::Connections,
        Self::HeadTime,
        Self::HeadSize,
        Self::BodyPace,
        Self::BodySize,
        Self::AnswerPace,
        Self::Request,
        Self::Permission,
    ];

    /// Its name in logs and metrics.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tls => "tls",
            Self::TlsVersion => "tls_version",
            Self::KeyExchange => "key_exchange",
            Self::KeyShown => "key_shown",
            Self::KeyProved => "key_proved",
            Self::KeyListed => "key_listed",
            Self::HandshakeTime => "handshake_time",
            Self::HandshakesOfNetwork => "handshakes_of_network",
            Self::Connections => "connections",
            Self::HeadTime => "head_time",
            Self::HeadSize => "head_size",
            Self::BodyPace => "body_pace",
            Self::BodySize => "body_size",
            Self::AnswerPace => "answer_pace",
            Self::Request => "request",
            Self::Permission => "permission",
        }
    }

    /// What it asks for, for people.
    const fn in_words(self) -> &'static str {
        match self {
            Self::Tls => "only TLS 1.3 with raw Ed25519 keys is spoken here",
            Self::TlsVersion => "no older TLS than 1.3 is spoken here",
            Self::KeyExchange => "keys are agreed on by X25519MLKEM768; an older Tapestry has to be renewed",
            Self::KeyShown => "who connects shows a key",
            Self::KeyProved => "who shows a key proves that it is its own",
            Self::KeyListed => "the key is one that may connect: of the charter in force",
            Self::HandshakeTime => "a handshake ends in time",
            Self::HandshakesOfNetwork => "few handshakes of one network are under way at once",
            Self::Connections => "the number of connections is bounded",
            Self::HeadTime => "the head of a request comes in time",
            Self::HeadSize => "the head of a request has a bounded length",
            Self::BodyPace => "the body of a request keeps moving",
            Self::BodySize => "the body of a request has a bounded length",
            Self::AnswerPace => "who asks takes the answer",
            Self::Request => "a request is one that is known here, and can be read",
            Self::Permission => "a member does what it may do now",
        }
    }
}

/// How long what was said is not said again. A protocol constant: it fails nothing.
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
/// So many pairs of rule and network have lines of their own in a minute; the others share one for each rule.
const MAX_PAIRS: usize = 32;
/// What is said of one case has at most so many characters.
const MAX_CHARS: usize = 200;

/// What a server has refused since its start.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: [AtomicU64; Rule::ALL.len()],
    minute: Mutex<Minute>,
}

/// What was refused since the log was last told.
#[derive(Debug, Default)]
struct Minute {
    /// Pairs that have had a line, and how many cases more there were.
    more: BTreeMap<(Rule, IpAddr), u64>,
    /// Cases of pairs that had none.
    others: BTreeMap<Rule, u64>,
}

impl Refusals {
    /// How often each rule was broken.
    #[must_use]
    pub fn counts(&self) -> Vec<(Rule, u64)> {
        Rule::ALL.iter().map(|rule| (*rule, self.counts[*rule as usize].load(Ordering::Relaxed))).collect()
    }

    /// Counts a case, and says it unless the like was said in this minute. `what` may hold anything that the other side said.
    pub(crate) fn note(&self, rule: Rule, from: SocketAddr, peer: Option<&PublicKey>, what: &str) {
        if !self.is_worth_a_line(rule, network_of(from.ip())) {
            return;
        }
        let peer = peer.map(PublicKey::short);
        let what = tamed(what);
        tracing::warn!(rule = rule.name(), %from, peer, "refused: {what} ({})", rule.in_words());
    }

    fn is_worth_a_line(&self, rule: Rule, network: IpAddr) -> bool {
        self.counts[rule as usize].fetch_add(1, Ordering::Relaxed);
        let mut minute = self.minute.lock().unwrap_or_else(PoisonError::into_inner);
        let num_pairs = minute.more.len();
        match minute.more.get_mut(&(rule, network)) {
            Some(more) => {
                *more += 1;
                false
            }
            None if num_pairs >= MAX_PAIRS => {
                *minute.others.entry(rule).or_default() += 1;
                false
            }
            None => minute.more.insert((rule, network), 0).is_none(),
        }
    }

    /// Says how many were left out since the last time, and begins anew.
    pub(crate) fn end_minute(&self) {
        for (rule, network, num) in self.left_out() {
            let network = network.map_or("other networks".into(), |network| network.to_string());
            tracing::warn!(
                rule = rule.name(),
                num,
                "refused: {num} more from {network} within {} s ({})",
                MINUTE.as_secs(),
                rule.in_words()
            );
        }
    }

    fn left_out(&self) -> Vec<(Rule, Option<IpAddr>, u64)> {
        let Minute { more, others } = std::mem::take(&mut *self.minute.lock().unwrap_or_else(PoisonError::into_inner));
        let more = more.into_iter().map(|((rule, network), num)| (rule, Some(network), num));
        let others = others.into_iter().map(|(rule, num)| (rule, None, num));
        more.chain(others).filter(|(_, _, num)| *num > 0).collect()
    }
}

/// What another side said, so that it can do nothing in a terminal or a log.
fn tamed(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(MAX_CHARS).collect()
}

/// The rule that a failed handshake broke; none where the other side only went away.
pub(crate) fn of_handshake(error: &std::io::Error) -> Option<Rule> {
    use rustls::{CertificateError as Certificate, Error as Tls, PeerIncompatible as Peer};
    let error = error.get_ref()?.downcast_ref::<Tls>()?;
    Some(match error {
        Tls::NoCertificatesPresented => Rule::KeyShown,
        Tls::InvalidCertificate(Certificate::ApplicationVerificationFailure) => Rule::KeyListed,
        Tls::InvalidCertificate(_) => Rule::KeyProved,
        Tls::PeerIncompatible(
            Peer::SupportedVersionsExtensionRequired
            | Peer::ServerDoesNotSupportTls12Or13
            | Peer::Tls12NotOffered
            | Peer::Tls12NotOfferedOrEnabled,
        ) => Rule::TlsVersion,
        Tls::PeerIncompatible(Peer::NoKxGroupsInCommon) => Rule::KeyExchange,
        _ => Rule::Tls,
    })
}

/// The rule that a connection of HTTP broke when it ended so; none where it only broke.
pub(crate) fn of_connection(error: &hyper::Error) -> Option<Rule> {
    if is_too_slow(error) {
        return Some(Rule::AnswerPace);
    }
    match error {
        _ if error.is_timeout() => Some(Rule::HeadTime),
        _ if error.is_parse_too_large() => Some(Rule::HeadSize),
        _ if error.is_parse() => Some(Rule::Request),
        _ => None,
    }
}

fn is_too_slow(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        let io = inner.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        if inner.is::<crate::pace::TooSlow>() || io.is_some_and(|inner| inner.is::<crate::pace::TooSlow>()) {
            return true;
        }
        source = inner.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_takes_few_lines_and_is_counted_whole() {
        let refusals = Refusals::default();
        let network = |n: u32| IpAddr::from(n.to_be_bytes());
        let mut num_lines = 0;
        for n in 0..10_000 {
            num_lines += usize::from(refusals.is_worth_a_line(Rule::Tls, network(n % 100)));
        }
        assert_eq!(num_lines, MAX_PAIRS);
        assert!(!refusals.is_worth_a_line(Rule::HeadTime, network(0)), "no room is left in this minute");
        let left_out = refusals.left_out();
        assert_eq!(left_out.len(), MAX_PAIRS + 2);
        assert_eq!(left_out[0], (Rule::Tls, Some(network(0)), 99));
        assert_eq!(left_out[MAX_PAIRS], (Rule::Tls, None, 6800), "68 networks had no line");
        assert_eq!(left_out[MAX_PAIRS + 1], (Rule::HeadTime, None, 1));
        assert_eq!(left_out.iter().map(|(_, _, num)| *num).sum::<u64>() + MAX_PAIRS as u64, 10_001);
        assert!(refusals.is_worth_a_line(Rule::Tls, network(0)), "a new minute");
        let counts = refusals.counts();
        assert_eq!(counts.iter().find(|(rule, _)| *rule == Rule::Tls), Some(&(Rule::Tls, 10_001)));
        assert_eq!(counts.iter().map(|(_, num)| *num).sum::<u64>(), 10_002);
    }

    #[test]
    fn one_case_alone_is_not_said_twice() {
        let refusals = Refusals::default();
        assert!(refusals.is_worth_a_line(Rule::Tls, IpAddr::from([10, 0, 0, 1])));
        assert_eq!(refusals.left_out(), []);
    }

    #[test]
    fn what_others_say_cannot_harm_a_log() {
        assert_eq!(tamed("a\u{1b}[2J\r\nb"), "a [2J  b");
        assert_eq!(tamed(&"x".repeat(10_000)).len(), MAX_CHARS);
    }

    #[test]
    fn every_rule_has_its_own_count_and_name() {
        let names: std::collections::BTreeSet<_> = Rule::ALL.iter().map(|rule| rule.name()).collect();
        assert_eq!(names.len(), Rule::ALL.len());
        assert!(Rule::ALL.iter().enumerate().all(|(index, rule)| *rule as usize == index));
    }
}
