//! TLS by hand: a connection that shows what it likes and asks nothing of the server.

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{DigitallySignedStruct, Error, SignatureScheme};
use std::net::SocketAddr;
use std::sync::Arc;
use tapestry_core::{PublicKey, SecretKey};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// A connection of TLS 1.3; with it, the server's refusal of a key comes with the first read.
pub(crate) async fn raw_tls(server: SocketAddr, shown: Shown) -> std::io::Result<TlsStream<TcpStream>> {
    raw_tls_by(server, shown, tapestry_tls::between_members()).await
}

/// The same with another choice of key exchanges.
pub(crate) async fn raw_tls_by(
    server: SocketAddr,
    shown: Shown,
    provider: CryptoProvider,
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_client_cert_resolver(Arc::new(shown));
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = TcpStream::connect(server).await?;
    connector.connect(ServerName::try_from("tapestry.invalid").unwrap(), stream).await
}

/// The key that is shown, and the key that signs.
#[derive(Debug)]
pub(crate) struct Shown(pub(crate) Option<(PublicKey, SecretKey)>);

impl Shown {
    /// One's own key.
    pub(crate) fn own(key: SecretKey) -> Self {
        Self(Some((key.public(), key)))
    }
}

/// A key as TLS takes it, with who signs for it.
pub(crate) fn certified(shown: &PublicKey, signer: &SecretKey) -> Arc<CertifiedKey> {
    let der = signer.to_pkcs8_der();
    let signer = rustls::crypto::ring::sign::any_eddsa_type(&PrivatePkcs8KeyDer::from(der.as_slice())).unwrap();
    Arc::new(CertifiedKey::new(vec![CertificateDer::from(shown.to_spki_der())], signer))
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        let (shown, signer) = self.0.as_ref()?;
        Some(certified(shown, signer))
    }

    fn only_raw_public_keys(&self) -> bool {
        true
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}

/// Whoever answers is fine.
#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
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
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A TLS 1.2 ClientHello, complete but for the extension that would offer TLS 1.3.
pub(crate) fn tls12_hello() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0); // no session
    body.extend([0, 4, 0xc0, 0x2b, 0xcc, 0xa9]); // ECDHE with ECDSA: AES-128-GCM and ChaCha20-Poly1305
    body.extend([1, 0]); // no compression
    let extensions: [&[u8]; 4] = [
        &[0, 10, 0, 4, 0, 2, 0, 29],      // groups: x25519
        &[0, 13, 0, 6, 0, 4, 8, 7, 4, 3], // signatures: Ed25519, ECDSA
        &[0, 11, 0, 2, 1, 0],             // points: uncompressed
        &[0, 23, 0, 0],                   // extended master secret
    ];
    let extensions = extensions.concat();
    body.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    body.extend(extensions);
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    let handshake = [&[1][..], &length[1..], &body].concat();
    let length = u16::try_from(handshake.len()).unwrap().to_be_bytes();
    [&[22, 3, 1][..], &length, &handshake].concat()
}
