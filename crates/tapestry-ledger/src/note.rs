//! Signed notes and checkpoints of the C2SP (signed-note, tlog-checkpoint, tlog-cosignature): what a log shows to say how far it
//! is, in a form that other tools read too.
//!
//! ```text
//! tapestry/5f...e1             the log's name (origin)
//! 17                           how many entries it has
//! 8Wxj...=                     the root of their Merkle tree
//!
//! — tapestry/5f...e1 q1w2...   signed by the log's writer
//! — tapestry/5f...e1/france z9...   cosigned by a member, with its time
//! ```

use crate::tree::TreeHash;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;
use tapestry_core::{MemberName, PublicKey, SecretKey, Signature, Timestamp};

/// The longest note that is read, in bytes: a checkpoint with more cosignatures than a consortium has members.
pub const MAX_NOTE_BYTES: usize = 64 << 10;
/// The most signatures that are looked at.
pub const MAX_SIGNATURES: usize = 128;

/// The type of a plain Ed25519 signature over a note (C2SP signed-note).
const ED25519: u8 = 0x01;
/// The type of a witness's timestamped Ed25519 signature (C2SP tlog-cosignature, cosignature/v1).
const COSIGNATURE_V1: u8 = 0x04;

/// What is wrong with a note, or what it does not prove.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoteError {
    /// The text has not the form of a signed note, or its body not that of a checkpoint.
    #[error("this is no signed checkpoint: {0}")]
    Form(&'static str),
    /// A signature that should be there is not.
    #[error("the checkpoint carries no signature by {name} with key {key}")]
    Missing {
        /// The name of the key.
        name: String,
        /// The key.
        key: PublicKey,
    },
    /// A signature is there and false.
    #[error("the checkpoint's signature by {name} is false: it was changed or forged")]
    Forged {
        /// The name of the key.
        name: String,
    },
}

/// How far a log is: its name, how many entries it has, and the root of their tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// The name of the log.
    pub origin: String,
    /// How many entries.
    pub size: u64,
    /// The root of the tree of these entries.
    pub root: TreeHash,
}

impl Checkpoint {
    /// The body of the note: three lines.
    #[must_use]
    pub fn body(&self) -> String {
        format!("{}\n{}\n{}\n", self.origin, self.size, BASE64.encode(self.root.as_bytes()))
    }

    fn parse(body: &str) -> Result<Self, NoteError> {
        let mut lines = body.strip_suffix('\n').ok_or(NoteError::Form("the last line does not end"))?.split('\n');
        let (origin, size, root) = (lines.next(), lines.next(), lines.next());
        let (Some(origin), Some(size), Some(root), None) = (origin, size, root, lines.next()) else {
            return Err(NoteError::Form("a checkpoint has three lines: the log's name, its size, its root"));
        };
        if !is_key_name(origin) {
            return Err(NoteError::Form("the name of the log is empty or holds a space or '+'"));
        }
        let is_plain = size == "0" || !size.starts_with('0') && size.bytes().all(|b| b.is_ascii_digit());
        let size = if is_plain { size.parse().ok() } else { None };
        let size = size.ok_or(NoteError::Form("the size is no decimal number"))?;
        let root: Option<[u8; 32]> = BASE64.decode(root).ok().and_then(|bytes| bytes.try_into().ok());
        let root = TreeHash::from_bytes(root.ok_or(NoteError::Form("the root is not the base64 of 32 bytes"))?);
        Ok(Self { origin: origin.to_owned(), size, root })
    }
}

/// One signature line of a note.
#[derive(Debug, Clone, PartialEq, Eq)]
struct SignatureLine {
    name: String,
    id: [u8; 4],
    signature: Vec<u8>,
}

/// A checkpoint with the signatures that it carries. Nothing is proved until it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCheckpoint {
    checkpoint: Checkpoint,
    lines: Vec<SignatureLine>,
}

impl SignedCheckpoint {
    /// The checkpoint, signed by the log's writer under the log's name.
    #[must_use]
    pub fn by(checkpoint: Checkpoint, key: &SecretKey) -> Self {
        let signature = key.sign(checkpoint.body().as_bytes());
        let id = key_id(&checkpoint.origin, ED25519, &key.public());
        let line = SignatureLine { name: checkpoint.origin.clone(), id, signature: signature.as_bytes().to_vec() };
        Self { checkpoint, lines: vec![line] }
    }

    /// What is claimed.
    #[must_use]
    pub const fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// How many signatures and cosignatures it carries.
    #[must_use]
    pub const fn num_signatures(&self) -> usize {
        self.lines.len()
    }

    /// Checks that the writer with this key has signed it.
    ///
    /// # Errors
    /// [`NoteError`].
    pub fn verify_by(&self, key: &PublicKey) -> Result<&Checkpoint, NoteError> {
        let name = &self.checkpoint.origin;
        let id = key_id(name, ED25519, key);
        let missing = || NoteError::Missing { name: name.clone(), key: *key };
        let line = self.lines.iter().find(|line| line.name == *name && line.id == id).ok_or_else(missing)?;
        let forged = || NoteError::Forged { name: name.clone() };
        let signature: [u8; 64] = line.signature.as_slice().try_into().map_err(|_| forged())?;
        let message = self.checkpoint.body();
        key.verify(message.as_bytes(), &Signature::from_bytes(signature)).map_err(|_| forged())?;
        Ok(&self.checkpoint)
    }

    /// A member's cosignature of this checkpoint: that at this time its log was, to the member's knowledge, consistent with all
    /// that the member had seen of it before.
    #[must_use]
    pub fn cosign(&self, member: &MemberName, key: &SecretKey, at: Timestamp) -> Cosignature {
        let (name, seconds) = (witness_name(&self.checkpoint.origin, member), at.as_ms() / 1000);
        let signature = key.sign(cosigned(&self.checkpoint, seconds).as_bytes());
        Cosignature { id: key_id(&name, COSIGNATURE_V1, &key.public()), member: member.clone(), seconds, signature }
    }

    /// Adds a cosignature. One by the same key that is there already is replaced.
    pub fn add(&mut self, cosignature: &Cosignature) {
        let line = cosignature.line(&self.checkpoint.origin);
        self.lines.retain(|other| (&other.name, other.id) != (&line.name, line.id));
        self.lines.push(line);
    }

    /// When a member with this key cosigned it, in seconds since 1970; none where it has not.
    ///
    /// # Errors
    /// Where it carries a false cosignature of this member.
    pub fn cosigned_at(&self, member: &MemberName, key: &PublicKey) -> Result<Option<u64>, NoteError> {
        let name = witness_name(&self.checkpoint.origin, member);
        let id = key_id(&name, COSIGNATURE_V1, key);
        let Some(line) = self.lines.iter().find(|line| line.name == name && line.id == id) else { return Ok(None) };
        let cosignature = Cosignature::parse(member.clone(), line).ok_or(NoteError::Forged { name })?;
        cosignature.verify(&self.checkpoint, key)?;
        Ok(Some(cosignature.seconds))
    }

    /// Whether every signature that it carries is by the writer with this key, or by one of these members with its key, and
    /// holds. So that no byte of a note can be changed unseen.
    ///
    /// # Errors
    /// The first that is not.
    pub fn verify_all<'a>(
        &self,
        writer: &PublicKey,
        members: impl Iterator<Item = (&'a MemberName, &'a PublicKey)>,
    ) -> Result<Vec<MemberName>, NoteError> {
        self.verify_by(writer)?;
        let mut witnesses = vec![];
        for (member, key) in members {
            if self.cosigned_at(member, key)?.is_some() {
                witnesses.push(member.clone());
            }
        }
        if witnesses.len() + 1 != self.lines.len() {
            return Err(NoteError::Form("it carries a signature by nobody who is known here"));
        }
        Ok(witnesses)
    }
}

/// The note as text.
impl fmt::Display for SignedCheckpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.checkpoint.body())?;
        for SignatureLine { name, id, signature } in &self.lines {
            writeln!(f, "\u{2014} {name} {}", BASE64.encode([id.as_slice(), signature].concat()))?;
        }
        Ok(())
    }
}

impl FromStr for SignedCheckpoint {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, NoteError> {
        if text.len() > MAX_NOTE_BYTES {
            return Err(NoteError::Form("it is longer than any checkpoint"));
        }
        if text.chars().any(|c| c.is_control() && c != '\n') {
            return Err(NoteError::Form("it holds a control character"));
        }
        let (body, signatures) = text.rsplit_once("\n\n").ok_or(NoteError::Form("it carries no signatures"))?;
        let checkpoint = Checkpoint::parse(&format!("{body}\n"))?;
        let signatures = signatures.strip_suffix('\n').ok_or(NoteError::Form("the last line does not end"))?;
        let mut lines: Vec<SignatureLine> = vec![];
        for line in signatures.split('\n') {
            let line = SignatureLine::parse(line).ok_or(NoteError::Form("a signature line is malformed"))?;
            if lines.len() == MAX_SIGNATURES
                || lines.iter().any(|other| (&other.name, other.id) == (&line.name, line.id))
            {
                return Err(NoteError::Form("it carries too many signatures, or one key twice"));
            }
            lines.push(line);
        }
        let note = Self { checkpoint, lines };
        // One note, one text: what is signed over and compared is never in doubt.
        if note.to_string() == text { Ok(note) } else { Err(NoteError::Form("it is not in its one form")) }
    }
}

impl SignatureLine {
    fn parse(line: &str) -> Option<Self> {
        let (name, encoded) = line.strip_prefix("\u{2014} ")?.split_once(' ')?;
        let bytes = BASE64.decode(encoded).ok()?;
        let (id, signature) = bytes.split_first_chunk::<4>()?;
        let is_sound = is_key_name(name) && (1..=256).contains(&signature.len());
        is_sound.then(|| Self { name: name.to_owned(), id: *id, signature: signature.to_vec() })
    }
}

/// A member's statement about a checkpoint (C2SP tlog-cosignature, `cosignature/v1`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cosignature {
    member: MemberName,
    id: [u8; 4],
    seconds: u64,
    signature: Signature,
}

impl Cosignature {
    /// Whose it is, as it says.
    #[must_use]
    pub const fn member(&self) -> &MemberName {
        &self.member
    }

    /// Checks that it is by this key, over this checkpoint.
    ///
    /// # Errors
    /// [`NoteError::Forged`].
    pub fn verify(&self, checkpoint: &Checkpoint, key: &PublicKey) -> Result<(), NoteError> {
        let name = witness_name(&checkpoint.origin, &self.member);
        let message = cosigned(checkpoint, self.seconds);
        let is_its = self.id == key_id(&name, COSIGNATURE_V1, key);
        if is_its && key.verify(message.as_bytes(), &self.signature).is_ok() {
            return Ok(());
        }
        Err(NoteError::Forged { name })
    }

    fn line(&self, origin: &str) -> SignatureLine {
        let signature = [self.seconds.to_be_bytes().as_slice(), self.signature.as_bytes()].concat();
        SignatureLine { name: witness_name(origin, &self.member), id: self.id, signature }
    }

    fn parse(member: MemberName, line: &SignatureLine) -> Option<Self> {
        let (seconds, signature) = line.signature.split_first_chunk::<8>()?;
        let signature = Signature::from_bytes(signature.try_into().ok()?);
        Some(Self { member, id: line.id, seconds: u64::from_be_bytes(*seconds), signature })
    }

    /// The signature line of the note of the log called `origin`.
    #[must_use]
    pub fn to_line(&self, origin: &str) -> String {
        let SignatureLine { name, id, signature } = self.line(origin);
        format!("\u{2014} {name} {}", BASE64.encode([id.as_slice(), &signature].concat()))
    }

    /// Reads the line of a member's cosignature; whether it holds is another question.
    ///
    /// # Errors
    /// Where it is no such line of a member of the log called `origin`.
    pub fn parse_line(line: &str, origin: &str) -> Result<Self, NoteError> {
        let wrong = NoteError::Form("it is no cosignature of a member");
        if line.len() > 1000 {
            return Err(wrong);
        }
        let line = SignatureLine::parse(line).ok_or_else(|| wrong.clone())?;
        let member = line.name.strip_prefix(origin).and_then(|rest| rest.strip_prefix('/'));
        let member: Option<MemberName> = member.and_then(|member| member.parse().ok());
        member.and_then(|member| Self::parse(member, &line)).ok_or(wrong)
    }
}

/// The message of a cosignature (C2SP tlog-cosignature).
fn cosigned(checkpoint: &Checkpoint, seconds: u64) -> String {
    format!("cosignature/v1\ntime {seconds}\n{}", checkpoint.body())
}

/// The name of a member's key as a witness of a log. It holds the log's name, so that a cosignature is never of another log.
fn witness_name(origin: &str, member: &MemberName) -> String {
    format!("{origin}/{member}")
}

/// A key's name: not empty, no space, no '+' (C2SP signed-note).
fn is_key_name(name: &str) -> bool {
    (1..=300).contains(&name.len()) && !name.contains(|c: char| c.is_whitespace() || c.is_control() || c == '+')
}

/// The first four bytes of SHA-256(name || 0x0A || type || key) (C2SP signed-note).
fn key_id(name: &str, kind: u8, key: &PublicKey) -> [u8; 4] {
    let hash = Sha256::new().chain_update(name).chain_update([b'\n', kind]).chain_update(key.as_bytes()).finalize();
    let [a, b, c, d, ..] = <[u8; 32]>::from(hash);
    [a, b, c, d]
}

/// The verifier key of a log's writer, as other tools want it (C2SP signed-note): `NAME+ID+BASE64`.
#[must_use]
pub fn writer_vkey(origin: &str, key: &PublicKey) -> String {
    vkey(origin, ED25519, key)
}

/// The verifier key of a member as a witness of the log called `origin`.
#[must_use]
pub fn witness_vkey(origin: &str, member: &MemberName, key: &PublicKey) -> String {
    vkey(&witness_name(origin, member), COSIGNATURE_V1, key)
}

fn vkey(name: &str, kind: u8, key: &PublicKey) -> String {
    let id = hex::encode(key_id(name, kind, key));
    format!("{name}+{id}+{}", BASE64.encode([[kind].as_slice(), key.as_bytes()].concat()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SecretKey {
        SecretKey::from_seed(&[n; 32].into())
    }

    fn member(name: &str) -> MemberName {
        name.parse().expect("a name")
    }

    fn note() -> SignedCheckpoint {
        let checkpoint =
            Checkpoint { origin: "tapestry/test".into(), size: 17, root: TreeHash::of_leaf(b"the root of a test") };
        SignedCheckpoint::by(checkpoint, &key(1))
    }

    #[test]
    fn a_note_reads_back_and_proves_who_signed_and_cosigned_it() {
        let mut note = note();
        let france = note.cosign(&member("france"), &key(2), Timestamp::from_ms(1_700_000_000_999));
        let line = Cosignature::parse_line(&france.to_line("tapestry/test"), "tapestry/test").expect("reads");
        note.add(&line);
        let back: SignedCheckpoint = note.to_string().parse().expect("reads");
        assert_eq!(back, note);
        back.verify_by(&key(1).public()).expect("signed");
        assert!(matches!(back.verify_by(&key(2).public()), Err(NoteError::Missing { .. })));
        assert_eq!(back.cosigned_at(&member("france"), &key(2).public()), Ok(Some(1_700_000_000)));
        assert_eq!(back.cosigned_at(&member("iran"), &key(2).public()), Ok(None));
        assert_eq!(back.cosigned_at(&member("france"), &key(3).public()), Ok(None));
    }

    #[test]
    fn no_byte_of_a_note_can_be_changed_unseen() {
        let mut note = note();
        note.add(&note.cosign(&member("france"), &key(2), Timestamp::from_ms(5_000)));
        let (text, france, known) = (note.to_string(), member("france"), key(2).public());
        let check = |text: &str| {
            text.parse::<SignedCheckpoint>()
                .and_then(|note| note.verify_all(&key(1).public(), std::iter::once((&france, &known))))
        };
        assert_eq!(check(&text).expect("holds"), vec![france.clone()]);
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                let is_found = String::from_utf8(bytes).map_or(true, |changed| check(&changed).is_err());
                assert!(is_found, "byte {at} bit {bit}");
            }
        }
    }

    /// The example of the package `golang.org/x/mod/sumdb/note`, whose format C2SP signed-note describes.
    #[test]
    fn the_published_key_and_signature_of_another_implementation_hold() {
        let vkey = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
        let text =
            "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n";
        let line = "\u{2014} PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=";
        let bytes = BASE64.decode(vkey.split('+').next_back().expect("a key")).expect("base64");
        let public = PublicKey::from_bytes(bytes[1..].try_into().expect("32 bytes")).expect("a key");
        assert_eq!(super::vkey("PeterNeumann", ED25519, &public), vkey);
        let line = SignatureLine::parse(line).expect("a signature line");
        assert_eq!(line.id, key_id("PeterNeumann", ED25519, &public));
        let signature = Signature::from_bytes(line.signature.try_into().expect("64 bytes"));
        public.verify(text.as_bytes(), &signature).expect("holds");
    }

    #[test]
    fn a_cosignature_is_of_one_checkpoint_of_one_log() {
        let note = note();
        let cosignature = note.cosign(&member("france"), &key(2), Timestamp::from_ms(0));
        let mut other = note.checkpoint().clone();
        cosignature.verify(&other, &key(2).public()).expect("its own");
        other.size += 1;
        assert!(cosignature.verify(&other, &key(2).public()).is_err());
        other = Checkpoint { origin: "tapestry/other".into(), ..note.checkpoint().clone() };
        assert!(cosignature.verify(&other, &key(2).public()).is_err());
        assert!(Cosignature::parse_line(&cosignature.to_line("tapestry/test"), "tapestry/other").is_err());
    }

    #[test]
    fn what_is_no_checkpoint_is_refused() {
        let text = note().to_string();
        for wrong in [
            String::new(),
            text.replace("17", "017"),
            text.replace("17", "+17"),
            text.replace("17", "18446744073709551616"),
            text.replacen('\n', "\nmore\n", 3),
            text.replace('\n', "\r\n"),
            text.trim_end().to_owned(),
            format!("{text}{}", text.lines().last().expect("a line")),
            format!("{text}\n"),
            "x".repeat(MAX_NOTE_BYTES + 1),
        ] {
            assert!(wrong.parse::<SignedCheckpoint>().is_err(), "{wrong}");
        }
    }
}
