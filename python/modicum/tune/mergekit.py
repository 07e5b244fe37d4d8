"""mergekit's configurations, as far as we have the methods: turned into plans of ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modicum._core import FormatError, Unsupported

__all__ = ["is_mergekit", "plan_of"]

_METHODS = (
    "linear",
    "slerp",
    "task_arithmetic",
    "ties",
    "dare_linear",
    "dare_ties",
    "breadcrumbs",
    "breadcrumbs_ties",
)
_FIELDS = {
    "merge_method",
    "models",
    "slices",
    "base_model",
    "parameters",
    "dtype",
    "out_dtype",
    "tokenizer_source",
    "tokenizer",
    "chat_template",
}
_DTYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


def is_mergekit(plan: Mapping[str, Any]) -> bool:
    return "merge_method" in plan


def plan_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Our plan of mergekit's configuration.

    Arithmetic is f32 whatever `dtype` says, which then is that of the result where there is no `out_dtype`;
    `int8_mask` changes nothing. What has no counterpart is refused, by name.
    """
    _known(config, _FIELDS, "configuration")
    method = config["merge_method"]
    if method not in _METHODS:
        raise Unsupported(f"[mergekit] merge_method: expected one of {', '.join(_METHODS)}, got {method!r}")
    base = config.get("base_model")
    shared = _mapping(config.get("parameters"), "parameters")
    models = _models(config)
    plan: dict[str, Any] = {"method": method, "models": []}
    if base is not None and method != "linear":
        plan["base"], adapter = _split(base, "base_model")
        if adapter:
            plan["base_adapter"] = adapter
    for model, own in models:
        if model == base and method != "linear":
            continue
        plan["models"].append(_input(model, own, shared, method))
    for name, key in (("lambda", "lambda"), ("t", "t")):
        if name in shared:
            plan[key] = _setting([shared[name]], name)
    _switches(plan, shared)
    if (dtype := config.get("out_dtype") or config.get("dtype")) is not None:
        if dtype not in _DTYPES:
            raise Unsupported(f"[mergekit] dtype: expected one of {', '.join(_DTYPES)}, got {dtype!r}")
        plan["dtype"] = _DTYPES[dtype]
    _tokenizer(plan, config, base)
    if config.get("chat_template") not in (None, "auto"):
        raise Unsupported(
            "[mergekit] chat_template: expected none or 'auto', got a template; edit the result's"
        )
    return plan


def _switches(plan: dict[str, Any], shared: Mapping[str, Any]) -> None:
    _known(
        shared,
        {"weight", "density", "gamma", "lambda", "t", "normalize", "rescale", "int8_mask"},
        "parameters",
    )
    if "normalize" in shared:
        plan["normalize"] = bool(shared["normalize"])
    if "rescale" in shared and str(plan["method"]).startswith("dare"):
        plan["rescale"] = "l1_norm" if shared["rescale"] else "none"


def _tokenizer(plan: dict[str, Any], config: Mapping[str, Any], base: str | None) -> None:
    source = config.get("tokenizer_source")
    if (tokenizer := config.get("tokenizer")) is not None:
        _known(_mapping(tokenizer, "tokenizer"), {"source"}, "tokenizer")
        source = tokenizer.get("source")
    if source is None:
        return
    plan["vocabulary"] = "all" if source == "union" else "match"
    if source not in ("union", "base"):
        plan["tokenizer"] = _split(source, "tokenizer")[0]
    elif base is not None:
        plan["tokenizer"] = _split(base, "base_model")[0]


def _models(config: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Names and own parameters, of `models` or of one slice of whole models."""
    entries = config.get("models")
    if entries is None:
        slices = _list(config.get("slices"), "slices")
        if len(slices) != 1:
            raise Unsupported(
                f"[mergekit] slices: expected one, of all layers of each model, got {len(slices)}; to stack "
                "layers, use mergekit's passthrough"
            )
        entry = _mapping(slices[0], "slices")
        _known(entry, {"sources", "parameters", "base_model"}, "slices")
        entries = _list(entry.get("sources"), "sources")
        ranges = {tuple(_list(source.get("layer_range", [0]), "layer_range")) for source in entries}
        if len(ranges) != 1 or next(iter(ranges))[0] != 0:
            raise Unsupported("[mergekit] layer_range: expected all layers of each model, got a part of some")
    found = []
    for entry in _list(entries, "models"):
        fields = _mapping(entry, "models")
        _known(fields, {"model", "parameters", "layer_range"}, "models")
        if not isinstance(fields.get("model"), str):
            raise FormatError("[mergekit] models: expected a model's directory in each, got none")
        found.append((fields["model"], _mapping(fields.get("parameters"), "parameters")))
    return found


def _input(model: str, own: Mapping[str, Any], shared: Mapping[str, Any], method: str) -> dict[str, Any]:
    _known(own, {"weight", "density", "gamma", "t"}, f"parameters of {model}")
    directory, adapter = _split(model, "models")
    found: dict[str, Any] = {"model": directory}
    if adapter:
        found["adapter"] = adapter
    for name in ("weight", "density", "gamma"):
        given = [scope[name] for scope in (own, shared) if name in scope]
        if given:
            found[name] = _setting(given, name)
        elif name == "weight" and method != "slerp":
            raise FormatError(f"[mergekit] weight of {model}: expected a number, got none")
    return found


def _setting(scopes: Sequence[Any], name: str) -> Any:
    """mergekit's parameter as a setting of ours: the rules of the nearest scope first."""
    rules = [rule for scope in scopes for rule in _rules(scope, name)]
    first = rules[0]
    return first["value"] if first["filter"] == "" else rules


def _rules(value: Any, name: str) -> list[dict[str, Any]]:
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list) and value and isinstance(value[0], Mapping):
        rules = []
        for rule in value:
            _known(_mapping(rule, name), {"filter", "value"}, name)
            rules.append({"filter": rule.get("filter") or "", "value": _numbers(rule.get("value"), name)})
        return rules
    return [{"filter": "", "value": _numbers(value, name)}]


def _numbers(value: Any, name: str) -> Any:
    if isinstance(value, list):
        return [_numbers(part, name) for part in value]
    try:
        if isinstance(value, bool):
            raise ValueError
        return float(value)  # YAML reads 1e-3 as text
    except (TypeError, ValueError):
        raise FormatError(f"[mergekit] {name}: expected numbers, got {value!r}") from None


def _split(reference: Any, where: str) -> tuple[str, str | None]:
    """ "model+adapter"."""
    if not isinstance(reference, str):
        raise FormatError(f"[mergekit] {where}: expected a model's directory, got {reference!r}")
    model, _, adapter = reference.partition("+")
    return model, adapter or None


def _known(fields: Mapping[str, Any], known: set[str], where: str) -> None:
    if unknown := sorted(set(fields) - known):
        raise Unsupported(
            f"[mergekit] {where}: expected some of {', '.join(sorted(known))}, got {unknown[0]!r}"
        )


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise FormatError(f"[mergekit] {where}: expected a mapping, got {type(value).__name__}")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise FormatError(f"[mergekit] {where}: expected a list, got {type(value).__name__}")
    return value
