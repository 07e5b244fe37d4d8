# SPDX-License-Identifier: Apache-2.0
"""What a shrunk transformers model lost, by one protocol for whatever shrank it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PROTOCOL = (
    "Windows that do not overlap, each begun as prompts are (BOS where the tokenizer adds it). Every token "
    "of a window but its first is predicted from those before it. Perplexity is exp of the mean negative "
    "log-likelihood over all predicted tokens of all windows; KL is the mean of KL(old ‖ new) of their "
    "distributions, in nats; top-1 the share where both find the same token likeliest. Log-softmax in "
    "float32 of logits in the model's own dtype."
)


@dataclass(frozen=True)
class Quality:
    """Of a model beside the one it was made from."""

    perplexity: float
    kl: float
    top1: float
    tokens: int


def windows(ids: list[int], length: int, begin: list[int] | None = None) -> Tensor:
    """A text's ids cut into rows of `length`, each behind `begin`; the incomplete last one is left out."""
    begin = begin or []
    payload = length - len(begin)
    rows = [begin + ids[at : at + payload] for at in range(0, len(ids) - payload + 1, payload)]
    if not rows:
        raise ValueError(f"ids: expected at least {payload}, got {len(ids)}")
    return torch.tensor(rows)


@torch.no_grad()
def evaluate(model: Any, reference: Any, ids: Tensor, rows: int = 2) -> Quality:
    """Perplexity of `model`, and its distance from `reference`, over windows `ids` [windows, length]."""
    loss = kl = same = count = 0.0
    for batch in torch.as_tensor(ids, dtype=torch.long).split(rows):
        ours = model(batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        theirs = reference(batch, use_cache=False).logits[:, :-1].float().log_softmax(-1)
        targets = batch[:, 1:]
        loss -= float(ours.gather(-1, targets[..., None]).double().sum())
        kl += float((theirs.exp() * (theirs - ours)).double().sum())
        same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += targets.numel()
    return Quality(math.exp(loss / count), kl / count, same / count, int(count))
