# SPDX-License-Identifier: Apache-2.0
"""What a search leaves behind: its tree, pictures of it, and the text that it streamed."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

mo = pytest.importorskip("modicum")

from tiny import write_tiny_model  # noqa: E402

SEARCHES: list[dict[str, Any]] = [
    {"beams": 1},
    {"beams": 4, "num_return": 4},
    {"beams": 8, "num_return": 3, "stop_ids": list(range(0, 250, 4))},
    {"beams": 6, "num_return": 6, "groups": 3, "diversity_penalty": 1.0},
    {"beams": 5, "num_return": 5, "mode": "native", "stop_ids": list(range(0, 250, 4))},
    {"beams": 3, "num_return": 3, "temperature": 1.0, "seed": 5},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return mo.load(write_tiny_model(tmp_path_factory.mktemp("tiny")))


@pytest.fixture(scope="module")
def story(data: Path) -> Any:
    folder = data / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("stories260K is not in MODICUM_DATA")
    return mo.load(folder, dtype="f32")


@pytest.fixture(params=SEARCHES, ids=lambda options: "-".join(map(str, options)))
def result(request: pytest.FixtureRequest, model: Any) -> Any:
    return model.beam_search("Hello", max_new_tokens=12, **request.param)


def test_parents_stand_before_their_children(result: Any) -> None:
    tree = result.tree
    assert tree.tokens[0] == -1
    assert tree.parents[0] == 0
    assert (tree.parents[1:] < np.arange(1, len(tree))).all()
    assert len(tree) == len(tree.tokens) == len(tree.scores) == len(tree.log_probabilities)


def test_a_path_is_in_the_tree_once(result: Any) -> None:
    pairs = list(zip(result.tree.parents[1:].tolist(), result.tree.tokens[1:].tolist(), strict=True))
    assert len(set(pairs)) == len(pairs)


def test_the_path_to_a_hypothesis_is_its_tokens(result: Any) -> None:
    assert result.tree.hypotheses == [h.node for h in result]
    for h in result:
        assert result.tree.path(h.node) == h.ids


def test_scores_are_sums_along_the_path(result: Any) -> None:
    tree = result.tree
    sums = tree.scores[tree.parents] + tree.log_probabilities
    np.testing.assert_allclose(tree.scores[1:], sums[1:], rtol=1e-5)
    for h in result:
        assert tree.scores[h.node] == pytest.approx(sum(h.log_probabilities), rel=1e-5)
        assert h.score == pytest.approx(tree.scores[h.node] / len(h.ids), rel=1e-5)


def test_stats_say_what_the_search_took(result: Any) -> None:
    stats = result.stats
    assert max(len(h.ids) for h in result) <= stats.steps <= 12
    assert 0 <= stats.peak_tokens <= stats.rows <= len(result.tree)


def test_the_picture_is_well_formed_and_shows_every_hypothesis(result: Any) -> None:
    root = ElementTree.fromstring(result.tree.to_svg())
    text = [node.text or "" for node in root.iter("{http://www.w3.org/2000/svg}text")]
    ends = {h.node for h in result}
    assert sum(bool(re.fullmatch(r"#\d+", t)) for t in text) == len(ends)
    ElementTree.fromstring("<html>" + result._repr_html_() + "</html>")


def test_the_graph_names_every_run_once_and_joins_them_to_a_tree(result: Any) -> None:
    dot = result.tree.to_dot()
    assert dot.startswith("digraph search {\n")
    assert dot.endswith("}\n")
    nodes = re.findall(r"^  (n\d+) \[", dot, re.M)
    edges = re.findall(r"^  (n\d+) -> (n\d+) \[", dot, re.M)
    assert len(set(nodes)) == len(nodes)
    assert sorted(child for _, child in edges) == sorted(n for n in nodes if n != "n0")
    for h in result:
        assert f"#{result.tree.hypotheses.index(h.node) + 1}" in dot


class Wild:
    """A tokenizer whose tokens are what pictures must escape."""

    PIECES = ('"', "\\", "<b>", "&", "\n", "\x00", "\x1b[0m", "]]>", "'", "\ufffe", "\r", "\u2028", "}", "🙂")

    def decode(self, ids: list[int]) -> str:
        return "".join(self.PIECES[i % len(self.PIECES)] for i in ids)


def test_pictures_of_any_text_are_well_formed(model: Any) -> None:
    found = model.beam_search("x", beams=12, num_return=12, max_new_tokens=9)
    tree = found.tree
    wild = type(tree)(tree.tokens, tree.parents, tree.log_probabilities, tree.scores, tree.hypotheses, Wild())
    ElementTree.fromstring(wild.to_svg())
    quoted = r'"(?:[^"\\\n]|\\.)*"'
    for line in wild.to_dot().splitlines()[3:-1]:
        assert re.fullmatch(rf"  n\d+( -> n\d+)? \[label={quoted}(, color=\w+, penwidth=2)?\];", line)


def test_a_large_picture_draws_the_best(model: Any) -> None:
    found = model.beam_search("x", beams=32, num_return=1, max_new_tokens=40)
    small = found.tree.to_svg(max_nodes=10)
    ElementTree.fromstring(small)
    assert small.count("<rect") < 60 < found.tree.to_svg(max_nodes=4000).count("<rect")
    assert "#1<" in small


def collect() -> tuple[list[str], Callable[[str], None]]:
    pieces: list[str] = []
    return pieces, pieces.append


@pytest.mark.parametrize("options", SEARCHES[:5])
def test_streamed_text_joined_begins_the_best_hypothesis_and_all_of_it_is_told(
    model: Any, story: Any, options: dict[str, Any]
) -> None:
    for searcher in (model, story):
        pieces, stream = collect()
        options = {name: value for name, value in options.items() if name != "stop_ids"}
        found = searcher.beam_search("One day, a dog", max_new_tokens=40, stream=stream, **options)
        assert "".join(pieces) == found[0].text
        assert all(pieces)


def test_streaming_does_not_change_the_search(story: Any) -> None:
    _, stream = collect()
    options = {"beams": 4, "num_return": 4, "max_new_tokens": 30}
    silent = story.beam_search("One day", **options)
    assert [h.ids for h in story.beam_search("One day", stream=stream, **options)] == [h.ids for h in silent]


def test_text_is_streamed_while_the_search_goes_on(story: Any) -> None:
    seen: list[tuple[int, str]] = []
    at = [0]
    story.beam_search(
        "One day",
        beams=3,
        max_new_tokens=60,
        stop_ids=[],
        stream=lambda text: seen.append((at[0], text)),
        progress=lambda _stage, done, _total: at.__setitem__(0, done) or True,
    )
    assert len(seen) > 5
    assert seen[0][0] < 30


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("stop", [[". "], [" the"], ["ed. S", "zzz"], ["\n", "ly", "girl na"]])
def test_a_stop_string_is_no_part_of_the_streamed_text(story: Any, beams: int, stop: list[str]) -> None:
    pieces, stream = collect()
    found = story.beam_search(
        "Once upon a time", beams=beams, max_new_tokens=60, stop=stop, stream=stream, stop_ids=[]
    )
    assert "".join(pieces) == found[0].text
    assert not any(s in found[0].text for s in stop)
    if found[0].finish_reason == "stop_string":
        whole = story.tokenizer.decode(found[0].ids)
        assert any(whole.startswith(found[0].text + s) for s in stop)


def test_a_stop_string_that_begins_in_the_prompt_ends_the_search_and_stays(story: Any) -> None:
    pieces, stream = collect()
    found = story.beam_search("Once upon a time", beams=1, max_new_tokens=60, stop="time, t", stream=stream)
    assert found[0].finish_reason == "stop_string"
    assert found[0].text.startswith(", t")
    assert "".join(pieces) == found[0].text == story.tokenizer.decode(found[0].ids)


def test_of_several_searches_the_first_is_streamed(story: Any) -> None:
    pieces, stream = collect()
    found = story.beam_search_many(["One day", "The cat"], beams=3, max_new_tokens=20, stream=stream)
    assert "".join(pieces) == found[0][0].text != found[1][0].text
