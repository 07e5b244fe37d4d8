#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What a cost model and a shape of random weights say of a model's speed, beside the model itself.

Three numbers for each model: predicted by `mo.retrofit.CostModel`, measured on a shape before there is a
model (`mo.retrofit.measure_shapes`), and measured on the model. Models are retrofits of the source, made by
somebody (`--out`), or the source quantised here; without either, shapes that a planner would consider.

    python benchmarks/retrofit/speed.py --source MODEL
    python benchmarks/retrofit/speed.py --source MODEL --out RETROFITTED ANOTHER
    python benchmarks/retrofit/speed.py --config config.json      # a source of random weights
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import modicum as mo
from modicum.retrofit import CostModel, Format, Shape

FORMATS = [Format(), Format(8), Format(8, head="int8"), Format(4, head="int8")]


def candidates(config: dict[str, Any]) -> list[Shape]:
    """Shapes that no fit measures: columns, heads and layers between those that it does."""
    columns = config["intermediate_size"]
    narrow = {"intermediate_size": round(0.75 * columns / 64) * 64}
    shallow = {"num_hidden_layers": config["num_hidden_layers"] - config["num_hidden_layers"] // 6}
    if "layer_types" in config:
        shallow["layer_types"] = config["layer_types"][: shallow["num_hidden_layers"]]
    return [
        Shape(config | narrow),
        Shape(config | shallow),
        Shape(config | narrow | shallow, Format(8)),
        Shape(config | narrow, Format(8, head="int8")),
        Shape(config | narrow | shallow, Format(4, head="int8")),
    ]


def quantised(source: Path, folder: Path) -> list[tuple[Path, Shape]]:
    """The source in each format: models as real as the source."""
    config = json.loads((source / "config.json").read_text())
    made = []
    for format in FORMATS[1:]:
        out = folder / str(format).replace(" ", "-").replace(",", "")
        mo.retrofit.quantize(source, out, bits=format.bits, group=format.group, head=format.head)
        made.append((out, Shape(config, format)))
    return made


def format_of(model: mo.Model) -> Format:
    """As far as a directory tells: bits of the layers, and of the head where they are the same or int8."""
    schemes = (model.quantization or "").split(", ")
    bits = next((int(s[3]) for s in schemes if s.startswith("int")), None)
    if bits is None:
        return Format()
    config = json.loads((model.path / "config.json").read_text())["quantization_config"]
    kept = "lm_head" in config.get("ignore", [])
    return Format(bits, head="keep" if kept else f"int{schemes[-1][3]}")


def line(name: str, predicted: tuple[float, float], shape: Any, real: Any = None) -> str:
    shown = [f"{name:<44}"]
    for i, what in enumerate(("decode", "prefill")):
        ratio = getattr(shape, what)
        shown.append(f"{what} x{predicted[i]:.2f} predicted, x{ratio} as a shape")
        if real is not None:
            ratio = getattr(real, what)
            shown.append(f"x{ratio} measured")
        shown.append(f"({100 * (predicted[i] / ratio.value - 1):+.1f} %)")
    return " ".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", type=Path)
    parser.add_argument("--config", type=Path, help="instead of --source: a config.json")
    parser.add_argument("--out", type=Path, nargs="*", default=[], help="models made from the source")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.config is not None:
            config = json.loads(options.config.read_text())
            options.source = mo.retrofit.write_random(config, Path(scratch) / "source")
        compare(options, Path(scratch))


def compare(options: argparse.Namespace, scratch: Path) -> None:
    source = mo.load(options.source, threads=options.threads)
    config = json.loads((source.path / "config.json").read_text())
    real = [(out, mo.load(out)) for out in options.out]
    known = [(out, Shape(json.loads((out / "config.json").read_text()), format_of(m))) for out, m in real]
    known += quantised(options.source, scratch)
    formats = list(dict.fromkeys([*FORMATS, *(shape.format for _, shape in known)]))
    costs = CostModel.fit(source, formats, rounds=options.rounds)
    print(json.dumps(costs.to_dict(), indent=1))

    def predicted(shape: Shape) -> tuple[float, float]:
        return (
            costs.decode_seconds(config) / costs.decode_seconds(shape.config, shape.format),
            costs.prefill_seconds(config) / costs.prefill_seconds(shape.config, shape.format),
        )

    for out, shape in known:
        (as_shape,) = mo.retrofit.measure_shapes(source, [shape], rounds=options.rounds)
        both = mo.retrofit.measure([source, mo.load(out, threads=source.threads)], rounds=options.rounds)
        print(line(out.name, predicted(shape), as_shape, mo.retrofit.SpeedChange(*both)), flush=True)
    for shape in candidates(config):
        (as_shape,) = mo.retrofit.measure_shapes(source, [shape], rounds=options.rounds)
        c = shape.config
        name = f"{c['num_hidden_layers']} layers, {c['intermediate_size']} columns, {shape.format}"
        print(line(name, predicted(shape), as_shape), flush=True)


if __name__ == "__main__":
    main()
