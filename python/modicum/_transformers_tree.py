# SPDX-License-Identifier: Apache-2.0
"""All rows of a search as one tree in one transformers cache. Imports torch, so import it late.

The rows of a step are the query of one sequence: ``input_ids [1, rows]``, and a mask says which cached tokens
are a row's own path. Keys and values of shared tokens are thus held, and read, once for all rows:

* `TrieCache` writes new tokens into slots of memory that is already there and returns views; nothing is
  concatenated, repeated or reordered.
* `_mask` answers transformers' own request for a mask, so that what a model says about visibility (causal,
  sliding window, chunks) holds for positions in the tree; the ancestors of each row are ANDed to it.
* `_attention` packs the heads that share keys, [1, heads, rows, d] → [1, kv_heads, groups·rows, d], so that
  grouped heads repeat no keys either.

Both functions stand in transformers' registries under names of their own and act only inside `attending`; a
model that another thread runs meanwhile is served by its own implementation.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from modicum._core import Unsupported

Ids = npt.NDArray[np.int64]

# Slots beyond the prompt that a fresh cache has; they double when they do not suffice.
FIRST_TAIL = 64
# Layers whose only memory is keys and values, however much of it their masks show.
ATTENTION_KINDS = {"full_attention", "sliding_attention", "chunked_attention"}
# What models hand on to every attention function and what changes nothing in a tree.
HARMLESS = {
    "cache",
    "cache_position",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "past_key_values",
    "position_embeddings",
    "position_ids",
    "return_dict",
    "sliding_window",  # already in the mask
    "use_cache",
}


@dataclass
class MaskPlan:
    """A mask cut to the columns that need one: all rows see [first, mixed), `bias` rules from `mixed` on."""

    first: int
    mixed: int
    bias: torch.Tensor  # [rows, size - mixed], 0 or -inf

    @classmethod
    def of(cls, allowed: torch.Tensor, dtype: torch.dtype) -> MaskPlan:
        """`allowed` [rows, size] is boolean, and has a true value in each row (a token sees itself)."""
        first = int(allowed.any(0).to(torch.uint8).argmax())
        partial = ~allowed[:, first:].all(0)
        mixed = first + (int(partial.to(torch.uint8).argmax()) if bool(partial.any()) else partial.shape[0])
        bias = torch.zeros(allowed.shape[0], allowed.shape[1] - mixed, dtype=dtype, device=allowed.device)
        return cls(first, mixed, bias.masked_fill_(~allowed[:, mixed:], -torch.inf))

    def tiled(self, groups: int) -> torch.Tensor:
        """[1, 1, groups·rows, size - first], as torch's fused attention wants it."""
        whole = torch.nn.functional.pad(self.bias, (self.mixed - self.first, 0))
        return whole.repeat(groups, 1)[None, None]


@dataclass
class TreePass:
    """One step: row i is a new token in slot `slots[i]`, which sees the tokens in slots `visible[i]`."""

    slots: torch.Tensor  # [rows]
    row_positions: torch.Tensor  # [rows]
    slot_positions: torch.Tensor  # [size]
    visible: torch.Tensor  # bool [rows, size]
    masks_made: int = 0
    layers_written: int = 0
    layers_attended: int = 0
    plans: dict[Any, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return int(self.visible.shape[1])

    def plan(self, mask: torch.Tensor, dtype: torch.dtype) -> MaskPlan:
        """Layers of one kind share a mask; it is looked through once."""
        key = (mask.data_ptr(), mask.device, dtype)
        if key not in self.plans:
            # The mask stays with its plan, so that its address belongs to no other meanwhile.
            self.plans[key] = (MaskPlan.of(mask[0, 0], dtype), mask)
        plan: MaskPlan = self.plans[key][0]
        return plan

    def tiled(self, mask: torch.Tensor, dtype: torch.dtype, groups: int) -> torch.Tensor:
        key = (mask.data_ptr(), mask.device, dtype, groups)
        if key not in self.plans:
            self.plans[key] = self.plan(mask, dtype).tiled(groups)
        return self.plans[key]


class TrieLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not type-checked here
    """Keys and values [1, kv_heads, capacity, head_dim] of one layer: the prompt, then slots."""

    is_sliding = False

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        self.prompt = key_states.shape[2]
        self.keys, self.values = (
            x.new_zeros(*x.shape[:2], self.prompt + FIRST_TAIL, x.shape[3])
            for x in (key_states, value_states)
        )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The prompt, once."""
        if self.is_initialized or key_states.shape[0] != 1:
            raise Unsupported("[transformers_step] cache: expected each layer to be written once a pass")
        self.lazy_initialization(key_states, value_states)
        self.length = self.prompt
        self.keys[:, :, : self.length] = key_states
        self.values[:, :, : self.length] = value_states
        return key_states, value_states

    def write(
        self, key_states: torch.Tensor, value_states: torch.Tensor, tree: TreePass
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of a step into their slots; views of all slots in use."""
        self._reserve(tree.size)
        self.length = tree.size
        slots = tree.slots.to(self.keys.device)
        self.keys.index_copy_(2, slots, key_states)
        self.values.index_copy_(2, slots, value_states)
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def _reserve(self, size: int) -> None:
        capacity = self.keys.shape[2]
        if size <= capacity:
            return
        # Only the part behind the prompt doubles: the prompt, mostly the larger part, will not grow.
        while capacity < size:
            capacity += capacity - self.prompt
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : self.length] = old[:, :, : self.length]
            setattr(self, name, new)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return -1


class TrieCache(Cache):  # type: ignore[misc]
    """A cache whose rows are branches of one tree, without copies. Not for `generate`."""

    def __init__(self) -> None:
        super().__init__(layer_class_to_replicate=TrieLayer)
        self.tree: TreePass | None = None

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if self.tree is None:
            return super().update(key_states, value_states, layer_idx)  # type: ignore[no-any-return]
        self.tree.layers_written += 1
        return self.layers[layer_idx].write(key_states, value_states, self.tree)  # type: ignore[no-any-return]

    @property
    def nbytes(self) -> int:
        held = [layer for layer in self.layers if layer.is_initialized]
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in held)


_current: ContextVar[TreePass | None] = ContextVar("modicum_tree_pass", default=None)
# Two searches over one model take turns: the name of its attention function is the model's, not the search's.
_turns: weakref.WeakKeyDictionary[Any, threading.RLock] = weakref.WeakKeyDictionary()
_turns_guard = threading.Lock()
_NAMES = {original: f"modicum_tree_{original}" for original in ("sdpa", "eager")}


def _configs(model: Any) -> list[Any]:
    """Every configuration that a layer of the model may ask for its attention function."""
    found = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}
    return [c for c in found.values() if hasattr(c, "_attn_implementation_internal")]


def check_attention(model: Any) -> None:
    """Raises Unsupported unless all of the model's attention can be replaced for the length of a pass."""
    for config in _configs(model):
        name = config._attn_implementation_internal
        if name not in (None, *_NAMES):
            raise Unsupported(
                f"[transformers_step] attention: expected sdpa or eager, got {name}; load the model with "
                'attn_implementation="sdpa"'
            )


@contextmanager
def attending(model: Any, tree: TreePass) -> Iterator[None]:
    """Inside, attention of `model` in this thread is over the tree; afterwards all is as it was."""
    with _turns_guard:
        turn = _turns.setdefault(model, threading.RLock())
    with turn:
        before = [(config, config._attn_implementation_internal) for config in _configs(model)]
        token = _current.set(tree)
        try:
            for config, name in before:
                config._attn_implementation_internal = _NAMES.get(name, name)
            yield
        finally:
            for config, name in before:
                config._attn_implementation_internal = name
            _current.reset(token)


def _mask(original: str, mask_function: Any, **options: Any) -> Any:
    tree = _current.get()
    if tree is None:
        return AttentionMaskInterface()[original](mask_function=mask_function, **options)
    if options.get("use_vmap") or options.get("attention_mask") is not None:
        raise Unsupported("[transformers_step] mask: expected a function of positions alone")
    tree.masks_made += 1
    device = tree.visible.device
    none = torch.zeros(1, 1, 1, 1, dtype=torch.long, device=device)
    # The model's own rule, asked about positions: slots are in any order, and siblings share a position.
    allowed = mask_function(
        none, none, tree.row_positions[None, None, :, None], tree.slot_positions[None, None, None, :]
    )
    return (allowed & tree.visible).to(options.get("device", device))


def _attention(
    original: str, module: Any, query: Any, key: Any, value: Any, attention_mask: Any, **options: Any
) -> tuple[Any, None]:
    tree = _current.get()
    if tree is None:
        return _owners_attention(original, module)(module, query, key, value, attention_mask, **options)  # type: ignore[no-any-return]
    tree.layers_attended += 1
    scaling, softcap, sinks = (options.pop(name, None) for name in ("scaling", "softcap", "s_aux"))
    options.pop("dropout", None)  # of training
    unknown = {k for k, v in options.items() if v is not None} - HARMLESS
    if options.pop("is_causal", True) is False or unknown - {"is_causal"}:
        raise Unsupported(f"[transformers_step] attention: expected no {sorted(unknown)}")
    if attention_mask is None or attention_mask.dtype != torch.bool or attention_mask.shape[1] != 1:
        raise Unsupported("[transformers_step] attention: expected transformers' own masks")
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    kv_heads, groups = key.shape[1], query.shape[1] // key.shape[1]
    packed = (query * scaling).reshape(1, kv_heads, groups * query.shape[2], query.shape[3])
    # torch's fused attention on a CPU spends more on masks than on keys; below f32 it rounds less, though.
    if softcap is None and sinks is None and (query.device.type != "cpu" or query.dtype != torch.float32):
        plan = tree.plan(attention_mask, query.dtype)
        out = torch.nn.functional.scaled_dot_product_attention(
            packed,
            key[:, :, plan.first :],
            value[:, :, plan.first :],
            attn_mask=tree.tiled(attention_mask, query.dtype, groups),
            scale=1.0,
        )
    else:
        plan = tree.plan(attention_mask, torch.float32)
        out = _attend(packed, key, value, plan, softcap, sinks)
    out = out.reshape(1, kv_heads * groups, query.shape[2], value.shape[3])
    return out.transpose(1, 2).contiguous(), None


def _attend(
    packed: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    plan: MaskPlan,
    softcap: float | None,
    sinks: torch.Tensor | None,
) -> torch.Tensor:
    """softmax(softcap(q·kᵀ) + bias)·v for q [1, kv_heads, groups·rows, d] that is scaled already.

    `sinks` [heads] take part in each row's softmax and have no value (gpt-oss).
    """
    rows = plan.bias.shape[0]
    key, value = key[:, :, plan.first :], value[:, :, plan.first :]
    scores = (packed @ key.transpose(2, 3)).float()  # [1, kv_heads, groups·rows, size - first]
    if softcap is not None:
        scores = scores.div_(softcap).tanh_().mul_(softcap)
    by_row = scores.view(1, key.shape[1], -1, rows, scores.shape[3])
    by_row[..., plan.mixed - plan.first :] += plan.bias
    out = torch.softmax(scores, -1).to(value.dtype) @ value
    if sinks is None:
        return out
    # exp(lse) of exp(lse) + exp(sink) is what the sink leaves to the tokens.
    left = torch.sigmoid(by_row.logsumexp(-1) - sinks.float().view(1, key.shape[1], -1, 1))
    return out * left.reshape(*out.shape[:3], 1).to(out.dtype)


def _owners_attention(original: str, module: Any) -> Any:
    if original != "eager":
        return ALL_ATTENTION_FUNCTIONS[original]
    return sys.modules[type(module).__module__].eager_attention_forward


def _register() -> None:
    for original, name in _NAMES.items():

        def attention(module: Any, *tensors: Any, _original: str = original, **options: Any) -> Any:
            return _attention(_original, module, *tensors, **options)

        def mask(*, _original: str = original, **options: Any) -> Any:
            return _mask(_original, **options)

        AttentionInterface.register(name, attention)
        AttentionMaskInterface.register(name, mask)


_register()


class TreeTier:
    """The rows of a search as branches of one tree of slots; `forward` is transformers_step's _Forward."""

    name: Literal["tree"] = "tree"

    def __init__(self, forward: Any) -> None:
        check_attention(forward.model)
        if not forward.takes("position_ids") or forward.cache_name not in ("cache", "past_key_values"):
            raise Unsupported("[transformers_step] forward: expected position_ids and a cache")
        kinds = getattr(forward.text_config, "layer_types", None) or []
        if others := sorted(set(kinds) - ATTENTION_KINDS):
            raise Unsupported(f"[transformers_step] layers: expected attention, got {', '.join(others)}")
        self.forward = forward
        self.layers = int(getattr(forward.text_config, "num_hidden_layers", 1))
        self.reset()

    def reset(self) -> None:
        self.cache: TrieCache | None = None
        self.prompt = 0
        self.depth = 0
        # Which slots behind the prompt hold each row's path, and the position of the token in each slot.
        self.ancestors = np.zeros((0, 0), dtype=bool)
        self.positions: Ids = np.zeros(0, dtype=np.int64)

    def start(self, ids: Ids) -> torch.Tensor:
        cache = TrieCache()
        held = {self.forward.cache_name: cache}
        logits, _ = self.forward(self.forward.tensor(ids[None]), use_cache=True, **held)
        self.cache, self.prompt, self.depth = cache, len(ids), 0
        self.ancestors = np.zeros((1, 0), dtype=bool)
        self.positions = np.zeros(0, dtype=np.int64)
        return logits

    def advance(self, parents: Ids, tokens: Ids) -> torch.Tensor:
        assert self.cache is not None
        slots, ancestors = self._place(parents)
        positions: Ids = np.zeros(ancestors.shape[1], dtype=np.int64)
        known = min(len(positions), len(self.positions))
        positions[:known] = self.positions[:known]
        positions[slots] = self.prompt + self.depth
        tree = self._pass(slots, ancestors, positions)
        self.cache.tree = tree
        with attending(self.forward.model, tree):
            logits, _ = self.forward(
                self.forward.tensor(tokens[None]),
                every_token=True,
                position_ids=tree.row_positions[None],
                use_cache=True,
                **{self.forward.cache_name: self.cache},
            )
        # A layer that does not come by here remembers in some way that knows no branches.
        if tree.layers_attended < max(self.layers, tree.layers_written) or not tree.masks_made:
            raise Unsupported(
                f"[transformers_step] layers: expected {self.layers} that call transformers' attention "
                f"interface, got {tree.layers_attended}"
            )
        self.ancestors, self.positions, self.depth = ancestors, positions, self.depth + 1
        return logits

    def _place(self, parents: Ids) -> tuple[Ids, npt.NDArray[np.bool_]]:
        """Slots for the new rows, the lowest that no surviving path uses, and the rows' paths with them."""
        kept = self.ancestors[parents]
        free = np.flatnonzero(~kept.any(0))[: len(parents)]
        fresh = np.arange(len(parents) - len(free)) + kept.shape[1]
        slots: Ids = np.concatenate([free, fresh]).astype(np.int64)
        used = np.flatnonzero(kept.any(0))
        width = 1 + max(int(slots.max()), int(used[-1]) if len(used) else 0)
        ancestors = np.zeros((len(parents), width), dtype=bool)
        shared = min(width, kept.shape[1])
        ancestors[:, :shared] = kept[:, :shared]
        ancestors[np.arange(len(parents)), slots] = True
        return slots, ancestors

    def _pass(self, slots: Ids, ancestors: npt.NDArray[np.bool_], positions: Ids) -> TreePass:
        rows = len(slots)
        visible = np.concatenate([np.ones((rows, self.prompt), dtype=bool), ancestors], axis=1)
        everywhere = np.concatenate([np.arange(self.prompt), positions])
        here = np.full(rows, self.prompt + self.depth)
        tensor = self.forward.tensor
        return TreePass(tensor(self.prompt + slots), tensor(here), tensor(everywhere), tensor(visible))

    @property
    def tokens_held(self) -> int:
        """The prompt's tokens and those of the union of all rows' paths."""
        return self.prompt + int(self.ancestors.any(0).sum())

    @property
    def kv_bytes(self) -> int:
        return self.cache.nbytes if self.cache is not None else 0
