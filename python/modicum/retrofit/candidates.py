"""Plans that a planner chooses from: uniform shapes, bits by layer, and what needs no retrofit at all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

from modicum._core import ModelConfig
from modicum.retrofit.plan import Depth, Ffn, Kv, Plan, Quantize
from modicum.retrofit.targets import Target

__all__ = ["Candidate", "Space"]

_WIDTHS = 12  # candidates, at most
_SURVEYED = 6
_MOST_DROPPED = 3
_MIXES = 4


@dataclass(frozen=True)
class Candidate:
    """A plan, and whether the engine that serves it is to keep keys and values as int8."""

    plan: Plan
    kv_int8: bool = False

    @property
    def retrofit(self) -> bool:
        """Whether it changes shapes: what merely stores the same model in fewer bits is no retrofit."""
        return any((self.plan.depth, self.plan.window, self.plan.kv, self.plan.ffn, self.plan.low_rank))

    @property
    def family(self) -> tuple[str, ...]:
        """Kinds of its edits: of each family only the best is worth a measurement."""
        kinds = [name for name, edit in vars(self.plan).items() if edit is not None and name != "quantize"]
        if (edit := self.plan.quantize) is not None:
            kinds.append(f"int{edit.bits} {edit.rounding}" + (" mixed" if edit.layer_bits else ""))
        return (*kinds, *(["kv int8"] if self.kv_int8 else []))

    def __str__(self) -> str:
        words = [str(self.plan)] if self.plan else []
        return ", ".join(words + ["KV kept as int8"] * self.kv_int8) or "the source"


@dataclass(frozen=True)
class Space:
    """What may be changed of a model to meet a target: edits that do nothing for it are left out."""

    widths: list[int]
    kv_heads: list[int]
    drops: list[int]
    bits: bool
    head_bits: list[int]
    kv_int8: bool
    layers: int

    @classmethod
    def of(cls, config: ModelConfig, target: Target, *, kv_int8: bool) -> Space:
        """Widths down to a half, divisors of the heads, up to three layers less."""
        weights = target.only_kl or target.bytes is not None or target.tokens_per_second is not None
        cache = target.kv_bytes_per_token is not None
        heads = config.num_key_value_heads
        # An output head in integers is stored beside a tied embedding: more bytes, but faster.
        head = target.tokens_per_second is not None or (weights and not config.tie_word_embeddings)
        return cls(
            widths=_widths(config.intermediate_size) if weights else [],
            kv_heads=[] if config.qk_norm else [n for n in range(1, heads) if heads % n == 0][::-1],
            drops=list(range(1, min(_MOST_DROPPED, config.num_hidden_layers // 2) + 1)),
            bits=weights and config.hidden_size % 32 == 0,
            head_bits=[8, 4] if head and config.hidden_size % 32 == 0 else [],
            kv_int8=kv_int8 and cache,
            layers=config.num_hidden_layers,
        )

    @property
    def surveyed_widths(self) -> list[int]:
        """Of which errors are asked for; they are interpolated between."""
        return _spread(self.widths, _SURVEYED)

    def trials(self, first_of: dict[int, int]) -> list[Plan]:
        """Single edits, up to three amounts of each, and every number of dropped layers."""
        plans = [Plan(ffn=Ffn(width)) for width in _some(self.widths)]
        plans += [Plan(kv=Kv(heads)) for heads in _spread(self.kv_heads, 3)]
        plans += [Plan(depth=Depth(first_of[count], count)) for count in self.drops]
        if self.bits:
            roundings: tuple[Literal["gptq", "nearest"], ...] = ("gptq", "nearest")
            plans += [Plan(quantize=Quantize(b, rounding=r)) for b, r in product((8, 4), roundings)]
            plans += [
                Plan(quantize=Quantize(8, rounding="nearest", head_bits=bits)) for bits in self.head_bits
            ]
        return plans

    def candidates(self, first_of: dict[int, int], eight_bits_first: Sequence[int]) -> list[Candidate]:
        """All, the source itself first. Plain ones have both roundings, retrofits the better one."""
        caches = [False, True] if self.kv_int8 else [False]
        drops = [None, *(Depth(first_of[n], n) for n in self.drops)]
        kvs = [None, *map(Kv, self.kv_heads)]
        ffns = [None, *map(Ffn, self.widths)]
        plain = [None, *self._quantize(eight_bits_first, nearest=True)]
        found = [Candidate(Plan(quantize=edit), kv) for edit, kv in product(plain, caches)]
        rounded = [None, *self._quantize(eight_bits_first, nearest=False)]
        for depth, head, ffn, edit, cache in product(drops, kvs, ffns, rounded, caches):
            if depth or head or ffn:
                found.append(Candidate(Plan(depth=depth, kv=head, ffn=ffn, quantize=edit), cache))
        return found

    def _quantize(self, eight_bits_first: Sequence[int], *, nearest: bool) -> list[Quantize]:
        if not self.bits:
            return []
        edits = []
        for head in (None, *self.head_bits):
            edits += [Quantize(bits, head_bits=head) for bits in (8, 4)]
            if nearest:
                edits += [Quantize(bits, rounding="nearest", head_bits=head) for bits in (8, 4)]
            for count in sorted({self.layers * i // (_MIXES + 1) for i in range(1, _MIXES + 1)} - {0}):
                mixed = dict.fromkeys(sorted(eight_bits_first[:count]), 8)
                edits.append(Quantize(4, layer_bits=mixed, head_bits=head))
        return edits


def _widths(whole: int) -> list[int]:
    """Multiples of 64 from below all to a half; of 32 where the whole is no multiple of 64."""
    step = 64 if whole % 64 == 0 else 32
    least = -(-whole // 2 // step) * step
    return _spread(list(range(max(least, step), whole, step))[::-1], _WIDTHS)


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of them, evenly apart, the ends among them."""
    if len(values) <= count:
        return list(values)
    return [values[round(i * (len(values) - 1) / (count - 1))] for i in range(count)]


def _some(values: Sequence[int]) -> list[int]:
    """One of the first, the middle and the last: most plans are among the mild ones."""
    count = len(values)
    return list(dict.fromkeys([values[count // 4], values[count // 2], values[-1]])) if values else []
