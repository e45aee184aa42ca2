use crate::hybrid::{CLIENT_SHARE_BYTES, Offer, SERVER_SHARE_BYTES, SHARED_BYTES, X25519_BYTES, answer};
use crate::mlkem::{CIPHERTEXT_BYTES, ENCAPSULATION_KEY_BYTES};
use crate::{X25519MLKEM768, between_members, to_foreign_servers};
use curve25519_dalek::MontgomeryPoint;
use rustls::crypto::{ActiveKeyExchange, SharedSecret, SupportedKxGroup};
use rustls::{Error, NamedGroup, PeerMisbehaved, ProtocolVersion};
use serde::Deserialize;
use zeroize::Zeroizing;

#[derive(Deserialize)]
struct Golden {
    exchanges: Vec<Exchange>,
    refused_keys: Vec<Named>,
    small_orders: Vec<Named>,
}

#[derive(Deserialize)]
struct Exchange {
    seed: String,
    message: String,
    client_x25519: String,
    server_x25519: String,
    client_share: String,
    server_share: String,
    secret: String,
    changed_bit: usize,
    secret_after_change: String,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    key: String,
}

fn golden() -> Golden {
    serde_json::from_str(include_str!("../tests/golden/x25519mlkem768.json")).unwrap()
}

fn bytes<const N: usize>(text: &str) -> [u8; N] {
    hex::decode(text).unwrap().try_into().unwrap()
}

/// X25519 with a secret key that is given, by another implementation than `ring`.
#[derive(Debug)]
struct Fixed([u8; X25519_BYTES]);

struct Started {
    secret: [u8; X25519_BYTES],
    public: [u8; X25519_BYTES],
}

impl SupportedKxGroup for Fixed {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Started { secret: self.0, public: MontgomeryPoint::mul_base_clamped(self.0).to_bytes() }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

impl ActiveKeyExchange for Started {
    fn complete(self: Box<Self>, theirs: &[u8]) -> Result<SharedSecret, Error> {
        let point = MontgomeryPoint(theirs.try_into().unwrap());
        Ok(SharedSecret::from(point.mul_clamped(self.secret).to_bytes().as_slice()))
    }

    fn pub_key(&self) -> &[u8] {
        &self.public
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

fn offer(exchange: &Exchange) -> Box<Offer> {
    let seed = Zeroizing::new(bytes(&exchange.seed));
    Box::new(Offer::new(&seed, &Fixed(bytes(&exchange.client_x25519))).unwrap())
}

fn check_refused<T>(result: Result<T, Error>, what: &str) {
    assert_eq!(result.err(), Some(Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare)), "{what}");
}

#[test]
fn whole_exchanges_are_those_of_other_libraries() {
    let golden = golden();
    assert_eq!(golden.exchanges.len(), 8);
    for exchange in &golden.exchanges {
        let offer = offer(exchange);
        assert_eq!(hex::encode(offer.pub_key()), exchange.client_share);
        let message = Zeroizing::new(bytes(&exchange.message));
        let answered = answer(offer.pub_key(), &message, &Fixed(bytes(&exchange.server_x25519))).unwrap();
        assert_eq!(hex::encode(&answered.pub_key), exchange.server_share);
        assert_eq!(hex::encode(answered.secret.secret_bytes()), exchange.secret);
        assert_eq!(hex::encode(offer.complete(&answered.pub_key).unwrap().secret_bytes()), exchange.secret);
    }
}

#[test]
fn a_bit_that_changes_on_its_way_gives_the_client_a_secret_that_the_server_does_not_have() {
    for exchange in &golden().exchanges {
        let mut share: [u8; SERVER_SHARE_BYTES] = bytes(&exchange.server_share);
        share[exchange.changed_bit / 8] ^= 1 << (exchange.changed_bit % 8);
        let secret = offer(exchange).complete(&share).unwrap();
        assert_eq!(hex::encode(secret.secret_bytes()), exchange.secret_after_change);
        assert_ne!(exchange.secret[..64], exchange.secret_after_change[..64]);
    }
}

#[test]
fn the_group_agrees_with_itself_and_never_twice_on_the_same() {
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let offer = X25519MLKEM768.start().unwrap();
        assert_eq!((offer.group(), offer.pub_key().len()), (NamedGroup::X25519MLKEM768, CLIENT_SHARE_BYTES));
        let answered = X25519MLKEM768.start_and_complete(offer.pub_key()).unwrap();
        assert_eq!((answered.group, answered.pub_key.len()), (NamedGroup::X25519MLKEM768, SERVER_SHARE_BYTES));
        for part in <[&[u8]; 2]>::from(offer.pub_key().split_at(ENCAPSULATION_KEY_BYTES)) {
            assert!(seen.insert(part.to_vec()), "a key of the client came twice");
        }
        for part in <[&[u8]; 2]>::from(answered.pub_key.split_at(CIPHERTEXT_BYTES)) {
            assert!(seen.insert(part.to_vec()), "a key of the server came twice");
        }
        let secret = offer.complete(&answered.pub_key).unwrap();
        assert_eq!(secret.secret_bytes(), answered.secret.secret_bytes());
        assert_eq!(secret.secret_bytes().len(), SHARED_BYTES);
        for half in <[&[u8]; 2]>::from(secret.secret_bytes().split_at(SHARED_BYTES / 2)) {
            assert!(seen.insert(half.to_vec()), "a secret came twice");
        }
    }
}

#[test]
fn x25519_alone_is_the_same_key_as_in_the_hybrid() {
    let offer = X25519MLKEM768.start().unwrap();
    let (group, key) = offer.hybrid_component().unwrap();
    assert_eq!((group, key), (NamedGroup::X25519, &offer.pub_key()[ENCAPSULATION_KEY_BYTES..]));
    let server = rustls::crypto::ring::kx_group::X25519.start_and_complete(key).unwrap();
    let secret = offer.complete_hybrid_component(&server.pub_key).unwrap();
    assert_eq!(secret.secret_bytes(), server.secret.secret_bytes());
}

#[test]
fn every_other_length_is_refused_by_either_side() {
    // Honest beginnings, so that the length is all that is wrong; what is longer goes on with zeros.
    let of_length =
        |honest: &[u8], length: usize| honest.iter().copied().chain([0; 3000]).take(length).collect::<Vec<_>>();
    let lengths = || (0..1400).chain([3000]);
    let client = X25519MLKEM768.start().unwrap().pub_key().to_vec();
    for length in lengths().filter(|length| *length != CLIENT_SHARE_BYTES) {
        let share = of_length(&client, length);
        check_refused(X25519MLKEM768.start_and_complete(&share), &format!("{length} bytes of a client"));
    }
    for length in lengths().filter(|length| *length != SERVER_SHARE_BYTES) {
        let offer = X25519MLKEM768.start().unwrap();
        let server = X25519MLKEM768.start_and_complete(offer.pub_key()).unwrap().pub_key;
        check_refused(offer.complete(&of_length(&server, length)), &format!("{length} bytes of a server"));
    }
}

#[test]
fn a_key_that_is_not_reduced_is_refused() {
    let golden = golden();
    assert_eq!(golden.refused_keys.len(), 4);
    let x25519 = &X25519MLKEM768.start().unwrap().pub_key()[ENCAPSULATION_KEY_BYTES..].to_vec();
    for Named { name, key } in &golden.refused_keys {
        let share = [bytes::<ENCAPSULATION_KEY_BYTES>(key).as_slice(), x25519].concat();
        check_refused(X25519MLKEM768.start_and_complete(&share), name);
    }
}

#[test]
fn a_key_of_x25519_with_which_every_secret_is_zero_is_refused_by_either_side() {
    let golden = golden();
    assert_eq!(golden.small_orders.len(), 7);
    for Named { name, key } in &golden.small_orders {
        let key: [u8; X25519_BYTES] = bytes(key);
        let offer = X25519MLKEM768.start().unwrap();
        let honest = offer.pub_key().to_vec();
        let bent = [&honest[..ENCAPSULATION_KEY_BYTES], &key].concat();
        check_refused(X25519MLKEM768.start_and_complete(&bent), name);
        let answered = X25519MLKEM768.start_and_complete(&honest).unwrap();
        let bent = [&answered.pub_key[..CIPHERTEXT_BYTES], &key].concat();
        check_refused(offer.complete(&bent), name);
    }
}

#[test]
fn changed_shares_are_refused_or_agree_on_nothing() {
    let mut state = 1_u64;
    let mut below = |bound: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % bound
    };
    let (mut num_refused, mut num_apart) = (0, 0);
    for round in 0..400 {
        let offer = X25519MLKEM768.start().unwrap();
        let mut share = offer.pub_key().to_vec();
        let from_client = round % 2 == 0;
        let mut bend = |share: &mut Vec<u8>| {
            for _ in 0..1 + below(4) {
                let at = below(share.len());
                // The top bit of a key of X25519 is not read (RFC 7748, section 5).
                share[at] ^= 1 << below(if at + 1 == share.len() { 7 } else { 8 });
            }
        };
        if from_client {
            bend(&mut share);
        }
        let answered = match X25519MLKEM768.start_and_complete(&share) {
            Ok(answered) => answered,
            Err(error) => {
                assert!(from_client, "an honest share was refused: {error}");
                check_refused::<()>(Err(error), "a changed share of a client");
                num_refused += 1;
                continue;
            }
        };
        let mut share = answered.pub_key.clone();
        if !from_client {
            bend(&mut share);
        }
        let secret = offer.complete(&share).unwrap();
        assert_ne!(secret.secret_bytes(), answered.secret.secret_bytes(), "in round {round}");
        num_apart += 1;
    }
    assert!(num_refused > 0 && num_apart > 200, "{num_refused} refused, {num_apart} apart");
}

#[test]
fn members_speak_the_hybrid_alone_and_others_are_offered_it_first() {
    let names = |provider: rustls::crypto::CryptoProvider| -> Vec<NamedGroup> {
        provider.kx_groups.iter().map(|group| group.name()).collect()
    };
    assert_eq!(names(between_members()), [NamedGroup::X25519MLKEM768]);
    let others = names(to_foreign_servers());
    assert_eq!(others[..2], [NamedGroup::X25519MLKEM768, NamedGroup::X25519]);
    assert_eq!(u16::from(NamedGroup::X25519MLKEM768), 0x11ec);
    assert!(X25519MLKEM768.usable_for_version(ProtocolVersion::TLSv1_3));
    assert!(!X25519MLKEM768.usable_for_version(ProtocolVersion::TLSv1_2));
}
