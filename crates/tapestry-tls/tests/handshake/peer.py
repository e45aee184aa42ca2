"""The other end of a handshake, by OpenSSL: prints a line of JSON for each connection.

    peer.py server CERTIFICATE KEY     writes both files (DER), prints its port, and answers one connection
    peer.py client PORT                connects to 127.0.0.1

Each side sends a line and reads one. Needs pyOpenSSL 25 or newer, with OpenSSL 3.5 or newer inside of `cryptography`.
"""
import datetime
import json
import socket
import sys

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from OpenSSL import SSL, crypto

SAID = b"from OpenSSL\n"


def self_signed():
    key = Ed25519PrivateKey.generate()
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tapestry.invalid")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
    builder = builder.not_valid_before(now - datetime.timedelta(1)).not_valid_after(now + datetime.timedelta(1))
    return builder.sign(key, None), key


def context(method):
    made = SSL.Context(method)
    made.set_min_proto_version(SSL.TLS1_3_VERSION)
    return made


def talk(connection):
    connection.do_handshake()
    connection.sendall(SAID)
    heard = b""
    while not heard.endswith(b"\n"):
        heard += connection.recv(100)
    openssl = SSL.SSLeay_version(SSL.SSLEAY_VERSION).decode()
    print(json.dumps({"group": connection.get_group_name(), "heard": heard.decode(), "by": openssl}), flush=True)


def serve(certificate_file, key_file):
    certificate, key = self_signed()
    with open(certificate_file, "wb") as file:
        file.write(certificate.public_bytes(Encoding.DER))
    with open(key_file, "wb") as file:
        file.write(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    made = context(SSL.TLS_SERVER_METHOD)
    made.use_certificate(crypto.X509.from_cryptography(certificate))
    made.use_privatekey(crypto.PKey.from_cryptography_key(key))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)
        connection = SSL.Connection(made, listener.accept()[0])
        connection.set_accept_state()
        talk(connection)


def connect(port):
    with socket.create_connection(("127.0.0.1", int(port)), timeout=20) as stream:
        stream.settimeout(None)
        connection = SSL.Connection(context(SSL.TLS_CLIENT_METHOD), stream)
        connection.set_connect_state()
        talk(connection)


{"server": serve, "client": connect}[sys.argv[1]](*sys.argv[2:])
