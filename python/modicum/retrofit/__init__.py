"""A pretrained model made cheaper: from one Hugging Face directory to another, and the solvers that do it."""

from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize
from modicum.retrofit.rounding import Rounded, gptq, packed_tensors, quantization_config, round_nearest
from modicum.retrofit.scales import AwqScales, awq_scales, grouped_query_sources, smooth_scales

__all__ = [
    "AwqScales",
    "QuantizeReport",
    "QuantizedKind",
    "Rounded",
    "awq_scales",
    "gptq",
    "grouped_query_sources",
    "packed_tensors",
    "quantization_config",
    "quantize",
    "round_nearest",
    "smooth_scales",
]
