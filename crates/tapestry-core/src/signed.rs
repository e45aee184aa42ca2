//! Documents signed by a quorum: the only authority in Tapestry.
//!
//! The bytes that are signed are `tapestry:<domain>\n` followed by the RFC 8785 form of the document. The domain keeps a
//! signature under one kind of document from ever being valid under another.

use crate::{CanonicalError, Digest, KeyError, PublicKey, SecretKey, Signature, to_canonical_json};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// A kind of content that parties sign.
pub trait Document: Serialize {
    /// A name that no other kind of document has, with its version, such as `charter/1`.
    const DOMAIN: &'static str;

    /// The domain of this document: [`Self::DOMAIN`], or an earlier version's, where documents of it are still read.
    fn domain(&self) -> &'static str {
        Self::DOMAIN
    }
}

/// A document with the signatures that it has so far. Nothing is proved until one of the `verify` functions says so.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Signed<T> {
    /// What was signed.
    pub document: T,
    /// Who signed. At most [`Signed::MAX_SIGNATURES`] are looked at.
    pub signatures: BTreeMap<PublicKey, Signature>,
}

/// Whose signatures make a document binding: at least `threshold` of `keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quorum {
    keys: BTreeSet<PublicKey>,
    threshold: usize,
}

/// A rule that cannot be a quorum.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a quorum needs from 1 to all of its keys: {threshold} of {num_keys} is none")]
pub struct QuorumError {
    threshold: usize,
    num_keys: usize,
}

/// Why a signed document is not binding.
#[derive(Debug, thiserror::Error)]
pub enum SignedError {
    /// Too few of the quorum's keys have signed.
    #[error("the {domain} has {found} valid signatures of the quorum's keys; {expected} are needed")]
    QuorumMissing {
        /// The kind of document.
        domain: &'static str,
        /// Signatures needed.
        expected: usize,
        /// Valid signatures by keys of the quorum.
        found: usize,
    },
    /// The one expected signer has not signed.
    #[error("the {domain} carries no signature by key {key}")]
    SignerMissing {
        /// The kind of document.
        domain: &'static str,
        /// The key that should have signed.
        key: PublicKey,
    },
    /// A signature that is there is wrong: the document was changed, or the signature forged.
    #[error("the {domain} carries a false signature, so it was changed or forged: {source}")]
    Forged {
        /// The kind of document.
        domain: &'static str,
        /// Which key's signature is false.
        source: KeyError,
    },
    /// More signatures than anybody needs, which only costs time to check.
    #[error("the {domain} carries {found} signatures; at most {limit} are looked at")]
    TooMany {
        /// The kind of document.
        domain: &'static str,
        /// How many it carries.
        found: usize,
        /// The bound.
        limit: usize,
    },
    /// The document has no canonical form.
    #[error(transparent)]
    Canonical(#[from] CanonicalError),
}

impl Quorum {
    /// At least `threshold` of `keys`.
    ///
    /// # Errors
    /// Where the threshold is zero or larger than the number of keys.
    pub fn new(keys: impl IntoIterator<Item = PublicKey>, threshold: usize) -> Result<Self, QuorumError> {
        let keys: BTreeSet<_> = keys.into_iter().collect();
        if threshold == 0 || threshold > keys.len() {
            return Err(QuorumError { threshold, num_keys: keys.len() });
        }
        Ok(Self { keys, threshold })
    }

    /// How many signatures are needed.
    #[must_use]
    pub const fn threshold(&self) -> usize {
        self.threshold
    }
}

impl<T: Document> Signed<T> {
    /// The most signatures that one document may carry.
    pub const MAX_SIGNATURES: usize = 256;

    /// The document, not yet signed by anybody.
    #[must_use]
    pub const fn unsigned(document: T) -> Self {
        Self { document, signatures: BTreeMap::new() }
    }

    /// The document, signed by one key.
    ///
    /// # Errors
    /// Where the document has no canonical form.
    pub fn by(document: T, key: &SecretKey) -> Result<Self, CanonicalError> {
        let mut signed = Self::unsigned(document);
        signed.sign(key)?;
        Ok(signed)
    }

    /// Adds the signature of `key`.
    ///
    /// # Errors
    /// Where the document has no canonical form.
    pub fn sign(&mut self, key: &SecretKey) -> Result<(), CanonicalError> {
        let signature = key.sign(&self.signed_bytes()?);
        self.signatures.insert(key.public(), signature);
        Ok(())
    }

    /// The digest of the document without its signatures: its name in the log.
    ///
    /// # Errors
    /// Where the document has no canonical form.
    pub fn digest(&self) -> Result<Digest, CanonicalError> {
        Ok(Digest::of(&self.signed_bytes()?))
    }

    /// The document, if `quorum` has signed it.
    ///
    /// Signatures by keys outside the quorum are not counted, but a false signature by any key is an error: an honest
    /// document has none.
    ///
    /// # Errors
    /// [`SignedError`].
    pub fn verify(&self, quorum: &Quorum) -> Result<&T, SignedError> {
        let message = self.checked_bytes()?;
        for (key, signature) in &self.signatures {
            key.verify(&message, signature)
                .map_err(|source| SignedError::Forged { domain: self.document.domain(), source })?;
        }
        let found = self.signatures.keys().filter(|key| quorum.keys.contains(key)).count();
        if found < quorum.threshold {
            return Err(SignedError::QuorumMissing {
                domain: self.document.domain(),
                expected: quorum.threshold,
                found,
            });
        }
        Ok(&self.document)
    }

    /// The document, if `key` has signed it.
    ///
    /// # Errors
    /// [`SignedError`].
    pub fn verify_by(&self, key: &PublicKey) -> Result<&T, SignedError> {
        let message = self.checked_bytes()?;
        let missing = || SignedError::SignerMissing { domain: self.document.domain(), key: *key };
        let signature = self.signatures.get(key).ok_or_else(missing)?;
        key.verify(&message, signature)
            .map_err(|source| SignedError::Forged { domain: self.document.domain(), source })?;
        Ok(&self.document)
    }

    fn checked_bytes(&self) -> Result<Vec<u8>, SignedError> {
        let found = self.signatures.len();
        if found > Self::MAX_SIGNATURES {
            return Err(SignedError::TooMany { domain: self.document.domain(), found, limit: Self::MAX_SIGNATURES });
        }
        Ok(self.signed_bytes()?)
    }

    fn signed_bytes(&self) -> Result<Vec<u8>, CanonicalError> {
        let mut bytes = format!("tapestry:{}\n", self.document.domain()).into_bytes();
        bytes.extend(to_canonical_json(&self.document)?);
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use zeroize::Zeroizing;

    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Note(String);
    impl Document for Note {
        const DOMAIN: &'static str = "note/1";
    }
    #[derive(Serialize)]
    struct Other(String);
    impl Document for Other {
        const DOMAIN: &'static str = "other/1";
    }

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(&Zeroizing::new([n; 32]))
    }

    fn signed_by(keys: &[u8]) -> Signed<Note> {
        let mut signed = Signed::unsigned(Note("text".into()));
        for n in keys {
            signed.sign(&key(*n)).expect("signs");
        }
        signed
    }

    fn two_of_three() -> Quorum {
        Quorum::new([1, 2, 3].map(|n| key(n).public()), 2).expect("a quorum")
    }

    #[test]
    fn binding_needs_the_threshold_of_the_quorums_own_keys() {
        assert!(signed_by(&[1, 3]).verify(&two_of_three()).is_ok());
        assert!(matches!(signed_by(&[1]).verify(&two_of_three()), Err(SignedError::QuorumMissing { found: 1, .. })));
        assert!(matches!(signed_by(&[1, 9]).verify(&two_of_three()), Err(SignedError::QuorumMissing { found: 1, .. })));
    }

    #[test]
    fn a_changed_document_is_forged() {
        let mut signed = signed_by(&[1, 2]);
        signed.document.0.push('!');
        assert!(matches!(signed.verify(&two_of_three()), Err(SignedError::Forged { .. })));
        assert!(signed.verify_by(&key(1).public()).is_err());
    }

    #[test]
    fn a_signature_does_not_cross_domains() {
        let note = signed_by(&[1]);
        let other = Signed { document: Other("text".into()), signatures: note.signatures };
        assert!(matches!(other.verify_by(&key(1).public()), Err(SignedError::Forged { .. })));
    }

    #[test]
    fn impossible_quorums_are_refused() {
        assert!(Quorum::new([key(1).public()], 0).is_err());
        assert!(Quorum::new([key(1).public(), key(1).public()], 2).is_err());
    }

    #[test]
    fn json_form_round_trips() {
        let signed = signed_by(&[1, 2]);
        let text = serde_json::to_string(&signed).expect("serialises");
        assert_eq!(serde_json::from_str::<Signed<Note>>(&text).expect("parses"), signed);
    }
}
