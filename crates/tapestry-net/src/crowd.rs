//! How many of each: connections of one key, handshakes from one network.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, PoisonError};

/// Counts by `K`, each at most `limit`. What has no count takes no memory.
#[derive(Debug)]
pub(crate) struct Crowd<K: Ord> {
    limit: usize,
    counts: Mutex<BTreeMap<K, usize>>,
}

/// One place in a crowd; given back when dropped.
#[derive(Debug)]
pub(crate) struct Place<K: Ord + Copy> {
    crowd: Arc<Crowd<K>>,
    key: K,
}

impl<K: Ord + Copy> Crowd<K> {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, counts: Mutex::default() })
    }

    /// A place for `key`, unless it has `limit` of them already.
    pub(crate) fn enter(self: &Arc<Self>, key: K) -> Option<Place<K>> {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.get(&key).copied().unwrap_or_default();
        if count >= self.limit {
            return None;
        }
        counts.insert(key, count + 1);
        Some(Place { crowd: Arc::clone(self), key })
    }
}

impl<K: Ord + Copy> Drop for Place<K> {
    fn drop(&mut self) {
        let mut counts = self.crowd.counts.lock().unwrap_or_else(PoisonError::into_inner);
        match counts.get_mut(&self.key) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                counts.remove(&self.key);
            }
        }
    }
}

/// What one party has for itself: an IPv4 address, or the first 64 bits of an IPv6 address.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_few_for_each_and_come_back() {
        let crowd = Crowd::new(2);
        let first = crowd.enter('a').expect("free");
        let _second = crowd.enter('a').expect("free");
        assert!(crowd.enter('a').is_none());
        let other = crowd.enter('b').expect("free");
        drop(first);
        let third = crowd.enter('a').expect("free again");
        assert!(crowd.enter('a').is_none());
        drop((third, other));
        assert_eq!(*crowd.counts.lock().expect("no panic"), BTreeMap::from([('a', 1)]));
    }

    #[test]
    fn networks_are_what_one_party_has() {
        let check = |a: &str, b: &str| network_of(a.parse().expect("a")) == network_of(b.parse().expect("b"));
        assert!(check("::ffff:10.0.0.1", "10.0.0.1"));
        assert!(!check("10.0.0.1", "10.0.0.2"));
        assert!(check("2001:db8::1", "2001:db8::ffff:1"));
        assert!(!check("2001:db8::1", "2001:db8:0:1::1"));
    }
}
