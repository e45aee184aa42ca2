#!/usr/bin/env python3
"""A trainer that keeps docs/trainer-contract.md and needs nothing but Python.

It is a stand-in to start from, not a way to train: each step draws every weight a little towards zero, as weight decay alone
would. What it shows is the contract: the job, checkpoints, metrics, the weights under their final name last, and exit codes.

usage: stand_in.py JOB.json
"""

import array
import json
import os
import signal
import struct
import sys
import time

EXIT_UNUSABLE = 65
EXIT_INTERRUPTED = 75
stopping = False


def stop(*_):
    global stopping
    stopping = True


def read_job(path):
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    if job.get("contract") != 1:
        raise ValueError(f"this trainer keeps contract 1, and the job has {job.get('contract')}")
    return job


def replace(path, content):
    """Temporary file, sync, rename: the name shows all of it or nothing."""
    with open(path + ".tmp", "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.rename(path + ".tmp", path)


def done_steps(metrics):
    """The steps that an earlier run finished; a torn last line is dropped."""
    steps = []
    if os.path.exists(metrics):
        with open(metrics, encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    steps.append(json.loads(line))
    return steps


def decay(base, out, factor):
    """Copies a safetensors file with every f32 value multiplied; other types are copied as they are."""
    with open(base, "rb") as file:
        size = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(size))
        data = bytearray(file.read())
    for name, tensor in header.items():
        if name != "__metadata__" and tensor["dtype"] == "F32":
            start, end = tensor["data_offsets"]
            values = array.array("f", bytes(data[start:end]))
            data[start:end] = array.array("f", (value * factor for value in values)).tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    replace(out, struct.pack("<Q", len(text)) + text + bytes(data))


def train(job):
    out = job["out_dir"]
    os.makedirs(out, exist_ok=True)
    weights = os.path.join(out, "model.safetensors")
    if os.path.exists(weights):
        return 0
    num_bytes = sum(os.path.getsize(text) for text in job["texts"])
    if num_bytes == 0:
        print("the texts are empty", file=sys.stderr)
        return EXIT_UNUSABLE
    path = os.path.join(out, "metrics.jsonl")
    steps = done_steps(path)
    replace(path, "".join(json.dumps(step) + "\n" for step in steps).encode())
    tokens = job["batch_windows"] * job["window"]
    with open(path, "a", encoding="utf-8") as metrics:
        for step in range(len(steps) + 1, job["num_steps"] + 1):
            if stopping:
                return EXIT_INTERRUPTED
            began = time.monotonic()
            time.sleep(float(os.environ.get("STAND_IN_SECONDS_PER_STEP", "0")))
            line = {"step": step, "loss": 3.0 / step, "tokens": tokens, "seconds": time.monotonic() - began}
            metrics.write(json.dumps(line) + "\n")
            metrics.flush()
    decay(os.path.join(job["base_dir"], "model.safetensors"), weights, 1.0 - 1e-4 * min(job["num_steps"], 100))
    for name in os.listdir(job["base_dir"]):
        if name.endswith(".json") and not os.path.exists(os.path.join(out, name)):
            with open(os.path.join(job["base_dir"], name), "rb") as file:
                replace(os.path.join(out, name), file.read())
    return 0


def main():
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    try:
        job = read_job(sys.argv[-1])
    except (OSError, ValueError) as error:
        print(f"the job cannot be used: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    return train(job)


if __name__ == "__main__":
    sys.exit(main())
