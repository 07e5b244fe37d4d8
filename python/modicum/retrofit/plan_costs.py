"""What a plan makes of a model's bytes, cache and speed, before anything is carried out."""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from modicum._core import FormatError, IoError, ModelConfig
from modicum.retrofit.cost_model import CostModel, with_layers
from modicum.retrofit.plan import Plan, Quantize
from modicum.retrofit.shapes import Format

__all__ = ["DecodeSpeed", "WeightBytes", "kept_layers", "kv_bytes_per_token", "layer_bits"]

_VALUE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_TENSOR = re.compile(r"model\.layers\.(\d+)\.(?:self_attn|mlp)\.(\w+_proj)\.(weight|bias)")
_SHAPE_BYTES = 16  # of the two int64 that a packed matrix's own shape takes
Tensor = tuple[str, tuple[int, ...]]


class WeightBytes:
    """Bytes of all tensors after a plan, from the names and shapes that a checkpoint's headers have.

    Raises
    ------
    FormatError, IoError
        For a directory whose safetensors cannot be read.
    """

    def __init__(self, folder: str | Path, config: ModelConfig) -> None:
        self.config = config
        self.linear: dict[int, dict[tuple[str, str], Tensor]] = {}
        self.others: Counter[int | None] = Counter()  # by layer; None: of no layer
        self.head: Tensor | None = None
        self.embedding: Tensor | None = None
        for name, tensor in _tensors(Path(folder)).items():
            layer = re.match(r"model\.layers\.(\d+)\.", name)
            if found := _TENSOR.fullmatch(name):
                self.linear.setdefault(int(found[1]), {})[found[2], found[3]] = tensor
            elif name == "lm_head.weight":
                self.head = tensor
            else:
                self.others[int(layer[1]) if layer else None] += _float_bytes(tensor)
            if name == "model.embed_tokens.weight":
                self.embedding = tensor
        self.layer = functools.cache(self._layer)

    def __call__(self, plan: Plan) -> int:
        heads = plan.kv.kv_heads if plan.kv else self.config.num_key_value_heads
        width = plan.ffn.intermediate_size if plan.ffn else self.config.intermediate_size
        group = plan.quantize.group if plan.quantize else 32
        count = self.others[None] + self._head(plan.quantize)
        bits = layer_bits(plan, self.config.num_hidden_layers)
        return count + sum(self.layer(i, heads, width, b, group) for i, b in bits.items())

    def _layer(self, layer: int, heads: int, width: int, bits: int | None, group: int) -> int:
        keys = heads * self.config.head_dim
        sizes = {"k_proj": keys, "v_proj": keys, "gate_proj": width, "up_proj": width}
        total = self.others[layer]
        for (kind, part), (dtype, shape) in self.linear.get(layer, {}).items():
            rows, *cols = shape
            rows = sizes.get(kind, rows)
            if part == "bias":
                total += _float_bytes((dtype, (rows,)))
            else:
                columns = width if kind == "down_proj" else cols[0]
                total += _matrix_bytes(dtype, rows, columns, bits, group)
        return total

    def _head(self, edit: Quantize | None) -> int:
        if edit is None or edit.head_bits is None:
            return _float_bytes(self.head) if self.head else 0
        dtype, shape = self.head or self.embedding or ("F32", (0, 0))
        return _matrix_bytes(dtype, shape[0], shape[1], edit.head_bits, edit.group)


class DecodeSpeed:
    """Tokens a second that a plan will write, by a cost model."""

    def __init__(self, costs: CostModel, config: dict[str, Any], parsed: ModelConfig) -> None:
        self.costs, self.config, self.parsed = costs, config, parsed
        self.seconds = functools.cache(self._seconds)

    def __call__(self, plan: Plan) -> float:
        bits = Counter(layer_bits(plan, self.parsed.num_hidden_layers).values())
        layers = sum(bits.values())
        heads = plan.kv.kv_heads if plan.kv else self.parsed.num_key_value_heads
        width = plan.ffn.intermediate_size if plan.ffn else self.parsed.intermediate_size
        edit = plan.quantize or Quantize()
        # The cost is linear in layers: those of mixed bits cost what their shares of uniform ones do.
        seconds = sum(
            share / layers * self.seconds(layers, heads, width, b, edit.group, edit.head_bits)
            for b, share in bits.items()
        )
        return 1 / max(seconds, 1e-9)

    def _seconds(
        self, layers: int, heads: int, width: int, bits: int | None, group: int, head_bits: int | None
    ) -> float:
        config = with_layers(self.config, layers) | {
            "num_key_value_heads": heads,
            "head_dim": self.parsed.head_dim,
            "intermediate_size": width,
        }
        head: Literal["keep", "int8", "int4"] = (
            "keep" if head_bits is None else "int8" if head_bits == 8 else "int4"
        )
        return self.costs.decode_seconds(config, Format(bits, group or "channel", head))


def kv_bytes_per_token(config: ModelConfig, plan: Plan, *, int8: bool = False) -> int:
    """Of keys and values of one token in all layers: bf16, or half of that in int8 (scales left out)."""
    heads = plan.kv.kv_heads if plan.kv else config.num_key_value_heads
    layers = config.num_hidden_layers - (plan.depth.count if plan.depth else 0)
    return 2 * layers * heads * config.head_dim * (1 if int8 else 2)


def kept_layers(plan: Plan, layers: int) -> list[int]:
    """Those that stay, as the source numbers them."""
    gone = range(plan.depth.first, plan.depth.first + plan.depth.count) if plan.depth else ()
    return [layer for layer in range(layers) if layer not in gone]


def layer_bits(plan: Plan, layers: int) -> dict[int, int | None]:
    """Bits of each layer that stays; None: floats."""
    kept = kept_layers(plan, layers)
    if plan.quantize is None:
        return dict.fromkeys(kept, None)
    return {layer: plan.quantize.layer_bits.get(layer, plan.quantize.bits) for layer in kept}


def _matrix_bytes(dtype: str, rows: int, cols: int, bits: int | None, group: int) -> int:
    """Of one matrix; it stays in floats where its columns are no whole groups."""
    if bits is None or cols % (group or 32):
        return _float_bytes((dtype, (rows, cols)))
    if group == 0:
        return rows * cols + rows * _VALUE_BYTES[dtype]
    return rows * cols * bits // 8 + rows * cols // group * _VALUE_BYTES[dtype] + _SHAPE_BYTES


def _float_bytes(tensor: Tensor) -> int:
    dtype, shape = tensor
    return math.prod(shape) * _VALUE_BYTES.get(dtype, 1)


def _tensors(folder: Path) -> dict[str, Tensor]:
    """Dtype and shape of every tensor, by name."""
    tensors: dict[str, Tensor] = {}
    for path in _files(folder):
        try:
            with path.open("rb") as file:
                header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        except OSError as error:
            raise IoError(f"[plan] {path}: {error.strerror}") from None
        except ValueError:
            raise FormatError(f"[plan] {path}: expected a safetensors header, got something else") from None
        for name, about in header.items():
            if name != "__metadata__":
                tensors[name] = about["dtype"], tuple(about["shape"])
    return tensors


def _files(folder: Path) -> Sequence[Path]:
    """Those that the index names where there is one: a folder may hold the same weights a second time."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
        return [folder / name for name in sorted(names)]
    return [folder / "model.safetensors"]
