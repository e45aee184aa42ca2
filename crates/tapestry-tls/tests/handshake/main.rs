//! Whole handshakes: what is agreed on with whom, and what somebody in between can do about it.
#![expect(clippy::unwrap_used, reason = "a test")]

mod openssl;
mod pair;

use pair::{configs, handshake};
use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};
use rustls::{AlertDescription, Error, NamedGroup, PeerIncompatible, PeerMisbehaved};
use tapestry_tls::{X25519MLKEM768, between_members, to_foreign_servers};

/// Key shares of X25519MLKEM768, of which somebody in between may change every byte.
const CLIENT_SHARE_BYTES: usize = 1216;

fn only(groups: &[&'static dyn SupportedKxGroup]) -> CryptoProvider {
    CryptoProvider { kx_groups: groups.to_vec(), ..ring::default_provider() }
}

fn check(client: CryptoProvider, server: CryptoProvider, group: NamedGroup, round_trips: usize) {
    let agreed = handshake(&configs(client, server), |_| {}).unwrap();
    assert_eq!((agreed.group, agreed.round_trips), (group, round_trips));
}

#[test]
fn members_agree_by_the_hybrid_and_on_nothing_else() {
    check(between_members(), between_members(), NamedGroup::X25519MLKEM768, 1);
    let refused = |client, server| handshake(&configs(client, server), |_| {}).unwrap_err();
    let nothing_in_common = Error::PeerIncompatible(PeerIncompatible::NoKxGroupsInCommon);
    assert_eq!(refused(ring::default_provider(), between_members()), nothing_in_common);
    assert_eq!(refused(between_members(), ring::default_provider()), nothing_in_common);
}

#[test]
fn a_foreign_server_gets_the_best_that_it_knows_and_x25519_costs_no_round_trip() {
    check(to_foreign_servers(), to_foreign_servers(), NamedGroup::X25519MLKEM768, 1);
    check(to_foreign_servers(), only(&[X25519MLKEM768]), NamedGroup::X25519MLKEM768, 1);
    check(to_foreign_servers(), only(&[ring::kx_group::X25519]), NamedGroup::X25519, 1);
    check(to_foreign_servers(), only(&[ring::kx_group::SECP256R1]), NamedGroup::secp256r1, 2);
}

/// What a client of `to_foreign_servers` says first, with every mention of the hybrid made one of a group that nobody knows.
fn without_the_hybrid(hello: &mut [u8]) -> usize {
    let [high, low] = u16::from(NamedGroup::X25519MLKEM768).to_be_bytes();
    let mentions: Vec<usize> = (0..hello.len() - 1).filter(|at| hello[*at..*at + 2] == [high, low]).collect();
    for at in &mentions {
        hello[*at..*at + 2].copy_from_slice(&[0x2a, 0x2a]);
    }
    mentions.len()
}

#[test]
fn who_strikes_the_hybrid_out_on_the_way_ends_the_connection() {
    let mut num_changed = 0;
    let mut is_first = true;
    let error = handshake(&configs(to_foreign_servers(), to_foreign_servers()), |wire| {
        if std::mem::take(&mut is_first) {
            num_changed = without_the_hybrid(wire);
        }
    });
    // Once in the list of groups and once with the key share; by chance, inside of random bytes, once more.
    assert!((2..=4).contains(&num_changed), "{num_changed}");
    // The server took X25519; but the keys depend on all that was said, and the two have not heard the same.
    assert!(
        matches!(error, Err(Error::DecryptError | Error::AlertReceived(AlertDescription::BadRecordMac))),
        "{error:?}"
    );
}

#[test]
fn a_key_share_that_changes_on_the_way_ends_the_handshake_without_a_panic() {
    let configs = configs(between_members(), between_members());
    let mut refused = 0;
    for step in 0..CLIENT_SHARE_BYTES / 8 {
        let mut is_first = true;
        let error = handshake(&configs, |wire| {
            if std::mem::take(&mut is_first) {
                let [high, low] = u16::from(NamedGroup::X25519MLKEM768).to_be_bytes();
                let length = u16::try_from(CLIENT_SHARE_BYTES).unwrap().to_be_bytes();
                let entry = [high, low, length[0], length[1]];
                let at = wire.windows(4).position(|window| window == entry).unwrap() + entry.len();
                wire[at + 8 * step] ^= 0x5d;
            }
        })
        .unwrap_err();
        let bad_share = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);
        refused += usize::from(error == bad_share);
        assert!(error == bad_share || error == Error::DecryptError, "{error:?}");
    }
    assert!(refused > 0, "the server saw no key that is not reduced");
}

#[test]
fn the_hybrid_costs_its_shares_in_bytes_and_no_round_trip() {
    let with = handshake(&configs(between_members(), between_members()), |_| {}).unwrap();
    let x25519 = || only(&[ring::kx_group::X25519]);
    let without = handshake(&configs(x25519(), x25519()), |_| {}).unwrap();
    assert_eq!(with.client_sent - without.client_sent, 1216 - 32);
    assert_eq!(with.server_sent - without.server_sent, 1120 - 32);
    assert_eq!(with.round_trips, without.round_trips);
}
