# SPDX-License-Identifier: Apache-2.0
"""Merged KV heads: what commutes with RoPE changes no logits, turned copies merge exactly."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

torch.set_num_threads(1)

LAYERS, HEADS, KV_HEADS, DIM, HIDDEN = 2, 8, 2, 12, 40
IDS = np.random.default_rng(5).integers(0, 150, 90).tolist()
KINDS = ("llama", "llama-biases", "qwen2")


def write_model(folder: Path, kind: str) -> Path:
    """Random, in float32, with heads that look at few tokens and biases that matter."""
    fields: dict[str, Any] = {"attention_bias": True} if kind == "llama-biases" else {}
    config = getattr(transformers, "Qwen2Config" if kind == "qwen2" else "LlamaConfig")(
        vocab_size=150,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=DIM,
        max_position_embeddings=256,
        initializer_range=0.25,
        tie_word_embeddings=False,
        **fields,
    )
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_config(config).float()
    for name, parameter in model.named_parameters():
        if name.endswith("_proj.bias"):
            torch.nn.init.normal_(parameter, std=0.5)
    model.save_pretrained(folder)
    return folder


def with_weights(source: Path, out: Path, tensors: dict[str, Any], kv_heads: int) -> Path:
    shutil.copytree(source, out)
    config = json.loads((out / "config.json").read_text())
    config["num_key_value_heads"] = kv_heads
    (out / "config.json").write_text(json.dumps(config))
    contiguous = {name: np.ascontiguousarray(t, np.float32) for name, t in tensors.items()}
    save_file(contiguous, out / "model.safetensors", metadata={"format": "pt"})
    return out


def theirs(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits_of(folder: Path) -> dict[str, Any]:
    with torch.inference_mode():
        expected = theirs(folder)(torch.tensor([IDS])).logits[0].numpy()
    return {"modicum": mo.load(folder, dtype="f32").logits(IDS), "transformers": expected}


def relative(actual: Any, expected: Any) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def turned(rows: Any, phases: Any) -> Any:
    """A head's rows (weights or bias) with frequency f multiplied by e^(i phases[f])."""
    real, imaginary = rows[: DIM // 2], rows[DIM // 2 :]
    shape = (-1,) + (1,) * (rows.ndim - 1)
    cos, sin = np.cos(phases).reshape(shape), np.sin(phases).reshape(shape)
    return np.concatenate([cos * real - sin * imaginary, sin * real + cos * imaginary])


def spread_heads(tensors: dict[str, Any], kv_heads: int, seed: int) -> dict[str, Any]:
    """The same function with more KV heads, or as many: copies turned by phases (keys) and by rotations
    (values), in random order, and queries and outputs that undo it."""
    random = np.random.default_rng(seed)
    out = dict(tensors)
    for layer in range(LAYERS):
        per_kv = HEADS // KV_HEADS
        queries = [random.permutation(per_kv) + per_kv * h for h in range(KV_HEADS)]
        # A new head takes over a part of the queries of an old one.
        parts = [(h, part) for h in range(KV_HEADS) for part in np.split(queries[h], kv_heads // KV_HEADS)]
        parts = [parts[i] for i in random.permutation(kv_heads)]
        phases = random.uniform(0, 2 * np.pi, (kv_heads, DIM // 2))
        rotations = [np.linalg.qr(random.normal(size=(DIM, DIM)))[0] for _ in parts]
        prefix = f"model.layers.{layer}.self_attn."
        for end in ("weight", "bias"):
            if f"{prefix}q_proj.{end}" not in tensors:
                continue
            q, k, v = (tensors[f"{prefix}{name}_proj.{end}"] for name in "qkv")
            out[f"{prefix}q_proj.{end}"] = np.concatenate(
                [turned(head(q, i), phases[n]) for n, (_, part) in enumerate(parts) for i in part]
            )
            out[f"{prefix}k_proj.{end}"] = np.concatenate(
                [turned(head(k, h), phases[n]) for n, (h, _) in enumerate(parts)]
            )
            out[f"{prefix}v_proj.{end}"] = np.concatenate(
                [rotations[n] @ head(v, h) for n, (h, _) in enumerate(parts)]
            )
        o = tensors[f"{prefix}o_proj.weight"]
        out[f"{prefix}o_proj.weight"] = np.concatenate(
            [head(o.T, i).T @ rotations[n].T for n, (_, part) in enumerate(parts) for i in part], axis=1
        )
    return out


def head(rows: Any, i: int) -> Any:
    return rows[i * DIM : (i + 1) * DIM]


def statistics_of(folder: Path, kv_heads: int) -> list[Any]:
    """Of every layer, from what its projections put out."""
    model = theirs(folder)
    collected: dict[str, Any] = {}
    for name, module in model.named_modules():
        if name.endswith(("q_proj", "k_proj", "v_proj")):
            module.register_forward_hook(
                lambda _m, _i, out, name=name: collected.__setitem__(name, out[0].numpy())
            )
    statistics = [
        mo.retrofit.KvStatistics(heads=HEADS, kv_heads=kv_heads, head_dim=DIM) for _ in range(LAYERS)
    ]
    for seed in range(4):
        with torch.inference_mode():
            model(torch.from_numpy(np.random.default_rng(seed).integers(0, 150, (1, 200))))
        for layer, of_layer in enumerate(statistics):
            of_layer.update(*(collected[f"model.layers.{layer}.self_attn.{name}_proj"] for name in "qkv"))
    return statistics


def merged(
    tensors: dict[str, Any], statistics: list[Any], kv_heads: int, **options: Any
) -> tuple[dict[str, Any], list[Any]]:
    out, merges = dict(tensors), []
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}.self_attn."
        biases = {f"{name}_bias": tensors.get(f"{prefix}{name}_proj.bias") for name in "qkv"}
        merge = mo.retrofit.merge_kv(
            *(tensors[f"{prefix}{name}_proj.weight"] for name in "qkvo"),
            statistics[layer],
            kv_heads=kv_heads,
            **biases,
            **options,
        )
        for name in "qkvo":
            out[f"{prefix}{name}_proj.weight"] = getattr(merge, name)
        for name in "qkv":
            bias = getattr(merge, f"{name}_bias")
            assert (bias is None) == (biases[f"{name}_bias"] is None)
            if bias is not None:
                out[f"{prefix}{name}_proj.bias"] = bias
        merges.append(merge)
    return out, merges


@pytest.mark.parametrize("kind", KINDS)
def test_phases_permutations_and_rotations_leave_logits_as_they_are(kind: str, tmp_path: Path) -> None:
    source = write_model(tmp_path / "in", kind)
    expected = logits_of(source)
    tensors = load_file(source / "model.safetensors")
    for kv_heads in (KV_HEADS, HEADS):
        spread = spread_heads(tensors, kv_heads, seed=kv_heads)
        actual = logits_of(with_weights(source, tmp_path / f"{kv_heads}", spread, kv_heads))
        for runtime in ("modicum", "transformers"):
            assert relative(actual[runtime], expected[runtime]) < 1e-4, (kv_heads, runtime)


@pytest.mark.parametrize("method", ["complex_pca", "procrustes"])
@pytest.mark.parametrize("kind", KINDS)
def test_turned_copies_merge_back_into_the_model_that_they_came_from(
    kind: str, method: str, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "in", kind)
    expected = logits_of(source)
    spread = spread_heads(load_file(source / "model.safetensors"), HEADS, seed=1)
    wide = with_weights(source, tmp_path / "wide", spread, HEADS)
    statistics = statistics_of(wide, HEADS)
    for kv_heads in (4, KV_HEADS):
        tensors, merges = merged(spread, statistics, kv_heads, method=method)
        assert max(m.score_error for m in merges) < 1e-6
        assert max(m.value_error for m in merges) < 1e-6
        actual = logits_of(with_weights(source, tmp_path / f"{kv_heads}", tensors, kv_heads))
        for runtime in ("modicum", "transformers"):
            assert relative(actual[runtime], expected[runtime]) < 1e-4, (kv_heads, runtime)


@pytest.mark.parametrize("kind", KINDS)
def test_complex_components_move_logits_less_than_turned_means_and_those_less_than_means(
    kind: str, tmp_path: Path
) -> None:
    source = write_model(tmp_path / "in", kind)
    spread = spread_heads(load_file(source / "model.safetensors"), HEADS, seed=2)
    random = np.random.default_rng(7)
    for name, tensor in spread.items():
        if "self_attn" in name:
            spread[name] = tensor + 0.25 * np.std(tensor) * random.normal(size=tensor.shape)
    wide = with_weights(source, tmp_path / "wide", spread, HEADS)
    statistics = statistics_of(wide, HEADS)
    expected = logits_of(wide)["modicum"]
    drift, scores, values = {}, {}, {}
    for method in ("complex_pca", "procrustes", "mean"):
        tensors, merges = merged(spread, statistics, KV_HEADS, method=method)
        narrow = with_weights(source, tmp_path / method, tensors, KV_HEADS)
        drift[method] = relative(mo.load(narrow, dtype="f32").logits(IDS), expected)
        scores[method] = max(m.score_error for m in merges)
        values[method] = max(m.value_error for m in merges)
    for measure in (scores, values, drift):
        assert measure["complex_pca"] < measure["procrustes"] < measure["mean"], measure


def random_layer(seed: int = 0) -> tuple[list[Any], Any]:
    random = np.random.default_rng(seed)
    weights = [random.normal(size=(width * DIM, HIDDEN)) for width in (8, 4, 4)]
    weights.append(random.normal(size=(HIDDEN, 8 * DIM)))
    x = random.normal(size=(600, HIDDEN))
    statistics = mo.retrofit.KvStatistics(heads=8, kv_heads=4, head_dim=DIM)
    statistics.update(*((x @ w.T).astype(np.float32) for w in weights[:3]))
    return weights, statistics


def test_statistics_are_those_of_numpy_for_any_number_of_threads() -> None:
    random = np.random.default_rng(1)
    rows = [random.normal(size=(1100, width * DIM)).astype(np.float32) for width in (8, 4, 4)]
    grams = []
    for threads in (1, 3):
        statistics = mo.retrofit.KvStatistics(heads=8, kv_heads=4, head_dim=DIM)
        statistics.update(*rows, threads=threads)
        grams.append([statistics.key_gram(5), statistics.query_energy(), statistics.value_gram()])
        assert statistics.count == 1100
    for one, three in zip(*grams, strict=True):
        assert np.array_equal(one, three)
    q, k, v = (r.astype(np.float64) for r in rows)
    keys = k.reshape(1100, 4, 2, DIM // 2)
    kappa = keys[:, :, 0, 5] + 1j * keys[:, :, 1, 5]
    assert relative(grams[0][0], kappa.T @ kappa.conj() / 1100) < 1e-6
    assert relative(grams[0][1], (q**2).reshape(1100, 8, 2, DIM // 2).sum(2).mean(0).T) < 1e-12
    assert relative(grams[0][2], v.T @ v / 1100) < 1e-6


def test_arrays_of_any_layout_and_dtype_give_the_same() -> None:
    weights, statistics = random_layer()
    plain = mo.retrofit.merge_kv(*weights, statistics, kv_heads=2)
    fortran = mo.retrofit.merge_kv(*map(np.asfortranarray, weights), statistics, kv_heads=2)
    single = mo.retrofit.merge_kv(*(w.astype(np.float32) for w in weights), statistics, kv_heads=2)
    assert np.array_equal(plain.k, fortran.k)
    assert plain.k.shape == (2 * DIM, HIDDEN) and plain.k.flags.c_contiguous
    assert relative(single.o, plain.o) < 1e-4
    assert plain.q_bias is None


def test_values_lose_the_eigenvalues_that_are_left_out() -> None:
    weights, statistics = random_layer()
    merge = mo.retrofit.merge_kv(*weights, statistics, kv_heads=1)
    gram = statistics.value_gram()
    root = np.zeros_like(gram)
    for h in range(4):
        at = slice(h * DIM, (h + 1) * DIM)
        outputs = weights[3][:, 2 * h * DIM : 2 * (h + 1) * DIM].reshape(HIDDEN, 2, DIM)
        values, vectors = np.linalg.eigh(np.einsum("oqi,oqj->ij", outputs, outputs))
        root[at, at] = vectors * np.sqrt(values) @ vectors.T
    energies = np.linalg.eigvalsh(root @ gram @ root)
    assert merge.value_error == pytest.approx(energies[:-DIM].sum() / energies.sum(), rel=1e-9)


def test_what_makes_no_sense_is_refused_by_name() -> None:
    weights, statistics = random_layer()
    merge = mo.retrofit.merge_kv
    for kv_heads in (-1, 0, 5):
        with pytest.raises(mo.InvalidArgument, match="kv_heads"):
            merge(*weights, statistics, kv_heads=kv_heads)
    with pytest.raises(mo.Unsupported, match=r"kv_heads.*divisor of 4"):
        merge(*weights, statistics, kv_heads=3)
    with pytest.raises(mo.Unsupported, match="QK-norm"):
        merge(*weights, statistics, kv_heads=2, qk_norm=True)
    with pytest.raises(mo.InvalidArgument, match=r"method.*'median'"):
        merge(*weights, statistics, kv_heads=2, method="median")
    with pytest.raises(mo.InvalidArgument, match=r"grouping.*'some'"):
        merge(*weights, statistics, kv_heads=2, grouping="some")
    with pytest.raises(mo.InvalidArgument, match="v_bias"):
        merge(*weights, statistics, kv_heads=2, v_bias=np.zeros(3))
    with pytest.raises(mo.InvalidArgument, match="o: expected"):
        merge(*weights[:3], weights[3].T, statistics, kv_heads=2)
    with pytest.raises(mo.InvalidArgument, match="k: expected finite"):
        merge(weights[0], weights[1] * np.nan, *weights[2:], statistics, kv_heads=2)
    empty = mo.retrofit.KvStatistics(heads=8, kv_heads=4, head_dim=DIM)
    with pytest.raises(mo.InvalidArgument, match="statistics"):
        merge(*weights, empty, kv_heads=2)
    with pytest.raises(mo.InvalidArgument, match=r"k: expected \[5, 48\]"):
        empty.update(np.zeros((5, 96)), np.zeros((4, 48)), np.zeros((5, 48)))
    with pytest.raises(mo.InvalidArgument, match="heads"):
        mo.retrofit.KvStatistics(heads=6, kv_heads=4, head_dim=8)
