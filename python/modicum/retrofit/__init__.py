"""A pretrained model made cheaper: functions from one Hugging Face directory to another.

>>> model = mo.load("in")
>>> text = mo.retrofit.Calibration.from_text(model, "texts/")
>>> plan = mo.retrofit.Plan(ffn=mo.retrofit.Ffn(3648), quantize=mo.retrofit.Quantize(bits=8))
>>> print(mo.retrofit.estimate("in", plan, text))
>>> report = mo.retrofit.run("in", "out", plan, calibration=text)

Or ``mo.retrofit.plan("in", target=mo.retrofit.Target(bytes=300_000_000), calibration=text)`` finds the plan.
The solvers (`merge_kv`, `refine_ffn`, `gptq`, `low_rank`, …) work on plain arrays, for layers of any model.
"""

from modicum._core import low_rank
from modicum.calibration import Calibration, SourceUse
from modicum.compare import Comparison, Perplexity, compare, perplexity
from modicum.own_text import OwnText
from modicum.retrofit import probes
from modicum.retrofit.cost_model import CostModel
from modicum.retrofit.kv_merge import KvMerge, KvStatistics, merge_kv
from modicum.retrofit.pictures import Point, edit_errors_svg, frontier_svg
from modicum.retrofit.plan import Depth, Ffn, Kv, LowRank, Plan, Quantize, Window
from modicum.retrofit.planned import Considered, Planned
from modicum.retrofit.planner import plan
from modicum.retrofit.quantize import QuantizedKind, QuantizeReport, quantize
from modicum.retrofit.refine import RefinedFfn, RefineReport, refine_ffn
from modicum.retrofit.report import EditError, KindBytes, Protocol, Report
from modicum.retrofit.rounding import Rounded, gptq, packed_tensors, quantization_config, round_nearest
from modicum.retrofit.run import Estimate, estimate, report, run
from modicum.retrofit.scales import AwqScales, awq_scales, grouped_query_sources, smooth_scales
from modicum.retrofit.shapes import Format, Shape, write_random
from modicum.retrofit.speed import Rate, Ratio, Speed, SpeedChange, measure, measure_shapes
from modicum.retrofit.targets import Target, parse_target

__all__ = [
    "AwqScales",
    "Calibration",
    "Comparison",
    "Considered",
    "CostModel",
    "Depth",
    "EditError",
    "Estimate",
    "Ffn",
    "Format",
    "KindBytes",
    "Kv",
    "KvMerge",
    "KvStatistics",
    "LowRank",
    "OwnText",
    "Perplexity",
    "Plan",
    "Planned",
    "Point",
    "Protocol",
    "Quantize",
    "QuantizeReport",
    "QuantizedKind",
    "Rate",
    "Ratio",
    "RefineReport",
    "RefinedFfn",
    "Report",
    "Rounded",
    "Shape",
    "SourceUse",
    "Speed",
    "SpeedChange",
    "Target",
    "Window",
    "awq_scales",
    "compare",
    "edit_errors_svg",
    "estimate",
    "frontier_svg",
    "gptq",
    "grouped_query_sources",
    "low_rank",
    "measure",
    "measure_shapes",
    "merge_kv",
    "packed_tensors",
    "parse_target",
    "perplexity",
    "plan",
    "probes",
    "quantization_config",
    "quantize",
    "refine_ffn",
    "report",
    "round_nearest",
    "run",
    "smooth_scales",
    "write_random",
]
