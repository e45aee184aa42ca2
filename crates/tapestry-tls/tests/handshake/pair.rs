//! Two ends of TLS 1.3 in one thread, each proving an Ed25519 key (RFC 7250), as members do; and what goes between them.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, DistinguishedName, Error, NamedGroup, ServerConfig,
    ServerConnection, SignatureScheme,
};
use std::sync::Arc;

/// Both sides' settings; each may choose its own key exchanges.
pub(crate) fn configs(client: CryptoProvider, server: CryptoProvider) -> (Arc<ClientConfig>, Arc<ServerConfig>) {
    let tls13 = [&rustls::version::TLS13];
    let client = ClientConfig::builder_with_provider(Arc::new(client)).with_protocol_versions(&tls13).unwrap();
    let own = rustls::client::AlwaysResolvesClientRawPublicKeys::new(certified(1));
    let client = client.dangerous().with_custom_certificate_verifier(Arc::new(AnyKey));
    let server = ServerConfig::builder_with_provider(Arc::new(server)).with_protocol_versions(&tls13).unwrap();
    let of_server = rustls::server::AlwaysResolvesServerRawPublicKeys::new(certified(2));
    let server = server.with_client_cert_verifier(Arc::new(AnyKey)).with_cert_resolver(Arc::new(of_server));
    (Arc::new(client.with_client_cert_resolver(Arc::new(own))), Arc::new(server))
}

/// An Ed25519 key of 32 bytes that are all `n`.
fn certified(n: u8) -> Arc<CertifiedKey> {
    // RFC 8410, section 7: a key of Ed25519 in PKCS #8 is these 16 bytes, then its seed.
    let der = [&b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"[..], &[n; 32]].concat();
    let key = ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der)).unwrap();
    let public = CertificateDer::from(key.public_key().unwrap().to_vec());
    Arc::new(CertifiedKey::new(vec![public], key))
}

/// What a handshake came to.
#[derive(Debug)]
pub(crate) struct Agreed {
    pub(crate) group: NamedGroup,
    pub(crate) client_sent: usize,
    pub(crate) server_sent: usize,
    /// How often the client waited for an answer.
    pub(crate) round_trips: usize,
}

/// A handshake from its beginning; `on_the_way` may change what the client sends.
pub(crate) fn handshake(
    configs: &(Arc<ClientConfig>, Arc<ServerConfig>),
    mut on_the_way: impl FnMut(&mut Vec<u8>),
) -> Result<Agreed, Error> {
    let name = ServerName::try_from("tapestry.invalid").unwrap();
    let mut client = ClientConnection::new(Arc::clone(&configs.0), name)?;
    let mut server = ServerConnection::new(Arc::clone(&configs.1))?;
    let (mut client_sent, mut server_sent, mut round_trips) = (0, 0, 0);
    while client.is_handshaking() || server.is_handshaking() {
        round_trips += usize::from(client.is_handshaking());
        let mut wire = vec![];
        while client.wants_write() {
            client_sent += client.write_tls(&mut wire).unwrap();
        }
        on_the_way(&mut wire);
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            server.read_tls(&mut wire).unwrap();
            server.process_new_packets()?;
        }
        let mut wire = vec![];
        while server.wants_write() {
            server_sent += server.write_tls(&mut wire).unwrap();
        }
        let mut wire = wire.as_slice();
        while !wire.is_empty() {
            client.read_tls(&mut wire).unwrap();
            client.process_new_packets()?;
        }
    }
    let group = client.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(server.negotiated_key_exchange_group().unwrap().name(), group);
    Ok(Agreed { group, client_sent, server_sent, round_trips })
}

/// Whoever proves a key is let in.
#[derive(Debug)]
struct AnyKey;

fn check(
    message: &[u8],
    key: &CertificateDer<'_>,
    signed: &DigitallySignedStruct,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = ring::default_provider().signature_verification_algorithms;
    verify_tls13_signature_with_raw_key(message, &SubjectPublicKeyInfoDer::from(key.as_ref()), signed, &algorithms)
}

impl ServerCertVerifier for AnyKey {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("not asked for".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

impl ClientCertVerifier for AnyKey {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("not asked for".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        key: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        check(message, key, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}
