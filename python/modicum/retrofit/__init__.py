"""A pretrained model made cheaper: functions from one Hugging Face directory to another."""

from modicum._core import round_rows
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize

__all__ = ["QuantizeReport", "QuantizedKind", "quantize", "round_rows"]
