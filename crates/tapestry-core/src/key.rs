//! Ed25519 keys that members, coordinators and reviewers make for themselves.
//!
//! A secret key is never shown by `Debug`, never serialised by `serde`, and wiped from memory when dropped.

use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey, EncodePrivateKey, EncodePublicKey};
use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use zeroize::Zeroizing;

/// What can be wrong with a key or a signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The text or bytes are not a public key.
    #[error(
        "expected an Ed25519 public key (64 hexadecimal digits of a valid, not weak, curve point), found {found:?}"
    )]
    NotAPublicKey {
        /// The start of what was found.
        found: String,
    },
    /// The text or bytes are not a signature.
    #[error("expected an Ed25519 signature of 128 hexadecimal digits, found {found:?}")]
    NotASignature {
        /// The start of what was found.
        found: String,
    },
    /// The file does not hold a secret key. What it holds is not repeated here.
    #[error(
        "this is not an Ed25519 secret key in PKCS#8 PEM form; make one with `tapestry node init` or `tapestry coordinator init`"
    )]
    NotASecretKey,
    /// The signature does not belong to this key and message.
    #[error("the signature was not made by key {key} over this content")]
    BadSignature {
        /// The key that should have signed.
        key: PublicKey,
    },
}

fn excerpt(text: &str) -> String {
    text.chars().take(140).collect()
}

/// A public key: an identity. Written as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// A public key from its 32 bytes.
    ///
    /// # Errors
    /// Where the bytes are no curve point, or one of small order (with which a signature would prove nothing).
    pub fn from_bytes(bytes: [u8; 32]) -> Result<Self, KeyError> {
        let wrong = || KeyError::NotAPublicKey { found: hex::encode(bytes) };
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| wrong())?;
        if key.is_weak() {
            return Err(wrong());
        }
        Ok(Self(bytes))
    }

    /// The 32 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Checks `signature` over `message`, strictly: one message and key have one accepted encoding.
    ///
    /// # Errors
    /// [`KeyError::BadSignature`].
    pub fn verify(&self, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        let bad = || KeyError::BadSignature { key: *self };
        let key = VerifyingKey::from_bytes(&self.0).map_err(|_| bad())?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        key.verify_strict(message, &signature).map_err(|_| bad())
    }

    /// The first 12 hexadecimal digits, for people; never for comparing.
    #[must_use]
    pub fn short(&self) -> String {
        self.to_string()[..12].to_owned()
    }

    /// The key as a DER `SubjectPublicKeyInfo`, the form in which TLS carries a raw public key (RFC 7250).
    #[must_use]
    pub fn to_spki_der(&self) -> Vec<u8> {
        let key = VerifyingKey::from_bytes(&self.0).expect("a PublicKey holds a valid curve point");
        key.to_public_key_der().expect("an Ed25519 key always encodes").as_bytes().to_vec()
    }

    /// Reads a DER `SubjectPublicKeyInfo`.
    ///
    /// # Errors
    /// Where the bytes are anything but the one encoding of an Ed25519 key.
    pub fn from_spki_der(der: &[u8]) -> Result<Self, KeyError> {
        // RFC 8410: 12 fixed bytes, then the key. Comparing with our own encoding refuses every other form.
        let wrong = || KeyError::NotAPublicKey { found: hex::encode(&der[..der.len().min(44)]) };
        let bytes: [u8; 32] = der.get(12..).and_then(|b| b.try_into().ok()).ok_or_else(wrong)?;
        let key = Self::from_bytes(bytes)?;
        if key.to_spki_der() == der { Ok(key) } else { Err(wrong()) }
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = || KeyError::NotAPublicKey { found: excerpt(text) };
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong());
        }
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| wrong())?;
        Self::from_bytes(bytes)
    }
}

impl Serialize for PublicKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PublicKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// An Ed25519 signature. Written as 128 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature([u8; 64]);

impl Signature {
    /// The 64 bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }

    /// A signature from its 64 bytes; whether it holds is another question.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

impl FromStr for Signature {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let wrong = || KeyError::NotASignature { found: excerpt(text) };
        if text.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(wrong());
        }
        let mut bytes = [0; 64];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| wrong())?;
        Ok(Self(bytes))
    }
}

impl Serialize for Signature {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signature {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A secret key. Wiped from memory on drop; `Debug` shows the public key only.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key that belongs to 32 secret bytes, which must come from a cryptographic random source.
    #[must_use]
    pub fn from_seed(seed: &Zeroizing<[u8; 32]>) -> Self {
        Self(SigningKey::from_bytes(seed))
    }

    /// The public half.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// Signs `message`. Callers sign through [`crate::Signed`], which separates the domains.
    #[must_use]
    pub fn sign(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }

    /// The PKCS#8 PEM form, as kept in a key file.
    #[must_use]
    pub fn to_pem(&self) -> Zeroizing<String> {
        self.0.to_pkcs8_pem(LineEnding::LF).expect("an Ed25519 key always encodes")
    }

    /// Reads the PKCS#8 PEM form.
    ///
    /// # Errors
    /// [`KeyError::NotASecretKey`]; the content is not part of the message.
    pub fn from_pem(pem: &str) -> Result<Self, KeyError> {
        SigningKey::from_pkcs8_pem(pem).map(Self).map_err(|_| KeyError::NotASecretKey)
    }

    /// The PKCS#8 DER form, which a TLS library wants.
    #[must_use]
    pub fn to_pkcs8_der(&self) -> Zeroizing<Vec<u8>> {
        let document = self.0.to_pkcs8_der().expect("an Ed25519 key always encodes");
        Zeroizing::new(document.as_bytes().to_vec())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(&Zeroizing::new([n; 32]))
    }

    #[test]
    fn rfc_8032_test_1_gives_the_published_key_and_signature() {
        let mut seed = [0; 32];
        hex::decode_to_slice("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60", &mut seed)
            .expect("hex");
        let secret = SecretKey::from_seed(&Zeroizing::new(seed));
        assert_eq!(secret.public().to_string(), "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a");
        assert!(secret.sign(b"").to_string().starts_with("e5564300c360ac729086e2cc806e828a84877f1eb8e5d974"));
    }

    #[test]
    fn a_signature_holds_for_its_key_and_message_only() {
        let signature = key(1).sign(b"yes");
        assert!(key(1).public().verify(b"yes", &signature).is_ok());
        assert!(key(1).public().verify(b"no", &signature).is_err());
        assert!(key(2).public().verify(b"yes", &signature).is_err());
    }

    #[test]
    fn pem_and_spki_round_trip() {
        let back = SecretKey::from_pem(&key(3).to_pem()).expect("reads");
        assert_eq!(back.public(), key(3).public());
        let der = key(3).public().to_spki_der();
        assert_eq!(PublicKey::from_spki_der(&der).expect("reads"), key(3).public());
        assert!(PublicKey::from_spki_der(&der[1..]).is_err());
    }

    #[test]
    fn debug_shows_no_secret() {
        let shown = format!("{:?}", key(7));
        assert!(!shown.contains(&hex::encode([7; 32])), "{shown}");
    }

    #[test]
    fn a_small_order_point_is_no_identity() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert!(PublicKey::from_bytes(identity).is_err());
    }
}
