"""A pretrained model made cheaper: functions from one Hugging Face directory to another."""

from modicum._core import round_rows
from modicum.retrofit import probes
from modicum.retrofit.calibration import Calibration, SourceUse
from modicum.retrofit.compare import Comparison, Perplexity, compare, perplexity
from modicum.retrofit.cost_model import CostModel
from modicum.retrofit.own_text import OwnText
from modicum.retrofit.pictures import Point, edit_errors_svg, frontier_svg
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize
from modicum.retrofit.report import EditError, KindBytes, Protocol, Report
from modicum.retrofit.shapes import Format, Shape, write_random
from modicum.retrofit.speed import Rate, Ratio, Speed, SpeedChange, measure, measure_shapes

__all__ = [
    "Calibration",
    "Comparison",
    "CostModel",
    "EditError",
    "Format",
    "KindBytes",
    "OwnText",
    "Perplexity",
    "Point",
    "Protocol",
    "QuantizeReport",
    "QuantizedKind",
    "Rate",
    "Ratio",
    "Report",
    "Shape",
    "SourceUse",
    "Speed",
    "SpeedChange",
    "compare",
    "edit_errors_svg",
    "frontier_svg",
    "measure",
    "measure_shapes",
    "perplexity",
    "probes",
    "quantize",
    "round_rows",
    "write_random",
]
