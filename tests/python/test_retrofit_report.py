# SPDX-License-Identifier: Apache-2.0
"""The report of a retrofit: what it tells, that JSON keeps it, and that its page needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import modicum as mo
import numpy as np
import pytest
from modicum.retrofit import Comparison, EditError, KindBytes, Perplexity, Point, Protocol, Report
from modicum.retrofit.pictures import _Axis, edit_errors_svg, frontier_svg
from modicum.retrofit.probes import Probe, Probes, Score

SVG = "{http://www.w3.org/2000/svg}"
VOID = {"meta", "br", "hr", "img", "link", "input"}


def comparison(loss: float, kl: float) -> Comparison:
    before, after = (Perplexity(32, 16352, value, 0.02) for value in (2.5, loss))
    return Comparison(before, after, 0.003, kl, 0.002, 4 * kl, 60 * kl, 0.912)


def speed(rate: float) -> dict[str, Any]:
    facts: dict[str, Any] = {"name": "m", "threads": 2, "prompt_tokens": 128, "new_tokens": 32, "rounds": 7}
    for what in ("decode", "prefill"):
        facts[f"{what}_tokens_per_second"] = [rate, rate - 1, rate + 1]
    return facts


def probe(name: str, before: float, after: float) -> Probe:
    return Probe(name, 50, Score(before, 0.2), Score(after, 0.4), Score(0.1, 2.3), 3, 1)


def full_report() -> Report:
    return Report(
        source="models/big",
        out="models/small",
        plan={"kv_heads": np.int64(2), "ffn": 0.75, "where": Path("there")},
        calibration={"texts": ["handbook"], "tokens": 65536},
        protocol=Protocol(512, 16352, [{"name": "handbook.txt", "sha256": "9f86d081884c7d65"}], True),
        held_out=comparison(2.55, 0.05),
        second=comparison(2.7, 0.21),
        second_name="news",
        probes=Probes([probe("passkey", 1.0, 0.94), probe("sums", 0.12, 0.1)], {"recall": "no room for it"}),
        errors=[
            EditError(0, "ffn", "mlp.down_proj", 0.31, 0.12, 0.33, 0.14, 1e-4, 3e5),
            EditError(1, "ffn", "mlp.down_proj", 0.28, 0.11, damping=1e-4, condition=float("inf")),
            EditError(1, "kv", "self_attn.o_proj", 0.2, 0.05, held_out_after=0.06),
        ],
        bytes_by_kind=[KindBytes("ffn", 600_000_000, 450_000_000), KindBytes("norm", 1000, 1000)],
        kv_bytes_per_token_before=12288,
        kv_bytes_per_token_after=6144,
        speed_before=speed(10.0),
        speed_after=speed(15.0),
        speed_predicted={"decode": 15.3, "prefill": 14.9},
        seconds_planned=1400.0,
        seconds=1511.5,
        peak_bytes_planned=1_500_000_000,
        peak_bytes=1_400_000_000,
        frontier=[Point("source", 600_001_000, 0.0), Point("small", 450_001_000, 0.05, 6144, 15.3, True)],
        seeds={"calibration": 0},
        versions={"modicum": "0.1.0"},
        warnings=["layer 1, ffn: little text"],
        not_checked=["answers in other languages"],
    )


class Page(HTMLParser):
    """Checks that elements close in order; keeps the text of those that show any, and all attributes."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: set[str] = set()
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "


# JSON


def test_json_keeps_all_of_a_report(tmp_path: Path) -> None:
    report = full_report()
    report.save(tmp_path / "report.json")
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts["schema"] == "modicum.retrofit.report/1"
    assert facts["held_out"]["student"]["perplexity"] == pytest.approx(np.exp(2.55))
    assert facts["plan"] == {"kv_heads": 2, "ffn": 0.75, "where": "there"}
    assert facts["errors"][1]["condition"] is None  # not finite
    again = Report.load(tmp_path / "report.json")
    assert again.to_dict() == report.to_dict()
    assert again.held_out == report.held_out
    assert again.frontier == report.frontier
    assert Report.from_dict(Report("a", "b").to_dict()) == Report("a", "b")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schema": "modicum.retrofit.report/2"}, "expected modicum.retrofit.report/1"),
        ({"surprise": 1}, "surprise"),
        ({"errors": [{"layer": 0}]}, "edit"),
        ({"errors": [3]}, "fields"),
        ({"protocol": {"tokens": 3}}, "sequence_length"),
        ({"held_out": {"kl": 0.1}}, "fields"),
        ({"probes": {"results": [{}], "refused": {}}}, "name"),
    ],
)
def test_what_is_no_report_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(mo.FormatError) as error:
        Report.from_dict(full_report().to_dict() | change)
    assert said in str(error.value)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(mo.IoError):
        Report.load(tmp_path / "none.json")
    for text, said in (("{", "expected JSON"), ("[]", "got list")):
        (tmp_path / "broken.json").write_text(text)
        with pytest.raises(mo.FormatError, match=said):
            Report.load(tmp_path / "broken.json")
    with pytest.raises(mo.IoError):
        full_report().save(tmp_path / "no" / "folder.json")


# Text and pages


def test_the_headline_tells_losses_sizes_and_speed() -> None:
    rows = {name: (value, note) for name, value, note in full_report().headline()}
    assert rows["perplexity"] == ("12.81", "from 12.18, +5.1 %")
    assert rows["KL from the source"] == ("0.05", "± 0.002 nats a token")
    assert rows["same likeliest token"] == ("91.2 %", "of 16352 tokens")
    assert rows["size"] == ("450 MB", "from 600 MB, -25 %")
    assert rows["cache per token"] == ("6.14 kB", "from 12.3 kB, -50 %")
    assert rows["writes"] == ("15 tokens/s", "from 10, ×1.50")
    text = str(full_report())
    for told in (
        "    passkey                       94.0 %   from 100.0 %, by chance 10.0 %",
        "recall: not asked",
        "warning: layer 1",
        "not checked: answers",
        "on news:\n    perplexity",
    ):
        assert told in text


def test_a_report_without_measures_says_so() -> None:
    report = Report("a", "b")
    assert report.headline() == []
    assert "not measured" in str(report)
    assert "not measured" in Page(report.html()).text


def test_the_page_tells_everything_and_loads_nothing(tmp_path: Path) -> None:
    report = full_report()
    report.save_html(tmp_path / "report.html")
    source = (tmp_path / "report.html").read_text("utf-8")
    page = Page(source)
    for told in (
        "models/big → models/small",
        "Sequences of 512 tokens with BOS",
        "handbook.txt (9f86d081884c)",
        "12.81",
        "0.05 ± 0.002",
        "0.21",
        "passkey",
        "94.0 %",
        "sums (no better than chance before: shows nothing)",
        "recall was not asked: no room for it",
        "self_attn.o_proj",
        "15 (14 to 16)",
        "15.3",
        "1512",
        "300000",
        "1.4 GB",
        "answers in other languages",
        "little text",
        "kv_heads",
        "layer 1, kv self_attn.o_proj: before 0.2, after 0.05, held out 0.06",
        "small: 450.0 MB, loss 0.05, 6144 bytes of keys and values a token, 15.3 tokens/s (chosen)",
    ):
        assert told in page.text, told
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert "url(" not in source
    assert set(re.findall(r"https?://[^\"' <]+", source)) == {"http://www.w3.org/2000/svg"}
    assert page.text.count("prefers-color-scheme") == 0
    assert source.count("prefers-color-scheme:dark") >= 3
    assert report._repr_html_() in source


def test_names_cannot_break_out_of_the_page() -> None:
    evil = "<script>alert(1)</script>\"'&"
    report = full_report()
    report.source = report.out = report.second_name = evil
    report.warnings = report.not_checked = [evil]
    report.plan = {evil: evil}
    report.probes = Probes([probe(evil, 0, 0)], {evil: evil})
    report.errors = [EditError(0, evil, evil, 0.1)]
    report.frontier = [Point(evil, 1, 0.1, chosen=True)]
    report.versions = {evil: evil}
    page = Page(report.html())
    assert "script" not in page.tags
    assert page.text.count("alert(1)") >= 10


# Pictures


def circles(svg: str) -> dict[str, tuple[float, float, float]]:
    """Place and radius of each point by its name."""
    found = {}
    for group in ElementTree.fromstring(svg).iter(f"{SVG}g"):
        title = group.findtext(f"{SVG}title") or ""
        at = group.findall(f"{SVG}circle")[-1].attrib
        found[title.split(":")[0]] = (float(at["cx"]), float(at["cy"]), float(at["r"]))
    return found


def labels(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_a_frontier_places_points_by_bytes_and_loss() -> None:
    points = [
        Point("source", 1_000_000, 0.0, tokens_per_second=10),
        Point("worse", 900_000, 0.9, tokens_per_second=11),
        Point("small", 300_000, 0.3, tokens_per_second=30, chosen=True),
    ]
    svg = frontier_svg(points)
    at = circles(svg)
    assert at["small"][0] < at["worse"][0] < at["source"][0]
    assert at["source"][1] > at["small"][1] > at["worse"][1]
    assert at["small"][2] > at["worse"][2] > at["source"][2]
    assert {"source", "worse", "small", "MB on disk"} <= set(labels(svg))
    line = next(p for p in ElementTree.fromstring(svg).iter(f"{SVG}path") if p.get("stroke-opacity"))
    begin = line.attrib["d"].split("H")[0]
    assert begin == f"M{at['small'][0]:.1f} {at['small'][1]:.1f}"
    assert line.attrib["d"].count("V") == 1  # nothing is gained by what is worse


def test_a_frontier_of_many_points_names_the_chosen_one_and_covers_no_name() -> None:
    random = np.random.default_rng(0)
    points = [
        Point(f"candidate {i}", int(3e8 + 1e6 * random.normal()), float(random.uniform(0.1, 0.11)))
        for i in range(300)
    ]
    points.append(Point("the one", int(3e8), 0.105, chosen=True))
    svg = frontier_svg(points)
    assert len(circles(svg)) == 301
    assert "the one" in labels(svg)
    assert sum(label.startswith("candidate") for label in labels(svg)) < 150


@pytest.mark.parametrize(
    "points",
    [
        [Point("alone", 0, 0.0)],
        [Point("a", 5, 1.0), Point("b", 5, 1.0)],
        [Point("lost", 5, float("inf")), Point("b", 7, 1e-9), Point("c", 7, 1e9)],
        [Point("unknown", 5, None), Point("no number", 5, float("nan")), Point("b", 7, 0.1)],
    ],
)
def test_odd_points_stay_within_the_picture(points: list[Point]) -> None:
    for x, y, _ in circles(frontier_svg(points)).values():
        assert 0 <= x <= 760
        assert 0 <= y <= 380


def test_layer_errors_are_drawn_to_scale() -> None:
    svg = edit_errors_svg(full_report().errors)
    groups = list(ElementTree.fromstring(svg).iter(f"{SVG}g"))
    bars = [[float(r.attrib["height"]) for r in g.iter(f"{SVG}rect")] for g in groups]
    assert [len(b) for b in bars] == [2, 2, 2]
    assert bars[0][1] / bars[0][0] == pytest.approx(0.12 / 0.31, abs=0.01)
    assert bars[1][0] / bars[0][0] == pytest.approx(0.28 / 0.31, abs=0.01)
    assert [len(list(g.iter(f"{SVG}path"))) for g in groups] == [1, 0, 1]
    assert {"ffn, mlp.down_proj", "kv, self_attn.o_proj", "0", "1"} <= set(labels(svg))


def test_pictures_of_nothing_are_refused() -> None:
    for points in ([], [Point("unknown", 5, None)]):
        with pytest.raises(mo.InvalidArgument, match="at least one with a loss"):
            frontier_svg(points)
    assert "<svg" not in Report("a", "b", frontier=[Point("unknown", 5, None)]).html()
    with pytest.raises(mo.InvalidArgument):
        edit_errors_svg([])


@pytest.mark.parametrize(
    ("values", "log", "expected"),
    [
        ([0, 1.0], False, [0, 0.5, 1.0]),
        ([0.001, 5.0], True, [0.001, 0.01, 0.1, 1]),
        ([0.2, 4.0], True, [0.2, 0.5, 1, 2]),
    ],
)
def test_ticks_are_round_numbers(values: list[float], log: bool, expected: list[float]) -> None:
    ticks = _Axis(values, 0, 100, log=log).ticks()
    assert set(expected) <= {round(t, 9) for t in ticks}
    assert len(ticks) <= 8
