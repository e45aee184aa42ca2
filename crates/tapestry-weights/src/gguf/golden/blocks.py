#!/usr/bin/env python3
"""Writes blocks.json: blocks of each element type that is read, and the values that the `gguf` package gives for them.

    python3 blocks.py        (needs numpy and gguf; made with gguf 0.19.0)

Two blocks of random bytes for each type with scales that are finite, one of zeros and one of ones in all bits but the scales. Values are the bits of their 32-bit floats.
"""
import json
import pathlib

import numpy
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize, quantize

# Where the 16-bit scales of a block are.
SCALES = {"Q8_0": [0], "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208]}


def main():
    random = numpy.random.default_rng(9)
    cases = []
    for name, places in SCALES.items():
        kind = GGMLQuantizationType[name]
        _, size = GGML_QUANT_SIZES[kind]
        for fill in (None, None, 0, 255):
            block = random.integers(0, 256, size, dtype=numpy.uint8) if fill is None else numpy.full(size, fill, numpy.uint8)
            for place in places:
                scale = numpy.float16(random.normal() * 0.01)
                block[place:place + 2] = numpy.frombuffer(scale.tobytes(), numpy.uint8)
            values = dequantize(block[None, :], kind).astype(numpy.float32).ravel()
            cases.append({"type": name, "block": block.tobytes().hex(), "bits": values.view(numpy.uint32).tolist()})
    quantized = []
    for scale in (1.0, 0.02, 1e-6, 0.0):
        values = (random.normal(size=32) * scale).astype(numpy.float32)
        values[:2] = [scale * 2.5, -scale * 2.5 * 64.5 / 127]
        block = quantize(values[None, :], GGMLQuantizationType.Q8_0)
        quantized.append({"bits": values.view(numpy.uint32).tolist(), "block": block.tobytes().hex()})
    path = pathlib.Path(__file__).parent / "blocks.json"
    path.write_text(json.dumps({"made_by": "blocks.py, gguf 0.19.0", "cases": cases, "quantized": quantized}) + "\n")


main()
