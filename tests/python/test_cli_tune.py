# SPDX-License-Identifier: Apache-2.0
"""`modicum merge`, `extract-lora`, `project` and `guard`: what they write, print and refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import modicum as mo  # noqa: E402
from merging import (  # noqa: E402
    changed,
    digests,
    equal,
    names,
    noise,
    tensors_of,
    transformers_model,
    write_base,
    write_like,
    write_tuned,
)
from modicum.cli import main  # noqa: E402
from modicum.tune import GuardSet, Input, MergePlan, Reply, chat_vector  # noqa: E402


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, its chat model, and the base tuned on something else."""
    folder = tmp_path_factory.mktemp("three")
    base = write_base(folder / "base")
    return base, write_tuned(base, folder / "chat", 1), write_tuned(base, folder / "onto", 2)


@pytest.fixture(scope="module")
def tuned(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model with noise in its matrices."""
    add = noise(1, 0.004)

    def change(name: str, tensor: Any) -> Any:
        return tensor if tensor.dim() < 2 else add(name, tensor)

    tensors = changed(tensors_of(demo / "model"), change)
    return write_like(demo / "model", tmp_path_factory.mktemp("tuned") / "tuned", tensors)


@pytest.fixture
def checks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    replies = tuple(
        Reply(f"{word} is the reading room open?", "9:00 to 17:30", "Answer briefly.")
        for word in ("When", "How")
    )
    path = tmp_path_factory.mktemp("checks") / "set.json"
    desk = GuardSet("desk", replies=replies, neutral=("The reading room is open from 9:00 to 17:30.",))
    path.write_text(json.dumps(desk.to_dict()), "utf-8")
    return path


def words(*parts: object) -> list[str]:
    return [str(part) for part in parts]


def refused(capsys: pytest.CaptureFixture[str], *parts: object) -> str:
    """The one line on standard error."""
    assert main(words(*parts)) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("modicum: [") and err.count("\n") == 1, err
    return err


def printed(capsys: pytest.CaptureFixture[str], *parts: object) -> dict[str, Any]:
    """The one JSON object that is printed."""
    assert main(words(*parts, "--json")) == 0
    out, err = capsys.readouterr()
    assert err == ""
    facts: dict[str, Any] = json.loads(out)
    return facts


# merge


def test_a_chat_vector_by_flags(
    three: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, chat, onto = three
    flags = ["--base", base, "--chat", chat, "--onto", onto, "--alpha", 0.5, "--dtype", "f32"]
    assert main(words("merge", tmp_path / "a", *flags, "--threads", 1)) == 0
    out, err = capsys.readouterr()
    assert "onto + 0.5 × task_arithmetic(1 chat − base)" in out and str(tmp_path / "a") in out
    assert "q_proj" in out and err == ""
    plan = chat_vector(base, chat, onto, alpha=0.5, dtype="f32")
    facts = printed(capsys, "merge", tmp_path / "b", *flags)
    mo.merge(plan, tmp_path / "c")
    assert digests(tmp_path / "a") == digests(tmp_path / "b") == digests(tmp_path / "c")
    assert facts["schema"] == "modicum.tune.merged/1" and facts["plan"] == plan.to_dict()
    assert facts["tensors"] == len(tensors_of(base)) and facts["moved_share"] > 0.99
    assert facts["guard"] is None


def by_method(three: tuple[Path, ...], method: Any, **options: Any) -> MergePlan:
    base, chat, onto = three
    inputs = tuple(Input(model, weight=weight, density=0.5) for model, weight in ((chat, 0.25), (onto, 0.75)))
    return MergePlan(method, inputs, base=base, **options)


@pytest.mark.parametrize("method", ["ties", "dare_linear", "linear", "slerp", "task_arithmetic"])
def test_methods_by_flags(
    method: str, three: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, chat, onto = three
    flags = ["--models", chat, onto, "--method", method, "--weights", 0.25, 0.75]
    if method == "slerp":
        flags = ["--models", chat, "--method", method, "--t", 0.3, "--base", base]
        plan = MergePlan("slerp", (Input(chat),), base=base, t=0.3)
    elif method == "linear":
        plan = MergePlan("linear", (Input(chat, weight=0.25), Input(onto, weight=0.75)))
    elif method == "task_arithmetic":
        flags = ["--base", base, "--models", chat, onto]
        plan = MergePlan("task_arithmetic", (Input(chat), Input(onto)), base=base)
    else:
        flags += ["--base", base, "--density", 0.5, "--seed", 4, "--definition", "peft"]
        plan = by_method(three, method, seed=4, definition="peft")
    assert main(words("merge", *flags, "--", tmp_path / "a")) == 0
    mo.merge(plan, tmp_path / "b")
    assert equal(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))
    assert main(words("merge", tmp_path / "c", *flags)) == 0
    assert digests(tmp_path / "a") == digests(tmp_path / "c")


def test_a_plan_from_a_file_and_what_is_said_beside_it(
    three: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, chat, _ = three
    plan = by_method(three, "dare_ties")
    (tmp_path / "plan.json").write_text(plan.to_json())
    beside = ["--dtype", "f16", "--seed", 5, "--alpha", 0.5, "--definition", "peft"]
    assert main(words("merge", tmp_path / "plan.json", tmp_path / "a", *beside)) == 0
    mo.merge(
        by_method(three, "dare_ties", dtype="f16", seed=5, lambda_=0.5, definition="peft"), tmp_path / "b"
    )
    assert equal(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))
    (tmp_path / "mergekit.yml").write_text(
        f"merge_method: slerp\nbase_model: {base}\nmodels:\n  - model: {base}\n  - model: {chat}\n"
        "parameters: {t: 0.25}\ndtype: bfloat16\n"
    )
    assert main(words("merge", tmp_path / "mergekit.yml", tmp_path / "c")) == 0
    assert "slerp from base to chat, t 0.25" in capsys.readouterr().out
    mo.merge(MergePlan("slerp", (Input(chat),), base=base, t=0.25, dtype="bf16"), tmp_path / "d")
    assert equal(tensors_of(tmp_path / "c"), tensors_of(tmp_path / "d"))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "PLAN: expected a plan, --chat with --base and --onto"),
        (["--chat", "b"], "--base: expected a model directory, got none"),
        (["--chat", "b", "--base", "a"], "--onto: expected a model directory, got none"),
        (["--chat", "b", "--base", "a", "--onto", "c", "--t", "1"], "--t: expected none with --chat"),
        (["--lora", "b"], "--base: expected a model directory, got none"),
        (["--lora", "b", "--base", "a", "--density", "1"], "--density: expected none with --lora"),
        (["--models", "a", "b", "--weights", "1"], "--weights: expected 2, got 1"),
        (["--models", "a", "--method", "tis", "--base", "b"], "method: expected one of linear"),
        (["--models", "a", "--method", "ties"], "base of ties: expected a model"),
        (["--models", "a", "b", "--method", "linear", "--alpha", "1"], "alpha: expected a method that adds"),
        (["--models", "a", "--base", "b", "--density", "2"], "density: expected 0 to 1, got 2"),
        (["--models", "no-such-model", "--base", "b"], "'b'"),
        (["--reference", "a", "--chat", "b", "--base", "a", "--onto", "c"], "expected --guard with them"),
        (["--limit", "kl=1", "--chat", "b", "--base", "a", "--onto", "c"], "expected --guard with them"),
        (
            ["--guard", "--limit", "kl", "--chat", "b", "--base", "a", "--onto", "c"],
            "--limit: expected NAME=NUMBER",
        ),
        (
            ["--guard", "--limit", "tone=1", "--chat", "b", "--base", "a", "--onto", "c"],
            "a name of ending, refusal",
        ),
        (
            ["--guard", "--patch", "4", "--chat", "b", "--base", "a", "--onto", "c"],
            "--patch: expected no --guard",
        ),
        (["--guard", "no-set.json", "--chat", "b", "--base", "a", "--onto", "c"], "no-set.json"),
    ],
)
def test_what_cannot_be_merged_is_refused_in_one_line(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, "merge", tmp_path / "out", *flags)
    assert names(tmp_path) == []


def test_flags_beside_a_plan_that_say_it_again_are_refused(
    three: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plan.json").write_text(chat_vector(*three).to_json())
    said = refused(capsys, "merge", tmp_path / "plan.json", tmp_path / "out", "--chat", three[1])
    assert "--chat: expected none beside a plan, got one" in said
    said = refused(capsys, "merge", tmp_path / "none.json", tmp_path / "out")
    assert "none.json" in said
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    assert "holds something" in refused(capsys, "merge", tmp_path / "plan.json", tmp_path / "out")
    assert names(tmp_path / "out") == ["thesis.txt"]


@pytest.mark.parametrize(
    "flags",
    [["--dtype", "f64"], ["--vocabulary", "some"], ["--threads", "0"], ["--alpha", "much"], ["--patch", "0"]],
)
def test_wrong_words_are_wrong_usage(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(words("merge", "plan.json", tmp_path / "out", *flags))
    assert ended.value.code == 2 and flags[0] in capsys.readouterr().err


def test_a_patch_is_an_adapter_that_folds_in_again(
    three: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, chat, onto = three
    flags = ["--base", base, "--chat", chat, "--onto", onto]
    facts = printed(capsys, "merge", tmp_path / "patch", *flags, "--patch", 32)
    assert facts["schema"] == "modicum.tune.patch/1" and facts["error"] < 1e-5
    assert "adapter_config.json" in names(tmp_path / "patch")
    assert main(words("merge", tmp_path / "folded", "--base", onto, "--lora", tmp_path / "patch")) == 0
    assert main(words("merge", tmp_path / "merged", *flags)) == 0
    folded, merged = tensors_of(tmp_path / "folded"), tensors_of(tmp_path / "merged")
    for name, tensor in merged.items():
        assert torch.allclose(folded[name].float(), tensor.float(), rtol=2**-7, atol=1e-6), name
    capsys.readouterr()
    assert main(words("merge", tmp_path / "small", *flags, "--patch", 2)) == 0
    assert "21 linear layers with 2 factors" in capsys.readouterr().out


def test_a_merge_under_a_guard(
    demo: Path, tuned: Path, checks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--base", demo / "model", "--models", tuned, "--guard", checks, "--reference", demo / "model"]
    domain = ["--domain", demo / "handbook"]
    wide = ["--limit", "kl=5", "--limit", "ending=20", "--limit", "domain=9"]
    facts = printed(capsys, "merge", tmp_path / "a", *flags, *domain, *wide)
    assert facts["guard"]["passed"] and facts["guard"]["limits"]["kl"] == 5.0
    assert [check["name"] for check in facts["guard"]["checks"]][-1] == "domain, perplexity"
    assert names(tmp_path) == ["a"] and "guard.json" in names(tmp_path / "a")
    assert main(words("merge", tmp_path / "b", *flags, *wide)) == 0
    assert "guard “desk” at α = 1: passed" in capsys.readouterr().out
    said = refused_under_guard(capsys, "merge", tmp_path / "c", *flags, "--limit", "kl=0", "--no-search")
    assert "neutral text, KL" in said and names(tmp_path) == ["a", "b"]
    assert main(words("merge", tmp_path / "d", *flags, "--limit", "kl=0.001", "--limit", "ending=99")) == 0
    assert "tried α: 1 ✗" in capsys.readouterr().out


def refused_under_guard(capsys: pytest.CaptureFixture[str], *parts: object) -> str:
    """The last line on standard error, after those of progress."""
    assert main(words(*parts)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    line = err.splitlines()[-1]
    assert line.startswith("modicum: [guard]")
    return line


# extract-lora


def test_an_adapter_is_extracted(
    three: tuple[Path, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, chat, _ = three
    command = ["extract-lora", base, chat]
    assert main(words(*command, tmp_path / "a", "--rank", 4, "--others", "drop", "--threads", 1)) == 0
    said = capsys.readouterr().out
    assert "21 linear layers with 4 factors" in said and "left out: " in said
    facts = printed(capsys, *command, tmp_path / "b", "--rank", 32, "--error", 0.3, "--dtype", "bf16")
    assert all(module["errors"][-1] <= 0.3 for module in facts["modules"]) and facts["whole"]
    ranks = {module["rank"] for module in facts["modules"]}
    assert max(ranks) < 32
    with_defaults = mo.tune.extract_lora(base, chat, tmp_path / "c")
    assert main(words(*command, tmp_path / "d")) == 0
    assert with_defaults.modules[0].rank == 16
    assert digests(tmp_path / "c") == digests(tmp_path / "d")
    capsys.readouterr()
    assert "holds something" in refused(capsys, *command, tmp_path / "d")
    assert "'none'" in refused(capsys, "extract-lora", base, "none", tmp_path / "e")
    assert "error: expected 0 to 1" in refused(capsys, *command, tmp_path / "e", "--error", -1)
    assert not (tmp_path / "e").exists()


# guard


def test_a_verdict_on_a_model(
    demo: Path, tuned: Path, checks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["guard", demo / "model", demo / "model", "--set", checks, "--domain", demo / "handbook"]
    facts = printed(capsys, *command)
    assert facts["schema"] == "modicum.tune.guarded/1" and facts["passed"] and facts["alpha"] is None
    assert main(words(*command, "--threads", 1)) == 0
    assert "guard “desk”: passed" in capsys.readouterr().out
    assert "none.json" in refused(capsys, "guard", tuned, tuned, "--set", "none.json")
    assert "--limit: expected NAME=NUMBER" in refused(capsys, *command, "--limit", "kl=much")
    assert "'none'" in refused(capsys, "guard", "none", demo / "model", "--set", checks)


def test_a_model_that_fails_ends_the_command_with_1(
    demo: Path, tuned: Path, checks: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["guard", tuned, demo / "model", "--set", checks, "--limit", "kl=0"]
    assert main(words(*command)) == 1
    out, err = capsys.readouterr()
    assert "guard “desk”: FAILED" in out
    assert (
        err == "modicum: [guard] “desk”: expected a result within its limits, got neutral text, KL too far\n"
    )
    assert main(words(*command, "--json")) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


# project


def test_an_update_is_projected_end_to_end(
    demo: Path, tuned: Path, checks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["project", demo / "model", tuned]
    facts = printed(capsys, *command, tmp_path / "a", "--protect", checks, "--energy", 0.9, "--threads", 1)
    assert facts["schema"] == "modicum.tune.projected/1" and facts["tokens"] > 40
    assert len(facts["modules"]) == 6 * 7 and 0 < facts["kept"] < 1
    for module in facts["modules"]:
        assert 0 < module["directions"] < module["inputs"] and 0 < module["kept"] < 1
        assert module["after"] < 0.5 * module["before"], module
    before, after, whole = map(tensors_of, (demo / "model", tmp_path / "a", tuned))
    update = {name: after[name].float() - before[name].float() for name in before}
    for module in facts["modules"]:
        name = module["module"] + ".weight"
        kept = update[name].norm() / (whole[name].float() - before[name].float()).norm()
        assert kept.item() == pytest.approx(module["kept"], rel=0.05), name  # stored in bf16
    assert torch.equal(after["model.embed_tokens.weight"], whole["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "a" / "project.json").read_text())["energy"] == 0.9
    transformers_model(tmp_path / "a")
    # Nearer to the instruct model on what is protected than the update as it was.
    guard = mo.tune.Guard(demo / "model", checks=checks)

    def distance(model: Path) -> float:
        values = {c.name: c for c in guard.judge(model, threads=1).checks}["end of turn, log p"]
        assert values.value is not None and values.reference is not None
        return abs(values.value - values.reference)

    assert distance(tmp_path / "a") < distance(tuned)
    assert main(words(*command, tmp_path / "b", "--protect", checks, "--energy", 0.9, "--threads", 1)) == 0
    said = capsys.readouterr().out
    assert "42 linear layers" in said and f"{facts['kept']:.1%} of the update left" in said
    assert equal(tensors_of(tmp_path / "a"), tensors_of(tmp_path / "b"))


def test_all_or_nothing_may_be_protected(demo: Path, tuned: Path, tmp_path: Path) -> None:
    ids = [[1, 5, 6, 7], [1, 9, 8, 7, 6, 5]]
    mo.tune.project(demo / "model", tuned, tmp_path / "nothing", protect=ids, energy=0, threads=1)
    assert equal(tensors_of(tmp_path / "nothing"), tensors_of(tuned))
    report = mo.tune.project(
        demo / "model", tuned, tmp_path / "all", protect=ids, energy=1, others=False, threads=1
    )
    assert report.tokens == 8 and max(module.directions for module in report.modules) == 8
    found, before = tensors_of(tmp_path / "all"), tensors_of(demo / "model")
    assert torch.equal(found["model.embed_tokens.weight"], before["model.embed_tokens.weight"])
    assert all(module.after < 0.02 * module.before for module in report.modules)


def test_outputs_on_protected_text_stay(demo: Path, tuned: Path, tmp_path: Path) -> None:
    text = "The reading room is open from 9:00 to 17:30 on all days but Mondays."
    ids = [1, *mo.load(demo / "model").tokenizer.encode(text, add_special_tokens=False)]
    mo.tune.project(demo / "model", tuned, tmp_path / "out", protect=[ids], energy=1, others=False, threads=1)
    instruct, projected, changed_ = (
        mo.load(folder, dtype="f32", threads=1).logits(ids)
        for folder in (demo / "model", tmp_path / "out", tuned)
    )
    # Less the first token, which is never protected, and through rounding to bf16.
    assert np.abs(projected - instruct)[1:].mean() < 0.3 * np.abs(changed_ - instruct)[1:].mean()


def test_an_adapter_may_be_projected(
    demo: Path, tuned: Path, checks: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mo.tune.extract_lora(demo / "model", tuned, tmp_path / "lora", rank=4, others="drop", threads=1)
    command = [
        "project",
        demo / "model",
        tmp_path / "out",
        "--lora",
        tmp_path / "lora",
        "--protect",
        checks,
        "--threads",
        1,
    ]
    assert printed(capsys, *command)["kept"] < 1
    mo.tune.merge_lora(demo / "model", tmp_path / "lora", tmp_path / "folded")
    assert not equal(tensors_of(tmp_path / "out"), tensors_of(tmp_path / "folded"))
    said = refused(capsys, "project", demo / "model", tmp_path / "no")
    assert "TUNED: expected a tuned model or --lora, got both or neither" in said
    said = refused(capsys, "project", demo / "model", tuned, tmp_path / "no", "--lora", tmp_path / "lora")
    assert "got both or neither" in said
    assert names(tmp_path) == ["folded", "lora", "out"]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"energy": -0.1}, mo.InvalidArgument, "energy: expected 0 to 1"),
        ({"energy": 1.5}, mo.InvalidArgument, "energy: expected 0 to 1"),
        ({"energy": float("nan")}, mo.InvalidArgument, "energy: expected 0 to 1"),
        ({"protect": []}, mo.InvalidArgument, "protect: expected conversations of at least two tokens"),
        ({"protect": [[1]]}, mo.InvalidArgument, "protect: expected conversations of at least two tokens"),
        ({"protect": [[1, 5000]]}, mo.InvalidArgument, "token: expected 0 to 2047, got 5000"),
        ({"protect": [[1, -1]]}, mo.InvalidArgument, "token: expected 0 to .*, got -1"),
        ({"protect": [[1, 2**40]]}, mo.InvalidArgument, "token"),
        ({"protect": [[1] * 3000]}, mo.ContextOverflow, "at most 2048"),
        ({"threads": 0}, mo.InvalidArgument, "threads"),
        ({"shard_bytes": -1}, mo.InvalidArgument, "shard_bytes"),
        ({"adapter": "none"}, mo.IoError, "none"),
        ({"progress": lambda *_: False}, mo.Cancelled, ""),
    ],
)
def test_a_projection_that_cannot_be_is_refused(
    options: dict[str, Any], error: Any, message: str, demo: Path, tuned: Path, tmp_path: Path
) -> None:
    given = {"protect": [[1, 5, 6]], **options}
    with pytest.raises(error, match=message):
        mo.tune.project(demo / "model", tuned, tmp_path / "out", **given)
    assert names(tmp_path) == []


def test_a_projection_between_other_models_is_refused(
    demo: Path, tuned: Path, three: tuple[Path, ...], tmp_path: Path
) -> None:
    with pytest.raises(mo.InvalidArgument, match="hidden_size"):
        mo.tune.project(demo / "model", three[0], tmp_path / "out", protect=[[1, 5]])
    with pytest.raises(mo.Error, match=r"expected a chat template, got none"):
        mo.tune.project(three[0], three[1], tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(mo.InvalidArgument, match="holds something"):
        mo.tune.project(demo / "model", tuned, tmp_path / "out", protect=[[1, 5]])
    assert names(tmp_path / "out") == ["thesis.txt"] and names(tmp_path) == ["out"]
