"""Writes x25519mlkem768.json: whole key exchanges computed apart from Tapestry, as a check on tapestry-tls.

    python3 -m pip install kyber-py==1.2.0 cryptography==50.0.2
    python3 make.py > x25519mlkem768.json

ML-KEM-768 is computed twice, by kyber-py (pure Python) and by OpenSSL (inside cryptography), and the script stops where
they differ; X25519 by OpenSSL. The order of the parts is that of RFC 10024, section 4. The randomness of a case is SHAKE-256 of its
number, so that the file can be made again.
"""
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from kyber_py.ml_kem import ML_KEM_768

Q = 3329


def both_agree(ours, theirs):
    assert ours == theirs, "kyber-py and OpenSSL differ"
    return ours


def opened(seed, ciphertext):
    """What both libraries take out of a ciphertext."""
    _, slow = ML_KEM_768.key_derive(seed)
    fast = MLKEM768PrivateKey.from_seed_bytes(seed)
    return both_agree(ML_KEM_768.decaps(slow, ciphertext), fast.decapsulate(ciphertext))


def exchange(number):
    """One exchange, and what becomes of it when one bit of the ciphertext changes on its way."""
    stream = hashlib.shake_256(f"x25519mlkem768 {number}".encode()).digest(160)
    seed, message, client, server = stream[:64], stream[64:96], stream[96:128], stream[128:]
    key, _ = ML_KEM_768.key_derive(seed)
    both_agree(key, MLKEM768PrivateKey.from_seed_bytes(seed).public_key().public_bytes_raw())
    secret, ciphertext = ML_KEM_768._encaps_internal(key, message)
    both_agree(secret, opened(seed, ciphertext))
    client, server = (X25519PrivateKey.from_private_bytes(b) for b in (client, server))
    agreed = both_agree(client.exchange(server.public_key()), server.exchange(client.public_key()))
    bit = int.from_bytes(stream[:4], "little") % (8 * len(ciphertext))
    changed = bytearray(ciphertext)
    changed[bit // 8] ^= 1 << bit % 8
    server_key = server.public_key().public_bytes_raw()
    return {
        "seed": seed.hex(),
        "message": message.hex(),
        "client_x25519": client.private_bytes_raw().hex(),
        "server_x25519": server.private_bytes_raw().hex(),
        "client_share": (key + client.public_key().public_bytes_raw()).hex(),
        "server_share": (ciphertext + server_key).hex(),
        "secret": (secret + agreed).hex(),
        "changed_bit": bit,
        "secret_after_change": (opened(seed, bytes(changed)) + agreed).hex(),
    }


def refused_key(name, place, value):
    """An encapsulation key of which one coefficient is not reduced: both libraries refuse it."""
    key = bytearray(ML_KEM_768.key_derive(hashlib.shake_256(b"refused").digest(64))[0])
    at, odd = place // 2 * 3, place % 2
    pair = int.from_bytes(key[at : at + 3], "little")
    pair = pair & 0x000FFF | value << 12 if odd else pair & 0xFFF000 | value
    key[at : at + 3] = pair.to_bytes(3, "little")
    for load in (ML_KEM_768.encaps, lambda k: MLKEM768PublicKey.from_public_bytes(k).encapsulate()):
        try:
            load(bytes(key))
        except ValueError:
            continue
        raise AssertionError(f"{name} is taken")
    return {"name": name, "key": bytes(key).hex()}


def small_orders():
    """Keys of X25519 with which every secret is zero: OpenSSL refuses them too."""
    keys = {
        "zero": bytes(32),
        "one": (1).to_bytes(32, "little"),
        "order 8": bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
        "order 8, the other": bytes.fromhex("5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157"),
        "p - 1": (2**255 - 20).to_bytes(32, "little"),
        "p": (2**255 - 19).to_bytes(32, "little"),
        "p + 1": (2**255 - 18).to_bytes(32, "little"),
    }
    for name, key in keys.items():
        try:
            X25519PrivateKey.generate().exchange(X25519PublicKey.from_public_bytes(key))
        except ValueError:
            continue
        raise AssertionError(f"{name} is taken")
    return [{"name": name, "key": key.hex()} for name, key in keys.items()]


print(json.dumps({
    "exchanges": [exchange(number) for number in range(8)],
    "refused_keys": [
        refused_key("the first coefficient is q", 0, Q),
        refused_key("the second coefficient is q", 1, Q),
        refused_key("a coefficient in the middle is the greatest of 12 bits", 401, 4095),
        refused_key("the last coefficient is q", 767, Q),
    ],
    "small_orders": small_orders(),
}, indent=1))
