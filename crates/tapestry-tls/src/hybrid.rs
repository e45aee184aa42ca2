//! X25519MLKEM768 as a group of rustls: ML-KEM-768 by the `ml-kem` crate, X25519 by `ring`, one after the other.
//!
//! In shares and in the secret the part of ML-KEM comes first (RFC 10024, section 4). Every length is fixed and is compared
//! before anything is read; a share that is refused ends the handshake with the alert `illegal_parameter`. `ring` refuses an X25519
//! secret that is all zeros, in constant time.

use crate::mlkem::{self, CIPHERTEXT_BYTES, ENCAPSULATION_KEY_BYTES, MlKemKey, SECRET_BYTES, Secret};
use rustls::crypto::{ActiveKeyExchange, CompletedKeyExchange, SharedSecret, SupportedKxGroup, ring};
use rustls::ffdhe_groups::FfdheGroup;
use rustls::{Error, NamedGroup, PeerMisbehaved, ProtocolVersion};
use zeroize::Zeroizing;

/// A public key of X25519, of either side.
pub(crate) const X25519_BYTES: usize = 32;
/// What the client sends: an encapsulation key, then a key of X25519.
pub(crate) const CLIENT_SHARE_BYTES: usize = ENCAPSULATION_KEY_BYTES + X25519_BYTES;
/// What the server sends: a ciphertext, then a key of X25519.
pub(crate) const SERVER_SHARE_BYTES: usize = CIPHERTEXT_BYTES + X25519_BYTES;
/// What both have then: the secret of ML-KEM, then that of X25519.
pub(crate) const SHARED_BYTES: usize = 2 * SECRET_BYTES;

const INVALID: Error = Error::PeerMisbehaved(PeerMisbehaved::InvalidKeyShare);

/// The group.
#[derive(Debug)]
pub(crate) struct X25519MlKem768;

impl SupportedKxGroup for X25519MlKem768 {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        Ok(Box::new(Offer::new(&random()?, ring::kx_group::X25519)?))
    }

    fn start_and_complete(&self, client_share: &[u8]) -> Result<CompletedKeyExchange, Error> {
        answer(client_share, &random()?, ring::kx_group::X25519)
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }

    fn usable_for_version(&self, version: ProtocolVersion) -> bool {
        version == ProtocolVersion::TLSv1_3
    }
}

/// The client's side, between its share and the server's.
pub(crate) struct Offer {
    post_quantum: MlKemKey,
    classical: Box<dyn ActiveKeyExchange>,
    share: [u8; CLIENT_SHARE_BYTES],
}

impl Offer {
    /// Keys for one handshake; the seed has to be random and used once.
    pub(crate) fn new(seed: &Zeroizing<[u8; mlkem::SEED_BYTES]>, x25519: &dyn SupportedKxGroup) -> Result<Self, Error> {
        let post_quantum = MlKemKey::from_seed(seed);
        let classical = x25519.start()?;
        let share = joined(&post_quantum.public(), classical.pub_key());
        Ok(Self { post_quantum, classical, share })
    }
}

impl ActiveKeyExchange for Offer {
    fn complete(self: Box<Self>, server_share: &[u8]) -> Result<SharedSecret, Error> {
        let (ciphertext, x25519) = halves::<CIPHERTEXT_BYTES>(server_share, SERVER_SHARE_BYTES)?;
        let classical = self.classical.complete(x25519)?;
        Ok(shared(&self.post_quantum.open(ciphertext), &classical))
    }

    /// The same key of X25519 by itself, for a server that knows no more. rustls sends and accepts it only where its configuration
    /// lists X25519 too, so never between members.
    fn hybrid_component(&self) -> Option<(NamedGroup, &[u8])> {
        Some((self.classical.group(), self.classical.pub_key()))
    }

    fn complete_hybrid_component(self: Box<Self>, server_share: &[u8]) -> Result<SharedSecret, Error> {
        self.classical.complete(server_share)
    }

    fn pub_key(&self) -> &[u8] {
        &self.share
    }

    fn ffdhe_group(&self) -> Option<FfdheGroup<'static>> {
        None
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519MLKEM768
    }
}

/// The server's side: its share and the secret. `message` has to be random and used once.
pub(crate) fn answer(
    client_share: &[u8],
    message: &Zeroizing<[u8; mlkem::MESSAGE_BYTES]>,
    x25519: &dyn SupportedKxGroup,
) -> Result<CompletedKeyExchange, Error> {
    let (key, theirs) = halves::<ENCAPSULATION_KEY_BYTES>(client_share, CLIENT_SHARE_BYTES)?;
    let classical = x25519.start_and_complete(theirs)?;
    let (ciphertext, post_quantum) = mlkem::encapsulate(key, message).ok_or(INVALID)?;
    let share: [u8; SERVER_SHARE_BYTES] = joined(&ciphertext, &classical.pub_key);
    Ok(CompletedKeyExchange {
        group: NamedGroup::X25519MLKEM768,
        pub_key: share.to_vec(),
        secret: shared(&post_quantum, &classical.secret),
    })
}

/// The part of ML-KEM, which has `N` bytes, and that of X25519; an error unless both have exactly `expected` together.
fn halves<const N: usize>(share: &[u8], expected: usize) -> Result<(&[u8; N], &[u8]), Error> {
    if share.len() != expected {
        return Err(INVALID);
    }
    share.split_first_chunk().ok_or(INVALID)
}

fn joined<const N: usize>(first: &[u8], second: &[u8]) -> [u8; N] {
    let mut both = [0; N];
    both[..first.len()].copy_from_slice(first);
    both[first.len()..].copy_from_slice(second);
    both
}

/// Both secrets in the order of the standard; rustls wipes what it is given.
fn shared(post_quantum: &Secret, classical: &SharedSecret) -> SharedSecret {
    let both: Zeroizing<[u8; SHARED_BYTES]> = Zeroizing::new(joined(post_quantum.as_slice(), classical.secret_bytes()));
    SharedSecret::from(both.as_slice())
}

/// Bytes of the operating system's generator.
fn random<const N: usize>() -> Result<Zeroizing<[u8; N]>, Error> {
    let mut bytes = Zeroizing::new([0; N]);
    getrandom::fill(bytes.as_mut_slice()).map_err(|_| Error::FailedToGetRandomBytes)?;
    Ok(bytes)
}
