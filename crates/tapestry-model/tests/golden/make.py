#!/usr/bin/env python3
"""Writes tiny_llama.json: what tiny Llama models give, computed apart from Tapestry.

    python3 make.py > tiny_llama.json        (needs numpy)

The weights come from a linear congruential generator that the test repeats, tensor by tensor in the order of their
names; arithmetic is in 64-bit floats.
"""
import json
import numpy as np


def generator(seed):
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield (state >> 40) / 2**24 - 0.5


def weights(config, seed):
    d, f, v, e = (config[k] for k in ("hidden_size", "intermediate_size", "vocab_size", "head_dim"))
    q, kv = config["num_attention_heads"] * e, config["num_key_value_heads"] * e
    shapes = {"model.embed_tokens.weight": (v, d), "model.norm.weight": (d,)}
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (v, d)
    for layer in range(config["num_hidden_layers"]):
        parts = {
            "input_layernorm": (d,), "post_attention_layernorm": (d,),
            "self_attn.q_proj": (q, d), "self_attn.k_proj": (kv, d), "self_attn.v_proj": (kv, d), "self_attn.o_proj": (d, q),
            "mlp.gate_proj": (f, d), "mlp.up_proj": (f, d), "mlp.down_proj": (d, f),
        }
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in parts.items()}
    numbers = generator(seed)
    result = {}
    for name in sorted(shapes):
        values = np.array([next(numbers) for _ in range(int(np.prod(shapes[name])))]).reshape(shapes[name])
        result[name] = values + 1.0 if len(shapes[name]) == 1 else values
    return result


def norm(x, weight, eps):
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def rotate(x, theta):
    """x: heads, time, head width."""
    time, half = x.shape[1], x.shape[2] // 2
    angle = np.arange(time)[:, None] * theta ** (-np.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)], -1)


def forward(config, w, tokens, segments):
    """Logits of one window, before each next token."""
    heads, kv, e = (config[k] for k in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    eps, theta, time = config["rms_norm_eps"], config["rope_theta"], len(tokens)
    seen = np.tril(np.ones((time, time), bool)) & (segments[:, None] == segments[None, :])
    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        p = lambda name: w[f"model.layers.{layer}.{name}.weight"]
        split = lambda y, n: y.reshape(time, n, e).transpose(1, 0, 2)
        h = norm(x, p("input_layernorm"), eps)
        q = rotate(split(h @ p("self_attn.q_proj").T, heads), theta)
        k = rotate(split(h @ p("self_attn.k_proj").T, kv), theta)
        v = split(h @ p("self_attn.v_proj").T, kv)
        k, v = k.repeat(heads // kv, 0), v.repeat(heads // kv, 0)
        score = np.where(seen, q @ k.transpose(0, 2, 1) / np.sqrt(e), -np.inf)
        score = np.exp(score - score.max(-1, keepdims=True))
        mixed = (score / score.sum(-1, keepdims=True)) @ v
        x = x + mixed.transpose(1, 0, 2).reshape(time, heads * e) @ p("self_attn.o_proj").T
        h = norm(x, p("post_attention_layernorm"), eps)
        gate = h @ p("mlp.gate_proj").T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ p("mlp.up_proj").T)) @ p("mlp.down_proj").T
    head = w["model.embed_tokens.weight" if config["tie_word_embeddings"] else "lm_head.weight"]
    return norm(x, w["model.norm.weight"], eps) @ head.T


def case(config, seed, windows, segments):
    w = weights(config, seed)
    nll = []
    for tokens, segment in zip(windows, segments):
        logits = forward(config, w, np.array(tokens[:-1]), np.array(segment[:-1]))
        top = logits.max(-1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(-1, keepdims=True))
        nll.append([float(-log_p[i, t]) for i, t in enumerate(tokens[1:])])
    return {"config": config, "seed": seed, "windows": windows, "segments": segments, "nll": nll}


def main():
    base = dict(
        model_type="llama", hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, vocab_size=101, rms_norm_eps=1e-5, rope_theta=100000.0,
        max_position_embeddings=64, tie_word_embeddings=True,
    )
    # Heads that together are not as wide as the model, one key/value head, an output of its own.
    other = base | dict(num_attention_heads=6, num_key_value_heads=1, head_dim=4, num_hidden_layers=2,
                        tie_word_embeddings=False, rope_theta=10000.0, intermediate_size=40)
    numbers = generator(5)
    windows = [[int((next(numbers) + 0.5) * 101) for _ in range(24)] for _ in range(3)]
    alone = [[0] * 24 for _ in windows]
    packed = [[0] * 9 + [1] * 15, [0] * 24, [3] * 1 + [2] * 12 + [7] * 11]
    cases = [case(base, 1, windows, alone), case(base, 1, windows, packed), case(other, 2, windows, packed)]
    print(json.dumps({"made_by": "tests/golden/make.py", "cases": cases}, indent=1))


main()
