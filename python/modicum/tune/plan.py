"""What is merged, and how, as a value: read from YAML or JSON, written to it, compared."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from modicum import _core
from modicum._core import FormatError, InvalidArgument
from modicum.tune.mergekit import is_mergekit, plan_of

__all__ = ["Input", "MergePlan", "as_plan", "chat_vector"]

Method = Literal[
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "magnitude_prune",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
]
Setting = float | Sequence[float] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Input:
    """A model that goes in.

    Attributes
    ----------
    model : a Hugging Face directory.
    adapter : a PEFT LoRA directory that is applied to it first.
    weight, density, gamma : a number; a list of numbers, from the first layer to the last; or a list of
        ``{"filter": "mlp", "value": …}``, of which the first whose filter is part of a tensor's name counts.
        `density` is the share of differences that is kept, `gamma` the share of largest ones that
        breadcrumbs drops.
    """

    model: str | Path
    weight: Setting = 1.0
    adapter: str | Path | None = None
    density: Setting = 1.0
    gamma: Setting = 0.01

    def to_dict(self) -> dict[str, Any]:
        facts: dict[str, Any] = {"model": str(self.model), "weight": _json(self.weight)}
        if self.adapter is not None:
            facts["adapter"] = str(self.adapter)
        return {**facts, "density": _json(self.density), "gamma": _json(self.gamma)}


@dataclass(frozen=True)
class MergePlan:
    """A merge of models that were made from one another.

    Attributes
    ----------
    method : "linear" (the weighted mean), "slerp" (from the base to one model, `t` of the way), or
        differences from the base: "task_arithmetic", "ties" (Yadav et al. 2023), "dare_linear" and
        "dare_ties" (Yu et al. 2024), "breadcrumbs" and "breadcrumbs_ties" (Davari & Belilovsky 2024),
        "magnitude_prune" (PEFT).
    definition : whose definition of the method counts, "mergekit", "peft" or "paper": they differ in results.
    base : that differences are taken from; of slerp, the end at t = 0.
    onto : that they are added to; None: the base. For a Chat Vector, the base that was tuned on.
    lambda_ : factor of the combined difference.
    normalize : whether the sum is divided by the weights; None: as the definition says.
    rescale : of what DARE keeps: "none", "inverse_density", "l1_norm"; None: as the definition says.
    seed : of DARE's masks, which depend on it, the tensor's name and the model's place alone.
    dtype : of the result, "f32", "bf16" or "f16"; None: as in the model that is built upon.
    vocabulary : "same" refuses tokens that differ, and lists them; "match" puts rows of one token together
        and keeps the tokens of `tokenizer`; "all" adds added tokens of the other models to them.
    tokenizer : the model whose tokens the result has; None: the one that is built upon.
    tokens : names of tokens that stand for each other, of the result and of models that lack them.
    chat : the model whose chat template, ends of turn and generation settings the result has; None: that of
        `tokenizer`.
    untie : a head of its own where only some of the models tie theirs to the embedding.
    """

    method: Method
    models: tuple[Input, ...]
    base: str | Path | None = None
    onto: str | Path | None = None
    definition: Literal["mergekit", "peft", "paper"] = "mergekit"
    lambda_: Setting = 1.0
    t: Setting = 0.5
    normalize: bool | None = None
    rescale: Literal["none", "inverse_density", "l1_norm"] | None = None
    seed: int = 0
    dtype: Literal["f32", "bf16", "f16"] | None = None
    vocabulary: Literal["same", "match", "all"] = "same"
    tokenizer: str | Path | None = None
    tokens: Mapping[str, str] = field(default_factory=dict)
    chat: str | Path | None = None
    untie: bool = False
    base_adapter: str | Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "models", tuple(self.models))

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, with a "schema"; what is not set is left out."""
        facts: dict[str, Any] = {
            "schema": "modicum.tune.merge/1",
            "method": self.method,
            "definition": self.definition,
            "models": [model.to_dict() for model in self.models],
            "lambda": _json(self.lambda_),
            "seed": self.seed,
            "vocabulary": self.vocabulary,
            "untie": self.untie,
        }
        for name in ("base", "base_adapter", "onto", "tokenizer", "chat"):
            if (path := getattr(self, name)) is not None:
                facts[name] = str(path)
        for name in ("normalize", "rescale", "dtype"):
            if (value := getattr(self, name)) is not None:
                facts[name] = value
        if self.method == "slerp":
            facts["t"] = _json(self.t)
        if self.tokens:
            facts["tokens"] = dict(self.tokens)
        return facts

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"

    @classmethod
    def from_dict(cls, plan: Mapping[str, Any]) -> MergePlan:
        """Ours, or mergekit's configuration. Raises FormatError for what is neither, naming the field."""
        if is_mergekit(plan):
            plan = plan_of(plan)
        whole = json.loads(_core.merge_plan(_dumps(plan)))
        whole.pop("schema")
        whole["lambda_"] = whole.pop("lambda")
        whole["models"] = tuple(Input(**model) for model in whole["models"])
        return cls(**whole)

    @classmethod
    def load(cls, path: str | Path) -> MergePlan:
        """From a YAML or JSON file, ours or mergekit's. Raises IoError, FormatError."""
        import yaml

        try:
            document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise _core.IoError(f"[merge_plan] reading {str(path)!r}, failed: {error}") from error
        except (yaml.YAMLError, RecursionError) as error:
            raise FormatError(f"[merge_plan] {str(path)!r}: expected YAML, got an error: {error}") from error
        if not isinstance(document, dict):
            raise FormatError(
                f"[merge_plan] {str(path)!r}: expected a mapping, got {type(document).__name__}"
            )
        return cls.from_dict(document)

    def at(self, alpha: float) -> MergePlan:
        """The same with all differences `alpha` times as large (of slerp: `t`)."""
        if self.method == "slerp":
            return replace(self, t=alpha)
        if self.method == "linear":
            raise InvalidArgument("[merge_plan] alpha: expected a method that adds differences, got linear")
        return replace(self, lambda_=alpha)

    @property
    def foundation(self) -> str:
        """The model that the result is like but for its weights."""
        path = self.onto or self.base or self.models[0].model
        return str(path)

    def __str__(self) -> str:
        """One line, as tables show it."""
        parts = [f"{_number(model.weight)} {Path(model.model).name}" for model in self.models]
        if self.method == "slerp":
            return f"slerp from {_name(self.base)} to {_name(self.models[0].model)}, t {_number(self.t)}"
        if self.method == "linear":
            return f"linear: {' + '.join(parts)}"
        scale = "" if self.lambda_ == 1 else f"{_number(self.lambda_)} × "
        return (
            f"{_name(self.onto or self.base)} + {scale}{self.method}({', '.join(parts)} − {_name(self.base)})"
        )


def chat_vector(
    base: str | Path,
    chat: str | Path,
    onto: str | Path,
    *,
    alpha: float = 1.0,
    **options: Any,
) -> MergePlan:
    """The plan of a Chat Vector: `onto` + `alpha` × (`chat` − `base`) (Huang et al. 2024, arXiv:2310.04799).

    The result speaks as `chat` does (its template, its ends of turn) of what `onto` has learnt.

    Parameters
    ----------
    base : the pretrained model that both others come from.
    chat : its instruct model.
    onto : the base, trained on: a domain, a language, the institution's documents.
    options : further attributes of :class:`MergePlan`: ``vocabulary="match"``, say.
    """
    options.setdefault("chat", chat)
    return MergePlan("task_arithmetic", (Input(chat),), base=base, onto=onto, lambda_=alpha, **options)


def as_plan(plan: MergePlan | Mapping[str, Any] | str | Path) -> MergePlan:
    """A plan, its dict (ours or mergekit's), or the path of a YAML or JSON file."""
    if isinstance(plan, MergePlan):
        return plan
    if isinstance(plan, Mapping):
        return MergePlan.from_dict(plan)
    if isinstance(plan, str | Path):
        return MergePlan.load(plan)
    raise InvalidArgument(
        f"[merge_plan] plan: expected a MergePlan, a dict or a path, got {type(plan).__name__}"
    )


def _dumps(plan: Mapping[str, Any]) -> str:
    try:
        return json.dumps(plan)
    except (TypeError, ValueError) as error:
        raise FormatError(f"[merge_plan] plan: expected what JSON can hold, got an error: {error}") from error


def _json(setting: Setting) -> Any:
    if isinstance(setting, str | Real) or not isinstance(setting, Iterable):
        return _plain(setting)
    return [dict(part) if isinstance(part, Mapping) else _plain(part) for part in setting]


def _plain(value: Any) -> Any:
    """Numbers of numpy as Python's, which JSON holds."""
    return float(value) if isinstance(value, Real) and not isinstance(value, int) else value


def _number(setting: Setting) -> str:
    return f"{setting:g}" if isinstance(setting, int | float) else "…"


def _name(path: str | Path | None) -> str:
    return Path(path).name if path is not None else "?"
