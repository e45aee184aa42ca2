//! ML-KEM-768 with its randomness as an argument, as byte arrays of the lengths that the standard fixes.
//!
//! # Source
//! FIPS 203: section 7 (key generation, encapsulation, decapsulation), section 8 (lengths).

use ml_kem::kem::{Decapsulate, KeyExport as _};
use ml_kem::{B32, DecapsulationKey768, EncapsulationKey768, Seed};
use zeroize::{Zeroize as _, Zeroizing};

/// The key that the client shows.
pub(crate) const ENCAPSULATION_KEY_BYTES: usize = 1184;
/// What the server answers.
pub(crate) const CIPHERTEXT_BYTES: usize = 1088;
/// What both have then.
pub(crate) const SECRET_BYTES: usize = 32;
/// Randomness of a key: `d`, then `z`.
pub(crate) const SEED_BYTES: usize = 64;
/// Randomness of one encapsulation: `m`.
pub(crate) const MESSAGE_BYTES: usize = 32;

/// A shared secret; wiped when it is dropped.
pub(crate) type Secret = Zeroizing<[u8; SECRET_BYTES]>;

/// A secret key for one handshake; wiped when it is dropped.
pub(crate) struct MlKemKey(DecapsulationKey768);

impl MlKemKey {
    /// The key that follows from a seed, which has to be random and used once.
    pub(crate) fn from_seed(seed: &Zeroizing<[u8; SEED_BYTES]>) -> Self {
        let mut copy = Seed::from(**seed);
        let key = DecapsulationKey768::from_seed(copy);
        copy.zeroize();
        Self(key)
    }

    /// What is shown to the other side.
    pub(crate) fn public(&self) -> [u8; ENCAPSULATION_KEY_BYTES] {
        self.0.encapsulation_key().to_bytes().into()
    }

    /// The secret that a ciphertext carries. One that was not made for this key gives a secret that nobody else has (implicit
    /// rejection), so that the handshake ends with its first encrypted message and tells nothing about the key.
    pub(crate) fn open(&self, ciphertext: &[u8; CIPHERTEXT_BYTES]) -> Secret {
        wiped(self.0.decapsulate(&(*ciphertext).into()))
    }
}

/// A ciphertext for `key`, and the secret that it carries; none where the key is not one (a coefficient that is not reduced: the check of
/// FIPS 203, section 7.2).
pub(crate) fn encapsulate(
    key: &[u8; ENCAPSULATION_KEY_BYTES],
    message: &Zeroizing<[u8; MESSAGE_BYTES]>,
) -> Option<([u8; CIPHERTEXT_BYTES], Secret)> {
    let key = EncapsulationKey768::new(&(*key).into()).ok()?;
    let mut copy = B32::from(**message);
    let (ciphertext, secret) = key.encapsulate_deterministic(&copy);
    copy.zeroize();
    Some((ciphertext.into(), wiped(secret)))
}

/// The same bytes where they are wiped in time.
fn wiped(mut secret: B32) -> Secret {
    let kept = Zeroizing::new(secret.into());
    secret.zeroize();
    kept
}
