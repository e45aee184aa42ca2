//! The shared vocabulary of Tapestry: digests, canonical JSON, keys, signed documents, names, times and model manifests.
//!
//! Layer 0: no clock, files, sockets, environment or ambient randomness. Everything here is a value or a pure function,
//! and every type that is read from outside parses into something that cannot be wrong afterwards.
//!
//! The one idea to know is [`Signed`]: canonical JSON plus Ed25519 signatures, made binding by a [`Quorum`]. Charter,
//! contribution, announcement and log entry are uses of it; there is no second mechanism of authority.

mod canonical;
mod digest;
mod key;
mod manifest;
mod name;
mod signed;
mod time;

pub use canonical::{CanonicalError, to_canonical_json};
pub use digest::{Digest, DigestHasher, ParseDigestError};
pub use key::{KeyError, PublicKey, SecretKey, Signature};
pub use manifest::{Blob, CHUNK_BYTES, Dtype, ManifestError, ModelManifest, TensorSpec, WeightsManifest};
pub use name::{MemberName, NameError};
pub use signed::{Document, Quorum, QuorumError, Signed, SignedError};
pub use time::{Timestamp, format_duration};
