#!/usr/bin/env python3
"""Writes preferences.json: losses on preferences and their gradients, as `trl` computes them.

    python3 preferences.py        (needs torch and trl; made with torch 2.15.0 and trl 1.16.0)

What is called is the code of trl's trainers (`DPOTrainer._compute_loss`, `KTOTrainer._compute_loss`, `CPOTrainer.cpo_loss`), with a stand-in for the model
that returns given log-probabilities of tokens. The gradient with respect to an answer's log-probability is that of any of its tokens.
"""
import collections
import json
import pathlib
from types import SimpleNamespace
from unittest.mock import MagicMock

import torch
from trl import DPOTrainer, KTOTrainer
from trl.experimental.cpo import CPOTrainer

torch.manual_seed(5)
LENGTH = 32


def trainer(settings, **more):
    accelerator = SimpleNamespace(device="cpu", gather_for_metrics=lambda x: x, gather=lambda x: x)
    base = dict(
        accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=True, beta=settings["beta"],
        label_smoothing=settings.get("label_smoothing", 0.0), f_divergence_type="reverse_kl", use_weighting=False,
        calculate_KL=True, desirable_weight=1.0, undesirable_weight=1.0, loss_weights=[1.0], alpha=0.0,
        simpo_gamma=settings.get("gamma"), cpo_alpha=0.0, _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0, _tp_size=1, model=SimpleNamespace(training=True),
    )
    result = MagicMock()
    for name, value in (base | more).items():
        setattr(result, name, value)
    return result


def tokens(sums, lengths):
    """Log-probabilities of tokens with these sums over their answers, which come first, and the mask of the answers (one token longer, for the first token of the text)."""
    mask = torch.arange(LENGTH)[None, :] < lengths[:, None]
    per_token = torch.where(mask, (sums.detach() / lengths)[:, None], 0.0).requires_grad_()
    whole = torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1).long()
    return per_token, whole


def model_of(per_token):
    zeros = torch.zeros_like(per_token)
    outputs = SimpleNamespace(log_probs=per_token, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros)
    return lambda **_: outputs


def inputs(mask, **more):
    return dict(input_ids=torch.ones_like(mask), attention_mask=torch.ones_like(mask), completion_mask=mask, **more)


def pairs(kind):
    def loss(s, first, second, ref_first, ref_second, n_first, n_second, wanted):
        per_token, mask = tokens(torch.cat([first, second]), torch.cat([n_first, n_second]))
        given = inputs(mask, ref_chosen_logps=ref_first, ref_rejected_logps=ref_second)
        value = DPOTrainer._compute_loss(trainer(s, loss_types=[kind]), model_of(per_token), given, False)
        value.backward()
        return value, *per_token.grad[:, 0].chunk(2)
    return loss


def simpo(s, first, second, ref_first, ref_second, n_first, n_second, wanted):
    losses, *_ = CPOTrainer.cpo_loss(trainer(s, loss_type="simpo"), first / n_first, second / n_second)
    losses.mean().backward()
    return losses.mean(), first.grad, second.grad


def kto(s, first, second, ref_first, ref_second, n_first, n_second, wanted):
    per_token, mask = tokens(first, n_first)
    given = inputs(mask, label=wanted, ref_logps=ref_first, ref_KL_logps=ref_second)
    stand_in = trainer(s, loss_type="kto")
    stand_in._compute_kl_logps = lambda *_: second
    value = KTOTrainer._compute_loss(stand_in, model_of(per_token), given, False)
    value.backward()
    return value, per_token.grad[:, 0], torch.zeros_like(second)


LOSSES = {"dpo": pairs("sigmoid"), "ipo": pairs("ipo"), "simpo": simpo, "kto": kto}
SETTINGS = [
    {"method": "dpo", "beta": 0.1}, {"method": "dpo", "beta": 0.5}, {"method": "ipo", "beta": 0.1},
    {"method": "ipo", "beta": 0.7}, {"method": "simpo", "beta": 2.0, "gamma": 0.5},
    {"method": "simpo", "beta": 10.0, "gamma": 3.0, "label_smoothing": 0.1}, {"method": "kto", "beta": 0.1},
    {"method": "kto", "beta": 0.9},
]


def case(settings, size):
    draw = lambda low, high: (torch.rand(size, dtype=torch.float64) * (high - low) + low)
    first, second = draw(-60, -5).requires_grad_(), draw(-60, -5).requires_grad_()
    ref_first, ref_second = (first + draw(-4, 4)).detach(), (second + draw(-4, 4)).detach()
    n_first, n_second = (torch.randint(2, 30, (size,)).double() for _ in range(2))
    wanted = torch.rand(size) < 0.5
    run = LOSSES[settings["method"]]
    loss, gradient_first, gradient_second = run(settings, first, second, ref_first, ref_second, n_first, n_second, wanted)
    return {
        "settings": settings, "first": first.tolist(), "second": second.tolist(), "reference_first": ref_first.tolist(),
        "reference_second": ref_second.tolist(), "lengths_first": n_first.tolist(), "lengths_second": n_second.tolist(),
        "is_wanted": wanted.tolist(), "loss": loss.item(), "gradient_first": gradient_first.tolist(),
        "gradient_second": gradient_second.tolist(),
    }


def main():
    cases = [case(settings, size) for settings in SETTINGS for size in (1, 5)]
    path = pathlib.Path(__file__).parent / "preferences.json"
    path.write_text(json.dumps({"made_by": f"preferences.py, torch {torch.__version__}", "cases": cases}) + "\n")


main()
