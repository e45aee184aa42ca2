"""Writes log.json: Merkle trees, proofs and signed notes computed apart from Tapestry, as a check on tapestry-ledger.

    python3 -m pip install pymerkle==7.0.0 cryptography==50.0.2
    python3 make.py > log.json

Roots and inclusion proofs of RFC 6962 are pymerkle's. It lists the leaf among the hashes of a path, which RFC 6962 leaves out; the
script has pymerkle verify each proof before it takes that away. Consistency proofs are the recursive definition of RFC 6962, 2.1.2, over
pymerkle's roots, because pymerkle's own have another form (they split subtrees that RFC 6962 keeps whole).
Signatures are OpenSSL's
Ed25519 (inside cryptography); the text of notes and cosignatures is written here from C2SP signed-note, tlog-checkpoint and
tlog-cosignature, and shares no code with ours.
"""
import base64
import hashlib
import json

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pymerkle import InmemoryTree, verify_inclusion

SIZES = [1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 31, 33, 64, 100, 257]


def leaf(n):
    return b"entry %d" % n


tree = InmemoryTree(algorithm="sha256")
for n in range(max(SIZES)):
    tree.append_entry(leaf(n))

leaf_hash = [hashlib.sha256(b"\0" + leaf(n)).digest() for n in range(max(SIZES))]


def root(start, end):
    """MTH of RFC 6962, 2.1, of a part of the entries."""
    part = InmemoryTree(algorithm="sha256")
    for n in range(start, end):
        part.append_entry(leaf(n))
    return part.get_root()


def subproof(old, start, end, is_whole):
    """SUBPROOF of RFC 6962, 2.1.2, word by word."""
    num = end - start
    if old == num:
        return [] if is_whole else [root(start, end)]
    split = 1 << (num - 1).bit_length() - 1
    if old <= split:
        return subproof(old, start, start + split, is_whole) + [root(start + split, end)]
    return subproof(old - split, start + split, end, False) + [root(start, start + split)]


roots = {size: tree.get_root(size) for size in SIZES}
inclusion, consistency = [], []
for size in SIZES:
    for index in sorted({0, 1, size // 3, size // 2, size - 1} & set(range(size))):
        proof = tree.prove_inclusion(index + 1, size)
        verify_inclusion(leaf_hash[index], roots[size], proof)
        path = proof.serialize()["path"]
        own = leaf_hash[index].hex()
        assert path.count(own) == 1
        inclusion.append({"index": index, "size": size, "path": [hash for hash in path if hash != own]})
    for old in [old for old in SIZES if old < size]:
        consistency.append({"old": old, "size": size, "path": [hash.hex() for hash in subproof(old, 0, size, True)]})


def key(n):
    return Ed25519PrivateKey.from_private_bytes(bytes([n]) * 32)


def line(name, kind, key, payload):
    public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
    key_id = hashlib.sha256(name.encode() + b"\n" + bytes([kind]) + public).digest()[:4]
    return f"\u2014 {name} {base64.b64encode(key_id + payload).decode()}\n"


def note(size):
    origin = "tapestry/golden"
    body = f"{origin}\n{size}\n{base64.b64encode(roots[size]).decode()}\n"
    text = body + "\n" + line(origin, 1, key(1), key(1).sign(body.encode()))
    for number, (member, seconds) in enumerate([("france", 1_795_500_000), ("iran", 1_795_500_061)], start=2):
        message = f"cosignature/v1\ntime {seconds}\n{body}".encode()
        text += line(f"{origin}/{member}", 4, key(number), seconds.to_bytes(8, "big") + key(number).sign(message))
    return {"size": size, "text": text}


print(json.dumps({
    "made_by": "pymerkle 7.0.0, cryptography 50.0.2",
    "roots": {str(size): root.hex() for size, root in roots.items()},
    "inclusion": inclusion,
    "consistency": consistency,
    "notes": [note(size) for size in [1, 17, 257]],
}, indent=0))
