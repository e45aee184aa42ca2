//! What every TLS connection of Tapestry has in common: which key exchange it may use.
//!
//! Whoever records a connection today and has a quantum computer later computes every secret that X25519 alone agreed on, and reads
//! the weights that went over it. So the key exchange here is [`X25519MLKEM768`]: ML-KEM-768 and X25519 side by side, each with its
//! own keys, and the connection's keys follow from both secrets. It is as hard to break as the harder of the two; an error in
//! the young one, in the mathematics or in its code, leaves what X25519 gives.
//!
//! Not here: who may connect (`tapestry-net`), which certificates are believed (the operating system), and signatures. A signature
//! is checked while the connection is made, so a quantum computer of later does not help to forge it; `SECURITY.md` says
//! what follows for those that live longer.
//!
//! # Source
//! RFC 10024 (key shares, their order, what is checked), RFC 9954 (why a concatenation is sound in TLS 1.3), FIPS 203 (ML-KEM).

mod hybrid;
mod mlkem;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test")]
mod tests;

use rustls::crypto::{CryptoProvider, SupportedKxGroup, ring};

/// The key exchange group X25519MLKEM768, code point 0x11EC, of TLS 1.3.
///
/// # Source
/// RFC 10024, section 4.
pub static X25519MLKEM768: &dyn SupportedKxGroup = &hybrid::X25519MlKem768;

/// For connections of which both ends are Tapestry's: [`X25519MLKEM768`] and nothing else.
///
/// X25519 alone is not kept for older versions. As long as one side of a pair accepted it, whoever recorded that pair would have what
/// the exchange is there to keep from them, and no message would say so. Nobody in between can bring a group about that is not
/// spoken here.
#[must_use]
pub fn between_members() -> CryptoProvider {
    CryptoProvider { kx_groups: vec![X25519MLKEM768], ..ring::default_provider() }
}

/// For connections to a server that somebody else runs, such as a bucket: [`X25519MLKEM768`] first, then what `ring` offers.
///
/// A server that does not know the hybrid chooses X25519, whose share is sent along, and no round trip is lost. Nobody in between
/// can bring that about: the server's signature covers what both sides offered (RFC 9846, section 4.5.2).
#[must_use]
pub fn to_foreign_servers() -> CryptoProvider {
    let mut provider = ring::default_provider();
    provider.kx_groups.insert(0, X25519MLKEM768);
    provider
}
