# SPDX-License-Identifier: Apache-2.0
"""All arms on the same questions, in turns."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import modicum as mo

from knowledge.arms import Arm, Cached, InContext, Prompts, Retrieved, same_prompt
from knowledge.corpora import Knowledge, Question
from knowledge.retrieval import Bm25, Dense, Embedder, chunks
from knowledge.scores import exact_match, f1


@dataclass
class Settings:
    """`chunk`: tokens of a chunk; `longest`: tokens of an answer; `embed`: None leaves the dense arms out."""

    top_k: Sequence[int]
    chunk: int
    longest: int
    embed: Embedder | None


@dataclass
class Outcome:
    """What one arm did at one size: an entry for each question, of `bytes` and `build` for each document set.

    `found`: the documents that the question needs were before the model.
    """

    answers: list[str] = field(default_factory=list)
    found: list[bool] = field(default_factory=list)
    exact: list[bool] = field(default_factory=list)
    f1: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    new_tokens: list[int] = field(default_factory=list)
    bytes: list[int] = field(default_factory=list)
    build: list[float] = field(default_factory=list)
    refused: str = ""


@dataclass
class SizeResult:
    """`same`: answers that were alike with and without the cache, of `questions`."""

    label: str
    tokens: float
    documents: float
    questions: int = 0
    same: int = 0
    open_seconds: float = 0.0
    outcomes: dict[str, Outcome] = field(default_factory=dict)


def measure(model: mo.Model, label: str, sets: Sequence[Knowledge], settings: Settings) -> SizeResult:
    """One size: every set of documents, every question of it, every arm."""
    sizes = [len(Prompts(model).ids(one.documents, "")) for one in sets]
    result = SizeResult(label, statistics.mean(sizes), statistics.mean(len(s.documents) for s in sets))
    opened = []
    asked = []
    for one in sets:
        with tempfile.TemporaryDirectory() as folder:
            arms = _make(model, one, Path(folder), settings, result)
            cached = next((arm for arm in arms if isinstance(arm, Cached)), None)
            if cached is not None:
                opened.append(cached.open_seconds)
            _ask_all(arms, one.questions, result)
            asked += one.questions
    result.questions = len(asked)
    result.open_seconds = statistics.median(opened) if opened else 0.0
    _drop_partly_refused(result)
    _compare_cached(result)
    if settings.embed is not None:
        _add_cosines(result, asked, settings.embed)
    return result


def _make(model: mo.Model, one: Knowledge, folder: Path, settings: Settings, result: SizeResult) -> list[Arm]:
    arms: list[Arm] = []
    in_context = InContext(model, one.documents, settings.longest)
    try:
        cached = Cached(model, one.documents, folder, settings.longest)
        if not same_prompt(cached, in_context, one.questions[0].text):
            raise SystemExit(f"{result.label}: the cache and the plain prompt are of different tokens")
        arms.append(cached)
    except mo.ContextOverflow:
        result.outcomes.setdefault(Cached.name, Outcome()).refused = "does not fit the context"
    arms.append(in_context)

    def count(text: str) -> int:
        return len(model.tokenizer.encode(text, add_special_tokens=False))

    begin = time.perf_counter()
    pieces = chunks(one.documents, settings.chunk, count)
    cut = time.perf_counter() - begin
    begin = time.perf_counter()
    words = Bm25(pieces)
    seconds = cut + time.perf_counter() - begin
    arms += [Retrieved("BM25", model, words, pieces, k, seconds, settings.longest) for k in settings.top_k]
    if settings.embed is not None:
        begin = time.perf_counter()
        dense = Dense(pieces, settings.embed)
        seconds = cut + time.perf_counter() - begin
        arms += [
            Retrieved("dense", model, dense, pieces, k, seconds, settings.longest) for k in settings.top_k
        ]
    return arms


def _ask_all(arms: list[Arm], questions: Sequence[Question], result: SizeResult) -> None:
    for arm in arms:
        outcome = result.outcomes.setdefault(arm.name, Outcome())
        outcome.bytes.append(arm.bytes)
        outcome.build.append(arm.build_seconds)
        try:
            arm.ask(questions[0].text)  # to warm up
        except mo.ContextOverflow:
            outcome.refused = "does not fit the context"
    for turn, question in enumerate(questions):
        # Each arm comes first as often as any other: what runs before it leaves its traces in the caches.
        first = turn % len(arms)
        for arm in arms[first:] + arms[:first]:
            outcome = result.outcomes[arm.name]
            if not outcome.refused:
                _ask(arm, question, outcome)


def _ask(arm: Arm, question: Question, outcome: Outcome) -> None:
    begin = time.perf_counter()
    try:
        reply = arm.ask(question.text)
    except mo.ContextOverflow:
        outcome.refused = "does not fit the context"
        return
    outcome.seconds.append(time.perf_counter() - begin)
    outcome.answers.append(reply.text)
    outcome.found.append(reply.documents >= set(question.documents))
    outcome.exact.append(exact_match(reply.text, question.answers))
    outcome.f1.append(f1(reply.text, question.answers))
    outcome.read.append(reply.read)
    outcome.new_tokens.append(reply.new_tokens)


def _drop_partly_refused(result: SizeResult) -> None:
    """An arm that could not answer everything is not compared with those that could."""
    for name, outcome in result.outcomes.items():
        if outcome.refused:
            result.outcomes[name] = Outcome(refused=outcome.refused)


def _compare_cached(result: SizeResult) -> None:
    pairs = zip(result.outcomes[Cached.name].answers, result.outcomes[InContext.name].answers, strict=True)
    result.same = sum(one == other for one, other in pairs)


def _add_cosines(result: SizeResult, asked: Sequence[Question], embed: Embedder) -> None:
    """Of the answer's embedding with the nearest right answer's."""
    right = [embed(question.answers) for question in asked]
    for outcome in result.outcomes.values():
        if outcome.answers:
            given = embed(outcome.answers)
            outcome.cosine = [float((near @ own).max()) for near, own in zip(right, given, strict=True)]


def as_json(result: SizeResult) -> dict[str, Any]:
    shown = {name: vars(outcome) for name, outcome in result.outcomes.items()}
    return {**vars(result), "outcomes": shown}
