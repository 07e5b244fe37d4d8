"""What the parts of the command line share: arguments, and how reports are printed."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modicum as mo


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], None], help: str
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=help, description=help)
    parser.set_defaults(run=run)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def add_load_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="DIR", help="a Hugging Face model directory")
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "f32", "bf16", "f16"], help="default: as stored"
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="default: every processor of this process"
    )


def add_sampling_options(parser: argparse.ArgumentParser, max_new_tokens: int) -> None:
    parser.add_argument("--max-new-tokens", type=positive, default=max_new_tokens, metavar="N")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="default: 0, the likeliest token"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="default: 0, all tokens")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--min-p", type=float, default=0.0, metavar="P")
    parser.add_argument("--repetition-penalty", type=float, default=1.0, metavar="R")
    parser.add_argument("--seed", type=int, default=0, metavar="S")


def add_beam_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--beams", type=positive, default=1, metavar="B", help="beam search with B beams")
    parser.add_argument("--length-penalty", type=float, default=1.0, metavar="L")


def read_text(path: str) -> str:
    """The text of a file that a user named. Raises IoError where it cannot be read or is no UTF-8."""
    try:
        return Path(path).read_text("utf-8")
    except UnicodeDecodeError as error:
        raise mo.IoError(f"[read] {path}: expected UTF-8, got another byte at {error.start}") from None
    except OSError as error:
        raise mo.IoError(f"[read] {path}: {error.strerror}") from None


def facts_as_text(facts: dict[str, Any]) -> str:
    lines = []
    for name, value in facts.items():
        if name == "documents":
            lines += [
                f"document          {d['name']} ({d['tokens']} tokens, {d['bytes']} bytes)" for d in value
            ]
            continue
        shown = f"{value} ({size(value)})" if name.endswith("bytes") or "_bytes_" in name else value
        lines.append(f"{name.replace('_', ' '):<24}{shown}")
    return "\n".join(lines)


def print_report(
    report: dict[str, Any], arguments: argparse.Namespace, as_text: Callable[[dict[str, Any]], str]
) -> None:
    print(json.dumps(report, ensure_ascii=False, indent=2) if arguments.json else as_text(report), flush=True)


def load(arguments: argparse.Namespace) -> mo.Model:
    return mo.load(arguments.model, dtype=arguments.dtype, threads=arguments.threads)


def sampling(arguments: argparse.Namespace) -> dict[str, Any]:
    names = ("max_new_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed")
    return {name: getattr(arguments, name) for name in names}


def size(count: int) -> str:
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {value}")
    return value
