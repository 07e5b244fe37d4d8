"""A pretrained model made cheaper: functions from one Hugging Face directory to another."""

from modicum._core import round_rows
<<<<<<< HEAD
from modicum.retrofit.kv_merge import KvMerge, KvStatistics, merge_kv
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize

__all__ = [
    "KvMerge",
    "KvStatistics",
    "QuantizeReport",
    "QuantizedKind",
    "merge_kv",
=======
from modicum.retrofit import probes
from modicum.retrofit.calibration import Calibration, SourceUse
from modicum.retrofit.own_text import OwnText
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize

__all__ = [
    "Calibration",
    "OwnText",
    "QuantizeReport",
    "QuantizedKind",
    "SourceUse",
    "probes",
>>>>>>> hp
    "quantize",
    "round_rows",
]
