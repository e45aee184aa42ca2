//! What can go wrong between two parties.

use std::net::SocketAddr;
use tapestry_core::PublicKey;
use tapestry_store::StoreError;

/// Why a request or a server failed.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// The address cannot be listened on.
    #[error(
        "cannot listen on {address}: {source}. If the port is in use, stop the program that has it or give another one"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The address cannot be understood.
    #[error("{address:?} is not an address; HOST:PORT is expected")]
    Address {
        /// What was given.
        address: String,
    },
    /// Nobody answers there, or the connection broke. Worth trying again.
    #[error("cannot reach {address}: {reason}")]
    Unreachable {
        /// The address.
        address: String,
        /// Why.
        reason: String,
    },
    /// Nothing moved for too long. Worth trying again.
    #[error("nothing has moved between here and {address} for {seconds} s")]
    Idle {
        /// The address.
        address: String,
        /// How long nothing came.
        seconds: u64,
    },
    /// Whoever answers there has another key than expected. Not worth trying again.
    #[error(
        "{address} does not prove key {expected}: it is another party, or somebody is in between. Check the address and \
         the key"
    )]
    WrongServerKey {
        /// The address.
        address: String,
        /// The key that was expected.
        expected: PublicKey,
    },
    /// Whoever answers there is no Tapestry server of this version. Not worth trying again.
    #[error(
        "{address} does not speak TLS 1.3 with raw Ed25519 keys and X25519MLKEM768, so it is another program or an older \
         Tapestry: {reason}. Check the address, and that both sides run the same version"
    )]
    WrongProtocol {
        /// The address.
        address: String,
        /// What TLS said.
        reason: String,
    },
    /// The peer does not accept this key. Not worth trying again until it does.
    #[error("{address} does not accept this key; it is not listed in the charter that is in force there")]
    NotAllowed {
        /// The address.
        address: String,
    },
    /// The peer answered, and said no.
    #[error("{error} (status {status})")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The reason it gave.
        error: String,
        /// Whether it may say yes later.
        retry: bool,
    },
    /// What is to be sent is larger than any server reads, so nothing was sent. Not worth trying again.
    #[error(
        "{found} bytes are too many for one request to {address}{path}, of at most {}; nothing was sent. Send less",
        crate::server::MAX_DISCARDED_BYTES
    )]
    QuestionTooLarge {
        /// The address.
        address: String,
        /// What was asked for.
        path: String,
        /// Bytes that it would have had.
        found: u64,
    },
    /// The answer is larger than accepted.
    #[error("the answer of {address} is larger than {limit} bytes")]
    TooLarge {
        /// The address.
        address: String,
        /// The bound.
        limit: usize,
    },
    /// The answer is not what was asked for.
    #[error("the answer of {address} cannot be read: {reason}")]
    Unreadable {
        /// The address.
        address: String,
        /// What the parser said.
        reason: String,
    },
    /// A chunk came that is not the one that was asked for, or the store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up: {0}")]
    Tls(#[from] rustls::Error),
}

impl NetError {
    /// Whether the same request may succeed later without anybody here doing anything about it.
    #[must_use]
    pub const fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Idle { .. } => true,
            Self::Refused { status, retry, .. } => *retry && *status != PRECONDITION_FAILED,
            Self::Listen { .. }
            | Self::Address { .. }
            | Self::WrongServerKey { .. }
            | Self::WrongProtocol { .. }
            | Self::NotAllowed { .. }
            | Self::QuestionTooLarge { .. }
            | Self::TooLarge { .. }
            | Self::Unreadable { .. }
            | Self::Store(_)
            | Self::Tls(_) => false,
        }
    }

    /// Whether the peer understood the request and said no: repeating it alone changes nothing.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { .. }) && !self.is_transient()
    }
}

/// The same request may succeed, but only after another one: the asker has to send something first.
const PRECONDITION_FAILED: u16 = 412;
