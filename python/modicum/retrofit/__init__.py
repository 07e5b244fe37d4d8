"""A pretrained model made cheaper: functions from one Hugging Face directory to another."""

from modicum._core import round_rows
from modicum.retrofit.compare import Comparison, Perplexity, compare, perplexity
from modicum.retrofit.cost_model import CostModel
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize
from modicum.retrofit.shapes import Format, Shape, write_random
from modicum.retrofit.speed import Rate, Ratio, Speed, SpeedChange, measure, measure_shapes

__all__ = [
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
]
