# SPDX-License-Identifier: Apache-2.0
"""Refined feed-forward layers: as good as numpy's alternating least squares, never worse, clear errors."""

from __future__ import annotations

from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")

WIDTH, INNER, WIDE, FITTED, HELD_OUT = 12, 20, 30, 1500, 300


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def inner(x: Any, gate: Any, up: Any) -> Any:
    g = x @ gate.T
    return g * sigmoid(g) * (x @ up.T)


def problem(seed: int = 0) -> dict[str, Any]:
    """A layer with two thirds of a wider one's channels, the down projection refitted, and its targets."""
    rng = np.random.default_rng(seed)
    rows = FITTED + HELD_OUT
    x = rng.standard_normal((rows, WIDTH)) @ rng.standard_normal((WIDTH, WIDTH)) * 0.4
    gate, up = rng.standard_normal((2, WIDE, WIDTH)) / np.sqrt(WIDTH)
    down = rng.standard_normal((WIDTH, WIDE)) / np.sqrt(WIDE)
    targets = inner(x, gate, up) @ down.T
    gate, up = gate[:INNER], up[:INNER]
    z = inner(x, gate, up)[:FITTED]
    down = np.linalg.lstsq(z, targets[:FITTED], rcond=None)[0].T
    arrays = {"x": x, "targets": targets, "gate": gate, "up": up, "down": down}
    return {name: array.astype(np.float32) for name, array in arrays.items()}


def error(p: dict[str, Any], gate: Any, up: Any, down: Any, rows: slice) -> float:
    p = {name: array.astype(np.float64) for name, array in p.items()}
    missing = p["targets"][rows] - inner(p["x"][rows], gate, up) @ down.T
    return float((missing**2).sum() / (p["targets"][rows] ** 2).sum())


def exact_step(p: dict[str, Any], gate: Any, up: Any, down: Any, part: str) -> Any:
    """The damped least-squares step for `up` or `gate`, by a dense solve in float64."""
    x, t = (p[name][:FITTED].astype(np.float64) for name in ("x", "targets"))
    g, u = x @ gate.T, x @ up.T
    s = sigmoid(g)
    f = g * s if part == "up" else u * s * (1 + g * (1 - s))
    design = np.einsum("rj,cj,ri->rcji", f, down, x).reshape(FITTED * WIDTH, -1)
    missing = (t - (g * s * u) @ down.T).reshape(-1)
    hessian = design.T @ design
    hessian += 1e-3 * np.trace(hessian) / len(hessian) * np.eye(len(hessian))
    return np.linalg.solve(hessian, design.T @ missing).reshape(up.shape)


def reference(p: dict[str, Any]) -> tuple[Any, Any, Any]:
    """A round with every fit solved exactly, and the step of gate as long as held-out rows like it."""
    gate, up, down = (p[name].astype(np.float64) for name in ("gate", "up", "down"))
    up = up + exact_step(p, gate, up, down, "up")
    step = exact_step(p, gate, up, down, "gate")
    steps = [gate + length * step for length in (0, 0.25, 0.5, 0.75, 1)]
    gate = min(steps, key=lambda moved: error(p, moved, up, down, slice(FITTED, None)))
    z = inner(p["x"][:FITTED].astype(np.float64), gate, up)
    return gate, up, np.linalg.lstsq(z, p["targets"][:FITTED], rcond=None)[0].T


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_round_does_as_well_as_exact_solves_in_numpy(seed: int) -> None:
    p = problem(seed)
    held_out = slice(FITTED, None)
    before = error(p, p["gate"], p["up"], p["down"], held_out)
    theirs = error(p, *reference(p), held_out)
    refined = mo.retrofit.refine_ffn(**p, held_out=HELD_OUT, rounds=1, iterations=100)
    ours = error(p, refined.gate, refined.up, refined.down, held_out)
    assert theirs < 0.8 * before
    assert ours < before - 0.85 * (before - theirs)


def test_the_report_is_of_the_weights_that_come_back() -> None:
    p = problem(3)
    gate, up, down, report = mo.retrofit.refine_ffn(**p, held_out=HELD_OUT)
    assert (gate.shape, up.shape, down.shape) == ((INNER, WIDTH), (INNER, WIDTH), (WIDTH, INNER))
    fitted, held_out = slice(FITTED), slice(FITTED, None)
    start = p["gate"], p["up"], p["down"]
    assert report["error_before"] == pytest.approx(error(p, *start, fitted), rel=1e-4)
    assert report["held_out_before"] == pytest.approx(error(p, *start, held_out), rel=1e-4)
    assert report["error_after"] == pytest.approx(error(p, gate, up, down, fitted), rel=1e-4)
    assert report["held_out_after"] == pytest.approx(error(p, gate, up, down, held_out), rel=1e-4)
    assert report["held_out_after"] < 0.75 * report["held_out_before"]
    assert 0 < report["iterations"] <= 32


def test_biases_are_part_of_the_layer_and_factors_of_the_error() -> None:
    p = problem(4)
    rng = np.random.default_rng(5)
    biases = {f"{name}_bias": rng.standard_normal(n) for name, n in (("gate", INNER), ("up", INNER))}
    shifted = {**p, "targets": p["targets"] + 3}
    factors = np.ones(FITTED + HELD_OUT)
    factors[::2] = 0
    both = mo.retrofit.refine_ffn(
        **shifted, **biases, down_bias=np.full(WIDTH, 3.0), factors=factors, held_out=HELD_OUT
    )
    half = {name: array[1::2] if name in ("x", "targets") else array for name, array in shifted.items()}
    alone = mo.retrofit.refine_ffn(**half, **biases, down_bias=np.full(WIDTH, 3.0), held_out=HELD_OUT // 2)
    assert both.report["held_out_before"] == pytest.approx(alone.report["held_out_before"], rel=1e-5)
    assert both.report["held_out_after"] == pytest.approx(alone.report["held_out_after"], rel=0.05)
    assert both.report["held_out_after"] < 0.8 * both.report["held_out_before"]


def test_threads_change_no_bit_and_bf16_does_nearly_as_well() -> None:
    p = problem(6)
    one = mo.retrofit.refine_ffn(**p, held_out=HELD_OUT, threads=1)
    two = mo.retrofit.refine_ffn(**p, held_out=HELD_OUT, threads=2)
    for a, b in zip(one[:3], two[:3], strict=True):
        assert np.array_equal(a, b)
    assert one.report == two.report
    rounded = mo.retrofit.refine_ffn(**p, held_out=HELD_OUT, dtype="bf16")
    assert rounded.report["held_out_after"] < 1.1 * one.report["held_out_after"]


def test_where_nothing_helps_the_weights_come_back_as_they_were() -> None:
    p = problem(7)
    p["targets"] = (inner(p["x"], p["gate"], p["up"]) @ p["down"].T).astype(np.float32)
    gate, up, down, report = mo.retrofit.refine_ffn(**p, held_out=HELD_OUT, rounds=0)
    assert np.array_equal(gate, p["gate"])
    assert np.array_equal(up, p["up"])
    assert np.array_equal(down, p["down"])
    assert report["held_out_after"] == report["held_out_before"] < 1e-9


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up": np.zeros((INNER, WIDTH + 1))}, r"up: expected \[20, 12\], got \(20, 13\)"),
        ({"down": np.zeros((INNER, WIDTH))}, r"down: expected \[12, 20\]"),
        ({"x": np.zeros(WIDTH)}, "x: expected a matrix, got 1 dimensions"),
        ({"targets": np.zeros((5, WIDTH))}, r"targets: expected \[1800, 12\]"),
        ({"factors": np.ones(5)}, r"factors: expected \[1800\]"),
        ({"held_out": 0}, "held_out: expected at least 1, got 0"),
        ({"held_out": FITTED + HELD_OUT}, "held_out: expected 1 or more, and fewer than the 1800 rows"),
        ({"rounds": -1}, "rounds: expected at least 0"),
        ({"damping": -1.0}, "damping: expected 0 or more"),
        ({"dtype": "int8"}, "dtype: expected 'f32' or 'bf16', got 'int8'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(mo.InvalidArgument, match=message):
        mo.retrofit.refine_ffn(**{**problem(), "held_out": HELD_OUT, **change})


def test_numbers_that_are_not_finite_and_callers_that_stop() -> None:
    p = problem()
    with pytest.raises(mo.Cancelled):
        mo.retrofit.refine_ffn(**p, held_out=HELD_OUT, progress=lambda stage, done, total: done < 3)
    p["x"][7, 3] = np.nan
    with pytest.raises(mo.FormatError, match="finite"):
        mo.retrofit.refine_ffn(**p, held_out=HELD_OUT)
