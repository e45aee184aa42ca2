"""What the peers' scripts share: the job that the bench wrote, and telling it when the work itself begins."""

import json
import os
import struct
import sys
import time


def read():
    """The mode and the job: models, base, weights, output, parameters, dtype."""
    with open(sys.argv[2], encoding="utf-8") as file:
        return sys.argv[1], json.load(file)


def ready():
    """Call after all imports: the bench takes what came before off the peer's time."""
    started = float(os.environ.get("BENCH_STARTED", time.time()))
    usage = {"wall_s": time.time() - started, "cpu_s": time.process_time()}
    print("bench-ready", json.dumps(usage), flush=True)


def done():
    """Call at the end: ends the process without the interpreter's clearing up, which is no part of the work."""
    sys.stdout.flush()
    os._exit(0)


def weights(folder):
    """The file of a model in Hugging Face layout."""
    return os.path.join(folder, "model.safetensors")


class Tensors:
    """A safetensors file of f32 tensors, read one tensor at a time with pread (nothing mapped, nothing kept)."""

    def __init__(self, folder):
        self.fd = os.open(weights(folder), os.O_RDONLY)
        (length,) = struct.unpack("<Q", os.pread(self.fd, 8, 0))
        self.header = os.pread(self.fd, length, 8)
        self.start = 8 + length
        entries = json.loads(self.header)
        entries.pop("__metadata__", None)
        assert all(entry["dtype"] == "F32" for entry in entries.values()), "only f32 is compared"
        self.entries = dict(sorted(entries.items(), key=lambda item: item[1]["data_offsets"]))

    def names(self):
        return self.entries

    def read(self, name):
        """The bytes of a tensor; a read that ends early is continued."""
        start, end = self.entries[name]["data_offsets"]
        data = bytearray(end - start)
        view, done = memoryview(data), 0
        while done < len(data):
            count = os.preadv(self.fd, [view[done:]], self.start + start + done)
            assert count > 0, "the file ends too early"
            done += count
        return data


def write(output, like, tensors):
    """Writes tensors, in the order of `like`, as they come."""
    os.makedirs(output)
    with open(weights(output), "wb") as file:
        file.write(struct.pack("<Q", len(like.header)) + like.header)
        for tensor in tensors:
            file.write(memoryview(tensor).cast("B"))
