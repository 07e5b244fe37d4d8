"""Weights of several models brought together: Chat Vectors, merging, adapters.

>>> plan = mo.tune.chat_vector("base", "instruct", onto="base-tuned-on-our-documents", alpha=0.8)
>>> print(mo.merge(plan, "merged"))
>>> mo.merge("mergekit.yaml", "merged")
>>> mo.tune.extract_lora("base", "tuned", "adapter", rank=16)
"""

from modicum.tune.arrays import Factors, factorize, keep_mask, merge_arrays
from modicum.tune.guard import Check, Guard, GuardError, GuardReport, Limits, Trial
from modicum.tune.guard_set import Choice, GuardSet, Reply
from modicum.tune.guarded import merge
from modicum.tune.manners import Item, Manners, measure_manners
from modicum.tune.merge import (
    MergedKind,
    MergeReport,
    PatchedModule,
    PatchReport,
    extract_lora,
    merge_lora,
    write_patch,
)
from modicum.tune.plan import Input, MergePlan, as_plan, chat_vector
from modicum.tune.project import ProjectedModule, ProjectReport, conversations, project

__all__ = [
    "Check",
    "Choice",
    "Factors",
    "Guard",
    "GuardError",
    "GuardReport",
    "GuardSet",
    "Input",
    "Item",
    "Limits",
    "Manners",
    "MergePlan",
    "MergeReport",
    "MergedKind",
    "PatchReport",
    "PatchedModule",
    "ProjectReport",
    "ProjectedModule",
    "Reply",
    "Trial",
    "as_plan",
    "chat_vector",
    "conversations",
    "extract_lora",
    "factorize",
    "keep_mask",
    "measure_manners",
    "merge",
    "merge_arrays",
    "merge_lora",
    "project",
    "write_patch",
]
