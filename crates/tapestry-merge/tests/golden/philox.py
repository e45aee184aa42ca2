"""DARE's mask, from the published descriptions alone: Philox 4x32-10 and BLAKE3 of what a draw depends on.

NumPy has Philox 4x64 only, so the 4x32 is written out here, one element at a time, and checked against the known answers of
the authors' Random123.
"""

import struct

from blake3 import blake3

MASK = 0xFFFFFFFF


def philox4x32(counter, key, num_rounds=10):
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(num_rounds):
        low, high = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (high >> 32) ^ c1 ^ k0, high & MASK, (low >> 32) ^ c3 ^ k1, low & MASK
        k0, k1 = (k0 + 0x9E3779B9) & MASK, (k1 + 0xBB67AE85) & MASK
    return c0, c1, c2, c3


assert philox4x32((0,) * 4, (0,) * 2) == (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)
assert philox4x32((MASK,) * 4, (MASK,) * 2) == (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)
assert philox4x32(
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
) == (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)


def draw(seed, member, tensor, index):
    """A whole number below 2^32 for one element of one tensor of one member."""
    text = struct.pack("<Q", seed)
    for part in (member, tensor):
        data = part.encode()
        text += struct.pack("<Q", len(data)) + data
    k0, k1, s0, s1 = struct.unpack("<4I", blake3(text).digest()[:16])
    group = index // 4
    return philox4x32((group & MASK, group >> 32, s0, s1), (k0, k1))[index % 4]


def is_kept(seed, density, member, tensor, index):
    return draw(seed, member, tensor, index) < int(density * 2**32)
