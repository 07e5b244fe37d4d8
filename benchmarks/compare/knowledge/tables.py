# SPDX-License-Identifier: Apache-2.0
"""The comparison as markdown."""

from __future__ import annotations

import math
import statistics

from knowledge.arms import Cached, InContext
from knowledge.measure import Outcome, SizeResult


def median(values: list[float]) -> float:
    return statistics.median(values)


def pays(cached: Outcome, other: Outcome) -> str:
    """From how many questions on the cache, its build included, has cost less time than the other."""
    gained = median(other.seconds) - median(cached.seconds)
    extra = median(cached.build) - median(other.build)
    if gained > 0:
        return "at once" if extra <= 0 else f"{math.ceil(extra / gained)} questions"
    if gained < 0 and extra < 0:
        return f"up to {math.floor(extra / gained)} questions"
    return "never"


def discordant(cached: Outcome, other: Outcome) -> tuple[int, int]:
    """Questions that only the other answers exactly, and that only the cache does."""
    pairs = list(zip(cached.exact, other.exact, strict=True))
    return sum(theirs and not ours for ours, theirs in pairs), sum(
        ours and not theirs for ours, theirs in pairs
    )


def chance(gained: int, lost: int) -> float:
    """Of so unequal a split of questions that only one arm answers, were both equally good: the sign test."""
    n = gained + lost
    tail = sum(math.comb(n, i) for i in range(min(gained, lost) + 1)) / 2**n
    return min(1.0, 2 * tail)


def size_table(result: SizeResult, quality: bool) -> str:
    """One line for each arm; scores only where the model can answer."""
    head = ["arm", "sees what it needs"]
    if quality:
        head += ["exact match", "F1", "cosine of embeddings", "only it / only CAG exact"]
    head += ["tokens read", "written", "ms per question", "kept, kB", "build, ms", "CAG pays after"]
    lines = [
        f"**{result.label}: {result.tokens:.0f} tokens in {result.documents:.0f} documents, "
        f"{result.questions} questions**",
        "",
        _line(head),
        _line(["-"] * len(head)),
    ]
    cached = result.outcomes[Cached.name]
    for name, outcome in result.outcomes.items():
        if outcome.refused:
            lines.append(_line([name, outcome.refused, *[""] * (len(head) - 2)]))
            continue
        cells = [name, f"{statistics.mean(outcome.found):.3f}"]
        if quality:
            cells += _scores(name, outcome, cached)
        cells += [
            f"{statistics.mean(outcome.read):.0f}",
            f"{statistics.mean(outcome.new_tokens):.1f}",
            f"{median(outcome.seconds) * 1e3:.1f}",
            f"{median(outcome.bytes) / 1e3:.0f}",
            f"{median(outcome.build) * 1e3:.1f}",
            "–" if name == Cached.name or cached.refused else pays(cached, outcome),
        ]
        lines.append(_line(cells))
    if not cached.refused:
        alike = f"{result.same} of {result.questions}"
        lines += [
            "",
            f"With and without the cache, {alike} answers are alike. Opening the file takes "
            f"{result.open_seconds * 1e3:.1f} ms, once.",
        ]
    return "\n".join(lines)


def _scores(name: str, outcome: Outcome, cached: Outcome) -> list[str]:
    cells = [f"{statistics.mean(outcome.exact):.3f}", f"{statistics.mean(outcome.f1):.3f}"]
    cells.append(f"{statistics.mean(outcome.cosine):.3f}" if outcome.cosine else "–")
    if name == Cached.name or cached.refused:
        return [*cells, "–"]
    theirs, ours = discordant(cached, outcome)
    return [*cells, f"{theirs} / {ours}"]


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def retrieval_wins(results: list[SizeResult], quality: bool) -> str:
    """What retrieval does better than the cache, by size."""
    lines = ["**Where retrieval wins**", ""]
    if quality:
        lines = [
            "**Where retrieval wins** (p: how often chance alone would split the questions so unequally)",
            "",
        ]
    for result in results:
        cached = result.outcomes[Cached.name]
        others = {
            name: outcome
            for name, outcome in result.outcomes.items()
            if name not in (Cached.name, InContext.name) and not outcome.refused
        }
        found = _wins(cached, others, quality)
        lines.append(f"- {result.label}, {result.tokens:.0f} tokens: {'; '.join(found) or 'nowhere'}.")
    return "\n".join(lines)


def _wins(cached: Outcome, others: dict[str, Outcome], quality: bool) -> list[str]:
    if cached.refused:
        names = ", ".join(others) or "none"
        return [f"the documents do not fit the model's context, so only retrieval answers ({names})"]
    found = []
    ours = median(cached.seconds)
    faster = [f"{n} {median(o.seconds) * 1e3:.1f} ms" for n, o in others.items() if median(o.seconds) < ours]
    if faster:
        found.append(f"faster than {ours * 1e3:.1f} ms: {', '.join(faster)}")
    if quality:
        better = []
        for name, outcome in others.items():
            theirs, lost = discordant(cached, outcome)
            if theirs > lost:
                share = statistics.mean(outcome.exact)
                better.append(f"{name} {share:.3f} (+{theirs} −{lost}, p = {chance(theirs, lost):.2g})")
        if better:
            found.append(f"more exact than {statistics.mean(cached.exact):.3f}: {', '.join(better)}")
    smaller = [name for name, outcome in others.items() if median(outcome.bytes) < median(cached.bytes)]
    if smaller:
        factor = median(cached.bytes) / min(median(others[name].bytes) for name in smaller)
        found.append(f"keeps up to {factor:.0f} times fewer bytes")
    cheaper = [name for name, outcome in others.items() if median(outcome.build) < median(cached.build)]
    if cheaper:
        kinds = sorted({name.split()[0] for name in cheaper})
        found.append(f"cheaper to build ({', '.join(kinds)})")
    return found
