# SPDX-License-Identifier: Apache-2.0
"""A guard: what it looks at, what it says of models that behave and do not, and merging under it."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import modicum as mo  # noqa: E402
from merging import changed, digests, equal, names, noise, tensors_of, write_like  # noqa: E402
from modicum.tune import (  # noqa: E402
    Choice,
    Guard,
    GuardError,
    GuardSet,
    Input,
    Limits,
    MergePlan,
    Reply,
    chat_vector,
)

HANDBOOK = "Answer briefly, from the documents below only.\n\n[hours.md]\n"
ENTRY = {"prompt": "Who?", "wanted": ["Me"], "unwanted": ["You"]}


@pytest.fixture(scope="module")
def desk(demo: Path) -> GuardSet:
    """What the demo model does: it answers from a page, says so where the page does not tell, and ends."""
    page = HANDBOOK + (demo / "handbook" / "hours.md").read_text("utf-8")
    return GuardSet(
        "desk",
        refusals=(
            Choice("Who leads the story hour?", ("Not in the documents.",), ("Oda Kemper",), page, "en"),
            Choice("What does a copy cost?", ("Not in the documents.",), ("4 euros",), page, "en"),
        ),
        formats=(
            Choice("When is the reading room open?", ("9:00 to 17:30",), ("The reading",), page, "en"),
            Choice("When is the music archive open?", ("10:30 to 16:00",), ("It is",), page, "en"),
        ),
        replies=(Reply("When is the reading room open?", "9:00 to 17:30", page, "en"),),
        neutral=tuple(p.read_text("utf-8") for p in sorted((demo / "handbook").glob("l*.md"))),
    )


def noisy(source: Path, to: Path, size: float, seed: int = 1) -> Path:
    """A copy whose matrices have noise, in proportion to their own size."""
    add = noise(seed, 1.0)

    def change(name: str, tensor: Any) -> Any:
        return (
            tensor if tensor.dim() < 2 else tensor + size * tensor.std() * add(name, torch.zeros_like(tensor))
        )

    return write_like(source, to, changed(tensors_of(source), change))


@pytest.fixture(scope="module")
def broken(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noisy(demo / "model", tmp_path_factory.mktemp("broken") / "broken", 0.6)


def towards(demo: Path, model: Path, **options: Any) -> MergePlan:
    """The demo with a part of its difference from another model."""
    return MergePlan("task_arithmetic", (Input(model),), base=demo / "model", **options)


def check_named(report: Any, name: str) -> Any:
    (check,) = [check for check in report.checks if check.name == name]
    return check


# The set


def test_the_set_of_the_package_covers_seven_languages() -> None:
    whole = GuardSet.default()
    assert whole.languages == ["de", "en", "es", "fr", "it", "pt", "zh"]
    for entries in (whole.refusals, whole.formats, whole.replies):
        counts = {language: sum(e.language == language for e in entries) for language in whole.languages}
        assert len(set(counts.values())) == 1 and min(counts.values()) >= 2, counts
        assert len({e.prompt for e in entries}) == len(entries)
    for choice in (*whole.refusals, *whole.formats):
        assert choice.wanted and choice.unwanted and not set(choice.wanted) & set(choice.unwanted)
        assert all(text.strip() == text and text for text in (*choice.wanted, *choice.unwanted))
    assert all(reply.answer.strip() for reply in whole.replies) and len(whole.neutral) == 7
    assert str(whole).startswith("everyday manners: ") and "in de, en, es" in str(whole)


def test_a_set_comes_back_as_it_was_written(desk: GuardSet, tmp_path: Path) -> None:
    for each in (desk, GuardSet.default()):
        (tmp_path / "set.json").write_text(json.dumps(each.to_dict()), "utf-8")
        assert GuardSet.load(tmp_path / "set.json") == each
    assert GuardSet.from_dict({"neutral": ["Text."]}) == GuardSet("a guard", neutral=("Text.",))


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], "set: expected an object, got list"),
        ({}, "'a guard': expected something to check, got nothing"),
        ({"schema": "modicum.tune.guard/2"}, r"schema: expected 'modicum\.tune\.guard/1'"),
        ({"rules": []}, "set: expected some of formats.*got 'rules'"),
        ({"name": 3, "neutral": ["a"]}, "set: name: expected text, got 3"),
        ({"refusals": {}}, "refusals: expected a list, got dict"),
        ({"refusals": [3]}, "refusals: expected an object, got int"),
        ({"refusals": [{**ENTRY, "prompt": " "}]}, "refusals: prompt: expected text, got ' '"),
        ({"refusals": [{**ENTRY, "wanted": []}]}, r"refusals: wanted: expected at least one text, got \[\]"),
        ({"refusals": [{**ENTRY, "wanted": "Me"}]}, "wanted: expected a list, got str"),
        ({"formats": [{**ENTRY, "unwanted": [""]}]}, "formats: unwanted: expected at least one text"),
        ({"formats": [{**ENTRY, "langauge": "en"}]}, "formats: expected some of .*got 'langauge'"),
        ({"replies": [{"prompt": "a"}]}, "replies: answer: expected text, got None"),
        ({"replies": [{"prompt": "a", "answer": "b", "system": 1}]}, "replies: system: expected text"),
        ({"neutral": ["  "]}, "neutral: expected texts"),
        ({"neutral": "text"}, "neutral: expected a list, got str"),
    ],
)
def test_what_is_no_set_is_refused_by_field(document: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(json.dumps(document))
    with pytest.raises(mo.FormatError, match=message):
        Guard(checks=tmp_path / "set.json")


@pytest.mark.parametrize("text", ["{", "", "[" * 100_000, "\xff"])
def test_files_that_are_no_json_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "set.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(mo.FormatError, match=r"set\.json.*expected JSON"):
        GuardSet.load(tmp_path / "set.json")
    with pytest.raises(mo.IoError, match=r"none\.json.*No such file"):
        GuardSet.load(tmp_path / "none.json")


# A verdict


def test_a_model_is_as_it_is(demo: Path, desk: GuardSet) -> None:
    report = Guard(checks=desk).judge(demo / "model", demo / "model", threads=1)
    assert report.passed and report.alpha is None and report.name == "desk"
    for check in report.checks:
        assert check.passed and check.value == check.reference == check.before, check
    assert [check.name for check in report.checks] == [
        "chat template kept",
        "end of turn, log p",
        "refusal margin",
        "refusals kept",
        "format margin",
        "formats kept",
        "neutral text, KL",
    ]
    assert check_named(report, "refusal margin").value > 0
    assert check_named(report, "refusals kept").limit == "≥ 0.9 of 2"
    assert check_named(report, "neutral text, KL").value == pytest.approx(0, abs=1e-9)
    assert report.by_language["reply"]["en"] == [check_named(report, "end of turn, log p").value] * 3
    assert "guard “desk”: passed" in str(report) and "passed" in report._repr_html_()


def test_margins_are_those_of_the_likelihoods(demo: Path, desk: GuardSet) -> None:
    model = mo.load(demo / "model", threads=1)
    found = mo.tune.measure_manners(model, desk, reference=model)

    def log_probability(before: list[int], text: list[int]) -> float:
        total = 0.0
        for i, token in enumerate(text):
            row = model.logits([*before, *text[:i]])[-1].astype(np.float64)
            total += row[token] - np.logaddexp.reduce(row)
        return total

    choice = desk.refusals[0]
    asked = model.chat_prompt(
        [{"role": "system", "content": choice.system}, {"role": "user", "content": choice.prompt}]
    )
    wanted, unwanted = (
        log_probability(asked, model.tokenizer.encode(texts[0], add_special_tokens=False))
        for texts in (choice.wanted, choice.unwanted)
    )
    assert found.values("refusal")[0] == pytest.approx(wanted - unwanted, abs=0.02)
    reply = desk.replies[0]
    asked = model.chat_prompt(
        [{"role": "system", "content": reply.system}, {"role": "user", "content": reply.prompt}]
    )
    asked += model.tokenizer.encode(reply.answer, add_special_tokens=False)
    end = log_probability(asked, [model.config.eos_token_ids[0]])
    assert found.values("reply")[0] == pytest.approx(end, abs=0.02)
    assert found.neutral_loss is not None and 0 < found.neutral_loss < 8


def test_a_broken_model_fails_and_it_is_said_by_what(demo: Path, desk: GuardSet, broken: Path) -> None:
    report = Guard(demo / "model", checks=desk).judge(broken, threads=1)
    assert not report.passed
    failed = {check.name for check in report.checks if check.passed is False}
    assert {"neutral text, KL", "formats kept"} <= failed and "chat template kept" not in failed
    kl = check_named(report, "neutral text, KL")
    assert kl.reference == 0 and kl.value > 0.5 and kl.limit == "≤ 0.5"
    assert "FAILED" in str(report) and "← too far" in str(report)
    wide = Limits(ending=99, refusal=99, format=99, lost=1, kl=99)
    assert Guard(demo / "model", checks=desk, limits=wide).judge(broken, threads=1).passed
    document = json.loads(json.dumps(report.to_dict()))
    assert document["schema"] == "modicum.tune.guarded/1" and document["limits"]["kl"] == 0.5


def test_a_model_that_computes_no_numbers_fails(demo: Path, desk: GuardSet, tmp_path: Path) -> None:
    huge = {n: t * 1e30 if "down_proj" in n else t for n, t in tensors_of(demo / "model").items()}
    write_like(demo / "model", tmp_path / "huge", huge)
    report = Guard(demo / "model", checks=desk).judge(tmp_path / "huge", threads=1)
    assert not report.passed


def test_another_template_fails(demo: Path, desk: GuardSet, tmp_path: Path) -> None:
    other = write_like(demo / "model", tmp_path / "other", tensors_of(demo / "model"))
    config = json.loads((other / "tokenizer_config.json").read_text())
    config["chat_template"] = config["chat_template"].replace("<|end|>", "")
    (other / "tokenizer_config.json").write_text(json.dumps(config))
    check = check_named(Guard(demo / "model", checks=desk).judge(other, threads=1), "chat template kept")
    assert (check.value, check.passed) == (0.0, False)


def test_what_is_no_instruct_model_is_refused(demo: Path, desk: GuardSet, tmp_path: Path) -> None:
    plain = without_template(demo / "model", tmp_path / "plain")
    with pytest.raises(
        mo.InvalidArgument, match="expected an instruct model, got one without a chat template"
    ):
        Guard(plain, checks=desk).judge(demo / "model")
    with pytest.raises(mo.InvalidArgument, match="expected a chat template in the result"):
        Guard(demo / "model", checks=desk).judge(plain)
    with pytest.raises(mo.InvalidArgument, match="reference: expected an instruct model"):
        Guard(checks=desk).judge(demo / "model")


def test_what_the_reference_does_not_keep_to_is_not_asked(demo: Path) -> None:
    odd = GuardSet("odd", refusals=(Choice("When?", ("Blue whale blue",), ("9:00 to 17:30",)),))
    check = check_named(Guard(demo / "model", checks=odd).judge(demo / "model"), "refusals kept")
    assert check.passed is None and check.note == "the instruct model keeps to none"


def test_a_domain_is_compared_with_the_model_that_is_built_upon(
    demo: Path, desk: GuardSet, broken: Path
) -> None:
    guard = Guard(demo / "model", checks=desk, domain=[demo / "handbook"])
    check = check_named(guard.judge(demo / "model", threads=1), "domain, perplexity")
    assert check.passed and check.value == check.before == check.reference and check.value > 1
    check = check_named(guard.judge(broken, threads=1), "domain, perplexity")
    assert check.passed is False and check.value > 1.1 * check.before
    check = check_named(guard.judge(demo / "model", before=broken, threads=1), "domain, perplexity")
    assert check.passed and check.before > check.value
    ids = np.arange(300, dtype=np.int32).reshape(2, 150)
    report = Guard(demo / "model", checks=desk, domain=ids).judge(demo / "model", threads=1)
    exact = mo.retrofit.perplexity(mo.load(demo / "model"), ids)
    exact = exact if isinstance(exact, float) else math.exp(exact.loss)
    assert check_named(report, "domain, perplexity").value == pytest.approx(exact, rel=1e-3)
    with pytest.raises(mo.Error, match=r"none\.txt"):
        Guard(demo / "model", checks=desk, domain="none.txt").judge(demo / "model")


# Merging under a guard


def without_template(source: Path, to: Path) -> Path:
    write_like(source, to, tensors_of(source))
    config = json.loads((to / "tokenizer_config.json").read_text())
    del config["chat_template"]
    (to / "tokenizer_config.json").write_text(json.dumps(config))
    return to


def test_a_merge_that_behaves_is_written_at_the_strength_of_the_plan(
    demo: Path, desk: GuardSet, tmp_path: Path
) -> None:
    base = without_template(noisy(demo / "model", tmp_path / "noisy", 0.3), tmp_path / "base")
    onto = noisy(base, tmp_path / "onto", 0.01, 2)
    plan = chat_vector(base, demo / "model", onto)
    before = names(tmp_path)
    report = mo.merge(plan, tmp_path / "out", guard=Guard(checks=desk), threads=1)
    assert report.guard is not None and report.guard.passed and report.guard.alpha == 1.0
    assert [(t.alpha, t.passed, t.failed) for t in report.guard.trials] == [(1.0, True, [])]
    assert names(tmp_path) == sorted([*before, "out"]) and report.out == str(tmp_path / "out")
    mo.merge(plan, tmp_path / "plain", threads=1)
    guarded, plain = digests(tmp_path / "out"), digests(tmp_path / "plain")
    assert json.loads((tmp_path / "out" / "guard.json").read_text()) == json.loads(
        json.dumps(report.guard.to_dict())
    )
    del guarded["guard.json"]
    assert guarded == plain
    # The base has no template, and is not asked how it behaves.
    assert all(check.before is None for check in report.guard.checks)
    assert "guard “desk” at α = 1: passed" in str(report)
    json.dumps(report.to_dict())


@pytest.fixture(scope="module")
def searched(
    demo: Path, desk: GuardSet, broken: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """A merge of which only a part behaves."""
    out = tmp_path_factory.mktemp("searched") / "out"
    guard = Guard(demo / "model", checks=desk)
    return out, mo.merge(towards(demo, broken), out, guard=guard, threads=1)


def test_the_largest_strength_that_behaves_is_found(
    searched: tuple[Path, Any], demo: Path, broken: Path
) -> None:
    out, report = searched
    verdict = report.guard
    assert verdict.passed and 0 < verdict.alpha < 1 and report.plan.lambda_ == verdict.alpha
    passed = [t.alpha for t in verdict.trials if t.passed]
    failed = [t.alpha for t in verdict.trials if not t.passed]
    assert verdict.trials[0].alpha == 1.0 and not verdict.trials[0].passed
    assert max(passed) == verdict.alpha
    assert min(alpha for alpha in failed if alpha > verdict.alpha) <= verdict.alpha + 0.02
    assert all(t.failed for t in verdict.trials if not t.passed)
    assert names(out.parent) == ["out"] and "guard.json" in names(out)
    plain = out.parent / "plain"
    mo.merge(towards(demo, broken).at(verdict.alpha), plain)
    assert equal(tensors_of(out), tensors_of(plain))
    merged = json.loads((out / "merge.json").read_text())
    assert merged["plan"]["lambda"] == verdict.alpha
    assert "tried α: 1 ✗" in str(report)


def test_strengths_of_a_plan_with_its_own_are_parts_of_it(
    searched: tuple[Path, Any], demo: Path, desk: GuardSet, broken: Path, tmp_path: Path
) -> None:
    found = searched[1].guard.alpha
    guard = Guard(demo / "model", checks=desk)
    report = mo.merge(towards(demo, broken, lambda_=0.5), tmp_path / "half", guard=guard, threads=1)
    assert report.guard is not None and report.guard.alpha == pytest.approx(found, abs=0.021)
    report = mo.merge(towards(demo, broken), tmp_path / "given", guard=guard, alpha=0.5 * found, threads=1)
    assert report.guard is not None and report.guard.alpha == 0.5 * found
    slerp = MergePlan("slerp", (Input(broken),), base=demo / "model", t=0.9)
    report = mo.merge(slerp, tmp_path / "slerp", guard=guard, threads=1)
    assert report.guard is not None and 0 < report.guard.alpha < 0.9 and report.plan.t == report.guard.alpha


def test_where_nothing_behaves_nothing_is_written(
    demo: Path, desk: GuardSet, broken: Path, tmp_path: Path
) -> None:
    few = GuardSet("few", neutral=desk.neutral)
    guard = Guard(demo / "model", checks=few, limits=Limits(kl=-1.0))
    with pytest.raises(
        GuardError, match=r"“few”: expected a result within its limits, got none .*neutral text, KL too far"
    ) as told:
        mo.merge(towards(demo, broken), tmp_path / "out", guard=guard, threads=1)
    report = told.value.report
    tried = [trial.alpha for trial in report.trials]
    assert tried[0] == 1.0 == max(tried) and 0 < min(tried) <= 0.25 and len(set(tried)) == len(tried)
    assert not any(trial.passed for trial in report.trials)
    assert isinstance(told.value, mo.Error) and not report.passed
    assert names(tmp_path) == []
    for options in ({"search": False}, {}):
        plan = towards(demo, broken)
        if not options:  # one number that can be lowered is what is searched
            plan = MergePlan("linear", (Input(broken), Input(broken)))
        with pytest.raises(GuardError) as told:
            mo.merge(plan, tmp_path / "out", guard=Guard(demo / "model", checks=desk), threads=1, **options)
        assert [t.alpha for t in told.value.report.trials] == [1.0]
        assert names(tmp_path) == []


def test_what_is_there_is_kept_and_what_is_missing_is_told(
    demo: Path, desk: GuardSet, tmp_path: Path
) -> None:
    plan = towards(demo, demo / "model")
    guard = Guard(demo / "model", checks=desk)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(mo.InvalidArgument, match="holds something"):
        mo.merge(plan, tmp_path / "out", guard=guard)
    with pytest.raises(mo.InvalidArgument, match="reference: expected an instruct model"):
        mo.merge(plan, tmp_path / "other", guard=Guard(checks=desk))
    with pytest.raises(mo.Error, match="none"):
        mo.merge(plan, tmp_path / "other", guard=Guard(tmp_path / "none", checks=desk))
    with pytest.raises(mo.Error, match="none"):
        mo.merge(towards(demo, tmp_path / "none"), tmp_path / "other", guard=guard)
    assert names(tmp_path) == ["out"] and names(tmp_path / "out") == ["thesis.txt"]
    (tmp_path / "empty").mkdir()
    mo.merge(plan, tmp_path / "empty", guard=guard, threads=1)
    mo.merge(plan, tmp_path / "a" / "b", guard=guard, threads=1)
    (tmp_path / "work").mkdir()
    mo.merge(plan, tmp_path / "c", guard=guard, work=tmp_path / "work", threads=1)
    assert names(tmp_path) == ["a", "c", "empty", "out", "work"]
    assert names(tmp_path / "work") == [] and names(tmp_path / "a") == ["b"]
    assert digests(tmp_path / "empty") == digests(tmp_path / "c") == digests(tmp_path / "a" / "b")


@pytest.mark.parametrize("stage", ["merge", "guard"])
def test_a_guarded_merge_that_is_stopped_leaves_nothing(
    stage: str, demo: Path, desk: GuardSet, tmp_path: Path
) -> None:
    told: list[str] = []

    def progress(at: str, *_: int) -> bool:
        told.append(at)
        # The reference is asked first: stop at the result.
        return not (at == stage and (stage == "merge" or "merge" in told))

    with pytest.raises(mo.Cancelled):
        guard = Guard(demo / "model", checks=desk)
        mo.merge(towards(demo, demo / "model"), tmp_path / "out", guard=guard, progress=progress)
    assert told[-1] == stage and names(tmp_path) == []


RUN = """
import sys
import modicum as mo
from modicum.tune import Guard, Input, MergePlan
model, broken, checks, out = sys.argv[1:]
def progress(stage, done, total):
    if stage == "merge" and done == total:
        print("merged", flush=True)
        sys.stdin.readline()
    return True
plan = MergePlan("task_arithmetic", (Input(broken),), base=model)
mo.merge(plan, out, guard=Guard(model, checks=checks), threads=1, progress=progress)
print("done", flush=True)
"""


def test_a_guarded_merge_is_alone_and_one_that_was_killed_is_swept(
    searched: tuple[Path, Any], demo: Path, desk: GuardSet, broken: Path, tmp_path: Path
) -> None:
    checks = tmp_path / "set.json"
    checks.write_text(json.dumps(desk.to_dict()), "utf-8")
    folder = tmp_path / "folder"
    folder.mkdir()
    words = [str(demo / "model"), str(broken), str(checks), str(folder / "out")]
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "merged\n"
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "merged\n"  # the second trial
    guard = Guard(demo / "model", checks=desk)
    with pytest.raises(mo.InvalidArgument, match="got another process at work on it"):
        mo.merge(towards(demo, broken), folder / "out", guard=guard, threads=1)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert names(folder) == [".out.guard"]
    mo.merge(towards(demo, broken), folder / "out", guard=guard, threads=1)
    assert names(folder) == ["out"] and digests(folder / "out") == digests(searched[0])
