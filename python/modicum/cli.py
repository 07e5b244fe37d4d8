"""The command line: ``modicum info``, ``generate``, ``retrofit``, ``cag build`` and the others.

Exit codes: 0 done, 1 a modicum error (one line on standard error), 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import modicum as mo
from modicum import choose, cli_cag, cli_retrofit, cli_tune
from modicum.command import (
    add_beam_options,
    add_load_options,
    add_sampling_options,
    command,
    facts_as_text,
    load,
    positive,
    print_report,
    read_text,
    sampling,
)
from modicum.progress import reporter


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if not hasattr(arguments, "run"):
        parser.print_help(sys.stderr)
        return 2
    try:
        arguments.run(arguments)
    except mo.Error as error:
        print(f"modicum: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("modicum: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader has seen enough
        sys.stderr.close()
        return 0
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="modicum", description="Run, reuse and search a language model on the machine you already own."
    )
    parser.add_argument("--version", action="version", version=f"modicum {mo.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    _add_info(commands)
    _add_bench(commands)
    _add_generate(commands)
    _add_choose(commands)
    _add_quantize(commands)
    cli_retrofit.add_commands(commands)
    cli_tune.add_commands(commands)
    cli_cag.add_commands(commands)
    _add_demo(commands)
    return parser


def _add_info(commands: Any) -> None:
    parser = command(
        commands, "info", run_info, "Tell what a model directory holds and what it costs to run."
    )
    parser.add_argument("directory", metavar="DIR", help="a Hugging Face model directory")


def _add_bench(commands: Any) -> None:
    parser = command(
        commands, "bench", run_bench, "Tell what this machine does, and what bounds a model's speed on it."
    )
    parser.add_argument(
        "--model", metavar="DIR", help="a Hugging Face model directory; default: the bundled model"
    )
    parser.add_argument(
        "--dtype", default="auto", choices=["auto", "f32", "bf16", "f16"], help="default: as stored"
    )
    parser.add_argument("--threads", type=positive, metavar="N", help="default: every processor")
    parser.add_argument(
        "--repeat", type=positive, default=3, metavar="N", help="of which the median counts; default: 3"
    )


def _add_generate(commands: Any) -> None:
    parser = command(
        commands, "generate", run_generate, "Continue a text, by choice, sampling or beam search."
    )
    add_load_options(parser)
    parser.add_argument("--prompt", required=True, metavar="TEXT")
    parser.add_argument(
        "--chat", action="store_true", help="send the prompt as a user's message of the chat template"
    )
    add_sampling_options(parser, 128)
    parser.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="end before this text; repeatable"
    )
    add_beam_options(parser)
    parser.add_argument(
        "--num-return", type=positive, default=1, metavar="N", help="results of the beam search"
    )
    parser.add_argument(
        "--early-stopping", choices=["no", "yes", "never"], default="no", help="as in transformers"
    )
    parser.add_argument("--groups", type=positive, default=1, metavar="G", help="of diverse beams")
    parser.add_argument("--diversity-penalty", type=float, default=0.0, metavar="D")
    parser.add_argument("--no-repeat-ngram-size", type=int, default=0, metavar="N")
    parser.add_argument(
        "--native", action="store_true", help="search without transformers' quirks, ending earlier"
    )
    parser.add_argument("--ban", action="append", default=[], metavar="TEXT", help="never write; repeatable")
    parser.add_argument(
        "--require",
        action="append",
        default=[],
        metavar="TEXT",
        help="do write, by several beams; repeatable",
    )
    parser.add_argument("--json-schema", metavar="FILE", help="write JSON of this schema")
    parser.add_argument("--tree", metavar="FILE", help="save the search's tree: .svg or .dot")


def _add_choose(commands: Any) -> None:
    parser = command(
        commands,
        "choose",
        run_choose,
        "Give texts one of the labels of a file, with calibrated probabilities.",
    )
    add_load_options(parser)
    parser.add_argument("--labels", required=True, metavar="FILE", help="UTF-8, a label a line")
    parser.add_argument(
        "--template",
        default=choose.TEMPLATE,
        metavar="TEXT",
        help=f"the prompt, with {{text}} where the text goes; default: {choose.TEMPLATE!r}",
    )
    parser.add_argument("--prefix", default=" ", metavar="TEXT", help="before each label; default: a space")
    parser.add_argument(
        "--chat", action="store_true", help="send the prompt as a user's message of the chat template"
    )
    parser.add_argument(
        "--no-calibrate", action="store_true", help="leave in what the model says whatever the text is"
    )
    parser.add_argument(
        "--examples", metavar="FILE", help="lines of text, tab, label: fit a temperature to them"
    )
    parser.add_argument("texts", nargs="+", metavar="TEXT")


def _group(text: str) -> int | str:
    return text if text == "channel" else positive(text)


def _add_quantize(commands: Any) -> None:
    parser = command(
        commands, "quantize", run_quantize, "Round the linear layers of a model to integers of 8 or 4 bits."
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="a Hugging Face model directory")
    parser.add_argument("--out", required=True, metavar="DIR", help="a new directory for the result")
    parser.add_argument("--bits", type=int, choices=[8, 4], default=8, help="default: 8")
    parser.add_argument(
        "--group",
        type=_group,
        default=32,
        metavar="N",
        help="columns that share a scale; default: 32. 'channel': whole rows, for int8 activations (W8A8)",
    )
    parser.add_argument(
        "--head",
        choices=["keep", "int8", "int4"],
        default="keep",
        help="the output head: as it is (default), or integers of its own beside a tied embedding",
    )
    parser.add_argument(
        "--threads", type=positive, metavar="N", help="default: every processor of this process"
    )


def _add_demo(commands: Any) -> None:
    parser = command(commands, "demo", run_demo, "Ask the bundled model about the bundled handbook.")
    parser.add_argument("--threads", type=positive, metavar="N")


def run_info(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    model = mo.load(arguments.directory)
    seconds = time.perf_counter() - start
    config = model.config
    facts = {
        "path": str(model.path),
        "model_type": config.model_type,
        "parameters": model.parameters,
        "weight_bytes": model.weight_bytes,
        "dtype": model.dtype,
        "quantization": model.quantization,
        "layers": config.num_hidden_layers,
        "hidden_size": config.hidden_size,
        "heads": config.num_attention_heads,
        "kv_heads": config.num_key_value_heads,
        "head_dim": config.head_dim,
        "vocabulary": config.vocab_size,
        "context": config.max_position_embeddings,
        "kv_bytes_per_token": model.kv_bytes_per_token,
        "kv_bytes_full_context": model.kv_bytes_per_token * config.max_position_embeddings,
        "chat_template": model.chat_template is not None,
        "instruction_set": mo.active_isa(),
        "threads": model.threads,
        "load_seconds": round(seconds, 6),
    }
    print_report(facts, arguments, facts_as_text)


def run_bench(arguments: argparse.Namespace) -> None:
    model = None
    if arguments.model or _demo_or_none() is not None:
        folder = arguments.model or demo_folder() / "model"
        model = mo.load(folder, dtype=arguments.dtype, threads=arguments.threads)
    report = mo.bench.run(model, threads=arguments.threads, repeat=arguments.repeat)
    print_report(report.to_dict(), arguments, lambda _: str(report))


def run_generate(arguments: argparse.Namespace) -> None:
    model = load(arguments)
    prompt: str | list[int] = arguments.prompt
    if arguments.chat:
        prompt = model.chat_prompt([{"role": "user", "content": arguments.prompt}])
    start = time.perf_counter()
    if _is_search(arguments):
        results = _beam_results(model, prompt, arguments)
    else:
        results = [_generated(model, prompt, arguments)]
    tokens = sum(len(result["ids"]) for result in results)
    report = {"results": results, "seconds": round(time.perf_counter() - start, 6), "new_tokens": tokens}
    print_report(report, arguments, lambda r: _results_as_text(r, arguments))


def _beam_results(
    model: mo.Model, prompt: str | list[int], arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    early: dict[str, bool | Literal["never"]] = {"no": False, "yes": True, "never": "never"}
    found = model.beam_search(
        prompt,
        **sampling(arguments),
        beams=arguments.beams,
        num_return=arguments.num_return,
        length_penalty=arguments.length_penalty,
        early_stopping=early[arguments.early_stopping],
        groups=arguments.groups,
        diversity_penalty=arguments.diversity_penalty,
        no_repeat_ngram_size=arguments.no_repeat_ngram_size,
        mode="native" if arguments.native else "transformers",
        stop=arguments.stop,
        stop_ids=[] if arguments.json_schema else None,
        constraint=_constraint(model, arguments),
    )
    if arguments.tree:
        tree = found.tree.to_dot() if arguments.tree.endswith(".dot") else found.tree.to_svg()
        try:
            Path(arguments.tree).write_text(tree, "utf-8")
        except OSError as error:
            raise mo.IoError(f"[generate] {arguments.tree}: {error.strerror}") from None
    return [{"text": h.text, "ids": h.ids, "score": h.score, "finish_reason": h.finish_reason} for h in found]


def _is_search(arguments: argparse.Namespace) -> bool:
    asked = arguments.ban or arguments.require or arguments.json_schema or arguments.tree
    return arguments.beams > 1 or bool(asked) or arguments.no_repeat_ngram_size > 0


def _constraint(model: mo.Model, arguments: argparse.Namespace) -> mo.search.ConstraintLike | None:
    parts: list[mo.search.ConstraintLike] = []
    if arguments.json_schema:
        parts.append(mo.search.Grammar.json(model, read_text(arguments.json_schema)))
    if arguments.ban or arguments.require:
        parts.append(mo.search.phrases(model, banned=arguments.ban, required=arguments.require))
    return mo.search.all_of(*parts) if len(parts) > 1 else parts[0] if parts else None


def _generated(model: mo.Model, prompt: str | list[int], arguments: argparse.Namespace) -> dict[str, Any]:
    result = model.generate(
        prompt,
        **sampling(arguments),
        stop=arguments.stop,
        stream=None if arguments.json else _write,
    )
    return {"text": result.text, "ids": result.ids, "finish_reason": result.finish_reason}


def _results_as_text(report: dict[str, Any], arguments: argparse.Namespace) -> str:
    if not _is_search(arguments):
        return ""  # streamed already
    return "\n".join(f"{result['score']:.4f}\t{result['text']}" for result in report["results"])


def run_choose(arguments: argparse.Namespace) -> None:
    lines = read_text(arguments.labels).splitlines()
    model = load(arguments)
    chooser = mo.search.Chooser(
        model,
        [line.strip() for line in lines if line.strip()],
        template=arguments.template.replace("\\n", "\n"),
        prefix=arguments.prefix,
        chat=arguments.chat,
        calibrate=not arguments.no_calibrate,
    )
    if arguments.examples:
        pairs = [line.rsplit("\t", 1) for line in read_text(arguments.examples).splitlines()]
        if not all(len(pair) == 2 for pair in pairs):
            raise mo.InvalidArgument(
                f"[choose] {arguments.examples}: expected a tab before the label of each line"
            )
        chooser.fit([text for text, _ in pairs], [label.strip() for _, label in pairs])
    start = time.perf_counter()
    choices = [chooser(text) for text in arguments.texts]
    report = {
        "results": [
            {"text": text, "label": c.label, "probability": c.probability, "probabilities": c.probabilities}
            for text, c in zip(arguments.texts, choices, strict=True)
        ],
        "temperature": chooser.temperature,
        "seconds": round(time.perf_counter() - start, 6),
    }
    print_report(report, arguments, _choices_as_text)


def _choices_as_text(report: dict[str, Any]) -> str:
    return "\n".join(f"{r['probability']:.4f}\t{r['label']}\t{r['text']}" for r in report["results"])


def run_quantize(arguments: argparse.Namespace) -> None:
    with reporter("quantising", unit="bytes", quiet=arguments.json) as progress:
        report = mo.retrofit.quantize(
            arguments.model,
            arguments.out,
            bits=arguments.bits,
            group=arguments.group,
            head=arguments.head,
            threads=arguments.threads,
            progress=progress,
        )
    print_report(report.to_dict(), arguments, lambda _: f"{arguments.out}:\n{report}")


def run_demo(arguments: argparse.Namespace) -> None:
    folder = demo_folder()
    questions = json.loads((folder / "questions.json").read_text("utf-8"))
    model = mo.load(folder / "model", threads=arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        cache = Path(temporary) / "handbook.kv"
        start = time.perf_counter()
        mo.cag.build(model, folder / "handbook", cache)
        build_seconds = time.perf_counter() - start
        start = time.perf_counter()
        knowledge = mo.cag.open(cache, model)
        open_seconds = time.perf_counter() - start
        answers = [(entry, knowledge.ask(entry["question"])) for entry in questions]
        timing = _time_cold_and_cached(model, cache, questions[0]["question"])
    report = {
        "documents": knowledge.describe()["documents"],
        "tokens": len(knowledge),
        "build_seconds": round(build_seconds, 6),
        "open_seconds": round(open_seconds, 6),
        "answers": [
            {"question": e["question"], "expected": e["answer"], **cli_cag.answer_as_dict(a)}
            for e, a in answers
        ],
        **timing,
    }
    print_report(report, arguments, _demo_as_text)


def _time_cold_and_cached(model: mo.Model, cache: Path, question: str, repeats: int = 3) -> dict[str, float]:
    """Median seconds from question to answer: documents read anew, and from the file, opening included."""
    cold = []
    cached = []
    for _ in range(repeats):
        start = time.perf_counter()
        knowledge = mo.cag.open(cache, model)
        answer = knowledge.ask(question)
        cached.append(time.perf_counter() - start)
        ids = knowledge.branch().tokens + knowledge.question_ids(question)
        start = time.perf_counter()
        again = model.generate(ids, max_new_tokens=64)
        cold.append(time.perf_counter() - start)
        assert again.ids == answer.ids, "the cache changed an answer"
    return {"cold_seconds": sorted(cold)[repeats // 2], "cached_seconds": sorted(cached)[repeats // 2]}


def _demo_as_text(report: dict[str, Any]) -> str:
    lines = [
        f"The handbook: {len(report['documents'])} documents, {report['tokens']} tokens, "
        f"read once in {report['build_seconds'] * 1e3:.0f} ms, "
        f"mapped back in {report['open_seconds'] * 1e3:.1f} ms.",
        "",
    ]
    right = 0
    for entry in report["answers"]:
        hit = entry["text"].strip() == entry["expected"]
        right += hit
        lines.append(f"Q  {entry['question']}")
        lines.append(f"A  {entry['text']}" + ("" if hit else f"   (expected: {entry['expected']})"))
        for citation in entry["citations"]:
            begin, end = citation["bytes"]
            lines.append(f"   {citation['document']}, bytes {begin}-{end}: “{citation['quote']}”")
        lines.append("")
    lines.append(f"{right} of {len(report['answers'])} answers are right.")
    lines.append(
        f"The first question, documents read anew: {report['cold_seconds'] * 1e3:.1f} ms; from the cache: "
        f"{report['cached_seconds'] * 1e3:.1f} ms (medians of 3, opening the file included)."
    )
    return "\n".join(lines)


def demo_folder() -> Path:
    """The bundled demo: beside this package when installed, in examples/ of a source tree."""
    if (folder := _demo_or_none()) is not None:
        return folder
    raise mo.IoError(
        "[demo] bundled model: expected it beside the package, got none; install modicum with pip"
    )


def _demo_or_none() -> Path | None:
    package = Path(__file__).resolve().parent
    folders = (package / "demo", package.parents[1] / "examples" / "demo")
    return next((folder for folder in folders if (folder / "model" / "config.json").exists()), None)


def _write(text: str) -> None:
    print(text, end="", flush=True)


if __name__ == "__main__":
    sys.exit(main())
