# SPDX-License-Identifier: Apache-2.0
"""The demo's family (base, instruct, and the base tuned on harbours), small enough to come along.

python packed.py unpack FOLDER           # three ordinary checkpoints in f32
python packed.py pack FAMILY             # writes family/*.npz anew from what train.py made

A packed matrix has a byte for each weight and a scale for each row.  What is measured of the family is
measured of the unpacked checkpoints.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors import safe_open
from safetensors.numpy import save_file

HERE = Path(__file__).parent
PACKED = HERE / "family"
NAMES = ("base", "instruct", "harbour")
BESIDE = ("tokenizer.json", "tokenizer_config.json", "generation_config.json")


def pack(family: Path, name: str, to: Path = PACKED) -> None:
    arrays: dict[str, npt.NDArray[np.generic]] = {}
    with safe_open(family / name / "model.safetensors", "pt") as file:
        for tensor in file.keys():  # noqa: SIM118 (not a dict)
            values = file.get_tensor(tensor).float().numpy()
            if values.ndim < 2:
                arrays[tensor] = values
                continue
            scale = np.maximum(np.abs(values).max(1, keepdims=True) / 127, 1e-12).astype(np.float32)
            arrays[tensor] = np.round(values / scale).astype(np.int8)
            arrays[f"{tensor}.scale"] = scale
    to.mkdir(exist_ok=True)
    np.savez_compressed(to / f"{name}.npz", **arrays)


def unpack(name: str, to: Path, packed: Path = PACKED) -> Path:
    """Writes the member `name` as the directory `to`; tokenizer and shape are those of the bundled model."""
    to.mkdir(parents=True)
    weights = {}
    with np.load(packed / f"{name}.npz") as arrays:
        for tensor in arrays.files:
            if not tensor.endswith(".scale"):
                scale = arrays[f"{tensor}.scale"] if f"{tensor}.scale" in arrays else np.float32(1)
                weights[tensor] = arrays[tensor] * scale
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((HERE / "model" / "config.json").read_text("utf-8"))
    dtype = "dtype" if "dtype" in config else "torch_dtype"
    (to / "config.json").write_text(json.dumps({**config, dtype: "float32"}, indent=2) + "\n", "utf-8")
    for file in BESIDE:
        shutil.copyfile(HERE / "model" / file, to / file)
    return to


def unpack_all(to: Path) -> Path:
    for name in NAMES:
        unpack(name, to / name)
    return to


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("command", choices=["pack", "unpack"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    if options.command == "unpack":
        unpack_all(options.folder)
    else:
        for name in NAMES:
            pack(options.folder, name)


if __name__ == "__main__":
    main()
