# SPDX-License-Identifier: Apache-2.0
"""How near an answer is to one of the right ones."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(text: str) -> str:
    """As SQuAD's evaluation does (Rajpurkar et al. 2016): lower case, no punctuation, no articles."""
    text = re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION))
    return " ".join(text.split())


def exact_match(answer: str, right: Sequence[str]) -> bool:
    return any(normalised(answer) == normalised(one) for one in right)


def f1(answer: str, right: Sequence[str]) -> float:
    """The best harmonic mean of precision and recall of words, over the right answers."""
    return max((_f1(normalised(answer).split(), normalised(one).split()) for one in right), default=0.0)


def _f1(answer: list[str], right: list[str]) -> float:
    if not answer or not right:
        return float(answer == right)
    shared = sum((Counter(answer) & Counter(right)).values())
    return 2 * shared / (len(answer) + len(right))
