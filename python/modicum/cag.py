"""Cache-augmented generation: read documents once, save what the model keeps, answer from it ever after.

Chan et al. 2024, "Don't Do RAG: When Cache-Augmented Generation is All You Need for Knowledge Tasks",
arXiv:2412.15605.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modicum import _core, interop
from modicum._core import ABSTAIN_BELOW, Answer, Citation, Cost, InvalidArgument
from modicum.documents import Document, read_documents
from modicum.knowledge import Knowledge, Session
from modicum.model import Model, Progress

if TYPE_CHECKING:
    import numpy as np
    import transformers

__all__ = [
    "ABSTAIN_BELOW",
    "Answer",
    "Calibration",
    "Changes",
    "Citation",
    "Cost",
    "Document",
    "Knowledge",
    "Plan",
    "PromptFormat",
    "Session",
    "add",
    "adopt",
    "build",
    "calibrate",
    "inspect",
    "open",
    "plan",
    "prompt_ids",
    "read_documents",
    "remove",
    "update",
    "verify",
]

INSTRUCTION = "Answer briefly, from the documents below only."

Sources = str | Path | Document | Sequence[str | Path | Document]


@dataclass(frozen=True)
class PromptFormat:
    """The text around the documents and the questions; by default the model's chat template gives it."""

    before_documents: str
    before_question: str
    after_question: str
    add_special_tokens: bool = True
    after_answer: str = "\n\nQuestion: "


@dataclass(frozen=True)
class Plan:
    """What a build would take; nothing was written.

    Attributes
    ----------
    documents : tokens of each, in the order of the cache.
    tokens, context, reserve : of the whole prompt, of the model, and kept for a question and its answer.
    fits : whether tokens and reserve are within the context.
    segments : that would be read by themselves (1 for the joint layout).
    bytes : of the cache file for kv "wide", "int8" and "int4", about.
    seconds : of reading, extrapolated from up to 256 tokens read now on this machine.
    """

    documents: dict[str, int]
    tokens: int
    context: int
    reserve: int
    fits: bool
    segments: int
    bytes: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class Changes:
    """What happened to a cache's documents: their names, and the tokens that had to be read of all."""

    added: list[str]
    replaced: list[str]
    removed: list[str]
    unchanged: list[str]
    computed_tokens: int
    tokens: int


@dataclass(frozen=True)
class Calibration:
    """How well :attr:`Answer.confidence` tells supported answers from others on labelled questions.

    Attributes
    ----------
    threshold : where right answers kept minus unanswerable questions answered is largest.
    precision, recall : of abstaining at that threshold, on the questions that the documents do not answer.
    kept : share of the right answers that are still given.
    exact_match : share of right answers among the answerable questions, before abstaining.
    questions : asked in all.
    """

    threshold: float
    precision: float
    recall: float
    kept: float
    exact_match: float
    questions: int


def plan(
    model: Model,
    sources: Sources,
    *,
    instruction: str = INSTRUCTION,
    format: PromptFormat | None = None,
    layout: str = "joint",
    reserve: int = 64,
    segment_tokens: int = 1024,
    volatile: Sequence[str] = (),
) -> Plan:
    """Tells what :func:`build` would take, writing nothing. Arguments as there."""
    options = _options(
        model,
        instruction,
        format,
        layout=layout,
        kv="wide",
        max_kl=0.0,
        overflow="error",
        reserve=reserve,
        segment_tokens=segment_tokens,
        recompute=0,
        abstain_below=0.0,
    )
    facts = _core.plan_knowledge(model._core, _to_core(_read(sources, volatile)), options)
    return Plan(
        documents={d["name"]: d["tokens"] for d in facts["documents"]},
        bytes={kv: facts[f"{kv}_bytes"] for kv in ("wide", "int8", "int4")},
        **{name: facts[name] for name in ("tokens", "context", "reserve", "fits", "segments", "seconds")},
    )


def build(
    model: Model,
    sources: Sources,
    path: str | Path,
    *,
    instruction: str = INSTRUCTION,
    format: PromptFormat | None = None,
    layout: str = "joint",
    kv: str = "wide",
    max_kl: float = 0.01,
    overflow: str = "error",
    reserve: int = 64,
    segment_tokens: int = 1024,
    recompute: int = 16,
    volatile: Sequence[str] = (),
    abstain_below: float = ABSTAIN_BELOW,
    progress: Progress | None = None,
) -> Knowledge:
    """Reads documents, files or folders of them, once and writes the cache to `path`.

    A file that was there stays until the new one is whole; a failure leaves nothing half-written.

    Parameters
    ----------
    sources : see :func:`read_documents`.
    instruction : what the model is told before the documents.
    format : the text around documents and questions; None takes the model's chat template.
    layout : "joint", one causal pass over all documents, exact; "blocks", each document read by itself and
        placed by rotating the query, so that documents can be exchanged and selected one by one. What
        blocks lose beside a joint pass is measured and kept in the file.
    kv : how keys and values are kept: "wide", as the model computes them; "int8"; "int4"; "auto", the
        smallest whose mean divergence of the next token (Kullback-Leibler, nats) from "wide", measured on
        the documents themselves, is at most `max_kl`.
    overflow : "error", or with blocks "select": more documents than the context holds, of which each question
        attends to those that BM25 finds for it.
    reserve : tokens of the context that must be left for a question and its answer.
    segment_tokens : blocks: longer documents are cut into parts.
    recompute : blocks: so many first tokens of each segment are computed in place (EPIC, arXiv:2410.15332).
    volatile : patterns of names whose documents come last, so that their changes cost least.
    abstain_below : confidence under which an answer counts as none; :func:`calibrate` measures it.
    progress : called with (stage, done, total); returning False stops.

    Raises
    ------
    ContextOverflow
        Before any work, with each document's share.
    FormatError, Unsupported, InvalidArgument
        For documents that cannot be read, each with its reason.
    IoError
        Where a source cannot be read or `path` cannot be written.
    """
    documents = _read(sources, volatile, progress)
    options = _options(
        model,
        instruction,
        format,
        layout=layout,
        kv=kv,
        max_kl=max_kl,
        overflow=overflow,
        reserve=reserve,
        segment_tokens=segment_tokens,
        recompute=recompute,
        abstain_below=abstain_below,
    )
    core = _core.build_knowledge(model._core, _to_core(documents), path, options, progress)
    return Knowledge(core, path, model)


def open(path: str | Path, model: Model) -> Knowledge:
    """Maps a cache in milliseconds, after checking its format and that it belongs to `model`.

    Checksums are compared before the first answer, once a process.

    Raises
    ------
    FingerprintMismatch
        Naming what differs, where another model built it: weights, tokenizer, chat template, adapter, dtype.
    Corrupt, FormatError, IoError
    """
    return Knowledge(_core.Knowledge.open(path, model._core), path, model)


def add(
    path: str | Path,
    model: Model,
    sources: Sources,
    *,
    volatile: Sequence[str] = (),
    progress: Progress | None = None,
) -> Changes:
    """Adds documents to a cache, behind those that are there (before volatile ones).

    Joint caches read from there on, blocks the new documents alone. Processes that have the file open keep
    what they opened; of two writers at once the second gets an IoError and changes nothing.

    Raises
    ------
    InvalidArgument
        Where a document of that name is there already: use :func:`update`.
    """
    return _change(path, model, _read(sources, volatile, progress), [], progress, _core.Expected.new_names)


def remove(
    path: str | Path, model: Model, names: str | Sequence[str], *, progress: Progress | None = None
) -> Changes:
    """Takes documents out of a cache. Joint caches are read again from the first that is gone."""
    return _change(path, model, [], [names] if isinstance(names, str) else list(names), progress)


def update(
    path: str | Path,
    model: Model,
    sources: Sources | None = None,
    *,
    volatile: Sequence[str] = (),
    progress: Progress | None = None,
) -> Changes:
    """Reads sources again and brings the cache up to date: what changed is replaced, what is new added.

    Documents of a folder that is given are removed where their files are gone. With `sources` None every
    document's own file is read again. A cache that is up to date is not written.
    """
    known = inspect(path)["documents"]
    if sources is None:
        documents = _again(known, progress)
        return _change(path, model, documents, [], progress, _core.Expected.known_names)
    # A document stays where it is unless the caller says otherwise.
    kept = {d["name"] for d in known if d["volatile"]} if not volatile else set()
    documents = [
        replace(d, volatile=d.volatile or d.name in kept) for d in _read(sources, volatile, progress)
    ]
    # The build may have been given another path to it.
    folders = [
        Path(s).absolute() for s in _as_list(sources) if isinstance(s, (str, Path)) and Path(s).is_dir()
    ]
    names = {d.name for d in documents}
    gone = [
        d["name"]
        for d in known
        if d["name"] not in names
        and any(Path(d["source"]).absolute().is_relative_to(folder) for folder in folders)
    ]
    return _change(path, model, documents, gone, progress)


def verify(
    path: str | Path,
    model: Model | None = None,
    *,
    deep: bool = False,
    samples: int = 256,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Checks a cache: seal and every checksum; with a model, that it belongs to it.

    Parameters
    ----------
    deep : also compute the keys and values of `samples` tokens again, after what the file holds before them.

    Returns
    -------
    dict
        ``bytes`` and ``tokens`` checked; with `deep` also ``positions`` and their relative ``difference``
        (root mean square, the largest of all samples; 0 for wide caches on the instruction set that built
        them).

    Raises
    ------
    Corrupt, FingerprintMismatch, FormatError, IoError
    """
    facts = inspect(path)
    report: dict[str, Any] = {"bytes": facts["bytes"], "tokens": facts["tokens"]}
    if deep and model is None:
        raise InvalidArgument("[cag.verify] model: expected one for a deep check, got None")
    if deep and model is not None:
        positions, difference = _core.verify_knowledge(model._core, path, samples, progress)
        report |= {"positions": positions, "difference": difference}
    elif model is not None:
        open(path, model)
    return report


def inspect(path: str | Path) -> dict[str, Any]:
    """What a cache file holds, without a model; checks its seal and checksums."""
    return _core.inspect_knowledge(path)


def prompt_ids(
    model: Model, sources: Sources, *, instruction: str = INSTRUCTION, format: PromptFormat | None = None
) -> list[int]:
    """The tokens that a joint cache of these documents keeps: what another engine reads for :func:`adopt`."""
    return _core.shared_prompt_ids(
        model._core, _to_core(_read(sources, ())), _joint_options(model, instruction, format)
    )


def adopt(
    model: Model,
    sources: Sources,
    path: str | Path,
    cache: transformers.DynamicCache | tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    *,
    instruction: str = INSTRUCTION,
    format: PromptFormat | None = None,
    kv: str = "wide",
    max_kl: float = 0.01,
) -> Knowledge:
    """Writes a cache from keys and values that transformers computed for :func:`prompt_ids`.

    They must come from the same weights in the same dtype; ``verify(path, model, deep=True)`` checks it.
    `kv` and `max_kl` as of :func:`build`. `cache` may also be a pair of numpy arrays k, v [layers, tokens,
    kv_heads, head_dim] of the model's dtype (bfloat16 as uint16), keys rotated to positions 0, 1, ….
    """
    k, v = cache if isinstance(cache, tuple) else interop.from_dynamic_cache(cache)
    options = _joint_options(model, instruction, format, kv=kv, max_kl=max_kl)
    core = _core.adopt_knowledge(model._core, _to_core(_read(sources, ())), path, k, v, options)
    return Knowledge(core, path, model)


def calibrate(
    questions: Sequence[tuple[Knowledge, str, str | None]],
    *,
    same: Callable[[str, str], bool] = lambda given, expected: given.strip() == expected.strip(),
    **options: Any,
) -> Calibration:
    """Measures the threshold of abstaining on labelled questions.

    Parameters
    ----------
    questions : (cache, question, expected answer), None where the documents do not hold one.
    same : whether a given answer is the expected one.
    options : of :meth:`Knowledge.ask`.
    """
    scored: list[tuple[float, bool, bool]] = []  # confidence, answerable, right
    for knowledge, question, expected in questions:
        answer = knowledge.ask(question, **options)
        scored.append(
            (answer.confidence, expected is not None, expected is not None and same(answer.text, expected))
        )
    right = [c for c, _, hit in scored if hit]
    unanswerable = [c for c, answerable, _ in scored if not answerable]
    if not right or not unanswerable:
        raise InvalidArgument(
            "[cag.calibrate] questions: expected some that are answered rightly and some without an answer, "
            f"got {len(right)} and {len(unanswerable)}"
        )

    def share(confidences: list[float], threshold: float) -> float:
        return sum(c >= threshold for c in confidences) / len(confidences)

    candidates = sorted({c for c, _, _ in scored} | {1.0})
    threshold = max(candidates, key=lambda t: share(right, t) - share(unanswerable, t))
    abstained = [answerable for c, answerable, _ in scored if c < threshold]
    answerable_count = sum(answerable for _, answerable, _ in scored)
    return Calibration(
        threshold=threshold,
        precision=abstained.count(False) / len(abstained) if abstained else 1.0,
        recall=1 - share(unanswerable, threshold),
        kept=share(right, threshold),
        exact_match=len(right) / answerable_count,
        questions=len(scored),
    )


def _as_list(sources: Sources) -> list[str | Path | Document]:
    return [sources] if isinstance(sources, (str, Path, Document)) else list(sources)


def _read(sources: Sources, volatile: Sequence[str], progress: Progress | None = None) -> list[Document]:
    """Sources as documents; those that are documents already are taken as they are."""
    listed = _as_list(sources)
    paths = [s for s in listed if not isinstance(s, Document)]
    given = [s for s in listed if isinstance(s, Document)]
    return given + (read_documents(paths, volatile=volatile, progress=progress) if paths or not given else [])


def _again(known: Sequence[dict[str, Any]], progress: Progress | None) -> list[Document]:
    """The documents of a cache, read from their files anew."""
    sources = [d["source"] for d in known]
    if len({Path(source).name for source in sources}) == len(sources):
        found = read_documents(sources, progress=progress)  # one converter for all
    else:
        found = [read_documents(source)[0] for source in sources]
    return [
        replace(document, name=d["name"], volatile=d["volatile"])
        for document, d in zip(found, known, strict=True)
    ]


def _to_core(documents: Sequence[Document]) -> list[_core.Document]:
    return [
        _core.Document(d.name, d.source, d.text, list(d.pages), d.converted, d.volatile) for d in documents
    ]


def _change(
    path: str | Path,
    model: Model,
    documents: Sequence[Document],
    remove: list[str],
    progress: Progress | None,
    expected: _core.Expected = _core.Expected.anything,
) -> Changes:
    return Changes(
        **_core.update_knowledge(model._core, path, _to_core(documents), remove, progress, expected)
    )


def _options(
    model: Model, instruction: str, format: PromptFormat | None, **options: Any
) -> _core.BuildOptions:
    if options["reserve"] < 1:
        raise InvalidArgument(f"[cag.build] reserve: expected at least 1, got {options['reserve']}")
    chosen = format or _template_format(model, instruction)
    return _core.BuildOptions(
        before_documents=chosen.before_documents,
        before_question=chosen.before_question,
        after_question=chosen.after_question,
        after_answer=chosen.after_answer,
        add_special_tokens=chosen.add_special_tokens,
        **options,
    )


def _joint_options(
    model: Model, instruction: str, format: PromptFormat | None, *, kv: str = "wide", max_kl: float = 0.01
) -> _core.BuildOptions:
    return _options(
        model,
        instruction,
        format,
        layout="joint",
        kv=kv,
        max_kl=max_kl,
        overflow="error",
        reserve=64,
        segment_tokens=1024,
        recompute=0,
        abstain_below=ABSTAIN_BELOW,
    )


def _template_format(model: Model, instruction: str) -> PromptFormat:
    template = model.chat_template
    if template is None:
        return PromptFormat(f"{instruction}\n\n", "\nQuestion: ", "\nAnswer:")
    before, between, after = template.split(instruction)
    # The template writes BOS and the like itself.
    return PromptFormat(
        before, between, after, add_special_tokens=False, after_answer=template.between_turns() or between
    )
