"""A pretrained model made cheaper: functions from one Hugging Face directory to another."""

from modicum._core import round_rows
from modicum.retrofit.compare import Comparison, Perplexity, compare, perplexity
from modicum.retrofit.cost_model import CostModel
from modicum.retrofit.pictures import Point, frontier_svg, layer_errors_svg
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize
from modicum.retrofit.report import KindBytes, LayerError, Probe, Protocol, Report
from modicum.retrofit.shapes import Format, Shape, write_random
from modicum.retrofit.speed import Rate, Ratio, Speed, SpeedChange, measure, measure_shapes

__all__ = [
    "Comparison",
    "CostModel",
    "Format",
    "KindBytes",
    "LayerError",
    "Perplexity",
    "Point",
    "Probe",
    "Protocol",
    "QuantizeReport",
    "QuantizedKind",
    "Rate",
    "Ratio",
    "Report",
    "Shape",
    "Speed",
    "SpeedChange",
    "compare",
    "frontier_svg",
    "layer_errors_svg",
    "measure",
    "measure_shapes",
    "perplexity",
    "quantize",
    "round_rows",
    "write_random",
]
