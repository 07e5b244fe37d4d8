"""Pictures of a search's tree: SVG for notebooks, Graphviz, and the table beside it."""

from __future__ import annotations

import html as html_text
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modicum.beam import BeamResult, SearchTree

LABEL = 28  # characters of a box
CHARACTER, LINE, GAP = 6.6, 22, 26  # pixels


@dataclass
class Run:
    """Tokens without a fork among them, drawn as one box."""

    nodes: list[int]
    label: str = ""
    children: list[Run] = field(default_factory=list)
    rank: int | None = None  # of the hypothesis that ends here
    is_best: bool = False
    x: float = 0.0
    y: float = 0.0

    @property
    def width(self) -> float:
        return 12 + CHARACTER * max(1, len(self.label))


def runs(tree: SearchTree, max_nodes: int) -> Run:
    """The tree with unforked runs joined: the hypotheses, and others up to `max_nodes`, the best first."""
    children: dict[int, list[int]] = {}
    for node in range(1, len(tree)):
        children.setdefault(int(tree.parents[node]), []).append(node)
    ends = {node: rank for rank, node in reversed(list(enumerate(tree.hypotheses)))}
    best_path = _ancestors(tree, tree.hypotheses[:1])
    kept = _ancestors(tree, tree.hypotheses)
    drawn = 1
    root = Run([0])
    waiting = [root]
    while waiting:
        run = waiting.pop(0)
        while len(kids := children.get(run.nodes[-1], [])) == 1 and run.nodes[-1] not in ends:
            run.nodes.append(kids[0])
        run.rank = ends.get(run.nodes[-1])
        run.is_best = run.nodes[-1] in best_path or run.nodes[0] in best_path
        run.label = _label(tree, run)
        for kid in sorted(kids, key=lambda k: (k not in best_path, -tree.scores[k])):
            if drawn < max_nodes or kid in kept:
                run.children.append(Run([kid]))
                drawn += 1
        waiting.extend(run.children)
    return root


def _ancestors(tree: SearchTree, nodes: list[int]) -> set[int]:
    """The nodes with all that stand above them."""
    found: set[int] = set()
    for node in nodes:
        while node not in found:
            found.add(node)
            node = int(tree.parents[node])
    return found


def _label(tree: SearchTree, run: Run) -> str:
    if tree.tokenizer is None:
        text = " ".join(str(int(tree.tokens[n])) for n in run.nodes if n != 0)
    else:
        before = tree.path(int(tree.parents[run.nodes[0]]))
        whole = tree.tokenizer.decode(tree.path(run.nodes[-1]))
        text = whole[len(tree.tokenizer.decode(before)) :]
        if not text and run.nodes[-1] != 0:  # a special token, the end perhaps, or part of a character
            text = tree.tokenizer.token_of(int(tree.tokens[run.nodes[-1]])) or ""
    text = _printable(text.replace("\n", "⏎"))
    if run.nodes[0] == 0 and not text:
        return "prompt"
    return text if len(text) <= LABEL else text[: LABEL - 1] + "…"


def _printable(text: str) -> str:
    """Without control characters, which XML has no place for even where they are escaped."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def svg(tree: SearchTree, *, max_nodes: int = 400) -> str:
    """See :meth:`SearchTree.to_svg`."""
    root = runs(tree, max_nodes)
    order = _layout(root)
    width = max(r.x + r.width for r in order) + 90
    height = max(r.y for r in order) + LINE + 8
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" font-family="monospace" font-size="11">'
    ]
    for run in order:
        parts += [_edge(run, child) for child in run.children]
    parts += [_box(tree, run) for run in order]
    return "".join([*parts, "</svg>"])


def _layout(root: Run) -> list[Run]:
    """A run stands right of its parent, each leaf on a line of its own. No recursion: paths are long."""
    order = []
    waiting = [root]
    while waiting:
        run = waiting.pop()
        order.append(run)
        for child in run.children:
            child.x = run.x + run.width + GAP
        waiting.extend(reversed(run.children))
    line = 0
    for run in order:
        if not run.children:
            run.y = 4 + line * LINE
            line += 1
    for run in reversed(order):
        if run.children:
            run.y = (run.children[0].y + run.children[-1].y) / 2
    return order


def _edge(run: Run, child: Run) -> str:
    x1, y1 = run.x + run.width, run.y + LINE / 2
    x2, y2 = child.x, child.y + LINE / 2
    middle = (x1 + x2) / 2
    colour = "#1a7f5a" if child.is_best else "#bbb"
    return (
        f'<path d="M{x1:.0f} {y1:.1f}C{middle:.0f} {y1:.1f} {middle:.0f} {y2:.1f} {x2:.0f} {y2:.1f}" '
        f'fill="none" stroke="{colour}" stroke-width="{2 if child.is_best else 1}"/>'
    )


def _box(tree: SearchTree, run: Run) -> str:
    colour, fill = ("#1a7f5a", "#e5f5ee") if run.is_best else ("#888", "#f6f6f6")
    score = f"log-probability {tree.scores[run.nodes[-1]]:.3f}, {len(run.nodes)} tokens"
    text = html_text.escape(run.label)
    box = (
        f"<g><title>{score}</title>"
        f'<rect x="{run.x:.0f}" y="{run.y + 1:.1f}" width="{run.width:.0f}" height="{LINE - 4}" rx="4" '
        f'fill="{fill}" stroke="{colour}"/>'
        f'<text x="{run.x + 6:.0f}" y="{run.y + 14:.1f}" xml:space="preserve">{text}</text>'
    )
    if run.rank is not None:
        after = run.x + run.width + 4
        box += f'<text x="{after:.0f}" y="{run.y + 14:.1f}" fill="{colour}">#{run.rank + 1}</text>'
    return box + "</g>"


def dot(tree: SearchTree) -> str:
    """See :meth:`SearchTree.to_dot`."""
    lines = ["digraph search {", "  rankdir=LR;", "  node [shape=box, style=rounded, fontname=monospace];"]
    waiting = [runs(tree, len(tree))]
    while waiting:
        run = waiting.pop()
        label = run.label.replace("\\", "\\\\").replace('"', '\\"')
        mark = "" if run.rank is None else f"  #{run.rank + 1}"
        style = ", color=darkgreen, penwidth=2" if run.is_best else ""
        lines.append(f'  n{run.nodes[0]} [label="{label}{mark}"{style}];')
        for child in run.children:
            score = tree.log_probabilities[child.nodes[0]]
            lines.append(f'  n{run.nodes[0]} -> n{child.nodes[0]} [label="{score:.2f}"];')
        waiting.extend(run.children)
    return "\n".join([*lines, "}", ""])


def html(result: BeamResult) -> str:
    """The hypotheses as a table, and the tree below it."""
    rows = "".join(
        f"<tr><td>{i + 1}</td><td>{h.score:.4f}</td>"
        f'<td style="text-align:left">{html_text.escape(_printable(h.text) or str(h.ids))}</td>'
        f"<td>{h.finish_reason}</td></tr>"
        for i, h in enumerate(result)
    )
    stats = result.stats
    return (
        "<table><tr><th></th><th>score</th><th>text</th><th>ended by</th></tr>" + rows + "</table>"
        f"<p>{stats.steps} steps, {stats.rows} tokens read after the prompt, at most {stats.peak_tokens} "
        f'held at once.</p><div style="overflow-x:auto">{svg(result.tree)}</div>'
    )
