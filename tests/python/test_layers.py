# SPDX-License-Identifier: Apache-2.0
"""The test of the check that includes run one way: it must see a planted violation."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

import layers  # noqa: E402


def plant(root: Path, path: str, text: str) -> None:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_the_tree_includes_one_way() -> None:
    assert layers.violations(ROOT) == []


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("include/modicum/base/a.hpp", "#include <modicum/tensor/dtype.hpp>", "base includes tensor"),
        ("include/modicum/ops/a.hpp", "#include <modicum/text/tokenizer.hpp>", "ops includes text"),
        ("include/modicum/search/a.hpp", "#include <modicum/cag/build.hpp>", "search includes cag"),
        ("src/cag/a.cpp", "#  include <modicum/search/beam.hpp>", "cag includes search"),
        ("src/kv/a.cpp", '#include "../model/secret.hpp"', "kv includes model"),
        ("src/cpu/a.inc", "#include <modicum/kv/tree.hpp>", "cpu includes kv"),
        ("src/model/a.cpp", "#include <modicum/modicum.hpp>", "for applications"),
        ("src/nowhere/a.cpp", "", "'nowhere' has no line"),
    ],
)
def test_a_planted_violation_is_seen(tmp_path: Path, file: str, line: str, said: str) -> None:
    plant(tmp_path, file, f"#pragma once\n{line}\n")
    (only,) = layers.violations(tmp_path)
    assert file in only
    assert said in only


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("include/modicum/kv/a.hpp", "#include <modicum/text/tokenizer.hpp>"),
        ("src/ops/a.cpp", '#include "../cpu/kernels.hpp"'),
        ("src/python/a.cpp", "#include <modicum/modicum.hpp>"),
        ("include/modicum/modicum.hpp", "#include <modicum/cag/build.hpp>"),
        ("src/base/a.cpp", "#include <tensor/of/somebody/else.hpp>"),
    ],
)
def test_what_points_down_is_allowed(tmp_path: Path, file: str, line: str) -> None:
    plant(tmp_path, file, f"{line}\n")
    assert layers.violations(tmp_path) == []
