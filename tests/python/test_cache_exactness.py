# SPDX-License-Identifier: Apache-2.0
"""Logits are the same bits however the text was read: at once, in pieces, on a branch, by any threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

mo = pytest.importorskip("modicum")
np = pytest.importorskip("numpy")
pytest.importorskip("tokenizers")

from tiny import write_tiny_model  # noqa: E402

IDS = np.random.default_rng(3).integers(0, 256, 300).tolist()


@pytest.fixture(scope="module", params=["f32", "bf16", "f16"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = write_tiny_model(tmp_path_factory.mktemp("tiny") / "model")
    return mo.load(folder, dtype=request.param, threads=2)


@pytest.fixture(scope="module")
def all_logits(model: Any) -> Any:
    return model.logits(IDS)


@pytest.mark.parametrize("piece", [1, 2, 15, 16, 17, 63, 64, 65, 100, 299])
def test_pieces_give_the_logits_of_one_call(model: Any, all_logits: Any, piece: int) -> None:
    branch = model.tree()
    for begin in range(0, len(IDS), piece):
        branch = branch.extend(IDS[begin : begin + piece])
        end = min(begin + piece, len(IDS))
        assert np.array_equal(branch.logits(), all_logits[end - 1])


def test_branches_of_one_trunk_give_the_logits_of_the_whole_text(model: Any, all_logits: Any) -> None:
    trunk = model.tree().extend(IDS[:130])
    others = [trunk.extend([7, 8, 9]), trunk.extend(IDS[130:140])]
    leaf = trunk.extend(IDS[130:])
    assert np.array_equal(leaf.logits(), all_logits[-1])
    assert np.array_equal(others[1].extend(IDS[140:]).logits(), all_logits[-1])
    assert np.array_equal(trunk.logits(), all_logits[129])


def test_threads_change_no_bit(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    for dtype in ("f32", "bf16", "f16"):
        first, *rest = (mo.load(folder, dtype=dtype, threads=n).logits(IDS) for n in (1, 2, 3))
        for other in rest:
            assert np.array_equal(first, other)
