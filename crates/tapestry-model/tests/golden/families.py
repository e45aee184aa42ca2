#!/usr/bin/env python3
"""Writes families/*.json: what `transformers` gives for tiny models of each family.

    python3 families.py        (needs torch and transformers; made with torch 2.15.0 and transformers 5.24.0, eager attention, float32)

Weights come from a generator that the test repeats, tensor by tensor in the order of their names, so that no weights are
kept. A case holds the configuration as `transformers` writes it; logits of one window; the loss of a window and of each
gradient its norm and its product with a fixed vector; and a greedy continuation.
"""
import json
import pathlib

import numpy
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TINY = dict(
    hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, vocab_size=101,
    max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, bos_token_id=None, eos_token_id=None,
    pad_token_id=None, attention_dropout=0.0,
)
LLAMA3 = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 16}
CASES = {
    "llama2": ("llama", dict(head_dim=8, num_key_value_heads=4)),
    "llama3": ("llama", dict(head_dim=16, rope_parameters=LLAMA3)),
    "llama_linear": ("llama", dict(rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})),
    "smollm2": ("llama", dict(tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 100000.0})),
    "mistral": ("mistral", dict(sliding_window=6, head_dim=16)),
    "qwen2": ("qwen2", dict(tie_word_embeddings=True, rms_norm_eps=1e-6)),
    "qwen2_sliding": ("qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=2)),
    "qwen3": ("qwen3", dict(head_dim=16, rms_norm_eps=1e-6)),
    "qwen3_yarn": ("qwen3", dict(head_dim=16, rope_parameters=YARN)),
    "olmo2": ("olmo2", dict(rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 500000.0})),
    "olmo3": ("olmo3", dict(sliding_window=6, rope_parameters={
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}, "full_attention": YARN})),
}


def generator(seed):
    state = seed
    while True:
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        yield (state >> 40) / 2**24 - 0.5


def fill(model, seed):
    numbers = generator(seed)
    named = dict(model.named_parameters())
    for name in sorted(named):
        parameter = named[name]
        values = numpy.array([next(numbers) for _ in range(parameter.numel())], dtype=numpy.float32)
        # A vector that is no bias is a norm.
        shift = 1.0 if parameter.dim() == 1 and not name.endswith("bias") else 0.0
        parameter.data.copy_(torch.from_numpy(values + numpy.float32(shift)).reshape(parameter.shape))


def summary(name, gradient):
    """The norm, and the product with a vector that the test repeats, so that an error in any element shows."""
    flat = gradient.double().flatten()
    wave = torch.sin(torch.arange(flat.numel(), dtype=torch.float64) * 0.37)
    return {"name": name, "norm": flat.norm().item(), "along": (flat @ wave).item()}


def case(model_type, changes, seed):
    config = CONFIG_MAPPING[model_type](**(TINY | changes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    fill(model, seed)
    numbers = generator(seed + 1)
    window = [int((next(numbers) + 0.5) * 101) for _ in range(25)]
    tokens = torch.tensor([window[:-1]])
    logits = model(tokens).logits[0]
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(window[1:]))
    loss.backward()
    gradients = [summary(name, p.grad) for name, p in sorted(model.named_parameters())]
    prompt, greedy = window[:7], []
    with torch.no_grad():
        for _ in range(24):
            greedy.append(int(model(torch.tensor([prompt + greedy])).logits[0, -1].argmax()))
        top = model(torch.tensor([prompt + greedy])).logits[0].topk(2).values
    return {
        "made_by": f"tests/golden/families.py, torch {torch.__version__}, transformers",
        "config": json.loads(config.to_json_string(use_diff=False)), "seed": seed, "window": window, "loss": loss.item(),
        # Numbers of float32, written so that they are read back the same.
        "logits": [[float(f"{x:.9g}") for x in row] for row in logits.tolist()], "gradients": gradients,
        "prompt": prompt, "greedy": greedy, "smallest_lead": (top[:, 0] - top[:, 1]).min().item(),
    }


def main():
    folder = pathlib.Path(__file__).parent / "families"
    folder.mkdir(exist_ok=True)
    for seed, (name, (model_type, changes)) in enumerate(CASES.items(), 11):
        result = case(model_type, changes, seed)
        (folder / f"{name}.json").write_text(json.dumps(result) + "\n")
        print(name, round(result["loss"], 4), "smallest lead", result["smallest_lead"])


main()
