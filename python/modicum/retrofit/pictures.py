"""Pictures of a retrofit as SVG: what each layer lost, and what candidates weigh against what they lose.

They need no script and no font of their own, follow the reader's light or dark scheme, and tell series apart
by shape as well as by colour (Okabe and Ito's palette, which colour-blind readers can tell apart).
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from modicum._core import InvalidArgument

if TYPE_CHECKING:
    from modicum.retrofit.report import EditError

__all__ = ["Point", "edit_errors_svg", "frontier_svg"]

WIDTH = 760
LEFT, RIGHT, TOP, BOTTOM = 62, 18, 30, 42
CHARACTER = 6.4  # pixels, of a label
_AWAY = ((1, 0.6), (1, -0.6), (0.3, 1), (0.3, -1), (-1, 1), (-1, -1))
STYLE = (
    "<style>.mo-plot{--ink:#1f2328;--soft:#656d76;--grid:#d8dee4;--paper:#fff;--blue:#0072b2;--pale:#a6cde6;"
    "--orange:#d55e00;color:var(--ink);font:12px system-ui,sans-serif;max-width:100%;height:auto}"
    "@media(prefers-color-scheme:dark){.mo-plot{--ink:#e6edf3;--soft:#9198a1;--grid:#3d444d;--paper:#0d1117;"
    "--blue:#56b4e9;--pale:#2b5876;--orange:#e69f00}}"
    ".mo-plot text{fill:var(--ink)}.mo-plot .soft{fill:var(--soft)}"
    ".mo-plot .grid{stroke:var(--grid);stroke-width:1}.mo-plot .name{font-weight:600}"
    ".mo-plot .halo{paint-order:stroke;stroke:var(--paper);stroke-width:3px}</style>"
)


@dataclass(frozen=True)
class Point:
    """A candidate, or what was made of it.

    Attributes
    ----------
    loss : what `frontier_svg` is told that it is, mean KL in nats, say, or perplexity; None: nobody knows.
    tokens_per_second : of writing, predicted or measured; None where nobody knows.
    """

    name: str
    bytes: int
    loss: float | None
    kv_bytes_per_token: int = 0
    tokens_per_second: float | None = None
    chosen: bool = False


class _Axis:
    """From values to pixels, linear or logarithmic, with round ticks."""

    def __init__(self, values: Iterable[float], begin: float, end: float, *, log: bool = False) -> None:
        finite = [v for v in values if math.isfinite(v) and (v > 0 or not log)]
        self.log = log and bool(finite)
        low, high = min(finite, default=0.0), max(finite, default=1.0)
        if self.log:
            low, high = math.log10(low), math.log10(high)
        pad = 0.08 * (high - low) or abs(high) * 0.05 or 1.0
        self.low, self.high = (low - pad, high + pad) if self.log or low > 0 else (min(low, 0.0), high + pad)
        self.begin, self.end = begin, end

    def __call__(self, value: float) -> float:
        """What is not on the axis (0 on a logarithmic one, infinity) is drawn at its ends."""
        if self.log:
            value = math.log10(value) if value > 0 else self.low
        share = min(max((value - self.low) / (self.high - self.low), 0.0), 1.0)
        return self.begin + share * (self.end - self.begin)

    def ticks(self) -> list[float]:
        if self.log:
            powers = range(math.floor(self.low), math.ceil(self.high) + 1)
            few = self.high - self.low > 2
            marks = [m * 10.0**p for p in powers for m in ((1,) if few else (1, 2, 5))]
            return [m for m in marks if self.low <= math.log10(m) <= self.high]
        step = 10.0 ** math.floor(math.log10((self.high - self.low) / 4))
        step *= next(m for m in (1, 2, 5, 10) if (self.high - self.low) / (step * m) <= 5)
        first = math.ceil(self.low / step - 1e-9)
        return [i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1)]


def frontier_svg(points: Sequence[Point], *, loss: str = "KL, nats", height: int = 380) -> str:
    """Bytes of each candidate against what it loses; smaller is better for both.

    A line joins those that no other beats in both. They and the chosen one are named, and others as far as
    there is room; pointing at any tells all about it. The faster, the larger. Points without a loss are left
    out.

    Raises
    ------
    InvalidArgument
        For no point with a loss.
    """
    points = [p for p in points if not math.isnan(_loss(p))]
    if not points:
        raise InvalidArgument("[frontier] points: expected at least one with a loss, got none")
    losses = [_loss(p) for p in points if math.isfinite(_loss(p))]
    positive = [v for v in losses if v > 0]
    log = bool(positive) and max(positive) > 10 * min(positive)
    x = _Axis([p.bytes / 1e6 for p in points], LEFT, WIDTH - RIGHT)
    y = _Axis(losses, height - BOTTOM, TOP, log=log)
    best = _undominated(points)
    parts = [_begin(height), _grid(x, y, height, "MB on disk", loss + (", logarithmic" if y.log else ""))]
    parts.append(_staircase([(x(p.bytes / 1e6), y(_loss(p))) for p in best]))
    fastest = max((p.tokens_per_second or 0.0 for p in points), default=0.0)
    placed = [(x(p.bytes / 1e6), y(_loss(p)), _radius(p, fastest)) for p in points]
    drawn = sorted(zip(points, placed, strict=True), key=lambda both: (both[0].chosen, both[0] in best))
    parts += [_marker(point, *at, point in best) for point, at in drawn]
    parts += _labels(points, placed, [p.chosen or p in best for p in points], height)
    if fastest > 0:
        parts.append(f'<text class="soft" x="{LEFT}" y="16">larger: more tokens/s</text>')
    parts.append(_key([("chosen", "var(--orange)"), ("nothing smaller loses less", "var(--blue)")], 16))
    return "".join([*parts, "</svg>"])


def edit_errors_svg(errors: Sequence[EditError], *, panel: int = 170) -> str:
    """What edits changed, a panel for each edit and module: shares of the output's energy, by layer.

    Pale bars are errors before compensation, dark ones after it, diamonds after it on held-out text.

    Raises
    ------
    InvalidArgument
        For no error.
    """
    if not errors:
        raise InvalidArgument("[edit errors] errors: expected at least one, got none")
    edits = list(dict.fromkeys((e.edit, e.module) for e in errors))
    layers = max(e.layer for e in errors) + 1
    height = TOP + panel * len(edits) + 8
    parts = [_begin(height)]
    key = [
        ("before compensation", "var(--pale)"),
        ("after", "var(--blue)"),
        ("held-out text", "var(--orange)"),
    ]
    parts.append(_key(key, 16))
    for i, edit in enumerate(edits):
        top = TOP + i * panel
        own = [e for e in errors if (e.edit, e.module) == edit]
        parts.append(_panel(own, ", ".join(filter(None, edit)), layers, top + 16, top + panel - 32))
    return "".join([*parts, "</svg>"])


def _panel(errors: Sequence[EditError], name: str, layers: int, top: float, bottom: float) -> str:
    values = [v for e in errors for v in (e.before, e.after, e.held_out_after) if v is not None]
    y = _Axis([0.0, *values], bottom, top + 10)
    slot = (WIDTH - LEFT - RIGHT) / layers
    parts = [f'<text class="name" x="{LEFT}" y="{top}">{html.escape(name)}</text>', _rows(y)]
    for e in errors:
        middle = LEFT + slot * (e.layer + 0.5)
        tip = f"<title>{html.escape(_error_tip(e))}</title>"
        bars = _bar(middle, 0.8 * slot, y, e.before, "var(--pale)")
        bars += _bar(middle, 0.46 * slot, y, e.after, "var(--blue)")
        if e.held_out_after is not None:
            bars += _diamond(middle, y(e.held_out_after), min(5.0, 0.3 * slot + 1.5))
        parts.append(f"<g>{tip}{bars}</g>")
    every = next(n for n in (1, 2, 4, 5, 8, 10, 16, 20, 50, 100, 1000) if layers / n <= 24)
    for layer in range(0, layers, every):
        parts.append(_text(LEFT + slot * (layer + 0.5), bottom + 15, str(layer), "middle", "soft"))
    parts.append(_text(WIDTH - RIGHT, bottom + 29, "layer", "end", "soft"))
    return "".join(parts)


def _error_tip(e: EditError) -> str:
    facts = {"before": e.before, "after": e.after, "held out": e.held_out_after}
    facts |= {"damping": e.damping, "condition": e.condition}
    told = ", ".join(f"{name} {value:.3g}" for name, value in facts.items() if value is not None)
    return f"layer {e.layer}, {e.edit} {e.module}: {told}"


def _bar(middle: float, width: float, y: _Axis, value: float | None, colour: str) -> str:
    if value is None:
        return ""
    top = y(value)
    return (
        f'<rect x="{middle - width / 2:.1f}" y="{top:.1f}" width="{width:.1f}" '
        f'height="{y(0) - top:.1f}" rx="1" fill="{colour}"/>'
    )


def _diamond(x: float, y: float, size: float) -> str:
    d = f"M{x:.1f} {y - size:.1f}l{size:.1f} {size:.1f}l{-size:.1f} {size:.1f}l{-size:.1f} {-size:.1f}z"
    return f'<path d="{d}" fill="var(--orange)" stroke="var(--paper)"/>'


def _loss(point: Point) -> float:
    return math.nan if point.loss is None else point.loss


def _undominated(points: Sequence[Point]) -> list[Point]:
    """Those that no other beats: smaller with no more loss, from the smallest on."""
    best: list[Point] = []
    for point in sorted(points, key=lambda p: (p.bytes, _loss(p))):
        if math.isfinite(_loss(point)) and (not best or _loss(point) < _loss(best[-1])):
            best.append(point)
    return best


def _staircase(at: Sequence[tuple[float, float]]) -> str:
    """What can be had: for so many bytes at most, the least loss."""
    if len(at) < 2:
        return ""
    path = f"M{at[0][0]:.1f} {at[0][1]:.1f}" + "".join(f"H{x:.1f}V{y:.1f}" for x, y in at[1:])
    return f'<path d="{path}" fill="none" stroke="var(--blue)" stroke-opacity=".45" stroke-width="1.5"/>'


def _radius(point: Point, fastest: float) -> float:
    return 5.0 if not fastest else 3.5 + 4 * (point.tokens_per_second or 0.0) / fastest


def _marker(point: Point, x: float, y: float, r: float, best: bool) -> str:
    facts = [f"{point.name}: {point.bytes / 1e6:.1f} MB", f"loss {_loss(point):.4g}"]
    if point.kv_bytes_per_token:
        facts.append(f"{point.kv_bytes_per_token} bytes of keys and values a token")
    if point.tokens_per_second is not None:
        facts.append(f"{point.tokens_per_second:.3g} tokens/s")
    tip = f"<title>{html.escape(', '.join(facts) + (' (chosen)' if point.chosen else ''))}</title>"
    fill = "var(--blue)" if best else "var(--paper)"
    circle = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}"'
    if point.chosen:
        ring = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r + 4:.1f}" fill="none" stroke="var(--orange)" '
        return f'<g>{tip}{ring}stroke-width="2"/>{circle} fill="var(--orange)"/></g>'
    return f'<g>{tip}{circle} fill="{fill}" stroke="var(--blue)" stroke-width="1.5"/></g>'


def _labels(
    points: Sequence[Point], placed: Sequence[tuple[float, float, float]], named: Sequence[bool], height: int
) -> list[str]:
    """Names where they cover neither a point nor each other; who matters most chooses first."""
    taken = [(x - r, y - r, x + r, y + r) for x, y, r in placed]
    order = sorted(range(len(points)), key=lambda i: (not points[i].chosen, not named[i]))
    parts = []
    for i in order:
        x, y, r = placed[i]
        size = CHARACTER * len(points[i].name)
        spots = [(x + r + 5, y + 4), (x - r - 5 - size, y + 4), (x - size / 2, y - r - 6)]
        spots += [(x - size / 2, y + r + 14), (x + r + 2, y - r - 3), (x + r + 2, y + r + 12)]
        if named[i]:  # the line that joins them goes right from here, and comes from above
            spots = [spots[4], *spots[:4], spots[5]]
        if points[i].chosen:  # has a name wherever there is room for it
            spots += [(x + dx * far, y + dy * far) for far in (24, 48, 80, 120) for dx, dy in _AWAY]
        boxes = [(left, base - 11, left + size, base + 3) for left, base in spots]
        inside = [
            b
            for b in boxes
            if b[0] >= LEFT and b[2] <= WIDTH - 2 and b[1] >= TOP - 8 and b[3] <= height - BOTTOM
        ]
        free = [b for b in inside if not any(_overlap(b, other) for other in taken)]
        if not free and points[i].chosen:
            free = inside[:1]
        if free:
            box = free[0]
            taken.append(box)
            weight = "name" if points[i].chosen else "" if named[i] else "soft"
            if boxes.index(box) >= 6:
                parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}L{box[0]:.1f} {box[1] + 7:.1f}"/>')
            parts.append(_text(box[0], box[3] - 3, points[i].name, "start", f"{weight} halo".strip()))
    return parts


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _begin(height: float) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mo-plot" role="img" width="{WIDTH}" '
        f'height="{height:.0f}" viewBox="0 0 {WIDTH} {height:.0f}">{STYLE}'
    )


def _grid(x: _Axis, y: _Axis, height: int, x_name: str, y_name: str) -> str:
    base = height - BOTTOM
    parts = [_rows(y)]
    for tick in x.ticks():
        parts.append(f'<path class="grid" d="M{x(tick):.1f} {TOP}V{base}" opacity=".5"/>')
        parts.append(_text(x(tick), base + 16, _number(tick), "middle", "soft"))
    parts.append(_text(WIDTH - RIGHT, base + 33, x_name, "end", "soft"))
    middle = (TOP + base) / 2
    turned = f'transform="rotate(-90 14 {middle:.0f})"'
    name = html.escape(y_name)
    parts.append(f'<text class="soft" x="14" y="{middle:.0f}" text-anchor="middle" {turned}>{name}</text>')
    return "".join(parts)


def _rows(y: _Axis) -> str:
    return "".join(
        f'<path class="grid" d="M{LEFT} {y(tick):.1f}H{WIDTH - RIGHT}"/>'
        + _text(LEFT - 6, y(tick) + 4, _number(tick), "end", "soft")
        for tick in y.ticks()
    )


def _key(entries: Sequence[tuple[str, str]], base: float) -> str:
    """Coloured squares with their meaning, at the right end of a line."""
    parts = []
    x = float(WIDTH - RIGHT)
    for name, colour in reversed(entries):
        x -= CHARACTER * len(name)
        parts.append(_text(x, base, name, "start", "soft"))
        parts.append(f'<rect x="{x - 15:.1f}" y="{base - 9}" width="10" height="10" rx="2" fill="{colour}"/>')
        x -= 30
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, style: str) -> str:
    kind = f' class="{style}"' if style else ""
    return f'<text{kind} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(text)}</text>'


def _number(value: float) -> str:
    return f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.4g}"
