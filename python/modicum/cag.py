"""Cache-augmented generation: read documents once, save what the model keeps, answer from it ever after.

Chan et al. 2024, "Don't Do RAG: When Cache-Augmented Generation is All You Need for Knowledge Tasks",
arXiv:2412.15605.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum import _core
from modicum._core import Answer, Branch, Citation, Cost, InvalidArgument
from modicum.model import Model, Progress

__all__ = ["Answer", "Citation", "Cost", "Knowledge", "PromptFormat", "build", "inspect", "open"]

INSTRUCTION = "Answer briefly, from the documents below only."


@dataclass(frozen=True)
class PromptFormat:
    """The text around the documents and the question; by default the model's chat template gives it."""

    before_documents: str
    before_question: str
    after_question: str
    add_special_tokens: bool = True


class Knowledge:
    """Documents that a model has read once, mapped from a file. Made by :func:`build` and :func:`open`.

    Questions may come from several threads; each branches from the end of the documents and leaves
    nothing behind.
    """

    def __init__(self, core: _core.Knowledge, path: str | Path, model: Model) -> None:
        self._core = core
        self.path = Path(path)
        self.model = model

    def ask(
        self,
        question: str,
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        stream: Callable[[str], object] | None = None,
    ) -> Answer:
        """Answers from the documents.

        Returns
        -------
        Answer
            ``.text``; ``.citations``, the line that holds the answer literally, if one does; ``.cost``.

        Raises
        ------
        ContextOverflow
            Before any work, with both counts, where documents, question and `max_new_tokens` do not fit.
        """

        def on_token(_id: int, text: str, _log_probability: float) -> object:
            return stream(text) if stream is not None and text else None

        return self._core.ask(
            question,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=list(stop),
            callback=on_token,
        )

    def branch(self) -> Branch:
        """The branch at the end of the documents. Extend it with :meth:`question_ids` or anything else."""
        return self._core.branch()

    def question_ids(self, question: str) -> list[int]:
        """The tokens that follow the documents for this question, up to where the answer begins."""
        return self._core.question_ids(question)

    @property
    def prompt(self) -> str:
        """The text that was read: instruction, documents, and what comes before a question."""
        return self._core.prompt()

    def describe(self) -> dict[str, Any]:
        """Format, sizes, model fingerprint and documents of the file."""
        return self._core.describe()

    def __len__(self) -> int:
        return len(self._core)

    def __repr__(self) -> str:
        documents = len(self.describe()["documents"])
        return f"<modicum.cag.Knowledge {self.path.name}: {documents} documents, {len(self)} tokens>"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(d['name'])}</td><td>{d['tokens']}</td><td>{d['bytes']}</td></tr>"
            for d in self.describe()["documents"]
        )
        return (
            f"<p><b>{html.escape(self.path.name)}</b>: {len(self)} tokens, "
            f"{self.describe()['bytes']:,} bytes</p>"
            f"<table><tr><th>document</th><th>tokens</th><th>bytes</th></tr>{rows}</table>"
        )


def build(
    model: Model,
    sources: str | Path | Sequence[str | Path],
    path: str | Path,
    *,
    instruction: str = INSTRUCTION,
    format: PromptFormat | None = None,
    reserve: int = 64,
    progress: Progress | None = None,
) -> Knowledge:
    """Reads text and markdown files, or folders of them, once and writes the cache to `path`.

    A file that was there stays until the new one is whole; a failure leaves nothing half-written.

    Parameters
    ----------
    instruction : what the model is told before the documents.
    format : the text around documents and question; None takes the model's chat template.
    reserve : tokens of the context that must be left for a question and its answer.
    progress : called with (stage, done, total); returning False stops.

    Raises
    ------
    ContextOverflow
        Before any work, with each document's share.
    FormatError
        For a document that is not UTF-8, with the byte offset.
    IoError
        Where a source cannot be read or `path` cannot be written.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    if reserve < 1:
        raise InvalidArgument(f"[cag.build] reserve: expected at least 1, got {reserve}")
    chosen = format or _template_format(model, instruction)
    core = _core.build_knowledge(
        model._core,
        [Path(source) for source in sources],
        path,
        before_documents=chosen.before_documents,
        before_question=chosen.before_question,
        after_question=chosen.after_question,
        add_special_tokens=chosen.add_special_tokens,
        reserve=reserve,
        progress=progress,
    )
    return Knowledge(core, path, model)


def open(path: str | Path, model: Model) -> Knowledge:
    """Maps a cache in milliseconds, after checking its format, its checksums and that it belongs to `model`.

    Raises
    ------
    FingerprintMismatch
        Naming what differs, where another model built it.
    Corrupt, FormatError, IoError
    """
    return Knowledge(_core.Knowledge.open(path, model._core), path, model)


def inspect(path: str | Path) -> dict[str, Any]:
    """What a cache file holds, without a model; checks its seal and checksums."""
    return _core.inspect_knowledge(path)


def _template_format(model: Model, instruction: str) -> PromptFormat:
    template = model.chat_template
    if template is None:
        return PromptFormat(f"{instruction}\n\n", "\nQuestion: ", "\nAnswer:")
    before, between, after = template.split(instruction)
    # The template writes BOS and the like itself.
    return PromptFormat(before, between, after, add_special_tokens=False)
