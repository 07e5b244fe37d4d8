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


KEPT = 1 << 30  # bytes of the old model's distributions that are kept rather than computed anew


class Judge:
    """Compares models with one they were made from, over windows `ids` [windows, length]."""

    def __init__(self, reference: Any, ids: Tensor, rows: int = 2) -> None:
        self.reference = reference
        self.batches = torch.as_tensor(ids, dtype=torch.long).split(rows)
        size = 4 * torch.as_tensor(ids).numel() * reference.config.vocab_size
        self.kept = [_predicted(reference, batch) for batch in self.batches] if size <= KEPT else None

    @torch.no_grad()
    def quality(self, model: Any) -> Quality:
        """Perplexity of `model`, and its distance from the reference."""
        loss = kl = same = count = 0.0
        for at, batch in enumerate(self.batches):
            ours = _predicted(model, batch)
            theirs = self.kept[at] if self.kept else _predicted(self.reference, batch)
            targets = batch[:, 1:]
            loss -= float(ours.gather(-1, targets[..., None]).double().sum())
            kl += float((theirs.exp() * (theirs - ours)).double().sum())
            same += float((ours.argmax(-1) == theirs.argmax(-1)).sum())
            count += targets.numel()
        return Quality(math.exp(loss / count), kl / count, same / count, int(count))


@torch.no_grad()
def _predicted(model: Any, batch: Tensor) -> Tensor:
    logits: Tensor = model(batch, use_cache=False).logits[:, :-1]
    return logits.float().log_softmax(-1)


def evaluate(model: Any, reference: Any, ids: Tensor, rows: int = 2) -> Quality:
    """What :class:`Judge` finds, for one model."""
    return Judge(reference, ids, rows).quality(model)
