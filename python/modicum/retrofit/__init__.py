"""A pretrained model made cheaper: functions from one Hugging Face directory to another."""

from modicum._core import round_rows
from modicum.retrofit import probes
from modicum.retrofit.calibration import Calibration, SourceUse
from modicum.retrofit.compare import Comparison, Perplexity, compare, perplexity
from modicum.retrofit.cost_model import CostModel
from modicum.retrofit.kv_merge import KvMerge, KvStatistics, merge_kv
from modicum.retrofit.own_text import OwnText
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize
from modicum.retrofit.shapes import Format, Shape, write_random
from modicum.retrofit.speed import Rate, Ratio, Speed, SpeedChange, measure, measure_shapes

__all__ = [
    "Calibration",
    "Comparison",
    "CostModel",
    "Format",
    "KvMerge",
    "KvStatistics",
    "OwnText",
    "Perplexity",
    "QuantizeReport",
    "QuantizedKind",
    "Rate",
    "Ratio",
    "Shape",
    "SourceUse",
    "Speed",
    "SpeedChange",
    "compare",
    "measure",
    "measure_shapes",
    "merge_kv",
    "perplexity",
    "probes",
    "quantize",
    "round_rows",
    "write_random",
]
