//! Keys as TLS identities (RFC 7250 raw public keys, TLS 1.3 and X25519MLKEM768 only).

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, CipherSuite, ClientConfig, DigitallySignedStruct, DistinguishedName, Error, ServerConfig,
    SignatureScheme,
};
use std::fmt;
use std::sync::Arc;
use tapestry_core::{PublicKey, SecretKey};

/// The key that the other side of a connection has proved; an extension of every request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub PublicKey);

/// What is spoken inside (RFC 7301).
const HTTP_1_1: &[u8] = b"http/1.1";

/// How much is encrypted before it goes to the system, so that it is called seldom.
pub(crate) const TLS_BUFFER_BYTES: usize = 256 << 10;

/// Which keys get through the handshake.
type AllowedKeys = dyn Fn(&PublicKey) -> bool + Send + Sync;

fn certified(key: &SecretKey) -> Result<Arc<CertifiedKey>, Error> {
    let der = key.to_pkcs8_der();
    let signing = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice()))?;
    let public = CertificateDer::from(key.public().to_spki_der());
    Ok(Arc::new(CertifiedKey::new(vec![public], signing)))
}

fn algorithms() -> WebPkiSupportedAlgorithms {
    rustls::crypto::ring::default_provider().signature_verification_algorithms
}

/// With AES-128 first: it is as strong as the keys of both sides, a quantum computer does not undo it (SECURITY.md), and weights are
/// many bytes.
fn provider() -> CryptoProvider {
    let mut provider = tapestry_tls::between_members();
    provider.cipher_suites.sort_by_key(|suite| suite.suite() != CipherSuite::TLS13_AES_128_GCM_SHA256);
    provider
}

/// The key that a peer shows. It has proved nothing yet.
pub(crate) fn shown_key(certificate: &CertificateDer<'_>) -> Result<PublicKey, Error> {
    PublicKey::from_spki_der(certificate.as_ref()).map_err(|_| CertificateError::BadEncoding.into())
}

fn check_signature(
    message: &[u8],
    certificate: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let spki = SubjectPublicKeyInfoDer::from(certificate.as_ref());
    verify_tls13_signature_with_raw_key(message, &spki, signature, &algorithms())
}

fn only_tls13() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken here".into()))
}

/// Lets through the clients whose key is allowed.
struct Clients(Arc<AllowedKeys>);

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clients")
    }
}

impl ClientCertVerifier for Clients {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let key = shown_key(end_entity)?;
        if intermediates.is_empty() && (self.0)(&key) {
            return Ok(ClientCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// Talks to the one server that has this key.
#[derive(Debug)]
struct TheServer(PublicKey);

impl ServerCertVerifier for TheServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if shown_key(end_entity)? == self.0 {
            return Ok(ServerCertVerified::assertion());
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        only_tls13()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// The server's side: proves `key`, lets in the keys that `allow` accepts.
pub(crate) fn server_config(key: &SecretKey, allow: Arc<AllowedKeys>) -> Result<ServerConfig, Error> {
    let provider = Arc::new(provider());
    let resolver = rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(key)?);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(Clients(allow)))
        .with_cert_resolver(Arc::new(resolver));
    // Every connection proves its keys anew, so that who left the charter does not come back on an old session.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    Ok(config)
}

/// The dialling side: proves `key`, and talks to nobody but the owner of `expected`.
pub(crate) fn client_config(key: &SecretKey, expected: PublicKey) -> Result<ClientConfig, Error> {
    let provider = Arc::new(provider());
    let resolver = rustls::client::AlwaysResolvesClientRawPublicKeys::new(certified(key)?);
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(TheServer(expected)))
        .with_client_cert_resolver(Arc::new(resolver));
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_sni = false;
    config.alpn_protocols = vec![HTTP_1_1.to_vec()];
    Ok(config)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a test")]
mod tests {
    use super::*;
    use rustls::{ClientConnection, NamedGroup, ServerConnection};
    use zeroize::Zeroizing;

    #[test]
    fn both_ends_agree_on_their_keys_by_the_hybrid() {
        let [member, server] = [1, 2].map(|n| SecretKey::from_seed(&Zeroizing::new([n; 32])));
        let client = client_config(&member, server.public()).unwrap();
        let server = server_config(&server, Arc::new(|_: &PublicKey| true)).unwrap();
        let name = ServerName::try_from("tapestry.invalid").unwrap();
        let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
        let mut server = ServerConnection::new(Arc::new(server)).unwrap();
        let mut wire = vec![];
        while client.is_handshaking() || server.is_handshaking() {
            client.write_tls(&mut wire).unwrap();
            server.read_tls(&mut wire.as_slice()).unwrap();
            server.process_new_packets().unwrap();
            wire.clear();
            server.write_tls(&mut wire).unwrap();
            client.read_tls(&mut wire.as_slice()).unwrap();
            client.process_new_packets().unwrap();
            wire.clear();
        }
        let client = client.negotiated_key_exchange_group().unwrap().name();
        assert_eq!(client, NamedGroup::X25519MLKEM768);
        assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), client);
    }
}
