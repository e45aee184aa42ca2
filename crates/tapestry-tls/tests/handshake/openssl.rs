//! The same handshake with an independent implementation, where one is at hand: OpenSSL 3.5 or newer through Python's pyOpenSSL
//! (`peer.py`). Where there is none these tests say so and check nothing.
//!
//!     python3 -m venv DIR && DIR/bin/pip install pyopenssl
//!     TAPESTRY_PEER_PYTHON=DIR/bin/python cargo test --release -p tapestry-tls openssl
//!
//! It proves the group, not members' identities: pyOpenSSL speaks of certificates where we speak of raw keys.

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, Error, NamedGroup, SignatureScheme};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use tapestry_tls::between_members;

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/handshake/peer.py");
const SAID: &str = "from rustls\n";
/// Whether Python has what `peer.py` needs.
const PROBE: &str = "import sys; from OpenSSL import SSL; v = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode().split()[1]; \
                     sys.exit(not (hasattr(SSL.Connection, 'get_group_name') and tuple(map(int, v.split('.')[:2])) >= (3, 5)))";

/// A Python that can be the other end, if there is one.
fn python() -> Option<String> {
    let python = std::env::var("TAPESTRY_PEER_PYTHON").unwrap_or_else(|_| "python3".into());
    let mut probe = Command::new(&python);
    let works = probe.args(["-c", PROBE]).stderr(Stdio::null()).status().is_ok_and(|status| status.success());
    if !works {
        // Not `eprintln!`, of which the test runner shows nothing when a test passes.
        let said = "skipped: there is no pyOpenSSL with OpenSSL 3.5 or newer (TAPESTRY_PEER_PYTHON names a Python)\n";
        std::io::stderr().write_all(said.as_bytes()).unwrap();
    }
    works.then_some(python)
}

struct Peer {
    process: Child,
    said: BufReader<ChildStdout>,
}

impl Peer {
    fn start(python: &str, arguments: &[&str]) -> Self {
        let mut process = Command::new(python).arg(PEER).args(arguments).stdout(Stdio::piped()).spawn().unwrap();
        let said = BufReader::new(process.stdout.take().unwrap());
        Self { process, said }
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("peer.py said {line:?}: {error}"))
    }

    fn check_end(mut self) {
        let end = self.line();
        assert_eq!((end["group"].as_str(), end["heard"].as_str()), (Some("X25519MLKEM768"), Some(SAID)), "{end}");
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn openssl_as_the_server_agrees_with_us() {
    let Some(python) = python() else { return };
    let folder = tempfile::tempdir().unwrap();
    let files = ["certificate", "key"].map(|name| folder.path().join(name).display().to_string());
    let mut peer = Peer::start(&python, &["server", &files[0], &files[1]]);
    let port = u16::try_from(peer.line()["port"].as_u64().unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(between_members()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    let name = ServerName::try_from("tapestry.invalid").unwrap();
    let client = ClientConnection::new(Arc::new(config), name).unwrap();
    let mut stream = StreamOwned::new(client, TcpStream::connect(("127.0.0.1", port)).unwrap());
    talk(&mut stream);
    let group = stream.conn.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    peer.check_end();
}

#[test]
fn openssl_as_the_client_agrees_with_us() {
    let Some(python) = python() else { return };
    // Only for a certificate: this one serves nobody.
    let folder = tempfile::tempdir().unwrap();
    let files = ["certificate", "key"].map(|name| folder.path().join(name));
    let mut maker = Peer::start(&python, &["server", &files[0].display().to_string(), &files[1].display().to_string()]);
    maker.line();
    drop(maker);
    let [certificate, key] = files.map(|file| std::fs::read(file).unwrap());
    let config = ServerConfig::builder_with_provider(Arc::new(between_members()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from(certificate)], PrivatePkcs8KeyDer::from(key).into())
        .unwrap();
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let peer = Peer::start(&python, &["client", &port.to_string()]);
    let server = ServerConnection::new(Arc::new(config)).unwrap();
    let mut stream = StreamOwned::new(server, listener.accept().unwrap().0);
    talk(&mut stream);
    let group = stream.conn.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, NamedGroup::X25519MLKEM768);
    peer.check_end();
}

fn talk<S: std::io::Read + std::io::Write>(stream: &mut S) {
    stream.write_all(SAID.as_bytes()).unwrap();
    stream.flush().unwrap();
    let mut heard = String::new();
    BufReader::new(stream).read_line(&mut heard).unwrap();
    assert_eq!(heard, "from OpenSSL\n");
}

/// Whoever answers is fine: what is tested is the key exchange.
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
        Err(Error::General("not asked for".into()))
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
}
