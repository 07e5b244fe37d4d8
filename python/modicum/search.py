"""Beam search over a trie of hypotheses: exact, constrained, for any model."""

from __future__ import annotations

from modicum._core import Constraint

__all__ = ["Constraint"]
