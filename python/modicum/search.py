"""Beam search over a trie of hypotheses: exact, constrained, for any model."""

from __future__ import annotations

from modicum._core import Constraint
from modicum.lexicon import Lexicon

__all__ = ["Constraint", "Lexicon"]
