"""Checkpoints of a shape alone: random weights that cost what real ones would, before there are any."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from modicum._core import InvalidArgument, IoError, ModelConfig
from modicum.model import Progress
from modicum.retrofit.quantize import Head, quantize

__all__ = ["Format", "Shape", "config_of", "parsed", "temporary_checkpoint", "write_random"]

_TILE = (1 << 20) + 7  # values that are written over and over; odd, so that the rows of a matrix differ
_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class Format:
    """How weights are stored: `bits` None leaves all in floats, else as :func:`quantize` does.

    Attributes
    ----------
    head : "keep" leaves it in floats.
    """

    bits: int | None = None
    group: int | Literal["channel"] = 32
    head: Head = "keep"

    @property
    def layers(self) -> str:
        """Of the linear layers: "floats", "int4 by 32", …"""
        return "floats" if self.bits is None else f"int{self.bits} by {self.group}"

    def __str__(self) -> str:
        return self.layers if self.bits is None else f"{self.layers}, head {self.head}"


@dataclass(frozen=True)
class Shape:
    """What decides how fast a model is: its config.json (as transformers reads it) and its format."""

    config: dict[str, Any]
    format: Format = field(default_factory=Format)


def config_of(folder: Path) -> dict[str, Any]:
    """The config.json of a model, as floats: without its quantization_config."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text("utf-8"))
    except OSError as error:
        raise IoError(f"[shape] {folder / 'config.json'}: {error.strerror}") from None
    config.pop("quantization_config", None)
    return config


def parsed(config: dict[str, Any]) -> ModelConfig:
    """What the engine reads in `config`, with the defaults of its kind of model."""
    return ModelConfig.parse(json.dumps(config))


def write_random(config: dict[str, Any], folder: Path, *, seed: int = 0) -> Path:
    """Writes config.json and random weights for it to `folder`: a model that runs and knows nothing.

    Weights are floats of the config's dtype (default float32); a quantization_config is left out. There is no
    tokenizer.

    Raises
    ------
    FormatError, Unsupported
        For a config that the engine does not run.
    IoError
        Where it cannot be written, as for want of room.
    """
    config = {key: value for key, value in config.items() if key != "quantization_config"}
    shapes = _tensors(parsed(config))
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    if dtype not in _DTYPES:
        raise InvalidArgument(f"[shape] dtype: expected one of {', '.join(_DTYPES)}, got {dtype!r}")
    random = np.random.default_rng(seed).normal(0, 0.02, _TILE).astype(np.float32)
    noise, ones = _stored(random, dtype), _stored(np.ones(1, np.float32), dtype)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    begin = 0
    for name, shape in shapes.items():
        end = begin + math.prod(shape) * noise.itemsize
        header[name] = {"dtype": _DTYPES[dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    text = json.dumps(header).encode()
    text += b" " * (-(len(text) + 8) % 64)  # the data begins on a cache line
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config, indent=2), "utf-8")
        with (folder / "model.safetensors").open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for name, shape in shapes.items():
                for values in _tiles(ones if "norm" in name else noise, math.prod(shape)):
                    file.write(values.data)
    except OSError as error:
        raise IoError(f"[shape] {folder}: {error.strerror}") from None
    return folder


@contextmanager
def temporary_checkpoint(
    shape: Shape, *, scratch: Path | None = None, progress: Progress | None = None
) -> Iterator[Path]:
    """The directory of a checkpoint of `shape` with random weights, which goes when the block ends.

    Parameters
    ----------
    scratch : where it is made; None means the system's folder for temporary files.
    """
    if scratch is not None and not scratch.is_dir():
        raise IoError(f"[shape] {scratch}: expected a folder; create it, or leave scratch out")
    with TemporaryDirectory(prefix="modicum-shape-", dir=scratch) as name:
        folder = write_random(shape.config, Path(name) / "floats")
        if shape.format.bits is None:
            yield folder
            return
        quantised = Path(name) / "integers"
        quantize(
            folder,
            quantised,
            bits=shape.format.bits,
            group=shape.format.group,
            head=shape.format.head,
            progress=progress,
        )
        (folder / "model.safetensors").unlink()
        yield quantised


def _tensors(config: ModelConfig) -> dict[str, list[int]]:
    """Names and shapes of the tensors of a model of the Llama kind."""
    wide, inner = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    tensors: dict[str, list[int]] = {"model.embed_tokens.weight": [config.vocab_size, wide]}
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}."
        tensors[layer + "input_layernorm.weight"] = [wide]
        for name, rows, columns, bias in (
            ("self_attn.q_proj", queries, wide, config.qkv_bias),
            ("self_attn.k_proj", keys, wide, config.qkv_bias),
            ("self_attn.v_proj", keys, wide, config.qkv_bias),
            ("self_attn.o_proj", wide, queries, config.o_bias),
            ("mlp.gate_proj", inner, wide, config.mlp_bias),
            ("mlp.up_proj", inner, wide, config.mlp_bias),
            ("mlp.down_proj", wide, inner, config.mlp_bias),
        ):
            tensors[f"{layer}{name}.weight"] = [rows, columns]
            if bias:
                tensors[f"{layer}{name}.bias"] = [rows]
        if config.qk_norm:
            tensors[layer + "self_attn.q_norm.weight"] = [config.head_dim]
            tensors[layer + "self_attn.k_norm.weight"] = [config.head_dim]
        tensors[layer + "post_attention_layernorm.weight"] = [wide]
    tensors["model.norm.weight"] = [wide]
    if not config.tie_word_embeddings:
        tensors["lm_head.weight"] = [config.vocab_size, wide]
    return tensors


def _stored(values: npt.NDArray[np.float32], dtype: str) -> npt.NDArray[Any]:
    if dtype == "bfloat16":  # which numpy does not have: the upper half of a float32
        return (values.view(np.uint32) >> 16).astype(np.uint16)
    return values.astype(np.float16) if dtype == "float16" else values


def _tiles(values: npt.NDArray[Any], count: int) -> Iterator[npt.NDArray[Any]]:
    """`values` over and over, `count` of them."""
    block = np.resize(values, max(1, min(count, _TILE)))
    for begin in range(0, count, len(block)):
        yield block[: count - begin]
