# SPDX-License-Identifier: Apache-2.0
"""What the Python tests share: where models and corpora are, and the bundled demo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("MODICUM_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of models, tokenizers and corpora; skips where it is absent."""
    if not DATA.is_dir():
        pytest.skip("MODICUM_DATA is absent")
    return DATA


@pytest.fixture(scope="session")
def demo() -> Path:
    """The bundled demo: model/, handbook/ and questions.json."""
    folder = ROOT / "examples" / "demo"
    if not (folder / "model" / "config.json").is_file():
        pytest.skip("the demo model is absent")
    return folder
