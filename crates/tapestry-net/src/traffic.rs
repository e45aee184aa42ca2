//! How much moved with whom: bytes on the wire, TLS and HTTP included, by the key that the other side proved.

use crate::pace::Totals;
use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use tapestry_core::PublicKey;

/// Counts of a server, from its start. They only grow.
///
/// What strangers send before they prove a key that is accepted is not in it, nor are the heads of IP and TCP.
#[derive(Debug, Default)]
pub struct Traffic {
    by_key: Mutex<HashMap<PublicKey, OfKey>>,
}

/// Bytes on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WireBytes {
    /// From here to the other side.
    pub sent: u64,
    /// From the other side to here.
    pub received: u64,
}

#[derive(Debug, Default)]
struct OfKey {
    ended: WireBytes,
    /// Connections that may still be open; one that nothing else counts on has ended.
    open: Vec<Arc<Totals>>,
}

impl WireBytes {
    fn of(totals: &Totals) -> Self {
        Self { sent: totals.sent.load(Ordering::Relaxed), received: totals.received.load(Ordering::Relaxed) }
    }

    const fn plus(self, other: Self) -> Self {
        Self { sent: self.sent.saturating_add(other.sent), received: self.received.saturating_add(other.received) }
    }
}

impl OfKey {
    /// Memory stays with the number of open connections.
    fn fold(&mut self) {
        let ended = &mut self.ended;
        self.open.retain_mut(|totals| match Arc::get_mut(totals) {
            Some(totals) => {
                *ended = ended.plus(WireBytes::of(totals));
                false
            }
            None => true,
        });
    }
}

impl Traffic {
    /// What has moved so far, by key, in no particular order.
    #[must_use]
    pub fn by_key(&self) -> Vec<(PublicKey, WireBytes)> {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        let sum = |of_key: &mut OfKey| {
            of_key.fold();
            of_key.open.iter().fold(of_key.ended, |sum, totals| sum.plus(WireBytes::of(totals)))
        };
        by_key.iter_mut().map(|(key, of_key)| (*key, sum(of_key))).collect()
    }

    /// A connection has proved its key.
    pub(crate) fn admit(&self, key: PublicKey, totals: &Arc<Totals>) {
        let mut by_key = self.by_key.lock().unwrap_or_else(PoisonError::into_inner);
        let of_key = by_key.entry(key).or_default();
        of_key.fold();
        of_key.open.push(Arc::clone(totals));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tapestry_core::SecretKey;

    #[test]
    fn open_and_ended_connections_are_counted_once() {
        let key = SecretKey::from_seed(&[7; 32].into()).public();
        let traffic = Traffic::default();
        let (first, second) = (Arc::new(Totals::default()), Arc::new(Totals::default()));
        traffic.admit(key, &first);
        traffic.admit(key, &second);
        first.sent.store(10, Ordering::Relaxed);
        second.received.store(5, Ordering::Relaxed);
        assert_eq!(traffic.by_key(), [(key, WireBytes { sent: 10, received: 5 })]);
        first.sent.store(11, Ordering::Relaxed);
        drop(first);
        for _ in 0..2 {
            assert_eq!(traffic.by_key(), [(key, WireBytes { sent: 11, received: 5 })], "ended, and still there");
        }
        traffic.admit(key, &second);
        let open = traffic.by_key.lock().expect("free").get(&key).expect("known").open.len();
        assert_eq!(open, 2, "the ended connection takes no room");
    }
}
