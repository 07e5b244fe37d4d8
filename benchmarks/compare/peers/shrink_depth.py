# SPDX-License-Identifier: Apache-2.0
"""Layers that go: which one, and the published way to make up for it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from peers.shrink_baselines import LayerStream, _copy, _linear


def _check_span(model: Any, first: int, count: int) -> None:
    layers = model.config.num_hidden_layers
    if not (count > 0 and first > 0 and first + count <= layers):
        raise ValueError(f"first, count: expected layers within 1 to {layers - 1}, got {first} and {count}")


def _without(model: Any, first: int, count: int) -> Any:
    """Takes the layers out of `model` itself."""
    model.model.layers = nn.ModuleList([*model.model.layers[:first], *model.model.layers[first + count :]])
    for at, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = at
    model.config.num_hidden_layers -= count
    if getattr(model.config, "layer_types", None):
        kinds = model.config.layer_types
        model.config.layer_types = [*kinds[:first], *kinds[first + count :]]
    return model


@torch.no_grad()
def depth_drop(model: Any, first: int, count: int = 1) -> Any:
    """Layers first … first + count − 1 go, and nothing else changes."""
    _check_span(model, first, count)
    return _without(_copy(model), first, count).to(model.dtype)


@torch.no_grad()
def least_angle(model: Any, ids: Tensor) -> int:
    """The layer, but the first, whose input and output point most alike: mean over tokens of the angle.

    Gromov et al. 2024, arXiv:2403.17887, for one layer. The first one has none before it to make up for it.
    """
    stream, angles = LayerStream(model, ids), []
    for layer in model.model.layers:
        outputs = stream.run(layer, {})
        pairs = zip(stream.batches, outputs, strict=True)
        cosines = [nn.functional.cosine_similarity(h.double(), y.double(), dim=-1) for (h, _), y in pairs]
        angles.append(float(torch.cat([c.flatten() for c in cosines]).clamp(-1, 1).acos().mean()))
        stream.advance(outputs)
    return 1 + min(range(len(angles) - 1), key=lambda at: angles[at + 1])


@torch.no_grad()
def depth_replace_me(model: Any, ids: Tensor, first: int, count: int = 1, damping: float = 1e-6) -> Any:
    """ReplaceMe: one D × D matrix stands for the layers, and is multiplied into down_proj before them.

    Shopkhoev et al. 2025, arXiv:2505.02819, in closed form: with m what the MLP of layer first − 1 adds, y
    what it adds it to, and h the hidden state after the last layer that goes, T is the least squares solution
    of mT ≈ h − y, and down_proj becomes Tᵀ · down_proj. `damping`, of the mean of the Gram matrix's diagonal,
    only guards the solve. Theirs offers to minimise the cosine distance by gradient descent instead.
    """
    _check_span(model, first, count)
    new = _copy(model)
    stream, last = LayerStream(new, ids), new.model.layers[first - 1]
    for layer in new.model.layers[: first - 1]:
        stream.advance(stream.run(layer, {}))
    added: list[Tensor] = []
    outputs = stream.run(last, {last.mlp: lambda _, m: added.append(m.double())})
    before = [h.flatten(0, -2).double() - m for h, m in zip(outputs, added, strict=True)]
    stream.advance(outputs)
    for layer in new.model.layers[first : first + count]:
        stream.advance(stream.run(layer, {}))
    gram = sum(m.T @ m for m in added)
    cross = sum(
        m.T @ (h.flatten(0, -2).double() - y)
        for m, y, (h, _) in zip(added, before, stream.batches, strict=True)
    )
    assert isinstance(gram, Tensor)
    gram.diagonal().add_(damping * gram.diagonal().mean())
    transform = torch.linalg.solve(gram, cross)
    down = last.mlp.down_proj
    bias = None if down.bias is None else transform.T @ down.bias.double()
    last.mlp.down_proj = _linear(transform.T @ down.weight.double(), bias)
    return _without(new, first, count).to(model.dtype)
