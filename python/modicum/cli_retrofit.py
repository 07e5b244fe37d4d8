"""The commands ``modicum retrofit`` and ``modicum compare``."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import modicum as mo
from modicum import retrofit
from modicum.calibration import bos_tokens
from modicum.command import command, positive, print_report
from modicum.model import Progress
from modicum.progress import reporter
from modicum.retrofit.shapes import config_of, parsed
from modicum.text_sources import read_source

_STAGES = {
    "retrofit": ("shrinking", "tokens"),
    "retrofit.write": ("writing", "bytes"),
    "compare": ("comparing", "tokens"),
    "shapes": ("measuring speed", "shapes"),
    "speed": ("measuring speed", "rounds"),
}
_SECOND_TOKENS = 16384
_EDITS = ("ffn", "kv_heads", "drop_layers", "window", "bits")
_PARTS = {"window_layers": "window", "group": "bits", "rounding": "bits", "scaling": "bits", "head": "bits"}


def add_commands(commands: Any) -> None:
    _add_retrofit(commands)
    _add_compare(commands)


def _add_retrofit(commands: Any) -> None:
    parser = command(
        commands, "retrofit", run_retrofit, "Shrink a model: fewer channels, heads, layers or bits, refitted."
    )
    parser.add_argument("source", metavar="IN", help="a Hugging Face model directory")
    parser.add_argument("out", metavar="OUT", nargs="?", help="a new directory; not needed with --dry-run")
    _add_plan_options(parser)
    _add_text_options(parser, tokens=65536)
    parser.add_argument(
        "--held-out-text", metavar="PATH", help="a text of another kind, on which the report looks as well"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="say what it would take and give; nothing is written"
    )
    _add_common_options(parser, "measure the speed before and after; with --dry-run, the speed to expect")


def _add_plan_options(parser: argparse.ArgumentParser) -> None:
    how = parser.add_argument_group("what to change", "a plan, a target to find a plan for, or edits")
    how.add_argument("--plan", metavar="FILE", help="a plan as JSON")
    how.add_argument(
        "--target",
        metavar="NAME=N,…",
        help="find the plan: bytes=300MB, kv_bytes=6kB (a token), tokens_per_second=20, max_kl=0.05",
    )
    how.add_argument("--ffn", type=positive, metavar="WIDTH", help="inner channels of feed-forward layers")
    how.add_argument("--kv-heads", type=positive, metavar="N", help="key-value heads of each layer")
    how.add_argument(
        "--drop-layers", type=_layers_to_drop, metavar="FIRST[:COUNT]", help="layers, counted from 0, that go"
    )
    how.add_argument("--window", type=positive, metavar="N", help="positions back that --window-layers see")
    how.add_argument("--window-layers", type=_numbers, metavar="0,2,…", help="their numbers, from 0")
    how.add_argument("--bits", type=int, choices=[8, 4], help="linear layers as integers")
    how.add_argument(
        "--group", type=_group, metavar="N|channel", help="columns that share a scale; default: 32"
    )
    how.add_argument("--rounding", choices=["gptq", "nearest"], help="default: gptq")
    how.add_argument("--scaling", choices=["none", "awq", "smooth"], help="default: none")
    how.add_argument("--head", choices=["keep", "int8", "int4"], help="the output head; default: keep")


def _add_text_options(
    parser: argparse.ArgumentParser, *, tokens: int, name: str = "--calibration", required: bool = False
) -> None:
    parser.add_argument(
        name, nargs="+", metavar="PATH", required=required, help="text: .txt, .md, .jsonl or folders of them"
    )
    parser.add_argument(
        "--tokens", type=positive, default=tokens, metavar="N", help=f"of that text; default: {tokens}"
    )
    parser.add_argument("--length", type=positive, metavar="N", help="tokens of a sequence; default: 512")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="which passages; default: 0")


def _add_common_options(parser: argparse.ArgumentParser, speed: str) -> None:
    parser.add_argument("--speed", action="store_true", help=speed)
    parser.add_argument("--threads", type=positive, metavar="N", help="default: every processor")
    parser.add_argument("--quiet", action="store_true", help="print nothing but errors")


def _add_compare(commands: Any) -> None:
    parser = command(
        commands, "compare", run_compare, "Tell what a changed model lost of the one that it came from."
    )
    parser.add_argument("before", metavar="BEFORE", help="a Hugging Face model directory")
    parser.add_argument("after", metavar="AFTER", help="one with the same tokenizer")
    _add_text_options(parser, tokens=16384, name="--text", required=True)
    parser.add_argument("--html", metavar="FILE", help="also write the report as a page")
    _add_common_options(parser, "measure the speed of both")


def _layers_to_drop(text: str) -> tuple[int, int]:
    first, _, count = text.partition(":")
    return int(first), positive(count) if count else 1


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _group(text: str) -> int:
    return 0 if text == "channel" else positive(text)


def run_retrofit(arguments: argparse.Namespace) -> None:
    if arguments.out is None and not arguments.dry_run:
        raise mo.InvalidArgument("[retrofit] OUT: expected a new directory, got none; or give --dry-run")
    plan = _plan(arguments)
    model = mo.load(arguments.source, threads=arguments.threads)
    calibration = _calibration(model, arguments)
    planned = None
    quiet = arguments.json or arguments.quiet or not (plan is None or arguments.dry_run)
    with reporter("planning", unit="steps", stages=_STAGES, quiet=quiet) as progress:
        if plan is None and calibration is not None:
            planned = retrofit.plan(
                model,
                target=retrofit.parse_target(arguments.target),
                calibration=calibration,
                threads=arguments.threads,
                speed=arguments.speed,
                progress=progress,
            )
            plan = planned.plan
        expected = None
        if arguments.dry_run and plan:
            expected = _expected(arguments.source, plan, calibration, arguments, progress)
    facts: dict[str, Any] = {"planned": planned.to_dict()} if planned else {}
    if arguments.dry_run or plan is None:
        facts["plan"] = plan.to_dict() if plan else None
        facts |= expected or {}
        _print(facts, arguments, "\n\n".join(_dry_words(planned, plan, expected)))
        return
    if planned and not arguments.json and not arguments.quiet:
        print(f"{planned}\n", flush=True)
    report = _run(arguments, plan, model, calibration, planned)
    where = f"{arguments.out}/retrofit.html shows it in pictures, retrofit.json holds it for programs."
    _print(facts | {"report": report.to_dict()}, arguments, f"{report}\n\n{where}")


def _run(
    arguments: argparse.Namespace,
    plan: retrofit.Plan,
    model: mo.Model,
    calibration: retrofit.Calibration | None,
    planned: retrofit.Planned | None,
) -> retrofit.Report:
    second = None
    if arguments.held_out_text is not None:
        text = _text(model, [arguments.held_out_text], arguments, _SECOND_TOKENS)
        second = arguments.held_out_text, text.sequences
    with reporter("shrinking", stages=_STAGES, quiet=arguments.json or arguments.quiet) as progress:
        report = retrofit.run(
            arguments.source,
            arguments.out,
            plan,
            calibration=calibration,
            threads=arguments.threads,
            second=second,
            speed=arguments.speed,
            progress=progress,
        )
    if planned is not None:
        report.frontier = planned.frontier
        report.save(Path(arguments.out) / "retrofit.json")
        report.save_html(Path(arguments.out) / "retrofit.html")
    return report


def _plan(arguments: argparse.Namespace) -> retrofit.Plan | None:
    """What the arguments say; None where a target is to be planned for."""
    given = [name for name in ("plan", "target") if getattr(arguments, name) is not None]
    edits = [name for name in (*_EDITS, *_PARTS) if getattr(arguments, name) is not None]
    if len(given) + bool(edits) != 1:
        got = ", ".join(f"--{name.replace('_', '-')}" for name in given + edits) or "none"
        raise mo.InvalidArgument(
            f"[retrofit] plan: expected one of --plan, --target, or edits such as --ffn, got {got}"
        )
    if "target" in given:
        if not arguments.calibration:
            raise mo.InvalidArgument("[retrofit] --target: expected text to measure on; give --calibration")
        return None
    if "plan" in given:
        return retrofit.Plan.load(arguments.plan)
    for part, whole in _PARTS.items():
        if part in edits and whole not in edits:
            raise mo.InvalidArgument(f"[retrofit] --{part.replace('_', '-')}: expected --{whole} with it")
    if arguments.window is not None and arguments.window_layers is None:
        raise mo.InvalidArgument("[retrofit] --window: expected --window-layers with it, such as 0,2")
    return retrofit.Plan(
        depth=retrofit.Depth(*arguments.drop_layers) if arguments.drop_layers else None,
        window=retrofit.Window(arguments.window, arguments.window_layers) if arguments.window else None,
        kv=retrofit.Kv(arguments.kv_heads) if arguments.kv_heads else None,
        ffn=retrofit.Ffn(arguments.ffn) if arguments.ffn else None,
        quantize=_quantize(arguments) if arguments.bits else None,
    )


def _quantize(arguments: argparse.Namespace) -> retrofit.Quantize:
    return retrofit.Quantize(
        bits=arguments.bits,
        group=32 if arguments.group is None else arguments.group,
        rounding=arguments.rounding or "gptq",
        scaling=arguments.scaling or "none",
        head_bits={"int8": 8, "int4": 4}.get(arguments.head),
    )


def _calibration(model: mo.Model, arguments: argparse.Namespace) -> retrofit.Calibration | None:
    if not arguments.calibration:
        return None
    return retrofit.Calibration.from_text(
        model, arguments.calibration, tokens=arguments.tokens, length=arguments.length, seed=arguments.seed
    )


def _text(
    model: mo.Model, paths: Sequence[str], arguments: argparse.Namespace, tokens: int
) -> retrofit.Calibration:
    """Passages from all over some texts to compare on; all of them where there are no more."""
    length = arguments.length or min(512, model.config.max_position_embeddings)
    begin = bos_tokens(model)
    read = [read_source(path, lambda: model.tokenizer, fields=["text"], bos=begin) for path in paths]
    windows = sum(len(source.ids) // max(1, length - len(begin)) for source in read)
    # One passage is always held out.
    most = max(1, windows - 1) * length
    return retrofit.Calibration.from_text(
        model, paths, tokens=min(tokens, most), length=length, seed=arguments.seed, held_out=1e-9
    )


def _expected(
    source: str,
    plan: retrofit.Plan,
    calibration: retrofit.Calibration | None,
    arguments: argparse.Namespace,
    progress: Progress | None,
) -> dict[str, Any]:
    facts: dict[str, Any] = {"estimate": dataclasses.asdict(retrofit.estimate(source, plan, calibration))}
    if arguments.speed:
        (change,) = retrofit.measure_shapes(
            source, [shape_of(source, plan)], threads=arguments.threads, progress=progress
        )
        for name in ("decode", "prefill"):
            facts[f"{name}_speed_up"] = dataclasses.asdict(getattr(change, name))
    return facts


def shape_of(source: str | Path, plan: retrofit.Plan) -> retrofit.Shape:
    """What the result will look like to whoever runs it; windows, which need long texts, are left out."""
    if plan.low_rank:
        raise mo.Unsupported(
            "[retrofit] --speed: expected a plan without low_rank before a run; leave it out"
        )
    config = config_of(Path(source))
    now = parsed(config)
    layers = now.num_hidden_layers - (plan.depth.count if plan.depth else 0)
    config |= {"num_hidden_layers": layers, "head_dim": now.head_dim}
    if isinstance(config.get("layer_types"), list):
        config["layer_types"] = config["layer_types"][:layers]
    if "max_window_layers" in config:
        config["max_window_layers"] = min(config["max_window_layers"], layers)
    if plan.kv:
        config["num_key_value_heads"] = plan.kv.kv_heads
    if plan.ffn:
        config["intermediate_size"] = plan.ffn.intermediate_size
    if (edit := plan.quantize) is None:
        return retrofit.Shape(config)
    heads: dict[int | None, Literal["keep", "int8", "int4"]] = {None: "keep", 8: "int8", 4: "int4"}
    return retrofit.Shape(config, retrofit.Format(edit.bits, edit.group or "channel", heads[edit.head_bits]))


def _dry_words(
    planned: retrofit.Planned | None, plan: retrofit.Plan | None, expected: dict[str, Any] | None
) -> list[str]:
    words = [str(planned)] if planned else []
    if expected and plan:
        words.append("\n".join([f"plan        {plan}", *_expected_lines(expected)]))
    return [*words, "Nothing was written."]


def _expected_lines(expected: dict[str, Any]) -> list[str]:
    lines = [str(retrofit.Estimate(**expected["estimate"]))]
    for name, label in (("decode", "writes"), ("prefill", "reads")):
        if (ratio := expected.get(f"{name}_speed_up")) is not None:
            spread = f"{ratio['low']:.2f} to {ratio['high']:.2f}"
            lines.append(f"{label:<12}{ratio['value']:.2f} times as fast ({spread}), by random weights")
    return lines


def run_compare(arguments: argparse.Namespace) -> None:
    before = mo.load(arguments.before, threads=arguments.threads)
    text = _text(before, arguments.text, arguments, arguments.tokens)
    with reporter("comparing", stages=_STAGES, quiet=arguments.json or arguments.quiet) as progress:
        report = retrofit.report(
            arguments.before,
            arguments.after,
            calibration=dataclasses.replace(text, held_out=text.sequences),
            speed=arguments.speed,
            threads=arguments.threads,
            progress=progress,
        )
    if arguments.html:
        report.save_html(arguments.html)
    _print(report.to_dict(), arguments, str(report))


def _print(facts: dict[str, Any], arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        print_report(facts, arguments, lambda _: text)
