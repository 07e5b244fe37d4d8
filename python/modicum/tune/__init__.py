"""Weights of several models brought together: Chat Vectors, merging, adapters.

>>> plan = mo.tune.chat_vector("base", "instruct", onto="base-tuned-on-our-documents", alpha=0.8)
>>> print(mo.merge(plan, "merged"))
>>> mo.merge("mergekit.yaml", "merged")
>>> mo.tune.extract_lora("base", "tuned", "adapter", rank=16)
"""

from modicum.tune.arrays import Factors, factorize, keep_mask, merge_arrays
from modicum.tune.merge import (
    MergedKind,
    MergeReport,
    PatchedModule,
    PatchReport,
    extract_lora,
    merge_lora,
    write_patch,
)
from modicum.tune.merge import merge_plainly as merge
from modicum.tune.plan import Input, MergePlan, as_plan, chat_vector

__all__ = [
    "Factors",
    "Input",
    "MergePlan",
    "MergeReport",
    "MergedKind",
    "PatchReport",
    "PatchedModule",
    "as_plan",
    "chat_vector",
    "extract_lora",
    "factorize",
    "keep_mask",
    "merge",
    "merge_arrays",
    "merge_lora",
    "write_patch",
]
