"""A pretrained model made cheaper: functions from one Hugging Face directory to another."""

from modicum._core import round_rows
from modicum.retrofit.compare import Comparison, Perplexity, compare, perplexity
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize

__all__ = [
    "Comparison",
    "Perplexity",
    "QuantizeReport",
    "QuantizedKind",
    "compare",
    "perplexity",
    "quantize",
    "round_rows",
]
