"""Writes mergekit.json: merges computed by mergekit itself, as a check on tapestry-merge.

Needs mergekit 0.1.5 (with torch) and blake3: python3 make_mergekit.py > mergekit.json

mergekit runs in binary64 here, so that what differs is the method and not the precision. Its random mask is replaced by that
of `philox.py` (`torch.bernoulli` is the only thing replaced), its rescaling to the old sum of magnitudes is off, and its
`lambda` is scale / density instead: what the DARE paper does, and the crate.

`tolerance` is how far the crate may be off, as an absolute number. Both add a handful of binary64 numbers, of which none is
larger than `size`, the largest magnitude among the values times scale / density: 2^-49 of it covers sixteen roundings.
In the group "float" changes are not whole numbers of a step, and the crate rounds them to binary32: 2^-24 of the largest
change, times scale / density, on top. (Model Stock and SLERP get 2^-44 for inner products of up to 130 elements, and Model Stock
2^-22 where changes are rounded, because its ratio depends on them. Where changes disagree on the whole, mergekit's ratio falls
below zero and the crate's does not: no such tensor here.)
"""

import json
from unittest import mock

import numpy as np
import torch
from mergekit.merge_methods.base import TensorGroup
from mergekit.merge_methods.registry import get
from philox import is_kept

SIZES = {"embed": 130, "layers.0.norm": 7, "layers.0.up": 100, "layers.1.up": 33}


def on_a_grid(rng, shape):
    """Whole numbers of 2^-20 below 2 in magnitude: their differences are exact in binary32."""
    return rng.integers(-(2**21) + 1, 2**21, shape).astype(np.float64) / 2**20


def values(group, rng, num_members):
    base, members = {}, [{} for _ in range(num_members)]
    for name, size in SIZES.items():
        if group == "grid":
            base[name] = on_a_grid(rng, size)
            common = on_a_grid(rng, size)
            for member in members:
                own = on_a_grid(rng, size)
                member[name] = np.where(rng.random(size) < 0.3, common, own)
        else:
            base[name] = rng.normal(0, 1, size).astype(np.float32).astype(np.float64)
            common = rng.normal(0, 0.02, size)
            for member in members:
                change = common + rng.normal(0, 0.02, size)
                member[name] = (base[name] + change).astype(np.float32).astype(np.float64)
        # Nothing changed; one against another and the rest nothing, so that neither sign is stronger.
        for member in members:
            member[name][0] = base[name][0]
            member[name][1] = base[name][1] = 0.25
        step = 1.5 if group == "grid" else 1 / 32
        members[0][name][1], members[1][name][1] = 0.25 + step, 0.25 - step
    return base, members


def no_ties(base, members):
    """At a threshold mergekit keeps some of several equal magnitudes, the crate all: no such case here."""
    for member in members:
        for name in SIZES:
            changes = np.abs((member[name] - base[name]).astype(np.float32))
            changes = changes[changes > 0]
            if len(np.unique(changes)) < len(changes):
                return False
    return True


def merge(method, base, members, names, weights=None, mask=None, **parameters):
    """One call of a method of mergekit for each tensor, in binary64."""
    merged = {}
    for name in SIZES:
        rows = ([] if base is None else [base[name]]) + [member[name] for member in members]
        ids = ([] if base is None else ["base"]) + names
        tensors = [torch.tensor(row, dtype=torch.float64) for row in rows]
        group = TensorGroup.from_tensors(tensors, ids=ids, base_index=None if base is None else 0, name=name)
        given = dict(parameters)
        if weights is not None:
            given["weight"] = dict(zip(names, weights))
        order = iter(names)

        def bernoulli(probabilities):
            member = next(order)
            kept = [is_kept(*mask, member, name, index) for index in range(len(probabilities))]
            return torch.tensor(kept, dtype=probabilities.dtype)

        with mock.patch("torch.bernoulli", bernoulli):
            (result,) = get(method)([group], parameters=given, dtype=torch.float64)
        merged[name] = result.numpy()
    return merged


def hex32(rows):
    return [rows[name].astype("<f4").tobytes().hex() for name in SIZES]


def main():
    rng = np.random.default_rng(20261123)
    groups = []
    for kind, num_members in [("grid", 3), ("float", 5), ("float", 2)]:
        base, members = values(kind, rng, num_members)
        while not no_ties(base, members):
            base, members = values(kind, rng, num_members)
        # In the order of their bytes, which is the crate's.
        names = ["clinic", "museum", "parish", "school", "Ünion"][:num_members]
        uneven = np.arange(1, num_members + 1) ** 1.5
        uneven = [float(share) for share in uneven / uneven.sum()]
        even = [1 / num_members] * num_members
        size = max(np.abs(rows[name]).max() for rows in [base, *members] for name in SIZES)
        change = max(np.abs(member[name] - base[name]).max() for member in members for name in SIZES)
        rounded = 0.0 if kind == "grid" else 2.0**-24 * change
        cases = []

        def case(method, shares, merged, tolerance):
            merged = [merged[name].astype("<f8").tobytes().hex() for name in SIZES]
            cases.append({"method": method, "shares": shares, "tolerance": float(tolerance), "merged": merged})

        for shares in [even, uneven] if kind == "grid" else [uneven]:
            case({"name": "fedavg"}, shares, merge("linear", None, members, names, shares), 2.0**-49 * size)
            for scale in (1.0, 0.7, float(num_members)):
                merged = merge("task_arithmetic", base, members, names, shares, **{"lambda": scale})
                # (1 - scale) base and scale x are as large as the sum of their magnitudes.
                tolerance = 2.0**-49 * size * (1 + 2 * scale)
                case({"name": "task-arithmetic", "scale": scale}, shares, merged, tolerance)
            for density, scale in [(0.2, 1.0), (0.29, 0.7), (0.5, 1.5), (1.0, 1.0)]:
                merged = merge("ties", base, members, names, shares, density=density, **{"lambda": scale})
                tolerance = (2.0**-49 * size + rounded) * max(scale, 1.0)
                case({"name": "ties", "density": density, "scale": scale}, shares, merged, tolerance)
            for density, scale, seed in [(0.5, 1.0, 7), (0.25, 0.7, 2**53 - 1), (0.9, 1.3, 0), (1.0, 1.0, 1)]:
                for ours, theirs in [("dare", "dare_linear"), ("dare-ties", "dare_ties")]:
                    times = scale / density
                    merged = merge(
                        theirs, base, members, names, shares, (seed, density),
                        density=density, rescale=False, **{"lambda": times},
                    )
                    method = {"name": ours, "density": density, "seed": seed, "scale": scale}
                    case(method, shares, merged, (2.0**-49 * size + rounded) * max(times, 1.0))
            if num_members == 2:
                a, b = members
                merged = {}
                for name in SIZES:
                    rows = [torch.tensor(row[name], dtype=torch.float64) for row in (a, b)]
                    group = TensorGroup.from_tensors(rows, base_index=0)
                    (result,) = get("slerp")([group], parameters={"t": shares[1]}, dtype=torch.float64)
                    merged[name] = result.numpy()
                case({"name": "slerp"}, shares, merged, 2.0**-44 * size)
        tolerance = (2.0**-44 if kind == "grid" else 2.0**-22) * size
        case({"name": "model-stock"}, even, merge("model_stock", base, members, names), tolerance)
        groups.append({
            "tensors": list(SIZES), "base": hex32(base), "cases": cases,
            "members": [{"name": name, "tensors": hex32(member)} for name, member in zip(names, members)],
        })
    groups.append(angles(rng))
    print(json.dumps(groups, indent=1))


def angles(rng):
    """Pairs of tensors at angles of all kinds, round the bound where SLERP follows the line."""
    size = 100
    cosines = [-1.0, -0.9996, -0.9994, -0.5, 0.0, 0.5, 0.9994, 0.9996, 1.0]
    first, second = [], []
    for cosine in cosines:
        a, b = rng.normal(0, 1, (2, size))
        b -= a * (a @ b) / (a @ a)
        b = cosine * a + np.sqrt(1 - cosine**2) * b * np.linalg.norm(a) / np.linalg.norm(b)
        first.append(a.astype(np.float32).astype(np.float64))
        second.append((1.5 * b).astype(np.float32).astype(np.float64))
    cases = []
    for t in (0.1, 0.5, 0.75):
        rows = [TensorGroup.from_tensors([torch.tensor(a), torch.tensor(b)], base_index=0) for a, b in zip(first, second)]
        merged = get("slerp")(rows, parameters={"t": t}, dtype=torch.float64)
        # Just within the bound the sine of the angle is 0.035: rounding the cosine moves the angle by 2^-53 / 0.035, that moves the
        # coefficients by as much over 0.035 again, of a size of up to 30 between opposed tensors: 2^-35 for values of up to 5.
        merged = [row.numpy().astype("<f8").tobytes().hex() for row in merged]
        cases.append({"method": {"name": "slerp"}, "shares": [1 - t, t], "tolerance": 2.0**-35, "merged": merged})
    as_hex = lambda rows: [row.astype("<f4").tobytes().hex() for row in rows]
    members = [{"name": "a", "tensors": as_hex(first)}, {"name": "b", "tensors": as_hex(second)}]
    return {"tensors": [f"cosine {c}" for c in cosines], "base": as_hex(first), "members": members, "cases": cases}


if __name__ == "__main__":
    main()
