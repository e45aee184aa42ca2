"""An append-only log as others keep it: rows of SQLite, and the Merkle trees of pymerkle (where it is installed).

usage: log.py FOLDER ENTRIES, on a real disk. Prints one JSON object a figure: peer, metric, value, unit. SQLite: one table, WAL, synchronous=FULL, so
that a commit is on the disk when it returns; it neither hashes nor signs. pymerkle: a tree in memory, nothing durable.
"""

import hashlib
import json
import os
import sqlite3
import sys
import time

BATCH = 4096
folder, num_entries = sys.argv[1], int(sys.argv[2])
path = os.path.join(folder, "peer.sqlite")
for old in [path, path + "-wal", path + "-shm"]:
    if os.path.exists(old):
        os.remove(old)


def entry(n):
    """As long as the entries of the other side, and as different from each other."""
    weights = hashlib.sha256(b"%d" % n).hexdigest()
    return (
        '{"at":1795500000000,"event":{"bpb":1.0625,"member":"member-%d","relative_change":0.03125,"round":%d,'
        '"type":"contribution_screened","weights":"%s"},"seq":%d}' % (n % 50, n // 50, weights, n + 1)
    ).encode()


def say(peer, metric, value, unit):
    print(json.dumps({"peer": peer, "metric": metric, "value": value, "unit": unit}), flush=True)


def opened():
    database = sqlite3.connect(path, isolation_level=None)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, entry BLOB NOT NULL)")
    return database


def append(database, start, end):
    database.execute("BEGIN")
    database.executemany("INSERT INTO log VALUES (?, ?)", [(n + 1, entry(n)) for n in range(start, end)])
    database.execute("COMMIT")


SQLITE = "SQLite " + sqlite3.sqlite_version
database, single = opened(), min(200, num_entries)
start = time.perf_counter()
for n in range(single):
    append(database, n, n + 1)
say(SQLITE, "durable appends, one a commit", single / (time.perf_counter() - start), "entries/s")

start = time.perf_counter()
for first in range(single, num_entries, BATCH):
    append(database, first, min(first + BATCH, num_entries))
say(SQLITE, "durable appends, group commit", (num_entries - single) / (time.perf_counter() - start), "entries/s")
database.close()

start = time.perf_counter()
entries = [json.loads(row[0]) for row in opened().execute("SELECT entry FROM log ORDER BY seq")]
say(SQLITE, "restart, every entry read and checked", time.perf_counter() - start, "s")
assert len(entries) == num_entries
del entries

try:
    import pymerkle
except ImportError:
    sys.exit()

# Its trees are slow to ask for roots of: a smaller one tells the same of one proof.
size = min(num_entries, 100_000)
tree = pymerkle.InmemoryTree(algorithm="sha256")
tree.append_entries([entry(n) for n in range(size)]) if hasattr(tree, "append_entries") else [tree.append_entry(entry(n)) for n in range(size)]
proof, leaf, root = tree.prove_inclusion(size // 3, size), tree.get_leaf(size // 3), tree.get_root(size)
start = time.perf_counter()
for _ in range(1000):
    pymerkle.verify_inclusion(leaf, root, proof)
say("pymerkle", "inclusion proof checked", (time.perf_counter() - start) * 1000, "us")
