# SPDX-License-Identifier: Apache-2.0
"""The command line: what it prints, and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from modicum.cli import main
from tiny import write_tiny_model


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "fees.md"
    path.write_text("Year card: 30 euros\n")
    return path


def run_json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    assert main([str(a) for a in arguments] + ["--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return json.loads(out)


def test_info(tiny: Path, capsys: pytest.CaptureFixture[str]):
    facts = run_json(capsys, "info", tiny)
    assert facts["model_type"] == "llama"
    assert facts["vocabulary"] == 258
    assert facts["kv_bytes_per_token"] == 2 * 2 * 16 * 4
    assert main(["info", str(tiny)]) == 0
    assert "258" in capsys.readouterr().out


def test_generate_searches_within_rules_and_draws_its_tree(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    base = ["generate", "--model", demo / "model", "--prompt", "The", "--beams", 8, "--max-new-tokens", 16]
    tree = tmp_path / "tree.svg"
    found = run_json(capsys, *base, "--ban", "e", "--require", "library", "--tree", tree)["results"][0]
    assert "library" in found["text"] and "e" not in found["text"]
    assert tree.read_text().startswith("<svg")
    assert main([str(a) for a in [*base, "--tree", tmp_path / "tree.dot", "--native"]]) == 0
    assert (tmp_path / "tree.dot").read_text().startswith("digraph")
    assert capsys.readouterr().out.strip()
    schema = tmp_path / "schema.json"
    schema.write_text('{"enum": ["open", "closed"]}')
    pytest.importorskip("llguidance")
    texts = [
        r["text"] for r in run_json(capsys, *base, "--json-schema", schema, "--num-return", 2)["results"]
    ]
    assert sorted(texts) == ['"closed"', '"open"']
    diverse = run_json(capsys, *base, "--groups", 4, "--diversity-penalty", 2.0, "--num-return", 4)["results"]
    assert len({r["text"] for r in diverse}) == 4
    assert main([str(a) for a in [*base, "--groups", 3]]) == 1
    assert "groups" in capsys.readouterr().err


def test_generate_is_the_same_greedy_sampled_by_seed_and_as_one_beam(
    tiny: Path, capsys: pytest.CaptureFixture[str]
):
    base = ["generate", "--model", tiny, "--prompt", "Once", "--max-new-tokens", 8]
    greedy = run_json(capsys, *base)["results"][0]
    assert run_json(capsys, *base)["results"][0] == greedy
    sampled = [
        run_json(capsys, *base, "--temperature", 2, "--seed", s)["results"][0]["ids"] for s in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    beams = run_json(capsys, *base, "--beams", 4, "--num-return", 3)["results"]
    assert len(beams) == 3
    assert [b["score"] for b in beams] == sorted((b["score"] for b in beams), reverse=True)
    assert main([str(a) for a in base]) == 0
    assert capsys.readouterr().out.strip() == greedy["text"].strip()


def test_cag_build_ask_inspect(
    tiny: Path, document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache = tmp_path / "a.kv"
    built = run_json(capsys, "cag", "build", "--model", tiny, "--out", cache, document)
    assert [d["name"] for d in built["documents"]] == ["fees.md"]
    answer = run_json(
        capsys, "cag", "ask", "--model", tiny, "--cache", cache, "How much?", "--max-new-tokens", 5
    )
    assert answer["cost"]["cached_tokens"] == built["tokens"]
    assert answer["cost"]["new_tokens"] <= 5
    assert run_json(capsys, "cag", "inspect", cache)["tokens"] == built["tokens"]


@pytest.fixture
def cache(tiny: Path, document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    path = tmp_path / "given.kv"
    run_json(capsys, "cag", "build", "--model", tiny, "--out", path, "--layout", "blocks", document)
    return path


def run_text(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 0
    return capsys.readouterr().out


def run_refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one line of an error, with and without --json."""
    for more in ([], ["--json"]):
        assert main([str(a) for a in arguments] + more) == 1
        out, err = capsys.readouterr()
        assert out == ""
        line = err.splitlines()[-1]
        assert line.startswith("modicum: [")
    return line


def test_cag_plan_tells_what_a_build_takes_and_writes_nothing(
    tiny: Path, document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    before = sorted(tmp_path.iterdir())
    plan = run_json(capsys, "cag", "plan", "--model", tiny, document)
    assert plan["documents"] == {"fees.md": len("Year card: 30 euros\n")}
    assert plan["fits"] and plan["context"] == 1024
    assert plan["bytes"]["wide"] > plan["bytes"]["int8"] > plan["bytes"]["int4"] > 0
    text = run_text(capsys, "cag", "plan", "--model", tiny, document)
    assert "20  fees.md" in text and "They fit" in text and "int4" in text
    over = run_json(capsys, "cag", "plan", "--model", tiny, "--reserve", 1000, document)
    assert not over["fits"]
    text = run_text(capsys, "cag", "plan", "--model", tiny, "--reserve", 1000, document)
    assert "They do not fit" in text and "--overflow select" in text
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("layout", ["joint", "blocks"])
@pytest.mark.parametrize("kv", ["wide", "int8", "int4", "auto"])
def test_cag_build_takes_every_layout_and_encoding(
    layout: str, kv: str, tiny: Path, document: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    options = ["--model", tiny, "--out", tmp_path / "a.kv", "--layout", layout, "--kv", kv, document]
    built = run_json(capsys, "cag", "build", *options)
    assert built["layout"] == layout
    assert kv in (built["kv"], "auto") and built["automatic"] == (kv == "auto")
    assert built["seconds"] > 0
    text = run_text(capsys, "cag", "build", *options)
    assert f"1 documents, {built['tokens']} tokens" in text and f"({layout}, kv {built['kv']})" in text
    inspected = run_json(capsys, "cag", "inspect", tmp_path / "a.kv")
    assert {**inspected, "seconds": built["seconds"]} == built
    text = run_text(capsys, "cag", "inspect", tmp_path / "a.kv")
    assert f"fees.md ({inspected['documents'][0]['tokens']} tokens" in text
    assert ("nats" in text) == bool(inspected["certificate"]["measurements"])


def test_cag_add_remove_and_update_tell_what_changed(
    tiny: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    at = ["--model", tiny, "--cache", cache]
    hours = tmp_path / "hours.md"
    hours.write_text("Monday: 9:00\n")
    report = run_json(capsys, "cag", "add", *at, hours)
    assert (report["added"], report["unchanged"]) == (["hours.md"], ["fees.md"])
    assert 0 < report["computed_tokens"] < report["tokens"] and report["seconds"] > 0
    hours.write_text("Tuesday: 10:00\n")
    text = run_text(capsys, "cag", "update", *at)
    assert "replaced: hours.md\n" in text and "1 documents as they were" in text
    assert run_text(capsys, "cag", "update", *at, hours) == "Nothing has changed; the file was not written.\n"
    assert run_json(capsys, "cag", "update", *at, hours)["unchanged"] == ["fees.md", "hours.md"]
    text = run_text(capsys, "cag", "update", *at, "--volatile", "fees.md", tmp_path / "fees.md")
    assert "replaced: fees.md" in text
    inspected = run_json(capsys, "cag", "inspect", cache)
    assert [d["name"] for d in inspected["documents"]] == ["hours.md", "fees.md"]
    assert [d["volatile"] for d in inspected["documents"]] == [False, True]
    assert "removed: fees.md" in run_text(capsys, "cag", "remove", *at, "fees.md")
    hours.write_text("")
    good = cache.read_bytes()
    assert "an empty document" in run_refused(capsys, "cag", "update", *at, hours)
    assert "replace them with update" in run_refused(capsys, "cag", "add", *at, write(tmp_path / "hours.md"))
    assert "one of hours.md" in run_refused(capsys, "cag", "remove", *at, "fees.md")
    assert "hours.md" in run_refused(capsys, "cag", "add", *at, tmp_path / "no" / "hours.md")
    assert cache.read_bytes() == good


def write(path: Path) -> Path:
    path.write_text("Something\n")
    return path


def test_cag_ask_answers_one_question_or_several(
    demo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    cache = tmp_path / "a.kv"
    model = ["--model", demo / "model"]
    run_json(capsys, "cag", "build", *model, "--out", cache, "--layout", "blocks", demo / "handbook")
    entries = json.loads((demo / "questions.json").read_text("utf-8"))[:2]
    asked = [entry["question"] for entry in entries]
    ask = ["cag", "ask", *model, "--cache", cache, "--max-new-tokens", 24]
    singles = [run_json(capsys, *ask, question) for question in asked]
    several = run_json(capsys, *ask, *asked)["answers"]
    assert [a["question"] for a in several] == asked
    for single, other in zip(singles, several, strict=True):
        assert all(other[name] == single[name] for name in ("text", "citations", "confidence", "abstained"))
        assert single["cost"]["total_seconds"] >= single["cost"]["load_seconds"] > 0
    best = next(a for a in singles if a["citations"])
    question = asked[singles.index(best)]
    cited = best["citations"][0]
    begin, end = cited["bytes"]
    assert Path(cited["source"]).read_bytes()[begin:end].decode() == cited["quote"]
    text = run_text(capsys, *ask, question)
    assert text.startswith(best["text"])
    assert f"line {cited['line']}" in text and f"“{cited['quote']}”" in text and "from the cache" in text
    text = run_text(capsys, *ask, *asked)
    assert text.index(asked[0]) < text.index(singles[0]["text"]) < text.index(asked[1])
    assert "The documents do not say." in run_text(capsys, *ask, "--abstain-below", 1, question)
    assert run_json(capsys, *ask, "--abstain-below", 1, question)["abstained"]
    beams = run_json(capsys, *ask, "--beams", 4, question)
    assert beams["text"] == best["text"] and beams["citations"] == best["citations"]
    selected = run_json(capsys, *ask, "--segments", 1, question)["selected"]
    assert len(selected) == 1
    assert f"attended to: {selected[0]}" in run_text(capsys, *ask, "--segments", 1, question)


def test_cag_verify_checks_the_file_the_model_and_the_numbers(
    tiny: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    report = run_json(capsys, "cag", "verify", cache)
    assert report["bytes"] == cache.stat().st_size and "positions" not in report
    assert run_text(capsys, "cag", "verify", cache).startswith("Every checksum agrees")
    assert run_json(capsys, "cag", "verify", "--model", tiny, cache)["tokens"] == report["tokens"]
    deep = run_json(capsys, "cag", "verify", "--model", tiny, "--deep", "--samples", 16, cache)
    assert (deep["positions"], deep["difference"]) == (16, 0)
    assert "16 tokens computed again" in run_text(
        capsys, "cag", "verify", "--model", tiny, "--deep", "--samples", 16, cache
    )
    assert "expected one for a deep check" in run_refused(capsys, "cag", "verify", "--deep", cache)
    other = write_tiny_model(tmp_path / "other", seed=1)
    assert "weights" in run_refused(capsys, "cag", "verify", "--model", other, cache)
    assert "weights" in run_refused(capsys, "cag", "ask", "--model", other, "--cache", cache, "What?")
    data = bytearray(cache.read_bytes())
    data[5000] ^= 1
    cache.write_bytes(data)
    assert "checksum" in run_refused(capsys, "cag", "verify", cache)
    assert "checksum" in run_refused(capsys, "cag", "inspect", cache)
    assert "checksum" in run_refused(capsys, "cag", "ask", "--model", tiny, "--cache", cache, "What?")


def test_an_error_is_one_line_and_exit_code_1(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for arguments in (
        ["info", tmp_path / "missing"],
        ["cag", "inspect", tiny / "config.json"],
        ["cag", "build", "--model", tiny, "--out", tmp_path / "a.kv", tmp_path],
        ["generate", "--model", tiny, "--prompt", "a", "--max-new-tokens", 5000],
    ):
        assert main([str(a) for a in arguments]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("modicum: [") and err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["generate"], ["cag"], ["info"], ["cag", "ask", "--beams", "x"]]
    + [["cag", c] for c in ("plan", "build", "add", "remove", "update", "ask", "verify", "inspect")],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]):
    result = subprocess.run(
        [sys.executable, "-m", "modicum", *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "usage" in result.stderr


@pytest.mark.parametrize(
    "command",
    [["info"], ["generate"], ["choose"], ["quantize"], ["demo"]]
    + [["cag", c] for c in ("plan", "build", "add", "remove", "update", "ask", "verify", "inspect")],
)
def test_every_command_has_help_and_json(command: list[str], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as exit_code:
        main([*command, "--help"])
    assert exit_code.value.code == 0
    assert "--json" in capsys.readouterr().out


def test_demo_answers_the_questions_over_the_handbook(demo: Path, capsys: pytest.CaptureFixture[str]):
    report = run_json(capsys, "demo")
    right = [a for a in report["answers"] if a["text"] == a["expected"]]
    assert len(right) >= 0.8 * len(report["answers"])
    assert all(a["citations"] for a in right)
    assert main(["demo"]) == 0
    assert "from the cache" in capsys.readouterr().out
