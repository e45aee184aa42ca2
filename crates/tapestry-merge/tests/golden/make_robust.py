"""Writes robust.json: robust merges computed by NumPy from the values themselves, as a check on tapestry-merge.

Needs NumPy: python3 make_robust.py > robust.json

The crate computes distances from inner products and returns combinations; here everything is done with the vectors, and the
geometric median is iterated from the plain mean until it no longer moves, so the two share no step.

`exact` says that the result is defined to the last bit (sorting, sums in ascending order in binary64). All others are
compared to the precision of the field `tolerance`, times the median distance between two members:
* Krum selects or does not, and means of a few binary64 differ by rounding only: 1e-12.
* what is lost where distances come from inner products is a few hundred roundings of 1e-16 here: 1e-12.
* the geometric median ends with a step of 1e-9 of its radius, and where it lies near a member a hundred times this can be
  left to go: 1e-7.
"""

import json

import numpy as np

LENGTHS = {"attention": 37, "embedding": 70, "norm": 3}


def as_hex(values):
    """binary32, little-endian."""
    return values.astype("<f4").tobytes().hex()


def as_hex64(values):
    return values.astype("<f8").tobytes().hex()


def median(x, base, shares):
    return np.median(x, axis=0)


def trimmed_mean(x, base, shares, trim):
    kept = np.sort(x, axis=0)[trim : len(x) - trim]
    total = kept[0].copy()
    for row in kept[1:]:
        total = total + row
    return total / len(kept)


def krum_scores(x, faulty):
    n = len(x)
    scores = []
    for i in range(n):
        squares = sorted(float(np.sum((x[i] - x[j]) ** 2)) for j in range(n) if j != i)
        scores.append(sum(squares[: n - faulty - 2]))
    return np.array(scores)


def krum(x, base, shares, faulty):
    return x[np.argmin(krum_scores(x, faulty))]


def multi_krum(x, base, shares, faulty, selected=None):
    selected = selected or len(x) - faulty - 2
    nearest = np.argsort(krum_scores(x, faulty), kind="stable")[:selected]
    return np.mean(x[nearest], axis=0)


def geometric_median(x, base, shares, smoothing=1e-6, max_iterations=1000, tolerance=1e-9):
    n = len(x)
    radii = []
    for i in range(n):
        distances = np.linalg.norm(x - x[i], axis=1)
        order = np.argsort(distances)
        radii.append(distances[order][np.searchsorted(np.cumsum(shares[order]), 0.5 - 1e-12)])
    floor = smoothing * min(radii)
    v = shares @ x
    for _ in range(200_000):
        w = shares / np.maximum(floor, np.linalg.norm(x - v, axis=1))
        new = (w / w.sum()) @ x
        moved = np.linalg.norm(new - v)
        v = new
        if moved <= 1e-14 * min(radii):
            break
    return v


def median_length(changes):
    lengths = np.sort(np.linalg.norm(changes, axis=1))
    return lengths[(len(lengths) - 1) // 2]


def norm_bounding(x, base, shares, max_norm=None):
    changes = x - base
    bound = max_norm or median_length(changes)
    return base + shares @ np.array([d * min(1, bound / np.linalg.norm(d)) for d in changes])


def centred_clipping(x, base, shares, radius=None, iterations=3):
    radius = radius or median_length(x - base)
    v = base
    for _ in range(iterations):
        v = v + shares @ np.array([(y - v) * min(1, radius / np.linalg.norm(y - v)) for y in x])
    return v


METHODS = {
    "median": (median, 0),
    "trimmed-mean": (trimmed_mean, 0),
    "krum": (krum, 1e-12),
    "multi-krum": (multi_krum, 1e-12),
    "geometric-median": (geometric_median, 1e-7),
    "norm-bounding": (norm_bounding, 1e-12),
    "centred-clipping": (centred_clipping, 1e-12),
}
EQUAL_ONLY = {"median", "trimmed-mean", "krum", "multi-krum"}


def settings(n):
    yield "median", {}
    yield "trimmed-mean", {"trim": 1}
    if n >= 5:
        yield "trimmed-mean", {"trim": (n - 1) // 2}
        yield "krum", {"faulty": 1}
        yield "multi-krum", {"faulty": 1}
        yield "multi-krum", {"faulty": 1, "selected": n - 4}
    if n >= 9:
        yield "krum", {"faulty": 3}
    yield "geometric-median", {}
    yield "geometric-median", {"smoothing": 0.5}
    yield "norm-bounding", {}
    yield "norm-bounding", {"max_norm": 0.25}
    yield "centred-clipping", {}
    yield "centred-clipping", {"radius": 0.125, "iterations": 7}


def main():
    rng = np.random.default_rng(20261123)
    size = sum(LENGTHS.values())
    groups = []
    for n, poison in [(3, None), (4, None), (5, None), (5, 1e6), (6, 3.0), (9, -40.0), (25, 1.5)]:
        base = rng.normal(0, 1, size).astype(np.float32)
        common = rng.normal(0, 0.05, size)
        x = (base + common + rng.normal(0, 0.03, (n, size)) * rng.uniform(0.3, 3, (n, 1))).astype(np.float32)
        # Equal values, so that ties occur.
        x[: n // 2, ::7] = x[0, ::7]
        if poison is not None:
            x[rng.integers(n)] = (base + poison * rng.normal(0, 1, size)).astype(np.float32)
        drawn = rng.uniform(0.5, 1.5, n)
        cases = []
        base64, x64 = base.astype(np.float64), x.astype(np.float64)
        for name, parameters in settings(n):
            merge, tolerance = METHODS[name]
            for shares in [np.full(n, 1 / n)] + ([] if name in EQUAL_ONLY else [drawn / drawn.sum()]):
                merged = merge(x64, base64, shares, **parameters)
                cases.append({
                    "method": {"name": name, **parameters},
                    "shares": list(shares),
                    "exact": tolerance == 0,
                    "tolerance": tolerance,
                    "merged": as_hex64(merged),
                })
        groups.append({
            "lengths": list(LENGTHS.values()),
            "base": as_hex(base),
            "members": [as_hex(row) for row in x],
            "cases": cases,
        })
    print(json.dumps(groups, indent=1))


if __name__ == "__main__":
    main()
