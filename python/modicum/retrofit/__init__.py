"""A pretrained model made cheaper: functions from one Hugging Face directory to another."""

from modicum._core import low_rank, round_rows
from modicum.retrofit.kv_merge import KvMerge, KvStatistics, merge_kv
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize

__all__ = [
    "KvMerge",
    "KvStatistics",
    "QuantizeReport",
    "QuantizedKind",
    "low_rank",
    "merge_kv",
    "quantize",
    "round_rows",
]
