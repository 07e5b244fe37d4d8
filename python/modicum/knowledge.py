"""Documents that a model has read, and conversations about them."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modicum import interop
from modicum._core import Answer, Branch
from modicum._core import Knowledge as _CoreKnowledge
from modicum._core import Session as _CoreSession
from modicum.documents import Document
from modicum.model import Model

if TYPE_CHECKING:
    import transformers


class _Asking:
    """What a knowledge cache and a conversation about it have in common."""

    _core: _CoreKnowledge | _CoreSession

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
        cite: bool = True,
        abstain_below: float | None = None,
        most_segments: int = 0,
        beams: int = 1,
        length_penalty: float = 1.0,
        stream: Callable[[str], object] | None = None,
    ) -> Answer:
        """Answers from the documents.

        Parameters
        ----------
        cite : find where the answer stands; this reads question and answer once more.
        abstain_below : confidence under which ``abstained`` is set; None: as the file says.
        most_segments : attend to at most so many segments, found by BM25 (layout "blocks"); 0: to all, or
            with ``overflow="select"`` to as many as fit.
        beams : answer by beam search where there are several; `length_penalty` is then as in
            :func:`modicum.search.beam`.
        stream : called with each piece of text as it becomes certain; returning False ends the answer.

        Returns
        -------
        Answer
            ``.text``; ``.citations``, the lines that support it; ``.confidence`` and ``.abstained``;
            ``.selected``; ``.cost``.

        Raises
        ------
        ContextOverflow
            Before any work, with both counts, where documents, question and `max_new_tokens` do not fit.
        Corrupt
            Where the file's bytes are not those that were written, or were changed in place since.
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
            cite=cite,
            abstain_below=abstain_below,
            most_segments=most_segments,
            beams=beams,
            length_penalty=length_penalty,
            callback=on_token,
        )


class Session(_Asking):
    """Questions and answers that build on each other, after the documents. Made by :meth:`Knowledge.session`.

    A context manager: leaving it drops what was said.
    """

    _core: _CoreSession

    def __init__(self, core: _CoreSession) -> None:
        self._core = core

    def reset(self) -> None:
        """Back to the documents alone. Nothing is computed or copied: a branch of the cache is dropped."""
        self._core.reset()

    @property
    def turns(self) -> int:
        """Questions answered so far."""
        return self._core.turns

    def __len__(self) -> int:
        return len(self._core)

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.reset()

    def __repr__(self) -> str:
        return f"<modicum.cag.Session: {self.turns} turns, {len(self)} tokens>"


class Knowledge(_Asking):
    """Documents that a model has read once, mapped from a file. Made by :func:`build` and :func:`open`.

    Questions may come from several threads; each branches from the end of the documents and leaves
    nothing behind.
    """

    _core: _CoreKnowledge

    def __init__(self, core: _CoreKnowledge, path: str | Path, model: Model) -> None:
        self._core = core
        self.path = Path(path)
        self.model = model

    def ask_many(
        self,
        questions: Sequence[str],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Sequence[str] = (),
        cite: bool = True,
        abstain_below: float | None = None,
        most_segments: int = 0,
        beams: int = 1,
        length_penalty: float = 1.0,
    ) -> list[Answer]:
        """Answers several questions together, each as :meth:`ask` does.

        The documents' keys and values, and the weights, are read once a step for all of them; with `beams`,
        for those of one question.
        """
        return self._core.ask_many(
            list(questions),
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            seed=seed,
            stop=list(stop),
            cite=cite,
            abstain_below=abstain_below,
            most_segments=most_segments,
            beams=beams,
            length_penalty=length_penalty,
        )

    def session(self) -> Session:
        """A conversation that begins at the end of the documents."""
        return Session(self._core.session())

    def branch(self) -> Branch:
        """The branch at the end of the documents. Extend it with :meth:`question_ids` or anything else."""
        return self._core.branch()

    def question_ids(self, question: str) -> list[int]:
        """The tokens that follow the documents for this question, up to where the answer begins."""
        return self._core.question_ids(question)

    def dynamic_cache(self) -> transformers.DynamicCache:
        """The documents' keys and values as a cache that transformers continues from.

        For a joint cache; codes are given as the numbers they stand for. Its tokens are
        ``kb.branch().tokens``. Needs the extra ``interop``.
        """
        return interop.to_dynamic_cache(*self._core.arrays())

    @property
    def prompt(self) -> str:
        """The text that was read: instruction, documents, and what comes before a question."""
        return self._core.prompt()

    @property
    def documents(self) -> list[Document]:
        """The documents, as they were given."""
        return [
            Document(d.name, d.source, d.text, tuple(d.pages), d.converted, d.volatile)
            for d in self._core.documents()
        ]

    def describe(self) -> dict[str, Any]:
        """Format, layout, sizes, fingerprint, measured losses and documents of the file."""
        return self._core.describe()

    def __len__(self) -> int:
        return len(self._core)

    def __repr__(self) -> str:
        documents = len(self.describe()["documents"])
        return f"<modicum.cag.Knowledge {self.path.name}: {documents} documents, {len(self)} tokens>"

    def _repr_html_(self) -> str:
        facts = self.describe()
        rows = "".join(
            f"<tr><td>{html.escape(d['name'])}</td><td>{d['tokens']}</td><td>{d['bytes']}</td></tr>"
            for d in facts["documents"]
        )
        return (
            f"<p><b>{html.escape(self.path.name)}</b>: {len(self)} tokens, {facts['bytes']:,} bytes, "
            f"{facts['layout']}, kv {facts['kv']}</p>"
            f"<table><tr><th>document</th><th>tokens</th><th>bytes</th></tr>{rows}</table>"
        )
