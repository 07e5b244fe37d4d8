# SPDX-License-Identifier: Apache-2.0
"""Published ways to shrink a transformers model without training, in torch alone, to compare retrofits with.

Each takes a model of the Llama kind, calibration ids [sequences, length] where it needs them, and an amount;
it returns a new model of uniform shapes and leaves the old one as it was. Activations stream through one
layer at a time, in float32; what comes out is stored in the model's own dtype.

Where the authors' code and their paper differ, or the shapes had to be made uniform, a docstring says so.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

ROWS = 4  # sequences that go through a layer together


class _ReachedError(Exception):
    """The first layer's input is known; the rest of the forward pass is not wanted."""


class LayerStream:
    """Activations of calibration sequences on their way through a model, one layer at a time."""

    def __init__(self, model: Any, ids: Tensor, rows: int = ROWS):
        self.batches: list[tuple[Tensor, dict[str, Any]]] = []

        def catch(_module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = arguments[0] if arguments else named.pop("hidden_states")
            self.batches.append((hidden, {**named, "use_cache": False}))
            raise _ReachedError

        hook = model.model.layers[0].register_forward_pre_hook(catch, with_kwargs=True)
        try:
            for batch in torch.as_tensor(ids, dtype=torch.long).split(rows):
                try:
                    model(batch, use_cache=False)
                except _ReachedError:
                    continue
        finally:
            hook.remove()

    def run(self, layer: nn.Module, watch: dict[nn.Module, Callable[[Tensor, Tensor], None]]) -> list[Tensor]:
        """What `layer` makes of each batch; `watch` sees inputs and outputs of its modules, by token."""

        def seen(call: Callable[[Tensor, Tensor], None]) -> Callable[..., None]:
            return lambda _module, inputs, output: call(inputs[0].flatten(0, -2), output.flatten(0, -2))

        hooks = [module.register_forward_hook(seen(call)) for module, call in watch.items()]
        try:
            outputs = [layer(hidden, **named) for hidden, named in self.batches]
        finally:
            for hook in hooks:
                hook.remove()
        return [output[0] if isinstance(output, tuple) else output for output in outputs]

    def advance(self, outputs: list[Tensor]) -> None:
        """Makes a layer's outputs the next one's inputs."""
        self.batches = [(new, named) for new, (_, named) in zip(outputs, self.batches, strict=True)]


class Moments:
    """Mean and mean square of features, in float64."""

    def __init__(self) -> None:
        self.count, self.total, self.squares = 0, torch.zeros(()), torch.zeros(())

    def add(self, x: Tensor) -> None:
        wide = x.double()
        self.count += len(wide)
        self.total = self.total + wide.sum(0)
        self.squares = self.squares + wide.square().sum(0)

    @property
    def mean(self) -> Tensor:
        return self.total / self.count

    @property
    def mean_square(self) -> Tensor:
        return self.squares / self.count

    @property
    def variance(self) -> Tensor:
        return (self.mean_square - self.mean.square()).clamp(min=0) * self.count / max(1, self.count - 1)


def _copy(model: Any) -> Any:
    return copy.deepcopy(model).float().eval()


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device=weight.device)
    made.weight = nn.Parameter(weight.detach().float().contiguous())
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().float().contiguous())
    return made


def _rows(linear: nn.Linear, keep: Tensor) -> nn.Linear:
    return _linear(linear.weight[keep], None if linear.bias is None else linear.bias[keep])


# The FFN's width


def _set_width(new: Any, width: int) -> None:
    new.config.intermediate_size = width
    for layer in new.model.layers:
        layer.mlp.intermediate_size = width


def _check_width(model: Any, width: int) -> None:
    if not 0 < width <= model.config.intermediate_size:
        raise ValueError(f"width: expected 1 to {model.config.intermediate_size}, got {width}")


def _keep_best(mlp: Any, score: Tensor, width: int) -> Tensor:
    """Cuts the MLP down to the `width` neurons of the highest score, in their old order."""
    keep = score.topk(width).indices.sort().values
    mlp.gate_proj, mlp.up_proj = _rows(mlp.gate_proj, keep), _rows(mlp.up_proj, keep)
    mlp.down_proj = _linear(mlp.down_proj.weight[:, keep], mlp.down_proj.bias)
    return keep


@torch.no_grad()
def ffn_magnitude(model: Any, width: int) -> Any:
    """Keeps the neurons with the largest columns of down_proj (L2), the weakest baseline of all papers."""
    _check_width(model, width)
    new = _copy(model)
    for layer in new.model.layers:
        _keep_best(layer.mlp, layer.mlp.down_proj.weight.norm(dim=0), width)
    _set_width(new, width)
    return new.to(model.dtype)


@torch.no_grad()
def ffn_wanda_sp(model: Any, ids: Tensor, width: int) -> Any:
    """Wanda by whole neurons: |down_proj| times the norm of its input, mean over outputs.

    Sun et al. 2024, arXiv:2306.11695, as An et al. 2024 (FLAP, arXiv:2312.11983) make it structured: a layer
    is cut before the next one sees its outputs, and nothing makes good for what is dropped. Theirs cuts
    attention heads too; here only the FFN.
    """
    _check_width(model, width)
    new = _copy(model)
    stream = LayerStream(new, ids)
    for layer in new.model.layers:
        inputs = Moments()
        stream.run(layer, {layer.mlp.down_proj: lambda x, _, inputs=inputs: inputs.add(x)})
        score = layer.mlp.down_proj.weight.abs().mean(0).double() * inputs.mean_square.sqrt()
        _keep_best(layer.mlp, score, width)
        stream.advance(stream.run(layer, {}))
    _set_width(new, width)
    return new.to(model.dtype)


@torch.no_grad()
def ffn_flap(model: Any, ids: Tensor, width: int) -> Any:
    """FLAP: keeps the neurons that fluctuate most, and adds what the others gave on average as a bias.

    An et al. 2024, arXiv:2312.11983, metric WIFV: variance of the neuron times the squared norm of its column
    of down_proj; statistics are the uncut model's. Theirs lets widths differ by layer, which no standard
    checkpoint can hold (here: their structure "UL-UM"), cuts heads too, and updates the variance with a mean
    that is already the new one; here it is the sample variance.

    The bias needs `mlp_bias` in the configuration (Llama has it; Qwen2 and Mistral cannot store the result).
    """
    _check_width(model, width)
    new = _copy(model)
    stream = LayerStream(new, ids)
    for layer in new.model.layers:
        inputs, mlp = Moments(), layer.mlp
        stream.advance(stream.run(layer, {mlp.down_proj: lambda x, _, inputs=inputs: inputs.add(x)}))
        weight = mlp.down_proj.weight.double()
        kept = _keep_best(mlp, inputs.variance * weight.square().sum(0), width)
        dropped = torch.ones(weight.shape[1], dtype=torch.bool)
        dropped[kept] = False
        bias = weight[:, dropped] @ inputs.mean[dropped]
        old = mlp.down_proj.bias
        mlp.down_proj = _linear(mlp.down_proj.weight, bias.float() if old is None else old + bias.float())
        if hasattr(new.config, "mlp_bias"):
            for name in ("gate_proj", "up_proj"):
                linear = getattr(mlp, name)
                if linear.bias is None:
                    setattr(mlp, name, _linear(linear.weight, torch.zeros(width)))
    if hasattr(new.config, "mlp_bias"):
        new.config.mlp_bias = True
    _set_width(new, width)
    return new.to(model.dtype)


# Heads of keys and values


def _check_heads(model: Any, heads: int) -> None:
    old = model.config.num_key_value_heads
    if not 0 < heads <= old or old % heads:
        raise ValueError(f"heads: expected a divisor of {old}, got {heads}")
    if any(hasattr(model.model.layers[0].self_attn, name) for name in ("q_norm", "k_norm")):
        raise ValueError(
            "model: expected no norms of queries and keys, between which and the weights lies no product"
        )


def _split_heads(linear: nn.Linear, heads: int) -> Tensor:
    """Rows by head, the bias as a last column where there is one: [heads, head_dim, inputs (+ 1)]."""
    weight = linear.weight if linear.bias is None else torch.cat([linear.weight, linear.bias[:, None]], 1)
    return weight.double().unflatten(0, (heads, -1))


def _join_heads(heads: Tensor, like: nn.Linear) -> nn.Linear:
    flat = heads.flatten(0, 1)
    return _linear(flat, None) if like.bias is None else _linear(flat[:, :-1], flat[:, -1])


def _set_heads(new: Any, heads: int) -> None:
    for layer in new.model.layers:
        layer.self_attn.num_key_value_groups = new.config.num_attention_heads // heads
    new.config.num_key_value_heads = heads


@torch.no_grad()
def kv_mean_pool(model: Any, heads: int) -> Any:
    """Averages neighbouring heads' projections of keys and values (Ainslie et al. 2023, arXiv:2305.13245)."""
    _check_heads(model, heads)
    new, old = _copy(model), model.config.num_key_value_heads
    for layer in new.model.layers:
        for name in ("k_proj", "v_proj"):
            linear = getattr(layer.self_attn, name)
            pooled = _split_heads(linear, old).unflatten(0, (heads, -1)).mean(1)
            setattr(layer.self_attn, name, _join_heads(pooled, linear))
    _set_heads(new, heads)
    return new.to(model.dtype)


def key_rotation(cross: Tensor) -> Tensor:
    """The rotation that brings one head's keys closest to another's and commutes with RoPE.

    `cross` is E[a bᵀ], [head_dim, head_dim], of keys before RoPE. RoPE turns the pairs (f, f + head_dim / 2);
    only turning those pairs by an angle of each commutes with it.
    """
    half = cross.shape[0] // 2
    f = torch.arange(half)
    angle = torch.atan2(cross[f, f + half] - cross[f + half, f], cross[f, f] + cross[f + half, f + half])
    turn = torch.zeros_like(cross)
    turn[f, f] = turn[f + half, f + half] = angle.cos()
    turn[f, f + half], turn[f + half, f] = angle.sin(), -angle.sin()
    return turn


def value_rotation(cross: Tensor) -> Tensor:
    """The orthogonal matrix Q for which E‖aᵀQ − bᵀ‖² is least, from `cross` = E[a bᵀ] (Schönemann 1966)."""
    u, _, vt = torch.linalg.svd(cross)
    return u @ vt


def align(gram: Tensor, group: list[int], rotation: Callable[[Tensor], Tensor], steps: int = 100) -> Tensor:
    """Generalised Procrustes analysis of the heads in `group`: a rotation each, [heads, head_dim, head_dim].

    `gram` is [heads, head_dim, heads, head_dim] with E[a_i a_jᵀ]. Each head is turned towards the mean of all
    as they were turned before, until their distance to it falls by less than a hundred-thousandth.
    """
    size = gram.shape[1]
    inner = gram[group][:, :, group]
    turns = torch.stack([rotation(inner[i, :, 0]) for i in range(len(group))])
    power, last = torch.einsum("isis->", inner), float("inf")
    for _ in range(steps):
        # E[a_i meanᵀ] with the mean of the heads as they are turned now.
        crosses = torch.einsum("isjt,jtu->isu", inner, turns) / len(group)
        turns = torch.stack([rotation(cross) for cross in crosses])
        mean = torch.einsum("isu,isjt,jtv->uv", turns, inner, turns) / len(group) ** 2
        distance = float(power - len(group) * mean.diagonal().sum())
        if last - distance <= 1e-5 * abs(distance):
            break
        last = distance
    return turns.reshape(len(group), size, size)


def distances(gram: Tensor, rotation: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean squared distance of each two heads after the best rotation, [heads, heads]."""
    heads = gram.shape[0]
    power = torch.stack([gram[i, :, i].diagonal().sum() for i in range(heads)])
    fit = torch.zeros(heads, heads, dtype=gram.dtype)
    for i in range(heads):
        for j in range(i):
            fit[i, j] = fit[j, i] = (rotation(gram[i, :, j]) * gram[i, :, j]).sum()
    return (power[:, None] + power - 2 * fit).fill_diagonal_(0)


def group_heads(distance: Tensor, groups: int, seed: int = 0, starts: int = 20) -> list[list[int]]:
    """Groups of one size with little distance within, by swaps that lower it, from several beginnings."""
    heads, generator = len(distance), torch.Generator().manual_seed(seed)
    size = heads // groups

    def cost(order: list[int]) -> float:
        return sum(
            float(distance[order[at : at + size]][:, order[at : at + size]].sum())
            for at in range(0, heads, size)
        )

    def swaps() -> Iterator[tuple[int, int]]:
        return ((i, j) for i in range(heads) for j in range(i) if i // size != j // size)

    best, least = list(range(heads)), cost(list(range(heads)))
    for start in range(starts):
        order = list(range(heads)) if start == 0 else torch.randperm(heads, generator=generator).tolist()
        now, improved = cost(order), True
        while improved:
            improved = False
            for i, j in swaps():
                order[i], order[j] = order[j], order[i]
                other = cost(order)
                if other < now - 1e-12 * abs(now):
                    now, improved = other, True
                else:
                    order[i], order[j] = order[j], order[i]
        if now < least:
            best, least = list(order), now
    return sorted(sorted(best[at : at + size]) for at in range(0, heads, size))


@torch.no_grad()
def kv_procrustes(model: Any, ids: Tensor, heads: int, *, search: bool = True, seed: int = 0) -> Any:
    """Heads are turned towards each other before they are averaged.

    Jin et al. 2025, arXiv:2412.20677: groups of heads whose values are near after the best rotation
    (`search`; else neighbours), generalised Procrustes analysis of the values (any rotation, undone in
    o_proj) and of the keys before RoPE (a rotation of each of RoPE's pairs, done to the queries too). They
    then train masks until one head of a group is left; without training, the heads are averaged. Statistics
    are the old model's.
    """
    _check_heads(model, heads)
    new, old = _copy(model), model.config.num_key_value_heads
    queries = model.config.num_attention_heads // old
    stream = LayerStream(new, ids)
    for layer in new.model.layers:
        attention, grams = layer.self_attn, {}

        def add(name: str) -> Callable[[Tensor, Tensor], None]:
            def call(_: Tensor, y: Tensor) -> None:
                grams[name] = grams.get(name, 0) + (y.T @ y).double()  # noqa: B023 — used at once

            return call

        watch = {attention.k_proj: add("key"), attention.v_proj: add("value")}
        stream.advance(stream.run(layer, watch))
        by_head = {n: g.unflatten(0, (old, -1)).unflatten(2, (old, -1)) for n, g in grams.items()}
        size = old // heads
        groups = [list(range(at, at + size)) for at in range(0, old, size)]
        if search and 1 < size < old:
            groups = group_heads(distances(by_head["value"], value_rotation), heads, seed)
        key = [align(by_head["key"], group, key_rotation) for group in groups]
        value = [align(by_head["value"], group, value_rotation) for group in groups]
        _merge(attention, groups, torch.cat(key), torch.cat(value), old, queries)
    _set_heads(new, heads)
    return new.to(model.dtype)


def _merge(
    attention: Any, groups: list[list[int]], key: Tensor, value: Tensor, old: int, queries: int
) -> None:
    """Averages the turned heads of each group; `key` and `value` hold a rotation a head, in group order."""
    order = [head for group in groups for head in group]
    # A head h becomes Qᵀh; as queries are turned alike and o_proj back, only the averaging changes anything.
    q = _split_heads(attention.q_proj, old * queries).unflatten(0, (old, queries))[order]
    q = torch.einsum("hsu,hqsi->hqui", key, q)
    k = torch.einsum("hsu,hsi->hui", key, _split_heads(attention.k_proj, old)[order])
    v = torch.einsum("hsu,hsi->hui", value, _split_heads(attention.v_proj, old)[order])
    o = attention.o_proj.weight.double().unflatten(1, (old, queries, -1))[:, order]
    o = torch.einsum("ohqs,hsu->ohqu", o, value)
    attention.q_proj = _join_heads(q.flatten(0, 1), attention.q_proj)
    for name, heads in (("k_proj", k), ("v_proj", v)):
        setattr(
            attention,
            name,
            _join_heads(heads.unflatten(0, (len(groups), -1)).mean(1), getattr(attention, name)),
        )
    attention.o_proj = _linear(o.flatten(1), attention.o_proj.bias)


# Integers


@torch.no_grad()
def rtn(model: Any, bits: int, group: int = 32) -> Any:
    """Linear layers but the head, rounded to nearest: symmetric, a scale for each `group` columns of a row.

    The scale is what compressed-tensors' and GPTQ's default takes: the largest magnitude becomes
    (2^bits − 1) / 2, so that both ends of the range are used. Returned in floats, with the rounded values.
    Layers whose columns the group does not divide stay as they are.
    """
    new = _copy(model)
    largest = (2**bits - 1) / 2
    for layer in new.model.layers:
        for linear in [module for module in layer.modules() if isinstance(module, nn.Linear)]:
            if linear.in_features % group:
                continue
            parts = linear.weight.unflatten(1, (-1, group))
            scale = parts.abs().amax(-1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / largest
            whole = (parts / scale).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
            linear.weight.copy_((whole * scale).flatten(1))
    return new.to(model.dtype)
