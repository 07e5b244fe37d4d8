# SPDX-License-Identifier: Apache-2.0
"""Merging: what comes out is what the formula says, rounded once, of the tokens that it says, and loads."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
yaml = pytest.importorskip("yaml")

import modicum as mo  # noqa: E402
from merging import (  # noqa: E402
    DTYPES,
    IDS,
    changed,
    config_of,
    equal,
    logits_of,
    names,
    noise,
    tensors_of,
    transformers_model,
    write_base,
    write_like,
    write_tokens,
    write_tuned,
)
from modicum.tune import Input, MergePlan, chat_vector  # noqa: E402


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, its chat model, and the base tuned on something else, in bf16."""
    folder = tmp_path_factory.mktemp("three")
    base = write_base(folder / "base", "Qwen2")
    return base, write_tuned(base, folder / "chat", 1), write_tuned(base, folder / "onto", 2)


def added(onto: Path, chat: Path, base: Path, *, alpha: float = 1.0, dtype: Any = None) -> dict[str, Any]:
    """onto + alpha · (chat − base) in f32, rounded once."""
    to, plus, minus = map(tensors_of, (onto, chat, base))
    out = {}
    for name, tensor in to.items():
        delta = plus[name].float() - minus[name].float()
        out[name] = (tensor.float() + alpha * delta).to(dtype or tensor.dtype)
    return out


# What it computes


@pytest.mark.parametrize("alpha", [1.0, 0.5, -0.25, 0.0])
def test_a_chat_vector_is_added(alpha: float, three: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = three
    report = mo.merge(chat_vector(base, chat, onto, alpha=alpha), tmp_path / "out", threads=1)
    assert equal(tensors_of(tmp_path / "out"), added(onto, chat, base, alpha=alpha))
    assert report.tensors == len(tensors_of(onto)) and report.out == str(tmp_path / "out")
    assert names(tmp_path) == ["out"]


def test_a_strength_is_a_part_of_the_plan_or_given_beside_it(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = three
    plan = chat_vector(base, chat, onto)
    mo.merge(plan.at(0.3), tmp_path / "at")
    report = mo.merge(plan, tmp_path / "beside", alpha=0.3)
    assert report.plan == plan.at(0.3) and plan.lambda_ == 1.0
    expected = added(onto, chat, base, alpha=float(np.float32(0.3)))
    assert equal(tensors_of(tmp_path / "at"), expected)
    assert equal(tensors_of(tmp_path / "beside"), expected)
    slerp = MergePlan("slerp", (Input(chat),), base=base)
    assert slerp.at(0.1).t == 0.1 and slerp.at(0.1).lambda_ == 1.0
    with pytest.raises(
        mo.InvalidArgument, match="alpha: expected a method that adds differences, got linear"
    ):
        MergePlan("linear", (Input(chat), Input(base))).at(0.5)


@pytest.mark.parametrize("dtype", [None, "f32", "bf16", "f16"])
def test_models_of_several_types_are_rounded_once(dtype: Any, tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dtype="f32")
    chat = write_tuned(base, tmp_path / "chat", 1, dtype="bf16")
    onto = write_tuned(base, tmp_path / "onto", 2, dtype="f16")
    report = mo.merge(chat_vector(base, chat, onto, dtype=dtype), tmp_path / "out", threads=1)
    expected = added(onto, chat, base, dtype=DTYPES[dtype or "f16"])
    assert equal(tensors_of(tmp_path / "out"), expected)
    assert report.bytes == sum(tensor.nbytes for tensor in expected.values())
    stored = config_of(tmp_path / "out")
    if dtype is not None:
        assert DTYPES[dtype] == getattr(torch, stored.get("dtype") or stored["torch_dtype"])
    model = transformers_model(tmp_path / "out")
    assert np.isfinite(logits_of(model)).all()


def test_models_of_mixed_types_within_keep_them(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", dtype="f32")
    kinds = [torch.bfloat16, torch.float32, torch.float16]
    tensors = {n: t.to(kinds[i % 3]) for i, (n, t) in enumerate(sorted(tensors_of(base).items()))}
    onto = write_like(base, tmp_path / "onto", changed(tensors, noise(5)))
    chat = write_tuned(base, tmp_path / "chat", 1)
    mo.merge(chat_vector(base, chat, onto), tmp_path / "out", shard_bytes=20_000)
    assert equal(tensors_of(tmp_path / "out"), added(onto, chat, base))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 2


def test_what_is_merged_runs_as_weights_that_were_merged_by_hand(
    three: tuple[Path, ...], tmp_path: Path
) -> None:
    base, chat, onto = three
    mo.merge(chat_vector(base, chat, onto), tmp_path / "out", threads=1)
    by_hand = transformers_model(onto)
    tensors = {name: tensor.float() for name, tensor in added(onto, chat, base).items()}
    missing, unexpected = by_hand.load_state_dict(tensors, strict=False)
    assert not unexpected and set(missing) <= {"lm_head.weight"}
    expected = logits_of(by_hand)
    assert np.isfinite(expected).all()
    assert np.array_equal(logits_of(transformers_model(tmp_path / "out")), expected)
    ours = mo.load(tmp_path / "out", dtype="f32", threads=1).logits(IDS)
    assert np.abs(ours - expected).max() < 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("method", ["ties", "dare_ties", "breadcrumbs", "linear", "slerp"])
def test_neither_threads_nor_shards_nor_other_tensors_change_a_result(
    method: Any, threads: int, three: tuple[Path, ...], tmp_path: Path
) -> None:
    base, chat, onto = three
    inputs = (Input(chat, density=0.5), Input(onto, density=0.5))
    if method == "slerp":
        inputs = inputs[:1]
    plan = MergePlan(method, inputs, base=None if method == "linear" else base)
    mo.merge(plan, tmp_path / "one", threads=1)
    mo.merge(plan, tmp_path / "other", threads=threads, shard_bytes=9_000)
    assert equal(tensors_of(tmp_path / "one"), tensors_of(tmp_path / "other"))


# Changes that are too small


def test_changes_too_small_for_bf16_are_told_and_an_adapter_keeps_them(tmp_path: Path) -> None:
    pytest.importorskip("peft")
    import peft

    base = write_base(tmp_path / "base", dtype="f32")
    chat = write_tuned(base, tmp_path / "chat", 1, size=1e-4)
    rounded = {name: tensor.bfloat16() for name, tensor in tensors_of(base).items()}
    onto = write_like(base, tmp_path / "onto", rounded)
    plan = chat_vector(base, chat, onto)
    report = mo.merge(plan, tmp_path / "out", threads=1)
    before, after = tensors_of(onto), tensors_of(tmp_path / "out")
    moved = sum((before[name] != after[name]).sum().item() for name in before)
    assert report.moved_share == pytest.approx(moved / sum(t.numel() for t in before.values()), rel=1e-3)
    assert report.moved_share < 0.5 and "rounded away; keep them as an adapter (--patch)" in str(report)
    assert all(kind.cosine < 0.7 for kind in report.kinds if kind.kind == "q_proj")
    change = torch.cat([(tensors_of(chat)[n] - tensors_of(base)[n]).flatten() for n in before])
    kept = mo.tune.write_patch(plan, tmp_path / "patch", rank=64, threads=1)
    assert kept.error < 1e-5 and not kept.dropped
    model = transformers.AutoModelForCausalLM.from_pretrained(onto, dtype=torch.float32)
    patched = peft.PeftModel.from_pretrained(model, str(tmp_path / "patch")).merge_and_unload().state_dict()
    expected = added(onto, chat, base, dtype=torch.float32)
    linear = [name for name in expected if "_proj" in name]
    lost = torch.cat([(patched[n] - expected[n]).flatten() for n in linear]).norm()
    assert lost < 1e-3 * change.norm()
    # What is no matrix is stored as the model stores it, and so are its changes.
    dropped = mo.tune.write_patch(plan, tmp_path / "small", rank=2, others="drop", threads=1)
    assert set(dropped.dropped) == set(expected) - set(linear) and dropped.whole == []
    assert 0.5 < dropped.error < 1


def test_a_change_that_all_types_hold_moves_everything(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = three
    report = mo.merge(chat_vector(base, chat, onto, dtype="f32"), tmp_path / "out")
    assert report.moved_share > 0.999 and "rounded away" not in str(report)
    assert all(kind.cosine == pytest.approx(1, abs=1e-6) for kind in report.kinds)
    change = {name: tensor.float() for name, tensor in tensors_of(tmp_path / "out").items()}
    kinds = {kind.kind: kind for kind in report.kinds}
    old = tensors_of(onto)
    of_kind = [name for name in old if name.endswith("up_proj.weight")]
    size = sum((change[n] - old[n].float()).square().sum() for n in of_kind).sqrt()
    assert kinds["up_proj"].tensors == 3 and kinds["up_proj"].elements == 3 * 48 * 32
    square = sum(old[n].float().square().sum() for n in of_kind).sqrt()
    assert kinds["up_proj"].relative_change == pytest.approx((size / square).item(), rel=1e-4)
    document = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert document["schema"] == report.to_dict()["schema"] == "modicum.tune.merged/1"
    assert MergePlan.from_dict(document["plan"]).to_dict() == report.to_dict()["plan"]
    json.dumps(report.to_dict())


# Heads


def test_only_some_heads_that_are_tied_want_a_word(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    onto = write_tuned(base, tmp_path / "onto", 2)
    tensors = tensors_of(write_tuned(base, tmp_path / "tied", 1))
    head = tensors["model.embed_tokens.weight"] + torch.randn(160, 32).bfloat16()
    chat = write_like(base, tmp_path / "chat", {**tensors, "lm_head.weight": head}, tie_word_embeddings=False)
    plan = chat_vector(base, chat, onto)
    with pytest.raises(mo.InvalidArgument, match=r"output head of .*untie"):
        mo.merge(plan, tmp_path / "out")
    mo.merge(replace(plan, untie=True), tmp_path / "out")
    found, was = (
        tensors_of(tmp_path / "out"),
        [t["model.embed_tokens.weight"] for t in map(tensors_of, (onto, base))],
    )
    assert torch.equal(found["lm_head.weight"], (was[0].float() + (head.float() - was[1].float())).bfloat16())
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is False
    assert np.isfinite(logits_of(transformers_model(tmp_path / "out"))).all()
    # The other way round the head of the tied model is its embedding.
    mo.merge(MergePlan("linear", (Input(chat), Input(onto))), tmp_path / "mean")
    mean = (head.float() + was[0].float()) / 2
    assert torch.equal(tensors_of(tmp_path / "mean")["lm_head.weight"], mean.bfloat16())
    transformers_model(tmp_path / "mean")


def test_untie_changes_nothing_where_all_heads_are_tied(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base", tie_word_embeddings=True)
    chat, onto = (write_tuned(base, tmp_path / name, i) for i, name in enumerate(("chat", "onto")))
    mo.merge(chat_vector(base, chat, onto, untie=True), tmp_path / "out")
    assert config_of(tmp_path / "out")["tie_word_embeddings"] is True
    assert equal(tensors_of(tmp_path / "out"), added(onto, chat, base))


# Vocabularies


TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}<|end|>{% endfor %}"


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """Base and onto with one special token in 264 rows, and a chat model with others in 272, shifted."""
    folder = tmp_path_factory.mktemp("speaking")
    base = write_base(folder / "base", vocab_size=264, eos_token_id=256, bos_token_id=None)
    onto = write_tuned(base, folder / "onto", 2)
    for path in (base, onto):
        write_tokens(path, ["<|end|>"])
    tensors = changed(tensors_of(base), noise(1))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        more = torch.randn((272, 32), generator=torch.Generator().manual_seed(9)).bfloat16()
        more[:256] = tensors[name][:256]
        tensors[name] = more
    chat = write_like(base, folder / "chat", tensors, vocab_size=272, eos_token_id=[258, 257])
    write_tokens(chat, ["<|user|>", "<|end|>", "<|stop|>"])
    (chat / "tokenizer_config.json").write_text(
        json.dumps(
            {"chat_template": TEMPLATE, "eos_token": "<|end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
        )
    )
    (chat / "generation_config.json").write_text(json.dumps({"eos_token_id": [258, 257], "temperature": 0.5}))
    return base, chat, onto


def rows_by_hand(speaking: tuple[Path, ...], name: str, sources: dict[int, int]) -> Any:
    """Rows of the result: onto + chat − base, with the chat model's row from `sources`."""
    base, chat, onto = (tensors_of(folder)[name].float() for folder in speaking)
    out = onto.clone()
    for row, source in sources.items():
        out[row] = onto[row] + (chat[source] - base[row])
    return out.bfloat16()


SHARED = {**{i: i for i in range(256)}, 256: 257}  # bytes, and <|end|>


def test_tokens_that_differ_are_refused_and_listed(speaking: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = speaking
    message = (
        r"vocabularies: expected the same tokens in the same rows .*3 tokens.*<\|end\|>.*<\|stop\|>"
        '.*"match" or "all"'
    )
    with pytest.raises(mo.InvalidArgument, match=message):
        mo.merge(chat_vector(base, chat, onto), tmp_path / "out")
    assert names(tmp_path) == []


def test_rows_are_matched_by_token(speaking: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = speaking
    with pytest.raises(
        mo.InvalidArgument, match=r'eos_token_id of .*expected tokens of the result, got \[258,257\].*"all"'
    ):
        mo.merge(chat_vector(base, chat, onto, vocabulary="match"), tmp_path / "out")
    plan = replace(chat_vector(base, chat, onto, vocabulary="match"), chat=None)
    report = mo.merge(plan, tmp_path / "out", threads=1)
    assert report.matched and report.rows == 264
    assert sorted(report.dropped_tokens) == ["<|stop|>", "<|user|>"] and report.added_tokens == []
    found = tensors_of(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        padded = {row: row for row in range(259, 264)}  # rows that no model has a token for
        assert torch.equal(found[name], rows_by_hand(speaking, name, {**SHARED, **padded})), name
    assert config_of(tmp_path / "out")["eos_token_id"] == 256
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (onto / "tokenizer.json").read_bytes()
    assert "2 tokens of other models left out: '<|stop|>', '<|user|>'" in str(report)
    assert np.isfinite(logits_of(transformers_model(tmp_path / "out"))).all()


def test_added_tokens_of_all_models_are_kept_in_rows_that_are_free(
    speaking: tuple[Path, ...], tmp_path: Path
) -> None:
    base, chat, onto = speaking
    report = mo.merge(chat_vector(base, chat, onto, vocabulary="all"), tmp_path / "out", threads=1)
    assert report.added_tokens == ["<|user|>", "<|stop|>"] and report.rows == 264
    assert sorted(report.partial_tokens) == ["<|stop|>", "<|user|>"]
    found = tensors_of(tmp_path / "out")
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        padded = {row: row for row in range(259, 264)}
        expected = rows_by_hand(speaking, name, {**SHARED, **padded})
        expected[257], expected[258] = tensors_of(chat)[name][256], tensors_of(chat)[name][258]
        assert torch.equal(found[name], expected), name
    assert config_of(tmp_path / "out")["eos_token_id"] == [258, 256]
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation == {"eos_token_id": [258, 256], "temperature": 0.5}
    model = mo.load(tmp_path / "out", threads=1)
    assert [model.tokenizer.token_of(i) for i in (256, 257, 258)] == ["<|end|>", "<|user|>", "<|stop|>"]
    assert model.tokenizer.encode("<|user|>a<|end|>", add_special_tokens=False)[::2] == [257, 256]
    assert model.chat_prompt([{"role": "user", "content": "a"}])[0] == 257
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert theirs.convert_tokens_to_ids(["<|end|>", "<|user|>", "<|stop|>"]) == [256, 257, 258]
    assert theirs("<|user|>a<|end|>", add_special_tokens=False)["input_ids"][::2] == [257, 256]
    transformers_model(tmp_path / "out")


def test_rows_grow_where_none_are_free(speaking: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = (shutil.copytree(folder, tmp_path / folder.name) for folder in speaking)
    for folder in (base, onto):
        tensors = tensors_of(folder)
        for name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors[name] = tensors[name][:257].clone()
        shutil.move(folder, tmp_path / "wider")
        write_like(tmp_path / "wider", folder, tensors, vocab_size=257)
        shutil.rmtree(tmp_path / "wider")
    report = mo.merge(chat_vector(base, chat, onto, vocabulary="all"), tmp_path / "out")
    assert report.rows == config_of(tmp_path / "out")["vocab_size"] == 259
    assert tensors_of(tmp_path / "out")["lm_head.weight"].shape == (259, 32)
    transformers_model(tmp_path / "out")
    assert mo.load(tmp_path / "out").tokenizer.token_of(258) == "<|stop|>"


def test_tokens_may_stand_for_each_other(speaking: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = speaking
    plan = MergePlan(
        "task_arithmetic",
        (Input(chat),),
        base=base,
        onto=onto,
        vocabulary="match",
        tokens={"<|end|>": "<|stop|>"},
    )
    mo.merge(plan, tmp_path / "a")
    expected = rows_by_hand(speaking, "lm_head.weight", SHARED)[256]
    assert torch.equal(tensors_of(tmp_path / "a")["lm_head.weight"][256], expected)  # it has its own
    plan = replace(plan, tokenizer=chat, tokens={"<|user|>": "<|end|>"})
    report = mo.merge(plan, tmp_path / "b")
    assert report.rows == 272 and "<|stop|>" in report.partial_tokens
    base_rows, chat_rows, onto_rows = (tensors_of(f)["lm_head.weight"].float() for f in speaking)
    found = tensors_of(tmp_path / "b")["lm_head.weight"]
    assert torch.equal(found[256], (onto_rows[256] + (chat_rows[256] - base_rows[256])).bfloat16())
    assert torch.equal(found[257], (onto_rows[256] + (chat_rows[257] - base_rows[256])).bfloat16())
    assert torch.equal(found[258], chat_rows[258].bfloat16())
    assert (tmp_path / "b" / "tokenizer.json").read_bytes() == (chat / "tokenizer.json").read_bytes()


def test_padded_rows_alone_are_a_difference_that_is_matched(tmp_path: Path) -> None:
    base = write_tokens(write_base(tmp_path / "base", vocab_size=257), ["<|end|>"])
    onto = write_tuned(base, tmp_path / "onto", 2)
    tensors = changed(tensors_of(base), noise(1))
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        tensors[name] = torch.cat([tensors[name], torch.ones(7, 32, dtype=torch.bfloat16)])
    chat = write_like(base, tmp_path / "chat", tensors, vocab_size=264)
    with pytest.raises(mo.InvalidArgument, match=r"257 rows in .*, 264 in"):
        mo.merge(chat_vector(base, chat, onto), tmp_path / "out")
    mo.merge(chat_vector(base, chat, onto, vocabulary="match"), tmp_path / "out")
    cut = {n: t[:257] if t.shape[0] == 264 else t for n, t in tensors.items()}
    cut = {name: tensor.clone() for name, tensor in cut.items()}
    expected = added(onto, write_like(base, tmp_path / "cut", cut), base)
    assert equal(tensors_of(tmp_path / "out"), expected)


def test_without_tokenizers_rows_are_believed_and_it_is_said(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = three
    report = mo.merge(chat_vector(base, chat, onto), tmp_path / "out")
    assert report.unchecked and not report.matched and "no tokenizer.json in some model" in str(report)


def test_an_adapter_has_no_place_for_other_tokens(tmp_path: Path) -> None:
    base = write_tokens(write_base(tmp_path / "a", vocab_size=258), ["<|a|>", "<|b|>"])
    chat = write_tokens(write_tuned(base, tmp_path / "b", 1), ["<|b|>", "<|a|>"])
    plan = chat_vector(base, chat, base, vocabulary="match")
    with pytest.raises(mo.Unsupported, match="vocabulary: expected the same tokens in all models"):
        mo.tune.write_patch(plan, tmp_path / "patch")
    assert names(tmp_path) == ["a", "b"]


# Plans


def test_a_plan_is_a_file_of_ours_or_of_mergekits(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, _ = three
    plan = MergePlan("task_arithmetic", (Input(chat),), base=base, lambda_=0.8, dtype="f32")
    (tmp_path / "plan.json").write_text(plan.to_json())
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan.to_dict()))
    (tmp_path / "mergekit.yaml").write_text(
        f"""merge_method: task_arithmetic
base_model: {base}
models:
  - model: {chat}
    parameters: {{weight: 1}}
parameters: {{lambda: 8.0e-1, int8_mask: true}}
dtype: float32
"""
    )
    expected = added(base, chat, base, alpha=float(np.float32(0.8)), dtype=torch.float32)
    for name in ("plan.json", "plan.yaml", "mergekit.yaml"):
        mo.merge(tmp_path / name, tmp_path / name[:-5], threads=1)
        assert equal(tensors_of(tmp_path / name[:-5]), expected), name
        shutil.rmtree(tmp_path / name[:-5])
    mo.merge(str(tmp_path / "plan.json"), tmp_path / "text")
    mo.merge(plan.to_dict(), tmp_path / "dict")
    assert equal(tensors_of(tmp_path / "text"), tensors_of(tmp_path / "dict"))


def test_numbers_of_numpy_are_numbers() -> None:
    plan = MergePlan("linear", (Input("a", weight=np.float32(0.5)), Input("b", weight=np.array([0.5, 1]))))
    assert MergePlan.from_dict(plan.to_dict()).models == (
        Input("a", weight=0.5),
        Input("b", weight=[0.5, 1.0]),
    )


@pytest.mark.parametrize(
    "plan",
    [
        MergePlan(
            "linear",
            (
                Input("a", weight=[0, 1]),
                Input("b", weight=[{"filter": "mlp", "value": 0.5}, {"filter": "", "value": [1, 2]}]),
            ),
        ),
        MergePlan("slerp", (Input("a"),), base="b", t=[0, 0.5, 1]),
        MergePlan(
            "dare_ties",
            (Input("a", density=0.25, adapter="x"),),
            base="b",
            base_adapter="y",
            seed=2**63,
            rescale="none",
            normalize=False,
            untie=True,
        ),
        MergePlan(
            "ties", (Input("a"), Input("c")), base="b", onto="d", definition="paper", dtype="f16", lambda_=0.4
        ),
        chat_vector("b", "c", "o", vocabulary="all", tokens={"a": "b"}, tokenizer="c"),
    ],
    ids=lambda plan: plan.method,
)
def test_a_plan_comes_back_as_it_was_written(plan: MergePlan, tmp_path: Path) -> None:
    again = MergePlan.from_dict(json.loads(plan.to_json()))
    assert again.to_dict() == MergePlan.from_dict(again.to_dict()).to_dict() == plan.to_dict()
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan.to_dict()))
    assert MergePlan.load(tmp_path / "plan.yaml") == again
    assert plan.method in str(plan)


def mergekit_plan(**fields: Any) -> dict[str, Any]:
    models = [{"model": "a"}, {"model": "b+lora", "parameters": {"weight": 1}}]
    return {"merge_method": "ties", "base_model": "a", "models": models, **fields}


def test_fields_of_mergekit_mean_what_they_say_there() -> None:
    plan = MergePlan.from_dict(
        mergekit_plan(
            parameters={"density": [0.1, 0.9], "normalize": False, "lambda": 0.5},
            out_dtype="float16",
            dtype="bfloat16",
            tokenizer_source="union",
            chat_template="auto",
        )
    )
    assert plan == MergePlan(
        "ties",
        (Input("b", adapter="lora", weight=1.0, density=[0.1, 0.9]),),
        base="a",
        normalize=False,
        lambda_=0.5,
        dtype="f16",
        vocabulary="all",
        tokenizer=plan.tokenizer,
    )
    slices = [{"sources": [{"model": "a", "layer_range": [0, 4]}, {"model": "b", "layer_range": [0, 4]}]}]
    plan = MergePlan.from_dict(
        {"merge_method": "slerp", "base_model": "a", "slices": slices, "parameters": {"t": 0.3}}
    )
    assert plan == MergePlan("slerp", (Input("b"),), base="a", t=0.3)
    weights = [{"filter": "mlp", "value": "1e-1"}, {"value": 2}]
    plan = MergePlan.from_dict(mergekit_plan(models=[{"model": "b", "parameters": {"weight": weights}}]))
    assert plan.models[0].weight == [{"filter": "mlp", "value": 0.1}, {"filter": "", "value": 2.0}]
    for source, expected in (("base", "a"), ("b", "b")):
        plan = MergePlan.from_dict(mergekit_plan(tokenizer={"source": source}))
        assert (plan.vocabulary, plan.tokenizer) == ("match", expected)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        (
            {"merge_method": "passthrough"},
            mo.Unsupported,
            "merge_method: expected one of linear.*'passthrough'",
        ),
        ({"merge_method": None}, mo.Unsupported, "merge_method"),
        ({"surprise": 1}, mo.Unsupported, "configuration: .*got 'surprise'"),
        ({"dtype": "int8"}, mo.Unsupported, "dtype: expected one of float32.*'int8'"),
        ({"parameters": {"epsilon": 0.1}}, mo.Unsupported, "parameters: .*got 'epsilon'"),
        ({"parameters": [1]}, mo.FormatError, "parameters: expected a mapping, got list"),
        ({"parameters": {"lambda": "much"}}, mo.FormatError, "lambda: expected numbers, got 'much'"),
        ({"models": None}, mo.FormatError, "slices: expected a list, got NoneType"),
        ({"models": [{"model": "b"}]}, mo.FormatError, "weight of b: expected a number, got none"),
        ({"models": [{"parameters": {}}]}, mo.FormatError, "models: expected a model's directory"),
        ({"models": ["b"]}, mo.FormatError, "models: expected a mapping, got str"),
        ({"chat_template": "chatml"}, mo.Unsupported, "chat_template"),
        ({"tokenizer": {"source": "union", "tokens": {}}}, mo.Unsupported, "tokenizer: .*got 'tokens'"),
        ({"models": None, "slices": [{}, {}]}, mo.Unsupported, "slices: expected one.*passthrough"),
        ({"base_model": 3}, mo.FormatError, "base_model"),
        ({"tokenizer_source": 3}, mo.FormatError, "tokenizer"),
        ({"models": [{"model": "b", "parameters": {"weight": []}}]}, mo.FormatError, "weight"),
    ],
)
def test_what_mergekit_has_and_we_do_not_is_refused_by_name(
    fields: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        MergePlan.from_dict(mergekit_plan(**fields))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "tis"}, mo.FormatError, "method.*one of linear, slerp.*tis"),
        ({"definition": "ours"}, mo.FormatError, "definition"),
        ({"base": None}, mo.InvalidArgument, "base of task_arithmetic: expected a model"),
        ({"models": ()}, mo.InvalidArgument, "models: expected at least one"),
        ({"seed": -1}, mo.FormatError, "seed"),
        ({"dtype": "f64"}, mo.FormatError, "dtype"),
        ({"vocabulary": "some"}, mo.FormatError, "vocabulary"),
        ({"method": "slerp", "t": 1.5, "onto": None}, mo.InvalidArgument, "t: expected 0 to 1, got 1.5"),
        ({"method": "slerp"}, mo.InvalidArgument, "onto: expected none with slerp"),
        ({"method": "linear", "onto": None}, mo.InvalidArgument, "base of linear: expected none"),
        ({"models": (Input("a", density=1.5),)}, mo.InvalidArgument, "density: expected 0 to 1, got 1.5"),
        ({"models": (Input(""),)}, mo.InvalidArgument, "model: expected a directory"),
        ({"models": (Input("a", weight=float("nan")),)}, mo.FormatError, "weight|JSON"),
        ({"models": (Input("a", weight=[]),)}, mo.FormatError, "weight"),
        (
            {"definition": "paper", "method": "ties", "models": (Input("a", weight=0.5),)},
            mo.InvalidArgument,
            "weight: expected 1, as TIES",
        ),
        ({"tokenizer": "z"}, mo.InvalidArgument, "tokenizer: expected one of the plan's models"),
        ({"chat": "z"}, mo.InvalidArgument, "chat: expected one of the plan's models"),
    ],
)
def test_plans_that_cannot_be_are_refused_by_field(
    change: dict[str, Any], error: Any, message: str, three: tuple[Path, ...], tmp_path: Path
) -> None:
    base, chat, onto = three
    plan = replace(chat_vector(base, chat, onto), **change)
    with pytest.raises(error, match=message):
        mo.merge(plan, tmp_path / "out")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("- a\n- b\n", mo.FormatError, "expected a mapping, got list"),
        ("a: [", mo.FormatError, "expected YAML"),
        ("", mo.FormatError, "expected a mapping, got NoneType"),
        ("method: ties\nmodels: []\nextra: 1\n", mo.FormatError, "extra: expected a known field"),
        ("models: []\n", mo.FormatError, "method"),
        ("method: ties\n", mo.FormatError, "models"),
        ("method: ties\nmodels: 2000-01-01\n", mo.FormatError, "JSON"),
        ("method: ties\n1: 2\nmodels: []", mo.FormatError, "1"),
        ("schema: modicum.tune.merge/2\nmethod: ties\nmodels: []\n", mo.FormatError, "schema"),
    ],
)
def test_files_that_are_no_plan_are_refused(text: str, error: Any, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(error, match=message):
        mo.merge(tmp_path / "plan.yaml", tmp_path / "out")
    assert names(tmp_path) == ["plan.yaml"]


def test_a_file_that_is_not_there_or_no_text_is_told(tmp_path: Path) -> None:
    with pytest.raises(mo.IoError, match=re.escape(str(tmp_path / "none.yaml"))):
        mo.merge(tmp_path / "none.yaml", tmp_path / "out")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises((mo.IoError, mo.FormatError), match=r"bytes\.yaml"):
        mo.merge(tmp_path / "bytes.yaml", tmp_path / "out")
    with pytest.raises(mo.InvalidArgument, match="expected a MergePlan, a dict or a path, got int"):
        mo.merge(3, tmp_path / "out")  # type: ignore[arg-type]


# Arrays


def test_arrays_are_merged_as_tensors_of_models_are(three: tuple[Path, ...], tmp_path: Path) -> None:
    base, chat, onto = three
    inputs = (Input(chat, weight=0.6, density=0.5), Input(onto, weight=0.8, density=0.5))
    for method in ("ties", "dare_ties", "dare_linear", "breadcrumbs", "task_arithmetic"):
        mo.merge(MergePlan(method, inputs, base=base, dtype="f32", seed=3), tmp_path / method)
        for name, found in tensors_of(tmp_path / method).items():
            minus, *tuned = (tensors_of(folder)[name].float().numpy() for folder in three)
            array = mo.tune.merge_arrays(
                method, tuned, minus, weights=[0.6, 0.8], density=0.5, name=name, seed=3
            )
            assert np.array_equal(array, found.numpy()), (method, name)


def test_arrays_that_do_not_go_together_are_refused() -> None:
    a, b = np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32)
    with pytest.raises(mo.InvalidArgument, match="arrays: expected one shape"):
        mo.tune.merge_arrays("linear", [a, b])
    with pytest.raises(mo.InvalidArgument, match="arrays: expected at least one"):
        mo.tune.merge_arrays("linear", [])
    with pytest.raises(mo.InvalidArgument, match="base"):
        mo.tune.merge_arrays("ties", [a])
    with pytest.raises(mo.InvalidArgument, match="arrays: expected 1 models"):
        mo.tune.merge_arrays("linear", [a, a], weights=[1.0])


def test_factors_are_the_best_of_their_rank() -> None:
    matrix = np.random.default_rng(0).normal(size=(20, 33)).astype(np.float32)
    for m in (matrix, matrix.T.copy()):
        factors = mo.tune.factorize(m, 5)
        u, s, v = np.linalg.svd(m.astype(np.float64), full_matrices=False)
        assert np.allclose(factors.singular_values, s, rtol=1e-6)
        assert np.allclose(factors.b @ factors.a, (u[:, :5] * s[:5]) @ v[:5], atol=1e-5)
        assert factors.b.shape == (m.shape[0], 5) and factors.a.shape == (5, m.shape[1])
    assert mo.tune.factorize(matrix, 99).a.shape == (20, 33)
