"""The commands ``modicum cag plan | build | add | remove | update | ask | verify | inspect``."""

from __future__ import annotations

import argparse
import dataclasses
import time
from typing import Any

import modicum as mo
from modicum.command import (
    add_beam_options,
    add_load_options,
    add_sampling_options,
    command,
    facts_as_text,
    load,
    positive,
    print_report,
    sampling,
    size,
)
from modicum.progress import duration, reporter


def add_commands(commands: Any) -> None:
    help = "Cache-augmented generation: read documents once, answer from them ever after."
    cag = commands.add_parser("cag", help=help, description=help)
    inner = cag.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_build_commands(inner)
    _add_change_commands(inner)
    ask = command(inner, "ask", run_ask, "Answer questions from a cache, with their sources.")
    add_load_options(ask)
    ask.add_argument("--cache", required=True, metavar="FILE")
    add_sampling_options(ask, 64)
    ask.add_argument(
        "--abstain-below", type=float, metavar="C", help="confidence under which an answer counts as none"
    )
    ask.add_argument(
        "--segments", type=positive, metavar="N", help="attend to the N best by BM25 only (layout blocks)"
    )
    add_beam_options(ask)
    ask.add_argument("questions", nargs="+", metavar="QUESTION", help="several are answered together")
    verify = command(inner, "verify", run_verify, "Check a cache file's checksums, and more with a model.")
    verify.add_argument("--model", metavar="DIR", help="also check that the cache belongs to this model")
    verify.add_argument(
        "--dtype", default="auto", choices=["auto", "f32", "bf16", "f16"], help="default: as stored"
    )
    verify.add_argument("--threads", type=positive, metavar="N", help="default: every processor")
    verify.add_argument("--deep", action="store_true", help="compute a sample of the positions again")
    verify.add_argument("--samples", type=positive, default=256, metavar="N", help="tokens; default: 256")
    verify.add_argument("cache", metavar="FILE")
    inspect = command(inner, "inspect", run_inspect, "Check a cache file and tell what it holds.")
    inspect.add_argument("cache", metavar="FILE")


def _add_build_commands(inner: Any) -> None:
    plan = command(inner, "plan", run_plan, "Tell what a build would take: tokens, bytes, seconds.")
    build = command(inner, "build", run_build, "Read documents or folders of them into a cache file.")
    for parser in (plan, build):
        add_load_options(parser)
        parser.add_argument(
            "--instruction", default=mo.cag.INSTRUCTION, metavar="TEXT", help="told before the documents"
        )
        parser.add_argument(
            "--layout",
            default="joint",
            choices=["joint", "blocks"],
            help="one exact pass over all (default), or each document by itself",
        )
        parser.add_argument(
            "--reserve", type=positive, default=64, metavar="N", help="tokens for question and answer"
        )
        parser.add_argument(
            "--segment-tokens", type=positive, default=1024, metavar="N", help="blocks: cut longer documents"
        )
        _add_volatile(parser)
        parser.add_argument("sources", nargs="+", metavar="SOURCE", help="a file or a folder")
    build.add_argument("--out", required=True, metavar="FILE", help="the cache to write")
    build.add_argument(
        "--kv",
        default="wide",
        choices=["wide", "int8", "int4", "auto"],
        help="how keys and values are kept: as computed (default), in fewer bits, or the fewest by --max-kl",
    )
    build.add_argument(
        "--max-kl", type=float, default=0.01, metavar="NATS", help="bound of --kv auto; default: 0.01"
    )
    build.add_argument(
        "--overflow",
        default="error",
        choices=["error", "select"],
        help="more than the context holds: refuse (default), or let each question select (layout blocks)",
    )
    build.add_argument(
        "--recompute",
        type=int,
        default=16,
        metavar="N",
        help="blocks: first tokens read in place; default: 16",
    )
    build.add_argument(
        "--abstain-below",
        type=float,
        default=mo.cag.ABSTAIN_BELOW,
        metavar="C",
        help="confidence under which an answer counts as none",
    )


def _add_change_commands(inner: Any) -> None:
    add = command(inner, "add", run_add, "Add documents to a cache file.")
    remove = command(inner, "remove", run_remove, "Take documents out of a cache file.")
    update = command(
        inner, "update", run_update, "Read sources again and replace, add and remove what changed."
    )
    for parser in (add, remove, update):
        add_load_options(parser)
        parser.add_argument("--cache", required=True, metavar="FILE")
    for parser in (add, update):
        _add_volatile(parser)
    add.add_argument("sources", nargs="+", metavar="SOURCE", help="a file or a folder")
    remove.add_argument("names", nargs="+", metavar="NAME", help="of a document, as `inspect` lists it")
    update.add_argument("sources", nargs="*", metavar="SOURCE", help="default: every document's own file")


def _add_volatile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--volatile",
        action="append",
        default=[],
        metavar="PATTERN",
        help="documents that change often, to stand behind the others: 'news/*'; repeatable",
    )


def run_plan(arguments: argparse.Namespace) -> None:
    plan = mo.cag.plan(
        load(arguments),
        arguments.sources,
        instruction=arguments.instruction,
        layout=arguments.layout,
        reserve=arguments.reserve,
        segment_tokens=arguments.segment_tokens,
        volatile=arguments.volatile,
    )
    print_report(dataclasses.asdict(plan), arguments, _plan_as_text)


def _plan_as_text(plan: dict[str, Any]) -> str:
    lines = [f"{tokens:>9}  {name}" for name, tokens in plan["documents"].items()]
    lines.append(f"{plan['tokens']:>9}  tokens in all, of a context of {plan['context']}")
    if plan["fits"]:
        lines.append(f"They fit, with {plan['reserve']} left for a question and its answer.")
    else:
        lines.append(
            f"They do not fit with {plan['reserve']} left for a question and its answer: leave some out, or "
            "build with --layout blocks --overflow select."
        )
    sizes = ", ".join(f"{kv} {size(count)}" for kv, count in plan["bytes"].items())
    lines.append(f"The cache takes about {sizes}; reading about {duration(plan['seconds'])}.")
    return "\n".join(lines)


def run_build(arguments: argparse.Namespace) -> None:
    model = load(arguments)
    start = time.perf_counter()
    with reporter("reading", quiet=arguments.json) as progress:
        knowledge = mo.cag.build(
            model,
            arguments.sources,
            arguments.out,
            instruction=arguments.instruction,
            layout=arguments.layout,
            kv=arguments.kv,
            max_kl=arguments.max_kl,
            overflow=arguments.overflow,
            reserve=arguments.reserve,
            segment_tokens=arguments.segment_tokens,
            recompute=arguments.recompute,
            volatile=arguments.volatile,
            abstain_below=arguments.abstain_below,
            progress=progress,
        )
    facts = knowledge.describe()
    facts["seconds"] = round(time.perf_counter() - start, 6)
    print_report(
        facts,
        arguments,
        lambda f: (
            f"{arguments.out}: {len(f['documents'])} documents, {f['tokens']} tokens, {size(f['bytes'])} "
            f"({f['layout']}, kv {f['kv']}), read in {f['seconds']:.2f} s"
        ),
    )


def run_add(arguments: argparse.Namespace) -> None:
    _run_change(arguments, mo.cag.add, arguments.sources, volatile=arguments.volatile)


def run_remove(arguments: argparse.Namespace) -> None:
    _run_change(arguments, mo.cag.remove, arguments.names)


def run_update(arguments: argparse.Namespace) -> None:
    _run_change(arguments, mo.cag.update, arguments.sources or None, volatile=arguments.volatile)


def _run_change(arguments: argparse.Namespace, change: Any, what: Any, **options: Any) -> None:
    model = load(arguments)
    start = time.perf_counter()
    with reporter("reading", quiet=arguments.json) as progress:
        changes = change(arguments.cache, model, what, progress=progress, **options)
    report = dataclasses.asdict(changes)
    report["seconds"] = round(time.perf_counter() - start, 6)
    print_report(report, arguments, _changes_as_text)


def _changes_as_text(report: dict[str, Any]) -> str:
    lines = [
        f"{what}: {', '.join(report[what])}" for what in ("added", "replaced", "removed") if report[what]
    ]
    if not lines:
        return "Nothing has changed; the file was not written."
    lines.append(
        f"{report['computed_tokens']} of {report['tokens']} tokens read, in {report['seconds']:.2f} s; "
        f"{len(report['unchanged'])} documents as they were"
    )
    return "\n".join(lines)


def run_ask(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    model = load(arguments)
    loaded = time.perf_counter()
    knowledge = mo.cag.open(arguments.cache, model)
    opened = time.perf_counter()
    options: dict[str, Any] = {
        "abstain_below": arguments.abstain_below,
        "most_segments": arguments.segments or 0,
        "beams": arguments.beams,
        "length_penalty": arguments.length_penalty,
    }
    if len(arguments.questions) == 1:
        answers = [knowledge.ask(arguments.questions[0], **sampling(arguments), **options)]
    else:
        names = ("max_new_tokens", "temperature", "seed")
        chosen = {name: value for name, value in sampling(arguments).items() if name in names}
        answers = knowledge.ask_many(arguments.questions, **chosen, **options)
    reports = [answer_as_dict(answer) for answer in answers]
    for report in reports:
        report["cost"]["load_seconds"] = round(loaded - start, 6)
        report["cost"]["open_seconds"] = round(opened - loaded, 6)
        report["cost"]["total_seconds"] = round(time.perf_counter() - start, 6)
    if len(reports) == 1:
        print_report(reports[0], arguments, answer_as_text)
    else:
        titled = [{"question": q, **r} for q, r in zip(arguments.questions, reports, strict=True)]
        print_report(
            {"answers": titled},
            arguments,
            lambda r: "\n\n".join(f"{a['question']}\n{answer_as_text(a)}" for a in r["answers"]),
        )


def run_verify(arguments: argparse.Namespace) -> None:
    model = load(arguments) if arguments.model else None
    start = time.perf_counter()
    with reporter("checking", quiet=arguments.json) as progress:
        report = mo.cag.verify(
            arguments.cache, model, deep=arguments.deep, samples=arguments.samples, progress=progress
        )
    report["seconds"] = round(time.perf_counter() - start, 6)
    print_report(report, arguments, _verification_as_text)


def _verification_as_text(report: dict[str, Any]) -> str:
    text = f"Every checksum agrees: {size(report['bytes'])}, {report['tokens']} tokens."
    if "positions" in report:
        text += (
            f"\n{report['positions']} tokens computed again: largest relative difference "
            f"{report['difference']:.2g}."
        )
    return f"{text} ({report['seconds']:.2f} s)"


def run_inspect(arguments: argparse.Namespace) -> None:
    print_report(mo.cag.inspect(arguments.cache), arguments, _inspection_as_text)


def _inspection_as_text(facts: dict[str, Any]) -> str:
    certificate = facts["certificate"]
    shown = facts_as_text({name: value for name, value in facts.items() if name != "certificate"})
    lines = [
        f"{m['what'] + ' beside ' + m['against']:<24}KL {m['kl']:.2g} nats, perplexity "
        f"{m['perplexity_change']:+.2%}, same likeliest token {m['top1_agreement']:.1%}"
        for m in certificate["measurements"]
    ]
    if lines:
        lines.append(f"{'measured on':<24}{certificate['tokens']} tokens of the documents")
    return "\n".join([shown, *lines])


def answer_as_dict(answer: mo.cag.Answer) -> dict[str, Any]:
    cost = answer.cost
    seconds = ("verify_seconds", "compose_seconds", "prefill_seconds", "decode_seconds", "cite_seconds")
    return {
        "text": answer.text,
        "confidence": round(answer.confidence, 6),
        "abstained": answer.abstained,
        "citations": [
            {
                "document": c.document,
                "source": c.source,
                "heading": c.heading,
                "page": c.page,
                "bytes": list(c.bytes),
                "converted": c.converted,
                "line": c.line,
                "quote": c.quote,
                "literal": c.literal,
                "attention": round(c.attention, 4),
            }
            for c in answer.citations
        ],
        "selected": answer.selected,
        "finish_reason": answer.finish_reason,
        "cost": {
            "cached_tokens": cost.cached_tokens,
            "computed_tokens": cost.computed_tokens,
            "question_tokens": cost.question_tokens,
            "new_tokens": cost.new_tokens,
            **{name: round(getattr(cost, name), 6) for name in seconds},
        },
    }


def answer_as_text(report: dict[str, Any]) -> str:
    lines = [report["text"]]
    if report["abstained"]:
        lines = [f"The documents do not say. (The model answered: {report['text']})"]
    for c in report["citations"]:
        place = f"page {c['page']}, line {c['line']}" if c["page"] else f"line {c['line']}"
        of = " of its text" if c["converted"] else ""
        under = f", under “{c['heading']}”" if c["heading"] else ""
        lines.append(
            f"  {c['source']}, {place}{under}, bytes {c['bytes'][0]}-{c['bytes'][1]}{of}: “{c['quote']}”"
        )
    if report["selected"]:
        lines.append(f"  attended to: {', '.join(report['selected'])}")
    cost = report["cost"]
    lines.append(
        f"  {cost['cached_tokens']} tokens from the cache, "
        f"{cost['question_tokens'] + cost['computed_tokens']} read, {cost['new_tokens']} written; "
        f"{cost['total_seconds'] * 1e3:.0f} ms in all, of which loading the model "
        f"{cost['load_seconds'] * 1e3:.0f}, opening the cache {cost['open_seconds'] * 1e3:.1f}"
    )
    return "\n".join(lines)
