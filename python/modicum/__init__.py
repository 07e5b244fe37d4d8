"""modicum: run, reuse and search a pretrained language model on the machine you already own.

>>> import modicum as mo
>>> model = mo.load("path/to/Qwen2.5-0.5B-Instruct")
>>> kb = mo.cag.build(model, "handbook/", "handbook.kv")
>>> print(kb.ask("When may I carry leave over?"))
"""

from importlib import metadata as _metadata

from modicum import bench, cag, decode, documents, interop, retrofit, search, tune
from modicum._core import (
    Branch,
    Cancelled,
    ContextOverflow,
    Corrupt,
    DeviceError,
    Error,
    FingerprintMismatch,
    FormatError,
    InvalidArgument,
    IoError,
    MachineLimits,
    ModelConfig,
    OutOfMemory,
    StreamDecoder,
    Tokenizer,
    Unsupported,
    active_isa,
    extend,
    logits,
    machine_limits,
    read_bandwidth,
    supported_isas,
)
from modicum.beam import BeamResult, Hypothesis
from modicum.chat import ChatTemplate
from modicum.model import Generation, Model, load
from modicum.tune import merge

try:
    __version__ = _metadata.version("modicum")
except _metadata.PackageNotFoundError:  # a source tree on the path
    __version__ = "0.0.0"

__all__ = [
    "BeamResult",
    "Branch",
    "Cancelled",
    "ChatTemplate",
    "ContextOverflow",
    "Corrupt",
    "DeviceError",
    "Error",
    "FingerprintMismatch",
    "FormatError",
    "Generation",
    "Hypothesis",
    "InvalidArgument",
    "IoError",
    "MachineLimits",
    "Model",
    "ModelConfig",
    "OutOfMemory",
    "StreamDecoder",
    "Tokenizer",
    "Unsupported",
    "active_isa",
    "bench",
    "cag",
    "decode",
    "documents",
    "extend",
    "interop",
    "load",
    "logits",
    "machine_limits",
    "merge",
    "read_bandwidth",
    "retrofit",
    "search",
    "supported_isas",
    "tune",
]
