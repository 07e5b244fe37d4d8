# SPDX-License-Identifier: Apache-2.0
"""The ways to answer that are compared, with one generator and one form of prompt."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import modicum as mo

from knowledge.retrieval import Chunk, Retriever, as_documents


@dataclass(frozen=True)
class Reply:
    """`read`: tokens that the model read for it, none from a cache; `documents`: what it could see of."""

    text: str
    read: int
    new_tokens: int
    documents: frozenset[str]


class Arm(Protocol):
    """`build_seconds`: once, before the first question; `bytes`: kept between questions."""

    name: str
    build_seconds: float
    bytes: int

    def ask(self, question: str) -> Reply:
        """Everything that a question costs happens here."""


class Prompts:
    """The tokens that mo.cag gives the model for some documents and a question."""

    def __init__(self, model: mo.Model) -> None:
        self._model = model
        template = model.chat_template
        self._special = template is None
        if template is None:
            self._parts = (f"{mo.cag.INSTRUCTION}\n\n", "\nQuestion: ", "\nAnswer:")
        else:
            self._parts = template.split(mo.cag.INSTRUCTION)

    def ids(self, documents: Mapping[str, str], question: str) -> list[int]:
        before, between, after = self._parts
        told = "".join(f"[{name}]\n{text}\n\n" for name, text in documents.items())
        text = before + told + between + question.strip() + after
        return self._model.tokenizer.encode(text, add_special_tokens=self._special)


def _generated(model: mo.Model, ids: list[int], longest: int, documents: Mapping[str, str]) -> Reply:
    result = model.generate(ids, max_new_tokens=longest)
    return Reply(result.text.strip(), len(ids), len(result.ids), frozenset(documents))


class Cached:
    """Cache-augmented generation: everything was read once, a question is read behind it."""

    name = "CAG"

    def __init__(self, model: mo.Model, documents: Mapping[str, str], folder: Path, longest: int) -> None:
        source = folder / "documents"
        for name, text in documents.items():
            source.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes(text.encode())
        path = folder / "knowledge.kv"
        begin = time.perf_counter()
        mo.cag.build(model, source, path)
        self.build_seconds = time.perf_counter() - begin
        begin = time.perf_counter()
        self.knowledge = mo.cag.open(path, model)
        self.open_seconds = time.perf_counter() - begin
        self.bytes = path.stat().st_size
        self._documents = frozenset(documents)
        self._longest = longest

    def ask(self, question: str) -> Reply:
        answer = self.knowledge.ask(question, max_new_tokens=self._longest)
        return Reply(
            answer.text.strip(), answer.cost.question_tokens, answer.cost.new_tokens, self._documents
        )


class InContext:
    """All documents before every question, read anew each time."""

    name = "context, no cache"
    build_seconds = 0.0
    bytes = 0

    def __init__(self, model: mo.Model, documents: Mapping[str, str], longest: int) -> None:
        self._model = model
        self._prompts = Prompts(model)
        self._documents = documents
        self._longest = longest

    def ids(self, question: str) -> list[int]:
        return self._prompts.ids(self._documents, question)

    def ask(self, question: str) -> Reply:
        return _generated(self._model, self.ids(question), self._longest, self._documents)


class Retrieved:
    """The k best chunks before every question."""

    def __init__(
        self,
        name: str,
        model: mo.Model,
        retriever: Retriever,
        pieces: Sequence[Chunk],
        k: int,
        build_seconds: float,
        longest: int,
    ) -> None:
        self.name = f"{name} top-{k}"
        self.build_seconds = build_seconds
        self.bytes = retriever.bytes
        self._model = model
        self._prompts = Prompts(model)
        self._retriever = retriever
        self._pieces = pieces
        self._k = k
        self._longest = longest

    def ask(self, question: str) -> Reply:
        documents = as_documents(self._retriever.best(question, self._k), self._pieces)
        return _generated(self._model, self._prompts.ids(documents, question), self._longest, documents)


def same_prompt(cached: Cached, in_context: InContext, question: str) -> bool:
    """Whether both arms give the model the same tokens: only then do they differ by the cache alone."""
    knowledge = cached.knowledge
    return knowledge.branch().tokens + knowledge.question_ids(question) == in_context.ids(question)
