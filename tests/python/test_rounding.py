# SPDX-License-Identifier: Apache-2.0
"""GPTQ, AWQ and SmoothQuant on arrays against plain numpy, and layers of different widths in one model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")

RNG = np.random.default_rng(7)


def correlated_gram(cols: int) -> Any:
    """Of inputs with a few strong directions and a few large channels."""
    x = RNG.normal(size=(4 * cols, cols // 4)) @ RNG.normal(size=(cols // 4, cols))
    x += 0.5 * RNG.normal(size=x.shape)
    x[:, ::37] *= 20
    return x.T @ x / len(x)


def weights_of(rows: int, cols: int) -> Any:
    return RNG.normal(scale=0.05, size=(rows, cols)).astype(np.float32)


def output_error(difference: Any, gram: Any) -> float:
    return float(np.sum((difference.astype(np.float64) @ gram) * difference))


def reference_gptq(weights: Any, gram: Any, bits: int, group: int, act_order: bool) -> tuple[Any, Any]:
    """As the paper's code does it: with the Cholesky factor of H⁻¹, each column's error over its diagonal."""
    rows, cols = weights.shape
    h = gram + 0.01 * np.mean(np.diag(gram)) * np.eye(cols)
    order = np.argsort(-np.diag(gram), kind="stable") if act_order else np.arange(cols)
    factor = np.linalg.cholesky(np.linalg.inv(h[np.ix_(order, order)])).T
    w = weights.astype(np.float64)[:, order]
    static = mo.retrofit.round_nearest(weights, bits=bits, group=group).scales
    scales = np.array(static)
    integers = np.zeros((rows, cols), np.int8)
    for k in range(cols):
        column = order[k]
        if not act_order and k % group == 0:
            now = np.ascontiguousarray(w[:, k : k + group])
            scales[:, k // group] = mo.retrofit.round_nearest(now, bits=bits, group=group).scales[:, 0]
        scale = scales[:, column // group].astype(np.float64)
        q = np.clip(np.round(w[:, k] / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        integers[:, column] = q
        w[:, k:] -= np.outer((w[:, k] - q * scale) / factor[k, k], factor[k, k:])
    return integers, scales


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (4, 128), (3, 64), (8, 96)])
def test_gptq_is_that_of_the_paper(bits: int, group: int, act_order: bool) -> None:
    cols = 384
    weights, gram = weights_of(24, cols), correlated_gram(cols)
    ours = mo.retrofit.gptq(weights, gram, bits=bits, group=group, act_order=act_order)
    integers, scales = reference_gptq(weights, gram, bits, group, act_order)
    # A value between two integers may fall to either side in float32, and moves what comes after it.
    assert np.mean(np.all(ours.integers == integers, axis=1)) > 0.9
    reference = mo.retrofit.Rounded(integers, scales, 0.0, 0.0)
    expected = output_error(weights - reference.dequantize(), gram)
    assert ours.error == pytest.approx(expected, rel=1e-3)
    assert ours.error == pytest.approx(output_error(weights - ours.dequantize(), gram), rel=1e-4)
    assert ours.energy == pytest.approx(output_error(weights, gram), rel=1e-5)
    assert ours.error < 0.5 * mo.retrofit.round_nearest(weights, gram, bits=bits, group=group).error


def test_gptq_rounds_whole_rows_and_does_not_depend_on_threads() -> None:
    weights, gram = weights_of(33, 160), correlated_gram(160)
    one = mo.retrofit.gptq(weights, gram, bits=8, group="channel", threads=1)
    assert one.integers.shape == (33, 160) and one.integers.dtype == np.int8
    assert one.scales.shape == (33, 1) and one.scales.dtype == np.float32
    assert one.error < 0.5 * mo.retrofit.round_nearest(weights, gram, bits=8, group="channel").error
    many = mo.retrofit.gptq(weights, gram, bits=8, group="channel", threads=3)
    assert np.array_equal(one.integers, many.integers) and np.array_equal(one.scales, many.scales)
    assert one[2:] == many[2:]


def test_awq_finds_the_best_of_the_grid() -> None:
    matrices, gram = [weights_of(20, 96), weights_of(12, 96)], correlated_gram(96)
    magnitudes = np.sqrt(np.diag(gram)) * RNG.uniform(0.6, 0.9, 96)
    found = mo.retrofit.awq_scales(matrices, gram, magnitudes, bits=4, group=32)
    errors = []
    for alpha in np.arange(20) / 20:
        scales = magnitudes**alpha
        scales = (scales / np.sqrt(scales.max() * scales.min())).astype(np.float32)
        errors.append(0.0)
        for w in matrices:
            kept = mo.retrofit.round_nearest(w * scales, bits=4, group=32).dequantize() / scales
            errors[-1] += output_error(w - kept, gram)
    # Scales differ in the last bit between the two, which may move a weight that lies between two integers.
    assert found.error == pytest.approx(min(errors), rel=0.02)
    assert errors[round(found.alpha * 20)] == pytest.approx(min(errors), rel=0.02)
    assert found.unscaled_error == pytest.approx(errors[0], rel=1e-4) and found.error < found.unscaled_error
    assert mo.retrofit.awq_scales(matrices, gram).error < found.unscaled_error


def test_scales_may_be_shared_by_the_query_heads_of_a_group() -> None:
    sources = mo.retrofit.grouped_query_sources(6, 2, 16)
    assert sources.tolist() == [h // 3 * 16 + i for h in range(6) for i in range(16)]
    weights, gram = weights_of(20, 96), correlated_gram(96)
    found = mo.retrofit.awq_scales(weights, gram, sources=sources)
    assert found.scales.shape == (32,) and found.error <= found.unscaled_error
    largest = RNG.uniform(0.1, 30, 96).astype(np.float32)
    smooth = mo.retrofit.smooth_scales(weights, largest, alpha=0.7, sources=sources)
    inputs, columns = (
        np.stack([values[sources == s].max() for s in range(32)])
        for values in (largest, np.abs(weights).max(0))
    )
    np.testing.assert_allclose(smooth, inputs**0.7 / columns**0.3, rtol=1e-5)


def test_smoothing_makes_int8_inputs_lose_less() -> None:
    """With a scale a token one large channel takes all of the inputs' range, until its scale is folded."""
    w, x = weights_of(64, 96), RNG.normal(size=(200, 96)).astype(np.float32)
    x[:, 5] *= 100

    def rounded(inputs: Any, weights: Any) -> Any:
        step = np.abs(inputs).max(1, keepdims=True) / 127
        kept = mo.retrofit.round_nearest(weights, bits=8, group="channel").dequantize()
        return np.round(inputs / step) * step @ kept.T

    exact = x @ w.T
    scales = mo.retrofit.smooth_scales(w, np.abs(x).max(0))
    plain, smooth = (np.linalg.norm(y - exact) for y in (rounded(x, w), rounded(x / scales, w * scales)))
    assert smooth < 0.3 * plain


def test_what_does_not_fit_is_refused() -> None:
    w, gram = weights_of(4, 64), correlated_gram(64)
    bad = np.array(w)
    bad[2, 9] = np.nan
    skewed = np.array(gram)
    skewed[3, 40] += 1
    for call, match in (
        (lambda: mo.retrofit.gptq(w[0], gram), "weights"),
        (lambda: mo.retrofit.gptq(bad, gram), r"weights at \[2, 9\]: expected a finite weight, got NaN"),
        (lambda: mo.retrofit.gptq(w, gram[:32, :32]), "64 × 64"),
        (lambda: mo.retrofit.gptq(w, gram[0]), "gram"),
        (lambda: mo.retrofit.gptq(w, skewed), "symmetric"),
        (lambda: mo.retrofit.gptq(w, -gram), "mean square"),
        (lambda: mo.retrofit.gptq(w, gram, bits=9), "bits"),
        (lambda: mo.retrofit.gptq(w, gram, bits=0), "bits"),
        (lambda: mo.retrofit.gptq(w, gram, group=48), "group"),
        (lambda: mo.retrofit.gptq(w, gram, group="row"), "group"),
        (lambda: mo.retrofit.gptq(w, gram, damping=-1.0), "damping"),
        (lambda: mo.retrofit.gptq(w, gram, threads=0), "threads"),
        (lambda: mo.retrofit.round_nearest(w, gram[:32, :32]), "gram"),
        (lambda: mo.retrofit.round_nearest(w[:, :40]), "group"),
        (lambda: mo.retrofit.round_nearest(w, scale_dtype="f8"), "f8"),
        (lambda: mo.retrofit.awq_scales([], gram), "matrices"),
        (lambda: mo.retrofit.awq_scales(w, gram, np.ones(9)), "magnitudes"),
        (lambda: mo.retrofit.awq_scales(w, gram, sources=-np.ones(64)), "sources"),
        (lambda: mo.retrofit.smooth_scales(w, np.ones(9)), "weights"),
        (lambda: mo.retrofit.smooth_scales(w, np.ones(64), alpha=2.0), "alpha"),
        (lambda: mo.retrofit.grouped_query_sources(6, 4, 8), "heads"),
        (lambda: mo.retrofit.grouped_query_sources(6, 0, 8), "kv_heads"),
        (
            lambda: mo.retrofit.packed_tensors("m", mo.retrofit.round_nearest(w, bits=8), bits=4, group=32),
            "integer",
        ),
        (
            lambda: mo.retrofit.packed_tensors("m", mo.retrofit.round_nearest(w, bits=3), bits=3, group=32),
            "bits",
        ),
        (lambda: mo.retrofit.packed_tensors("m", mo.retrofit.round_nearest(w), bits=4, group=64), "scales"),
        (lambda: mo.retrofit.quantization_config({"m": (4, "channel")}), "'m'"),
    ):
        with pytest.raises(mo.InvalidArgument, match=match):
            call()


LAYOUTS: dict[str, dict[str, tuple[int, Any]]] = {
    "int8 and int4 by layer": {
        "0.self_attn": (4, 32),
        "0.mlp": (4, 64),
        "1.self_attn": (8, 32),
        "1.mlp": (8, 64),
    },
    "one int4 layer": {"0.self_attn": (8, 32), "0.mlp": (8, 32), "1.self_attn": (8, 32), "1.mlp": (4, 32)},
    "some floats": {"0.self_attn": (4, 32), "1.mlp": (8, 32)},
    "rows and groups": {"0.self_attn": (8, "channel"), "0.mlp": (4, 32), "1.self_attn": (8, 32)},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layers_of_different_widths_are_read_by_transformers_and_modicum(
    layout: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from quantized import check_logits, linear_weights, transformers_model, write_model
    from safetensors.numpy import load_file, save_file

    source = write_model(tmp_path / "in", "Qwen2", dtype=torch.float32, tie_word_embeddings=False)
    tensors = load_file(source / "model.safetensors")
    modules, expected, floats = {}, {}, ["lm_head"]
    for name in [n for n, t in tensors.items() if t.ndim == 2 and ".layers." in n]:
        module = name.removesuffix(".weight")
        block = ".".join(module.split(".")[2:4])
        if block not in LAYOUTS[layout]:
            floats.append(module)
            continue
        bits, group = modules[module] = LAYOUTS[layout][block]
        weight = tensors.pop(name)
        gram = correlated_gram(weight.shape[1])
        rounded = mo.retrofit.gptq(weight, gram, bits=bits, group=group, scale_dtype="f32")
        expected[module] = rounded.dequantize()
        tensors |= mo.retrofit.packed_tensors(module, rounded, bits=bits, group=group, scale_dtype="f32")
    out = tmp_path / "out"
    out.mkdir()
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    config["quantization_config"] = mo.retrofit.quantization_config(modules, floats)
    (out / "config.json").write_text(json.dumps(config))

    model = transformers_model(out)
    theirs = linear_weights(model)
    assert theirs.keys() == expected.keys() and "Could not match" not in caplog.text
    assert all(np.array_equal(theirs[module], expected[module]) for module in expected)
    ours = mo.load(out)
    check_logits(ours, model)
    for bits, group in set(modules.values()):
        assert (
            f"int{bits} by " + ("rows" if group == "channel" else f"groups of {group}") in ours.quantization
        )
