"""A pretrained model made cheaper: functions from one Hugging Face directory to another."""

from modicum._core import round_rows
<<<<<<< HEAD
<<<<<<< HEAD
from modicum.retrofit.kv_merge import KvMerge, KvStatistics, merge_kv
=======
from modicum.retrofit.compare import Comparison, Perplexity, compare, perplexity
from modicum.retrofit.cost_model import CostModel
>>>>>>> he
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize
from modicum.retrofit.shapes import Format, Shape, write_random
from modicum.retrofit.speed import Rate, Ratio, Speed, SpeedChange, measure, measure_shapes

__all__ = [
<<<<<<< HEAD
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
=======
    "Comparison",
    "CostModel",
    "Format",
    "Perplexity",
    "QuantizeReport",
    "QuantizedKind",
    "Rate",
    "Ratio",
    "Shape",
    "Speed",
    "SpeedChange",
    "compare",
    "measure",
    "measure_shapes",
    "perplexity",
    "quantize",
    "round_rows",
    "write_random",
>>>>>>> he
]
