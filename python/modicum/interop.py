"""Keys and values to and from transformers, and models that only modicum writes.

``pip install modicum[interop]`` brings torch and transformers.

What modicum keeps of tokens 0, 1, … is what a transformers model of the same directory keeps: keys after the
rotation to their position (and after their norm, where the model has one), values as they are. Only the axes
are in another order, [tokens, kv_heads, head_dim] a layer here and [batch, kv_heads, tokens, head_dim] there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from modicum._core import InvalidArgument, Unsupported

if TYPE_CHECKING:
    import torch
    from transformers import DynamicCache

__all__ = ["from_dynamic_cache", "register", "to_dynamic_cache"]

Array = npt.NDArray[Any]


def to_dynamic_cache(
    k: Array | torch.Tensor,
    v: Array | torch.Tensor,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
) -> DynamicCache:
    """A cache that transformers continues from: ``model.generate(ids, past_key_values=cache)``.

    `ids` are then those of all tokens, the cached ones first. Every value is copied, so generation writes
    neither to `k` and `v` nor to a file that they are mapped from.

    Parameters
    ----------
    k, v : [layers, tokens, kv_heads, head_dim], numpy or torch, of float32, float16 or bfloat16. numpy's
        uint16 is taken for the bits of bfloat16. Keys are rotated to positions 0, 1, ….
    dtype : of the cache; None keeps that of `k`. transformers needs the model's.
    device : of the cache; None means the CPU for numpy, and where it is for torch.

    Raises
    ------
    InvalidArgument
        For shapes or dtypes that are no keys and values of one model.
    Unsupported
        Where torch or transformers is missing.
    """
    torch, transformers = _libraries("to_dynamic_cache")
    keys, values = (
        _as_tensor(torch, name, array, "to_dynamic_cache") for name, array in (("k", k), ("v", v))
    )
    if keys.shape != values.shape:
        raise _invalid("to_dynamic_cache", "v", f"shape {_shape(keys)} as k", f"{_shape(values)}")
    if keys.dtype != values.dtype:
        raise _invalid("to_dynamic_cache", "v", f"{keys.dtype} as k", f"{values.dtype}")
    cache = transformers.DynamicCache()
    for layer in range(keys.shape[0]):
        pair = [
            # [tokens, kv_heads, head_dim] → [1, kv_heads, tokens, head_dim]
            x[layer].transpose(0, 1)[None].to(dtype=dtype or x.dtype, device=device, copy=True).contiguous()
            for x in (keys, values)
        ]
        cache.update(*pair, layer)
    return cache


def from_dynamic_cache(cache: DynamicCache) -> tuple[Array, Array]:
    """Keys and values of a cache that transformers has filled, each [layers, tokens, kv_heads, head_dim].

    Copies in C order, of float32 or float16; bfloat16, which numpy lacks, comes as its bits in uint16.
    :func:`to_dynamic_cache` makes an equal cache of them.

    Raises
    ------
    InvalidArgument
        For no DynamicCache, an empty one, a batch of more than one, or layers of different shapes.
    Unsupported
        For layers that do not hold every token as it was (quantised, sliding, recurrent ones), and where
        torch or transformers is missing.
    """
    torch, transformers = _libraries("from_dynamic_cache")
    if not isinstance(cache, transformers.DynamicCache):
        raise _invalid("from_dynamic_cache", "cache", "a transformers.DynamicCache", type(cache).__name__)
    if cache.get_seq_length() == 0:
        raise _invalid("from_dynamic_cache", "cache", "at least one token", "none")
    first = cache.layers[0]
    for i, layer in enumerate(cache.layers):
        _check_layer(transformers, i, layer)
        for name, x in (("keys", layer.keys), ("values", layer.values)):
            if x.shape != first.keys.shape or x.dtype != first.keys.dtype:
                raise _invalid(
                    "from_dynamic_cache",
                    f"{name} of layer {i}",
                    f"{_shape(first.keys)} {first.keys.dtype} as the keys of layer 0",
                    f"{_shape(x)} {x.dtype}",
                )
    if first.keys.shape[0] != 1:
        raise _invalid("from_dynamic_cache", "batch", "1", f"{first.keys.shape[0]}")
    _check_dtype(torch, first.keys.dtype, "cache", "from_dynamic_cache")
    return (
        _as_array(torch, [layer.keys for layer in cache.layers]),
        _as_array(torch, [layer.values for layer in cache.layers]),
    )


def register() -> None:
    """Lets transformers load directories that have a "modicum" section in config.json.

    After it, ``AutoModelForCausalLM.from_pretrained`` makes linear layers that are stored as two factors
    (:func:`modicum.retrofit.low_rank`) into what they are. Every other model is made as before.

    Raises
    ------
    Unsupported
        Where torch or transformers is missing.
    """
    _libraries("register")
    from modicum import _transformers_low_rank

    _transformers_low_rank.register()


def _libraries(op: str) -> tuple[Any, Any]:
    try:
        import torch
        import transformers
    except ImportError as error:
        raise Unsupported(
            f"[{op}] transformers: expected torch and transformers, got no {error.name}; "
            "pip install modicum[interop]"
        ) from None
    return torch, transformers


def _as_tensor(torch: Any, name: str, array: Any, op: str) -> Any:
    """A tensor over the same memory, uint16 as bfloat16."""
    if not isinstance(array, (np.ndarray, torch.Tensor)):
        raise _invalid(op, name, "a numpy array or a torch tensor", type(array).__name__)
    if len(array.shape) != 4 or 0 in array.shape:
        raise _invalid(op, name, "[layers, tokens, kv_heads, head_dim], none of them 0", _shape(array))
    if isinstance(array, np.ndarray):
        if not array.dtype.isnative:
            raise _invalid(op, name, "bytes in this machine's order", array.dtype.str)
        if array.dtype.name in ("uint16", "bfloat16"):  # the second is of ml_dtypes
            bits = torch.from_numpy(_writable(array.view(np.uint16)).view(np.int16))
            return bits.view(torch.bfloat16)
        if array.dtype not in (np.float32, np.float16):
            raise _invalid(op, name, "float32, float16 or bfloat16 (as uint16)", str(array.dtype))
        return torch.from_numpy(_writable(array))
    _check_dtype(torch, array.dtype, name, op)
    return array.detach()


def _writable(array: Array) -> Array:
    # torch has neither read-only tensors nor negative strides.
    return array if array.flags.writeable and array.flags.c_contiguous else array.copy()


def _check_dtype(torch: Any, dtype: Any, name: str, op: str) -> None:
    if dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise _invalid(op, name, "float32, float16 or bfloat16", str(dtype))


def _check_layer(transformers: Any, number: int, layer: Any) -> None:
    kinds = transformers.cache_utils
    whole = type(layer) in (kinds.DynamicLayer, kinds.DynamicSlidingWindowLayer)
    if whole and layer.is_initialized and layer.keys.shape[-2] == layer.get_seq_length():
        return
    got = type(layer).__name__
    if whole:
        kept = layer.keys.shape[-2] if layer.is_initialized else 0
        got = f"{kept} of {layer.get_seq_length()} tokens in a {got}"
    raise Unsupported(
        f"[from_dynamic_cache] layer {number}: expected every token's keys and values, got {got}; fill a "
        "plain transformers.DynamicCache()"
    )


def _as_array(torch: Any, layers: list[Any]) -> Array:
    # [1, kv_heads, tokens, head_dim] of a layer → [tokens, kv_heads, head_dim]
    stacked = torch.stack([x.detach()[0].transpose(0, 1).cpu() for x in layers])
    if stacked.dtype == torch.bfloat16:
        bits: Array = stacked.view(torch.int16).numpy().view(np.uint16)
        return bits
    array: Array = stacked.numpy()
    return array


def _shape(array: Any) -> str:
    return str(list(array.shape))


def _invalid(op: str, what: str, expected: str, got: str) -> InvalidArgument:
    return InvalidArgument(f"[{op}] {what}: expected {expected}, got {got}")
