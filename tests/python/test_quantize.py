# SPDX-License-Identifier: Apache-2.0
"""Quantised checkpoints: ours in transformers, compressed-tensors' here, what they lose, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
pytest.importorskip("compressed_tensors")

from modicum.cli import main  # noqa: E402
from quantized import (  # noqa: E402
    IDS,
    ROUNDED_INPUTS,
    check_logits,
    compress,
    linear_weights,
    logits_of,
    perplexity,
    relative_error,
    stored_weights,
    transformers_model,
    write_model,
)
from safetensors.numpy import load_file, save_file  # noqa: E402


def only(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What transformers reads


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bits", [8, 4])
def test_transformers_reads_exactly_the_weights_that_modicum_wrote(
    bits: int, dtype: str, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "in", dtype=getattr(torch, dtype), tie_word_embeddings=False)
    mo.retrofit.quantize(source, tmp_path / "out", bits=bits)
    theirs = linear_weights(transformers_model(tmp_path / "out"))
    assert len(theirs) == 14
    floats = transformers_model(source).state_dict()
    name = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}[dtype]
    for module, weight in theirs.items():
        original = floats[f"{module}.weight"].numpy()
        rounded = mo.retrofit.round_nearest(original, bits=bits, scale_dtype=name)
        assert np.array_equal(weight, rounded.dequantize())
        assert relative_error(weight, original) < (0.006 if bits == 8 else 0.095)
    if dtype == "float32":
        ours = stored_weights(tmp_path / "out", bits)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[module], theirs[module]) for module in ours)


def test_transformers_reads_whole_rows_of_integers(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in", dtype=torch.float32, tie_word_embeddings=False)
    mo.retrofit.quantize(source, tmp_path / "out", group="channel")
    theirs = linear_weights(transformers_model(tmp_path / "out"))
    assert len(theirs) == 14
    floats = transformers_model(source).state_dict()
    for module, weight in theirs.items():
        original = floats[f"{module}.weight"].numpy()
        rounded = mo.retrofit.round_nearest(original, bits=8, group="channel", scale_dtype="f32")
        assert np.array_equal(weight, rounded.dequantize())
    exact = logits_of(transformers_model(tmp_path / "out"), IDS)
    assert relative_error(mo.load(tmp_path / "out").logits(IDS), exact) < 2 * ROUNDED_INPUTS


@pytest.mark.parametrize("head", ["keep", "int8", "int4"])
@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(
    ("kind", "tied"), [("Llama", True), ("Llama", False), ("Qwen2", True), ("Qwen3", False)]
)
def test_logits_are_those_of_transformers_with_the_same_integers(
    kind: str, tied: bool, bits: int, head: str, tmp_path: Path
) -> None:
    """Only the order of sums differs; now and then that moves a layer's input to its neighbour integer."""
    source = write_model(tmp_path / "in", kind, tie_word_embeddings=tied, head_dim=16)
    mo.retrofit.quantize(source, tmp_path / "out", bits=bits, head=head)
    check_logits(mo.load(tmp_path / "out"), transformers_model(tmp_path / "out"))


@pytest.mark.parametrize("bits", [8, 4])
def test_bf16_logits_stay_near_those_of_the_same_integers_in_float32(bits: int, tmp_path: Path) -> None:
    source = write_model(tmp_path / "in", "Qwen2", torch.bfloat16)
    mo.retrofit.quantize(source, tmp_path / "out", bits=bits)
    model = mo.load(tmp_path / "out")
    assert model.dtype == "bf16" and model.quantization == f"int{bits} by groups of 32"
    exact = logits_of(transformers_model(tmp_path / "out"), IDS)
    assert relative_error(model.logits(IDS), exact) < ROUNDED_INPUTS


# What compressed-tensors writes

SCHEMES: dict[str, tuple[dict[str, Any], dict[str, Any] | None]] = {
    "w4a16-group32": ({"num_bits": 4, "strategy": "group", "group_size": 32}, None),
    "w4a16-group128": ({"num_bits": 4, "strategy": "group", "group_size": 128}, None),
    "w8a16-group32": ({"num_bits": 8, "strategy": "group", "group_size": 32}, None),
    "w8a16-group128": ({"num_bits": 8, "strategy": "group", "group_size": 128}, None),
    "w4a16-channel": ({"num_bits": 4, "strategy": "channel"}, None),
    "w8a8-channel": (
        {"num_bits": 8, "strategy": "channel"},
        {"num_bits": 8, "strategy": "token", "dynamic": True},
    ),
}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checkpoints_of_compressed_tensors_give_their_logits(scheme: str, dtype: str, tmp_path: Path) -> None:
    wide = {"hidden_size": 128, "intermediate_size": 256, "head_dim": 32, "tie_word_embeddings": False}
    source = write_model(tmp_path / "in", "Llama", getattr(torch, dtype), **wide)
    folder = compress(source, tmp_path / "out", *SCHEMES[scheme])
    config = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert config["format"] == ("int-quantized" if scheme == "w8a8-channel" else "pack-quantized")
    model = mo.load(folder)
    assert model.parameters == mo.load(source).parameters
    theirs = transformers_model(folder)
    assert len(linear_weights(theirs)) == 14
    if dtype == "float32":
        check_logits(model, theirs)
    else:
        assert relative_error(model.logits(IDS), logits_of(theirs, IDS)) < ROUNDED_INPUTS


def test_layers_that_compressed_tensors_ignored_are_read_as_floats(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in", tie_word_embeddings=False)
    folder = compress(
        source,
        tmp_path / "out",
        {"num_bits": 4, "strategy": "group", "group_size": 64},
        ignore=["lm_head", "re:.*layers\\.0\\..*", "model.layers.1.mlp.down_proj"],
    )
    theirs = transformers_model(folder)
    assert len(linear_weights(theirs)) == 6
    check_logits(mo.load(folder), theirs)


# What it costs


def texts(data: Path, name: str) -> list[int]:
    """The last 6,000 characters or so of a file of tinystories, as tokens."""
    path = data / "corpora" / "tinystories" / "tinystories_cased.txt"
    if not path.is_file() or not (data / "models" / name).is_dir():
        pytest.skip(f"{name} or tinystories is not in MODICUM_DATA")
    ids = mo.Tokenizer(data / "models" / name / "tokenizer.json").encode(path.read_text("utf-8")[-12000:])
    return ids[:4000]


@pytest.mark.parametrize(("name", "window"), [("stories260K", 512), ("babyllama-361", 256)])
def test_perplexity_of_trained_models(name: str, window: int, data: Path, tmp_path: Path) -> None:
    ids = texts(data, name)
    source = data / "models" / name
    floats = perplexity(mo.load(source).logits, ids, window)
    for bits, worst in ((8, 1.005), (4, 1.09)):
        mo.retrofit.quantize(source, tmp_path / str(bits), bits=bits)
        ours = perplexity(mo.load(tmp_path / str(bits)).logits, ids, window)
        theirs = transformers_model(tmp_path / str(bits))
        assert ours < worst * floats
        assert abs(ours / perplexity(lambda part, m=theirs: logits_of(m, part), ids, window) - 1) < 0.005


def test_the_demo_answers_its_handbook_with_integers_of_8_bits(demo: Path, tmp_path: Path) -> None:
    mo.retrofit.quantize(demo / "model", tmp_path / "out", bits=8, head="int8")
    model = mo.load(tmp_path / "out")
    knowledge = mo.cag.build(model, demo / "handbook", tmp_path / "handbook.kv")
    questions = json.loads((demo / "questions.json").read_text("utf-8"))
    right = [knowledge.ask(q["question"]).text.strip() == q["answer"] for q in questions]
    assert sum(right) >= len(right) - 1


def test_a_cache_of_the_float_model_is_not_taken_for_the_quantised_one(tmp_path: Path, demo: Path) -> None:
    mo.retrofit.quantize(demo / "model", tmp_path / "out")
    (tmp_path / "a.md").write_text("The library opens at nine.\n")
    mo.cag.build(mo.load(demo / "model"), tmp_path / "a.md", tmp_path / "a.kv")
    with pytest.raises(mo.FingerprintMismatch):
        mo.cag.open(tmp_path / "a.kv", mo.load(tmp_path / "out"))


# The command and its report


def test_the_command_reports_bytes_and_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_model(tmp_path / "in", dtype=torch.bfloat16)
    capsys.readouterr()
    base = ["quantize", "--model", str(source), "--bits", "4", "--head", "int8"]
    assert main([*base, "--out", str(tmp_path / "a"), "--json"]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert err == "" and report["schema"] == "modicum.retrofit.quantize/1"
    stored = sum(t.nbytes for t in load_any(tmp_path / "a").values())
    assert report["bytes_after"] == stored == report["head_choices"]["int8"] < report["bytes_before"]
    kinds = {kind["kind"]: kind for kind in report["kinds"]}
    assert set(kinds) >= {"q_proj", "down_proj", "embedding", "head", "others"}
    assert 0.05 < kinds["q_proj"]["relative_error"] < 0.1 and kinds["head"]["relative_error"] < 0.01
    assert kinds["embedding"]["rms_error"] == 0
    assert main([*base, "--out", str(tmp_path / "b")]) == 0
    assert "down_proj" in capsys.readouterr().out
    first, second = ((tmp_path / name / "model.safetensors").read_bytes() for name in "ab")
    assert first == second
    assert main(["info", str(tmp_path / "a"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantization"] == "int8 by groups of 32, int4 by groups of 32"


def load_any(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file as load_torch

    return load_torch(folder / "model.safetensors")


def test_progress_is_of_bytes_and_returning_false_stops(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in")
    seen: list[tuple[str, int, int]] = []
    mo.retrofit.quantize(source, tmp_path / "out", progress=lambda *p: seen.append(p))
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert seen[-1][1] == seen[-1][2] == mo.load(source).weight_bytes
    with pytest.raises(mo.Cancelled):
        mo.retrofit.quantize(source, tmp_path / "stopped", progress=lambda *_: False)
    assert only(tmp_path) == ["in", "out"]


# What is refused


def test_senseless_options_and_places_are_refused(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in")
    for error, match, options in (
        (mo.InvalidArgument, "bits", {"bits": 5}),
        (mo.InvalidArgument, "bits", {"bits": -4}),
        (mo.InvalidArgument, "group", {"group": 48}),
        (mo.InvalidArgument, "head", {"head": "int2"}),
        (mo.InvalidArgument, "threads", {"threads": 0}),
        (mo.Unsupported, "group of 256", {"group": 256}),
    ):
        with pytest.raises(error, match=match):
            mo.retrofit.quantize(source, tmp_path / "out", **options)
    with pytest.raises(mo.IoError):
        mo.retrofit.quantize(tmp_path / "none", tmp_path / "out")
    with pytest.raises(mo.InvalidArgument, match="holds something"):
        mo.retrofit.quantize(source, source)
    mo.retrofit.quantize(source, tmp_path / "out")
    with pytest.raises(mo.InvalidArgument, match="holds something"):
        mo.retrofit.quantize(source, tmp_path / "out")
    with pytest.raises(mo.Unsupported, match="already"):
        mo.retrofit.quantize(tmp_path / "out", tmp_path / "again")
    assert only(tmp_path) == ["in", "out"]


def test_weights_that_are_not_finite_or_missing_are_named(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in")
    weights = load_file(source / "model.safetensors")
    name = "model.layers.1.self_attn.o_proj.weight"
    for bad in (np.nan, np.inf):
        changed = {**weights, name: weights[name].copy()}
        changed[name][7, 9] = bad
        save_file(changed, source / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(mo.FormatError, match=r"o_proj\.weight' at \[7, 9\]"):
            mo.retrofit.quantize(source, tmp_path / "out")
    save_file({k: v for k, v in weights.items() if k != name}, source / "model.safetensors")
    with pytest.raises(mo.FormatError, match="o_proj"):
        mo.retrofit.quantize(source, tmp_path / "out")
    assert only(tmp_path) == ["in"]


def test_a_damaged_quantised_checkpoint_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    mo.retrofit.quantize(write_model(tmp_path / "in"), folder, bits=4)
    whole = (folder / "model.safetensors").read_bytes()
    for size in (0, 8, 1000, len(whole) // 2, len(whole) - 1):
        (folder / "model.safetensors").write_bytes(whole[:size])
        with pytest.raises(mo.FormatError):
            mo.load(folder)
    (folder / "model.safetensors").write_bytes(whole)
    tensors = load_file(folder / "model.safetensors")
    module = "model.layers.0.mlp.up_proj"
    for suffix, change in (
        ("weight_packed", lambda t: t[:, :-1]),
        ("weight_packed", lambda t: t[:-1]),
        ("weight_packed", lambda t: t.view(np.int8)),
        ("weight_scale", lambda t: t[:, :-1]),
        ("weight_scale", lambda t: t.astype(np.int32)),
        ("weight_shape", lambda t: t + 1),
    ):
        changed = {
            **tensors,
            f"{module}.{suffix}": np.ascontiguousarray(change(tensors[f"{module}.{suffix}"])),
        }
        save_file(changed, folder / "model.safetensors")
        with pytest.raises(mo.FormatError, match=f"{module}.{suffix}"):
            mo.load(folder)
    for suffix in ("weight_packed", "weight_scale"):
        save_file(
            {k: v for k, v in tensors.items() if k != f"{module}.{suffix}"}, folder / "model.safetensors"
        )
        with pytest.raises(mo.FormatError, match=module):
            mo.load(folder)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("quant_method",), "gptq"),
        (("format",), "marlin-24"),
        (("kv_cache_scheme",), {"num_bits": 8}),
        (("config_groups", "group_0", "weights", "symmetric"), False),
        (("config_groups", "group_0", "weights", "num_bits"), 3),
        (("config_groups", "group_0", "weights", "group_size"), 16),
        (("config_groups", "group_0", "weights", "actorder"), "group"),
    ],
)
def test_other_quantisations_are_refused_by_field(path: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    mo.retrofit.quantize(write_model(tmp_path / "in"), tmp_path / "out", bits=4)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    place = config["quantization_config"]
    if path == ("format",):
        place["config_groups"]["group_0"]["format"] = value
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(mo.Unsupported, match=path[-1]):
        mo.load(tmp_path / "out")


# What an interruption leaves

CHILD = """
import sys, time
import modicum as mo

def on_progress(stage, done, total):
    if done > total // 3:
        print("midway", flush=True)
        time.sleep({pause})

mo.retrofit.quantize({source!r}, {out!r}, progress=on_progress)
"""


def interrupted(source: Path, out: Path, with_signal: int, pause: float) -> int:
    code = CHILD.format(source=str(source), out=str(out), pause=pause)
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None and child.stdout.readline() == b"midway\n"
    os.kill(child.pid, with_signal)
    return child.wait(timeout=30)


def test_a_killed_run_leaves_nothing_that_loads_and_the_next_one_clears_it(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in")
    assert interrupted(source, tmp_path / "out", signal.SIGKILL, 60) == -signal.SIGKILL
    left = [name for name in only(tmp_path) if name != "in"]
    assert len(left) == 1 and left[0].startswith("out.") and left[0].endswith(".tmp")
    with pytest.raises(mo.IoError):
        mo.load(tmp_path / left[0])
    mo.retrofit.quantize(source, tmp_path / "out")
    assert only(tmp_path) == ["in", "out"]


def test_ctrl_c_stops_and_leaves_nothing(tmp_path: Path) -> None:
    source = write_model(tmp_path / "in")
    assert interrupted(source, tmp_path / "out", signal.SIGINT, 5) != 0
    assert only(tmp_path) == ["in"]
