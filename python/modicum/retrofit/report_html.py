"""A retrofit's report as one page of HTML."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from modicum.compare import Comparison
from modicum.retrofit.pictures import edit_errors_svg, frontier_svg

if TYPE_CHECKING:
    from modicum.retrofit.report import Report

STYLE = """
.mo-report{--ink:#1f2328;--soft:#57606a;--line:#d8dee4;--card:#f6f8fa;--mark:#0072b2;--warn:#a04000;
color:var(--ink);font:15px/1.5 system-ui,sans-serif;max-width:820px}
@media(prefers-color-scheme:dark){.mo-report{--ink:#e6edf3;--soft:#9198a1;--line:#3d444d;--card:#161b22;
--mark:#56b4e9;--warn:#e69f00}}
.mo-report h1{font-size:24px;line-height:1.25;margin:0 0 2px}
.mo-report h2{font-size:17px;margin:30px 0 8px;padding-bottom:4px;border-bottom:1px solid var(--line)}
.mo-report p{margin:6px 0}.mo-report .soft{color:var(--soft)}
.mo-report .path{overflow-wrap:anywhere}
.mo-report .cards{display:grid;grid-template-columns:repeat(auto-fill,minmax(180px,1fr));
gap:10px;margin:18px 0}
.mo-report .card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px}
.mo-report .card b{display:block;font-size:21px;font-weight:600;line-height:1.35}
.mo-report .card small{color:var(--soft);font-size:12.5px;display:block}
.mo-report .wide{overflow-x:auto}
.mo-report table{border-collapse:collapse;width:100%;font-variant-numeric:tabular-nums;
font-size:14px;color:inherit}
.mo-report th,.mo-report td{padding:4px 0 4px 12px;text-align:right;border-bottom:1px solid var(--line);
background:none;color:inherit}
.mo-report th{color:var(--soft);font-weight:500}.mo-report td:not(:first-child){white-space:nowrap}
.mo-report th:first-child,.mo-report td:first-child{text-align:left;padding-left:0;
overflow-wrap:anywhere;min-width:7em}
.mo-report .warn{border-left:3px solid var(--warn);padding:4px 12px;margin:8px 0}
.mo-report .warn b{color:var(--warn)}
.mo-report code{font:13px ui-monospace,monospace;overflow-wrap:anywhere}
.mo-report pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 14px;
overflow-x:auto;font:12.5px/1.45 ui-monospace,monospace}
.mo-report summary{cursor:pointer;color:var(--soft)}
.mo-report svg{display:block;margin:6px 0}
"""
PAGE = "body{margin:32px auto;padding:0 20px;max-width:820px;background:#fff}"
PAGE_DARK = "@media(prefers-color-scheme:dark){body{background:#0d1117}}"


def page(report: Report) -> str:
    """A whole document."""
    title = html.escape(f"Retrofit of {_last(report.source)}")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{title}</title>'
        f"<style>{PAGE}{PAGE_DARK}</style></head><body>{body(report)}</body></html>\n"
    )


def body(report: Report) -> str:
    """What a notebook shows: one element with its own style."""
    parts = [
        f'<div class="mo-report"><style>{STYLE}</style>',
        f"<h1>{html.escape(_last(report.source))}, retrofitted</h1>",
        f'<p class="soft path">{html.escape(report.source)} → {html.escape(report.out)}</p>',
        _cards(report),
        _notes(report),
        _losses(report),
        _probes(report),
        _picture(
            "What the plan chose from", [p for p in report.frontier if p.loss is not None], frontier_svg
        ),
        # Rounding loses so much less than changes of shape that it is looked at last.
        _picture(
            "Share of each output that was lost, by layer",
            sorted(report.errors, key=lambda e: e.edit == "quantize"),
            edit_errors_svg,
        ),
        _errors(report),
        _sizes(report),
        _speeds(report),
        _run(report),
    ]
    return "".join([*parts, "</div>"])


def _cards(report: Report) -> str:
    cards = "".join(
        f'<div class="card"><small>{html.escape(name)}</small><b>{html.escape(value)}</b>'
        f"<small>{html.escape(note)}</small></div>"
        for name, value, note in report.headline()
    )
    return f'<div class="cards">{cards}</div>'


def _notes(report: Report) -> str:
    """Warnings and gaps stand before the numbers that they qualify."""
    notes = [("warning", text) for text in report.warnings]
    if report.held_out is None:
        notes.append(("not measured", "what was lost, on held-out text"))
    found = "".join(f'<p class="warn"><b>{kind}:</b> {html.escape(text)}</p>' for kind, text in notes)
    if not report.not_checked:
        return found
    gaps = "".join(f"<li>{html.escape(text)}</li>" for text in report.not_checked)
    return f"{found}<h2>Not checked</h2><ul>{gaps}</ul>"


def _losses(report: Report) -> str:
    named = {"held-out calibration text": report.held_out}
    named[report.second_name or "second text"] = report.second
    measured = {name: c for name, c in named.items() if c is not None}
    if not measured:
        return ""
    rows = [_loss(name, c) for name, c in measured.items()]
    heads = [
        "text",
        "tokens",
        "perplexity before",
        "after",
        "change",
        "KL",
        "KL 95 %",
        "KL largest",
        "same top 1",
    ]
    text = ""
    if (p := report.protocol) is not None:
        files = ", ".join(f"{_text(t.get('name'))} ({_text(t.get('sha256'))[:12]})" for t in p.texts)
        bos = "with BOS" if p.bos else "without BOS"
        text = (
            f'<p class="soft path">Sequences of {p.sequence_length} tokens {bos}, {p.tokens} tokens in all, '
            f"each predicted from those before it. Texts: {html.escape(files) or 'not told'}. "
            "Perplexities of other lengths or texts cannot be compared with these.</p>"
        )
    return f"<h2>What was lost</h2>{_table(heads, rows)}{text}"


def _loss(name: str, c: Comparison) -> list[str]:
    error = "" if c.kl_standard_error is None else f" ± {_number(c.kl_standard_error, 2)}"
    noise = "" if c.loss_change_standard_error is None else f" ± {100 * c.loss_change_standard_error:.1f}"
    return [
        name,
        str(c.student.tokens),
        _number(c.teacher.value, 4),
        _number(c.student.value, 4),
        f"{100 * (c.perplexity_ratio - 1):+.1f}{noise} %",
        _number(c.kl) + error,
        _number(c.kl_95),
        _number(c.kl_max),
        f"{100 * c.top1_agreement:.1f} %",
    ]


def _probes(report: Report) -> str:
    if report.probes is None:
        return ""
    rows = [
        [
            p.name + ("" if p.able else " (no better than chance before: shows nothing)"),
            str(p.items),
            *(f"{100 * score.accuracy:.1f} %" for score in (p.before, p.after, p.chance)),
            *(_number(score.nll) for score in (p.before, p.after, p.chance)),
        ]
        for p in report.probes.results
    ]
    heads = ["task", "items", "right before", "after", "by chance", "nll before", "after", "by chance"]
    refused = "".join(
        f'<p class="soft">{html.escape(name)} was not asked: {html.escape(why)}</p>'
        for name, why in report.probes.refused.items()
    )
    return f"<h2>Probes</h2>{_table(heads, rows)}{refused}"


def _picture(title: str, what: Sequence[Any], draw: Any) -> str:
    return f'<h2>{title}</h2><div class="wide">{draw(what)}</div>' if what else ""


def _errors(report: Report) -> str:
    if not report.errors:
        return ""
    heads = [
        "layer",
        "edit",
        "module",
        "before",
        "after",
        "held out: before",
        "after",
        "damping",
        "condition",
    ]
    rows = [
        [str(e.layer), e.edit, e.module]
        + [
            _number(value)
            for value in (e.before, e.after, e.held_out_before, e.held_out_after, e.damping, e.condition)
        ]
        for e in report.errors
    ]
    return f"<details><summary>as numbers</summary>{_table(heads, rows)}</details>"


def _sizes(report: Report) -> str:
    rows = [[k.kind, *_change(k.before, k.after)] for k in report.bytes_by_kind]
    if rows:
        rows.append(["all weights", *_change(report.bytes_before, report.bytes_after)])
    before, after = report.kv_bytes_per_token_before, report.kv_bytes_per_token_after
    if before is not None and after is not None:
        rows.append(["keys and values of a token", *_change(before, after)])
    return _section("Bytes", ["kind", "before", "after", "change"], rows)


def _change(before: int, after: int) -> list[str]:
    from modicum.retrofit.report import size

    share = f"{100 * (after / before - 1):+.1f} %" if before else "–"
    return [size(before), size(after), share]


def _speeds(report: Report) -> str:
    if report.speed_before is None and report.speed_after is None and report.speed_predicted is None:
        return ""
    rows = []
    for name, label in (("decode", "writes, tokens/s"), ("prefill", "reads, tokens/s")):
        measured = [
            "–" if speed is None else _quartiles(speed[f"{name}_tokens_per_second"])
            for speed in (report.speed_before, report.speed_after)
        ]
        rows.append([label, *measured, _number((report.speed_predicted or {}).get(name))])
    heads = ["", "before", "after", "predicted by the plan"]
    told = report.speed_after or report.speed_before
    note = ""
    if told is not None:
        note = (
            f'<p class="soft">Medians and quartiles of {told.get("rounds")} rounds, in turns; prompts of '
            f"{told.get('prompt_tokens')} tokens, {told.get('new_tokens')} written, "
            f"{told.get('threads')} threads.</p>"
        )
    return f"<h2>Speed on this machine</h2>{_table(heads, rows)}{note}"


def _quartiles(rate: Sequence[float]) -> str:
    return f"{rate[0]:.3g} ({rate[1]:.3g} to {rate[2]:.3g})"


def _run(report: Report) -> str:
    from modicum.retrofit.report import plain, size

    rows = []
    if report.seconds is not None or report.seconds_planned is not None:
        rows.append(["seconds", _number(report.seconds_planned), _number(report.seconds)])
    if report.peak_bytes is not None or report.peak_bytes_planned is not None:
        peaks = (report.peak_bytes_planned, report.peak_bytes)
        rows.append(["peak memory", *("–" if peak is None else size(peak) for peak in peaks)])
    parts = [_section("The run", ["", "planned", "measured"], rows) or "<h2>The run</h2>"]
    for name, facts in (("seeds", report.seeds), ("versions", report.versions)):
        if facts:
            told = ", ".join(f"{key} {value}" for key, value in facts.items())
            parts.append(f'<p class="soft">{name}: <code>{html.escape(told)}</code></p>')
    for name, facts in (("plan", report.plan), ("calibration", report.calibration)):
        if facts:
            text = html.escape(json.dumps(plain(facts), indent=1, ensure_ascii=False))
            parts.append(f"<details><summary>{name}</summary><pre>{text}</pre></details>")
    return "".join(parts)


def _section(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"<h2>{title}</h2>{_table(heads, rows)}" if rows else ""


def _table(heads: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{html.escape(h)}</th>" for h in heads)
    lines = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{lines}</table></div>'


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if 1000 <= abs(value) < 1e7 else f"{value:.{digits}g}"


def _text(value: object) -> str:
    return "" if value is None else str(value)


def _last(path: str) -> str:
    return path.rstrip("/").rsplit("/", 1)[-1] or path
