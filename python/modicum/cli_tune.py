"""The commands ``modicum merge``, ``extract-lora``, ``project`` and ``guard``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

import modicum as mo
from modicum import tune
from modicum.command import command, positive, print_report
from modicum.progress import reporter

_STAGES = {
    "merge": ("merging", "weights"),
    "guard": ("guarding", "checks"),
    "project": ("projecting", "layers"),
}


def add_commands(commands: Any) -> None:
    _add_merge(commands)
    _add_extract(commands)
    _add_project(commands)
    _add_guard(commands)


def _add_merge(commands: Any) -> None:
    parser = command(
        commands, "merge", run_merge, "Merge models: Chat Vectors, task arithmetic, TIES, DARE, SLERP, LoRA."
    )
    parser.add_argument("plan", metavar="PLAN", nargs="?", help="YAML or JSON, ours or mergekit's")
    parser.add_argument("out", metavar="OUT", help="a new directory")
    how = parser.add_argument_group("instead of a plan")
    how.add_argument("--base", metavar="DIR", help="the model that differences are taken from")
    how.add_argument(
        "--chat", metavar="DIR", help="a Chat Vector: the base's instruct model, to be added to --onto"
    )
    how.add_argument(
        "--onto", metavar="DIR", help="the model that differences are added to; default: the base"
    )
    how.add_argument("--models", metavar="DIR", nargs="+", help="models to merge by --method")
    how.add_argument("--method", metavar="NAME", help="task_arithmetic, ties, dare_linear, slerp, linear, …")
    how.add_argument("--weights", metavar="W", nargs="+", type=float, help="of --models; default: 1 each")
    how.add_argument("--density", metavar="D", type=float, help="share of differences that is kept")
    how.add_argument("--t", metavar="T", type=float, help="of slerp: 0 is the base, 1 the model")
    how.add_argument("--lora", metavar="DIR", help="a PEFT adapter to fold into --base")
    _add_details(parser)
    _add_guard_options(parser)
    parser.add_argument(
        "--patch", type=positive, metavar="RANK", help="write the change as a LoRA adapter, not a checkpoint"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: every processor")


def _add_details(parser: argparse.ArgumentParser) -> None:
    details = parser.add_argument_group("details")
    details.add_argument("--alpha", type=float, metavar="A", help="factor of all differences; default: 1")
    details.add_argument("--definition", choices=["mergekit", "peft", "paper"], help="default: mergekit")
    details.add_argument("--seed", type=int, metavar="S", help="of DARE's masks; default: 0")
    details.add_argument(
        "--dtype", choices=["f32", "bf16", "f16"], help="default: as in the model built upon"
    )
    details.add_argument(
        "--vocabulary",
        choices=["same", "match", "all"],
        help="tokens that differ are refused (default), matched by name, or all kept",
    )
    details.add_argument("--tokenizer", metavar="DIR", help="the model whose tokens the result has")
    details.add_argument(
        "--untie", action="store_true", help="a head of its own where only some models have one"
    )


def _add_guard_options(parser: argparse.ArgumentParser) -> None:
    guard = parser.add_argument_group("guard", "what the result must still do; else nothing is written")
    guard.add_argument(
        "--guard", nargs="?", const="", metavar="SET", help="check manners, by a set as JSON or modicum's own"
    )
    guard.add_argument("--reference", metavar="DIR", help="the instruct model; default: --chat")
    guard.add_argument("--domain", nargs="+", metavar="PATH", help="text that the result must still know")
    guard.add_argument(
        "--limit",
        action="append",
        default=[],
        metavar="NAME=X",
        help="ending, refusal, format, lost, kl, domain",
    )
    guard.add_argument("--no-search", action="store_true", help="do not look for a smaller alpha that passes")


def _add_extract(commands: Any) -> None:
    parser = command(
        commands,
        "extract-lora",
        run_extract,
        "Write what a tuned model changed of its base as a LoRA adapter.",
    )
    parser.add_argument("base", metavar="BASE", help="a Hugging Face model directory")
    parser.add_argument("tuned", metavar="TUNED", help="one that was tuned from it")
    parser.add_argument("out", metavar="OUT", help="a new directory")
    parser.add_argument("--rank", type=positive, default=16, metavar="R", help="at most; default: 16")
    parser.add_argument(
        "--error", type=float, metavar="E", help="smaller ranks where this relative error is met"
    )
    parser.add_argument("--dtype", choices=["f32", "bf16", "f16"], default="f32", help="default: f32")
    parser.add_argument(
        "--others",
        choices=["save", "drop"],
        default="save",
        help="norms and embeddings: whole (default) or not",
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: every processor")


def _add_project(commands: Any) -> None:
    parser = command(
        commands,
        "project",
        run_project,
        "Take out of a tuned model's update what its instruct model's conversations look at (experimental).",
    )
    parser.add_argument("instruct", metavar="INSTRUCT", help="the instruct model that was tuned")
    parser.add_argument("tuned", metavar="TUNED", nargs="?", help="what was tuned from it; or give --lora")
    parser.add_argument("out", metavar="OUT", help="a new directory")
    parser.add_argument("--lora", metavar="DIR", help="a PEFT adapter of the instruct model")
    parser.add_argument("--protect", metavar="SET", help="a guard's set as JSON; default: modicum's own")
    parser.add_argument(
        "--energy", type=float, default=0.99, metavar="E", help="that is protected; default: 0.99"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: every processor")


def _add_guard(commands: Any) -> None:
    parser = command(
        commands, "guard", run_guard, "Tell whether a changed model still behaves as its instruct model does."
    )
    parser.add_argument("model", metavar="MODEL", help="a Hugging Face model directory")
    parser.add_argument("reference", metavar="REFERENCE", help="the instruct model")
    parser.add_argument("--set", metavar="FILE", help="what is checked, as JSON; default: modicum's own set")
    parser.add_argument("--domain", nargs="+", metavar="PATH", help="text on which both are compared")
    parser.add_argument("--limit", action="append", default=[], metavar="NAME=X")
    parser.add_argument("--threads", type=positive, metavar="N", help="default: every processor")


def run_merge(arguments: argparse.Namespace) -> None:
    plan = _plan(arguments)
    guard = None
    if arguments.guard is not None:
        guard = tune.Guard(
            arguments.reference,
            checks=arguments.guard or None,
            domain=arguments.domain,
            limits=_limits(arguments.limit),
        )
    elif arguments.domain or arguments.reference or arguments.limit:
        raise mo.InvalidArgument(
            "[merge] --domain, --reference, --limit: expected --guard with them, got none"
        )
    with reporter("merging", unit="weights", stages=_STAGES, quiet=arguments.json) as progress:
        if arguments.patch:
            if guard is not None:
                raise mo.InvalidArgument("[merge] --patch: expected no --guard, got one; guard a checkpoint")
            patch = tune.write_patch(
                plan, arguments.out, rank=arguments.patch, threads=arguments.threads, progress=progress
            )
            print_report(patch.to_dict(), arguments, lambda _: str(patch))
            return
        report = mo.merge(
            plan,
            arguments.out,
            guard=guard,
            search=not arguments.no_search,
            threads=arguments.threads,
            progress=progress,
        )
    print_report(report.to_dict(), arguments, lambda _: str(report))


def _plan(arguments: argparse.Namespace) -> tune.MergePlan:
    details = {
        name: value
        for name in ("definition", "seed", "dtype", "vocabulary", "tokenizer")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.untie:
        details["untie"] = True
    flags = ("base", "chat", "onto", "models", "method", "weights", "density", "t", "lora")
    given = [name for name in flags if getattr(arguments, name) is not None]
    if arguments.plan is not None:
        if given:
            raise mo.InvalidArgument(f"[merge] --{given[0]}: expected none beside a plan, got one")
        plan = dataclasses.replace(tune.MergePlan.load(arguments.plan), **details)
    elif arguments.chat is not None:
        plan = _chat_vector(arguments, given, details)
    elif arguments.lora is not None:
        _only(given, ("lora", "base"), "--lora")
        inputs = (tune.Input(_needed(arguments.base, "--base"), adapter=arguments.lora),)
        plan = tune.MergePlan("task_arithmetic", inputs, base=arguments.base, **details)
    else:
        plan = _by_method(arguments, details)
    return plan if arguments.alpha is None else plan.at(arguments.alpha)


def _chat_vector(
    arguments: argparse.Namespace, given: Sequence[str], details: dict[str, Any]
) -> tune.MergePlan:
    _only(given, ("base", "chat", "onto"), "--chat")
    return tune.chat_vector(
        _needed(arguments.base, "--base"), arguments.chat, _needed(arguments.onto, "--onto"), **details
    )


def _by_method(arguments: argparse.Namespace, details: dict[str, Any]) -> tune.MergePlan:
    models = arguments.models
    if not models:
        raise mo.InvalidArgument(
            "[merge] PLAN: expected a plan, --chat with --base and --onto, --models with --method, or --lora "
            "with --base, got none of these"
        )
    weights = arguments.weights or [1.0] * len(models)
    if len(weights) != len(models):
        raise mo.InvalidArgument(f"[merge] --weights: expected {len(models)}, got {len(weights)}")
    density = 1.0 if arguments.density is None else arguments.density
    inputs = tuple(
        tune.Input(model, weight=weight, density=density)
        for model, weight in zip(models, weights, strict=True)
    )
    if arguments.t is not None:
        details["t"] = arguments.t
    document = tune.MergePlan(
        arguments.method or "task_arithmetic", inputs, base=arguments.base, onto=arguments.onto, **details
    ).to_dict()
    return tune.MergePlan.from_dict(document)  # names are checked


def _only(given: Sequence[str], fitting: Sequence[str], with_: str) -> None:
    if other := [name for name in given if name not in fitting]:
        raise mo.InvalidArgument(f"[merge] --{other[0]}: expected none with {with_}, got one")


def _needed(value: str | None, name: str) -> str:
    if value is None:
        raise mo.InvalidArgument(f"[merge] {name}: expected a model directory, got none")
    return value


def _limits(given: Sequence[str]) -> tune.Limits:
    values: dict[str, float] = {}
    known = [field.name for field in dataclasses.fields(tune.Limits)]
    for entry in given:
        name, _, number = entry.partition("=")
        try:
            if name not in known:
                raise ValueError
            values[name] = float(number)
        except ValueError:
            raise mo.InvalidArgument(
                f"[guard] --limit: expected NAME=NUMBER with a name of {', '.join(known)}, got {entry!r}"
            ) from None
    return tune.Limits(**values)


def run_extract(arguments: argparse.Namespace) -> None:
    with reporter("extracting", unit="weights", quiet=arguments.json) as progress:
        report = tune.extract_lora(
            arguments.base,
            arguments.tuned,
            arguments.out,
            rank=arguments.rank,
            error=arguments.error,
            dtype=arguments.dtype,
            others=arguments.others,
            threads=arguments.threads,
            progress=progress,
        )
    print_report(report.to_dict(), arguments, lambda _: str(report))


def run_project(arguments: argparse.Namespace) -> None:
    if (arguments.tuned is None) == (arguments.lora is None):
        raise mo.InvalidArgument("[project] TUNED: expected a tuned model or --lora, got both or neither")
    with reporter("projecting", unit="layers", quiet=arguments.json) as progress:
        report = tune.project(
            arguments.instruct,
            arguments.tuned or arguments.instruct,
            arguments.out,
            adapter=arguments.lora,
            protect=tune.GuardSet.load(arguments.protect) if arguments.protect else None,
            energy=arguments.energy,
            threads=arguments.threads,
            progress=progress,
        )
    print_report(report.to_dict(), arguments, lambda _: str(report))


def run_guard(arguments: argparse.Namespace) -> None:
    guard = tune.Guard(checks=arguments.set, domain=arguments.domain, limits=_limits(arguments.limit))
    with reporter("guarding", unit="checks", stages=_STAGES, quiet=arguments.json) as progress:
        report = guard.judge(
            arguments.model, arguments.reference, threads=arguments.threads, progress=progress
        )
    print_report(report.to_dict(), arguments, lambda _: str(report))
    if not report.passed:
        raise tune.GuardError(report)  # for scripts, which look at the exit code
