"""Writes outer.json: several rounds of outer optimisers, as a check on tapestry-merge.

Needs torch and NumPy: python3 make_outer.py > outer.json

DiLoCo is torch.optim.SGD(nesterov=True) in binary64, with the pseudo-gradient as its gradient. FedAdam and FedYogi are Algorithm 2
of Reddi et al., 2021, in binary64. Each round starts from a base of binary32 that is given, as a Shared Base is; the states
are never rounded here, while the crate's are stored as binary32 between rounds.

`tolerance` is what that storing may cost. A state is off by 2^-24 of itself in every round, and a share of beta of that stays:
with DiLoCo 1 / (1 - 0.9) * 2^-24 of the largest momentum, times the learning rate. With the adaptive ones 1 / (1 - 0.99), halved by the
root, and 1 / (1 - 0.9) for the first moment: together below 2^-24 * 100 of the largest step.
"""

import json

import numpy as np
import torch

NUM_ROUNDS = 8
SIZE = 50
SHARES = [0.5, 0.2, 0.3]


def hex32(row):
    return row.astype("<f4").tobytes().hex()


def rounds(rng):
    """Bases and contributions; changes of many sizes, one element that never changes, one that does in the first round only."""
    base = rng.normal(0, 1, SIZE).astype(np.float32)
    sizes = 10.0 ** rng.uniform(-6, 0, SIZE)
    for number in range(NUM_ROUNDS):
        changes = sizes * (0.5 + rng.normal(0, 1, (len(SHARES), SIZE)))
        changes[:, 0] = 0
        changes[:, 1] *= number == 0
        members = (base + changes).astype(np.float32)
        yield base, members
        base = (base + 0.7 * changes.mean(axis=0)).astype(np.float32)


def mean(members):
    return np.tensordot(np.array(SHARES), members.astype(np.float64), 1)


def diloco(data, learning_rate, momentum):
    parameter = torch.nn.Parameter(torch.zeros(SIZE, dtype=torch.float64))
    optimiser = torch.optim.SGD([parameter], lr=learning_rate, momentum=momentum, nesterov=True)
    results, largest = [], 0.0
    for base, members in data:
        base = base.astype(np.float64)
        parameter.data = torch.tensor(base)
        parameter.grad = torch.tensor(base - mean(members))
        optimiser.step()
        results.append(parameter.detach().numpy().copy())
        largest = max(largest, optimiser.state[parameter]["momentum_buffer"].abs().max().item())
    return results, 2.0**-24 * learning_rate * largest / (1 - momentum)


def adaptive(data, is_yogi, learning_rate, beta1, beta2, tau):
    m, v = np.zeros(SIZE), np.full(SIZE, tau**2)
    results, largest = [], 0.0
    for base, members in data:
        base = base.astype(np.float64)
        change = mean(members) - base
        m = beta1 * m + (1 - beta1) * change
        if is_yogi:
            v = v - (1 - beta2) * change**2 * np.sign(v - change**2)
        else:
            v = beta2 * v + (1 - beta2) * change**2
        step = learning_rate * m / (np.sqrt(v) + tau)
        results.append(base + step)
        largest = max(largest, np.abs(step).max())
    return results, 2.0**-24 * 100 * largest


def main():
    data = list(rounds(np.random.default_rng(20261123)))
    cases = []

    def case(method, outcome):
        results, tolerance = outcome
        merged = [row.astype("<f8").tobytes().hex() for row in results]
        cases.append({"method": method, "tolerance": float(tolerance), "merged": merged})

    case({"name": "diloco"}, diloco(data, 0.7, 0.9))
    for learning_rate, momentum in [(1.0, 0.5), (0.1, 0.99)]:
        method = {"name": "diloco", "learning_rate": learning_rate, "momentum": momentum}
        case(method, diloco(data, learning_rate, momentum))
    for name in ("fedadam", "fedyogi"):
        case({"name": name}, adaptive(data, name == "fedyogi", 0.01, 0.9, 0.99, 1e-3))
        given = {"learning_rate": 0.5, "beta1": 0.5, "beta2": 0.9, "tau": 0.1}
        case({"name": name, **given}, adaptive(data, name == "fedyogi", **given))
    as_json = [{"base": hex32(base), "members": [hex32(row) for row in members]} for base, members in data]
    print(json.dumps({"shares": SHARES, "rounds": as_json, "cases": cases}, indent=1))


if __name__ == "__main__":
    main()
