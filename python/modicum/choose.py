"""Constrained classification: the label that a model gives a text, with calibrated probabilities."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from modicum import _core
from modicum._core import Branch, InvalidArgument

if TYPE_CHECKING:
    from modicum.model import Model

TEMPLATE = "{text}\n\nLabel:"
CONTENT_FREE = ("N/A", "", "…")
BATCH = 64  # leaves whose logits are held at once


@dataclass(frozen=True)
class Choice:
    """A label for a text.

    Attributes
    ----------
    label : the likeliest.
    probability : its calibrated probability; over all labels they sum to 1.
    probabilities : of every label, likeliest first.
    """

    label: str
    probability: float
    probabilities: dict[str, float] = field(repr=False)

    def __str__(self) -> str:
        return self.label


class Chooser:
    """Chooses one of `labels` for a text.

    The labels form a trie of tokens, each of whose nodes is read once, after the text: their
    log-probabilities are exact, and two labels with a common beginning cost its tokens once. What a model
    says of a label whatever the text is divided out (contextual calibration: Zhao et al. 2021,
    arXiv:2102.09690), and :meth:`fit` adds a temperature from examples (Guo et al. 2017, arXiv:1706.04599).

    Parameters
    ----------
    labels : at least two, all different.
    template : the prompt around ``{text}``; the label follows it.
    prefix : what stands between the prompt and a label, as part of the label: most tokenizers write a word
        with the space before it.
    chat : send the prompt as a user's message of the model's chat template; `prefix` is then usually "".
    calibrate : divide out the model's bias.
    """

    def __init__(
        self,
        model: Model,
        labels: Sequence[str],
        *,
        template: str = TEMPLATE,
        prefix: str = " ",
        chat: bool = False,
        calibrate: bool = True,
    ) -> None:
        self._model = model
        self.labels = [str(label) for label in labels]
        self.template = template
        self._chat = chat
        _check(self.labels, template)
        ids = [model.tokenizer.encode(prefix + label, add_special_tokens=False) for label in self.labels]
        self._trie = LabelTrie(ids, model.config.eos_token_ids)
        self.temperature = 1.0
        self._bias = np.zeros(len(self.labels))
        if calibrate:
            scores = [_log_softmax(self._scores(text)) for text in CONTENT_FREE]
            self._bias = np.logaddexp.reduce(scores, axis=0) - math.log(len(scores))

    def __call__(self, text: str) -> Choice:
        """The label of `text`.

        Raises
        ------
        ContextOverflow
            Where the prompt and the longest label do not fit the model's context.
        """
        values = np.exp(self.log_probabilities(text))
        order = np.argsort(-values, kind="stable")
        ranked = {self.labels[i]: float(values[i]) for i in order}
        return Choice(self.labels[order[0]], float(values[order[0]]), ranked)

    def log_probabilities(self, text: str) -> npt.NDArray[np.float64]:
        """Calibrated log-probability of each label, float64 [labels]."""
        return _log_softmax((_log_softmax(self._scores(text)) - self._bias) / self.temperature)

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> float:
        """Sets and returns the temperature that makes the probabilities of these examples likeliest."""
        if len(texts) != len(labels) or not texts:
            raise InvalidArgument(
                f"[choose] examples: expected as many labels as texts, got {len(labels)} and {len(texts)}"
            )
        unknown = sorted(set(labels) - set(self.labels))
        if unknown:
            raise InvalidArgument(f"[choose] examples: expected labels of this chooser, got {unknown[0]!r}")
        self.temperature = 1.0
        scores = np.array([self.log_probabilities(text) for text in texts])
        right = np.array([self.labels.index(label) for label in labels])
        grid = np.exp(np.linspace(math.log(0.05), math.log(20), 241))
        losses = [-np.mean(_log_softmax(scores / t)[np.arange(len(right)), right]) for t in grid]
        self.temperature = float(grid[int(np.argmin(losses))])
        return self.temperature

    def _scores(self, text: str) -> npt.NDArray[np.float64]:
        """Log-probability of each label after the prompt, as the model has it."""
        prompt = self.template.replace("{text}", text)
        if self._chat:
            ids = self._model.chat_prompt([{"role": "user", "content": prompt}])
        else:
            ids = self._model.tokenizer.encode(prompt)
        return self._trie.scores(self._model.tree().extend(ids))


class LabelTrie:
    """The labels' tokens as a trie, by depth."""

    def __init__(self, labels: Sequence[Sequence[int]], stop_ids: Sequence[int]) -> None:
        paths = [tuple(ids) for ids in labels]
        if len(set(paths)) < len(paths):
            raise InvalidArgument("[choose] labels: expected labels of different tokens, got two of the same")
        inner = {path[:n] for path in paths for n in range(len(path))}
        if any(path in inner for path in paths):  # one begins another: only an end tells them apart
            if not stop_ids:
                raise InvalidArgument(
                    "[choose] labels: expected none that begins another, as the model has no end token; "
                    "end each with a line break, say"
                )
            paths = [(*path, stop_ids[0]) for path in paths]
        self._paths = paths
        self._steps: list[list[tuple[tuple[int, ...], list[int]]]] = []
        for depth in range(max(map(len, paths))):
            nodes = sorted({path[:depth] for path in paths if len(path) > depth})
            children = {node: sorted({p[depth] for p in paths if p[:depth] == node}) for node in nodes}
            self._steps.append([(node, children[node]) for node in nodes])

    def scores(self, start: Branch) -> npt.NDArray[np.float64]:
        """Sum of log-probabilities of each path after `start`; each node is read once."""
        total: dict[tuple[int, ...], float] = {(): 0.0}
        leaves: dict[tuple[int, ...], Branch] = {(): start}
        for step in self._steps:
            inner = [node for node, _ in step if node]
            if inner:
                grown = _core.extend([(leaves[node[:-1]], [node[-1]]) for node in inner])
                leaves = dict(zip(inner, grown, strict=True))
            for begin in range(0, len(step), BATCH):
                part = step[begin : begin + BATCH]
                rows = _log_softmax(_core.logits([leaves[node] for node, _ in part]).astype(np.float64))
                for (node, children), row in zip(part, rows, strict=True):
                    total.update({(*node, child): total[node] + float(row[child]) for child in children})
        return np.array([total[path] for path in self._paths])


def _check(labels: Sequence[str], template: str) -> None:
    if len(labels) < 2 or len(set(labels)) < len(labels) or not all(label.strip() for label in labels):
        raise InvalidArgument(
            f"[choose] labels: expected at least two, all different and none empty, got {len(labels)}"
        )
    if "{text}" not in template:
        raise InvalidArgument(f"[choose] template: expected {{text}} in it, got {template!r}")


def _log_softmax(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = values - values.max(axis=-1, keepdims=True)
    normalised: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return normalised


__all__ = ["Choice", "Chooser"]
