"""Writes merge.json: merges and norms computed by Python's own floats, as a check on tapestry-merge.

Needs nothing but Python: python3 make.py > merge.json

Python's float is an IEEE 754 binary64 and never fuses a product with a sum, and `struct` rounds to binary32 and binary16
to nearest, ties to even. bfloat16 is rounded here from exact fractions.
"""

import json
import math
import random
import struct
from fractions import Fraction


def bf16_values():
    """Every finite bfloat16 that is not negative, in order of its bits."""
    return [struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in range(0x7F80)]


BF16 = bf16_values()


def round_bf16(value):
    """The bits of the nearest bfloat16, by a search among all of them and exact distances."""
    sign = 0x8000 if math.copysign(1.0, value) < 0 else 0
    exact = Fraction(abs(value))
    low, high = 0, len(BF16) - 1
    while high - low > 1:
        middle = (low + high) // 2
        if Fraction(BF16[middle]) <= exact:
            low = middle
        else:
            high = middle
    below, above = exact - Fraction(BF16[low]), Fraction(BF16[high]) - exact
    if below == above:
        return sign | (low if low % 2 == 0 else high)
    return sign | (low if below < above else high)


def load(dtype, data):
    if dtype == "F32":
        return list(struct.unpack(f"<{len(data) // 4}f", data))
    if dtype == "F16":
        return list(struct.unpack(f"<{len(data) // 2}e", data))
    return [struct.unpack("<f", struct.pack("<I", bits << 16))[0] for bits in struct.unpack(f"<{len(data) // 2}H", data)]


def store(dtype, value):
    if dtype == "F32":
        return struct.pack("<f", value)
    if dtype == "F16":
        return struct.pack("<e", value)
    return struct.pack("<H", round_bf16(value))


def random_bytes(rng, dtype, count):
    """Finite values over the whole range of the type, and many of everyday size."""
    out = b""
    size = 4 if dtype == "F32" else 2
    while len(out) < count * size:
        if rng.random() < 0.3:
            data = rng.randbytes(size)
            if all(math.isfinite(v) for v in load(dtype, data)):
                out += data
        else:
            out += store(dtype, rng.gauss(0, 0.05))
    return out


def merge(dtype, inputs, shares):
    out = b""
    for values in zip(*(load(dtype, data) for data in inputs)):
        total = shares[0] * values[0]
        for share, value in zip(shares[1:], values[1:]):
            total += share * value
        out += store(dtype, total)
    return out


def relative_change(dtype, base, weights):
    """By exact sums: what the crate gives must agree to the rounding of a few thousand additions."""
    pairs = list(zip(load(dtype, base), load(dtype, weights)))
    change = math.fsum((w - b) ** 2 for b, w in pairs)
    return math.sqrt(change) / math.sqrt(math.fsum(b * b for b, _ in pairs))


def main():
    rng = random.Random(20261123)
    cases = []
    for dtype in ["F32", "BF16", "F16"]:
        for shares in [[1.0], [1 / 3] * 3, [0.5, 0.125, 0.375], [0.7, 0.1, 0.1, 0.1]]:
            inputs = [random_bytes(rng, dtype, 60) for _ in shares]
            base = b"".join(store(dtype, rng.gauss(0, 1)) for _ in range(60))
            moved = b"".join(store(dtype, v + rng.gauss(0, 0.01)) for v in load(dtype, base))
            cases.append({
                "dtype": dtype,
                "shares": shares,
                "inputs": [data.hex() for data in inputs],
                "merged": merge(dtype, inputs, shares).hex(),
                "base": base.hex(),
                "moved": moved.hex(),
                "relative_change": relative_change(dtype, base, moved),
            })
    print(json.dumps(cases, indent=1))


if __name__ == "__main__":
    main()
