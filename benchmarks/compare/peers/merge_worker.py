# SPDX-License-Identifier: Apache-2.0
"""Who merges, in a process of its own for every merge: timed, with its peak of private memory.

Arrays are merged twice, and the second time counts: a first call pays for threads and memory that later ones
find there.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peers.shrink_worker import ShrinkWorker, serve

LAYER = "model.layers.0."
Call = Callable[[], Any]
"""What is timed; arrays that it returns are written afterwards."""
Prepare = Callable[[dict[str, Any]], Call]


class MergeWorker(ShrinkWorker):
    """The parent's end. Raises ShrinkError where a contestant does not start or cannot."""

    module = "peers.merge_worker"

    def __init__(self, who: str, threads: int) -> None:
        self.begin = time.perf_counter()
        super().__init__(who, threads)

    def merge(self, ask: dict[str, Any], out: Path) -> dict[str, Any]:
        """{"seconds", "cpu", "memory", "private", "process"}: the last in seconds from start to end."""
        try:
            cost = self.call(ask | {"out": str(out)})
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()
        finally:
            self.close()
        return cost | {"process": time.perf_counter() - self.begin}


def modicum(threads: int) -> Prepare:
    import modicum as mo

    def prepare(ask: dict[str, Any]) -> Call:
        if ask["call"] == "merge":
            return lambda: mo.merge(ask["config"], ask["out"], threads=threads)
        if ask["call"] == "lora":
            return lambda: mo.tune.merge_lora(ask["model"], ask["adapter"], ask["out"], threads=threads)
        base, *models = ({name: t.numpy() for name, t in one.items()} for one in layers(ask))
        density = {"density": ask["density"]} if "density" in ask else {}

        def merged(name: str) -> Any:
            return mo.tune.merge_arrays(
                ask["method"],
                [model[name] for model in models],
                base[name],
                weights=ask["weights"],
                definition="peft",
                name=name,
                threads=threads,
                **density,
            )

        return warm(lambda: {name: merged(name) for name in base})

    return prepare


def mergekit(threads: int) -> Prepare:
    """As it ships, with its default options: on a CPU there is nothing else that makes it faster."""
    import torch
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    torch.set_num_threads(threads)

    def prepare(ask: dict[str, Any]) -> Call:
        config = MergeConfiguration.model_validate(ask["config"])
        return lambda: run_merge(config, ask["out"], MergeOptions())

    return prepare


def peft(threads: int) -> Prepare:
    import torch
    from peft import PeftModel
    from peft.utils import merge_utils
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)

    def fold(ask: dict[str, Any]) -> None:
        model = AutoModelForCausalLM.from_pretrained(ask["model"], dtype=ask["dtype"])
        merged = PeftModel.from_pretrained(model, ask["adapter"]).merge_and_unload()
        merged.to(torch.bfloat16).save_pretrained(ask["out"])

    def prepare(ask: dict[str, Any]) -> Call:
        if ask["call"] == "lora":
            return lambda: fold(ask)
        base, *models = layers(ask)
        weights, density = torch.tensor(ask["weights"]), [ask["density"]] if "density" in ask else []
        method = getattr(merge_utils, ask["method"])

        def merged(name: str) -> Any:
            return base[name] + method([model[name] - base[name] for model in models], weights, *density)

        return warm(lambda: {name: merged(name).numpy() for name in base})

    return prepare


def warm(call: Call) -> Call:
    call()
    return call


def layers(ask: dict[str, Any]) -> list[dict[str, Any]]:
    """The matrices of one layer of the base and of each model, float32."""
    from safetensors import safe_open

    found = []
    for folder in (ask["base"], *ask["models"]):
        tensors = {}
        for file in sorted(Path(folder).glob("*.safetensors")):
            with safe_open(file, framework="pt") as weights:
                for name in weights.keys():  # noqa: SIM118
                    if name.startswith(LAYER) and len(weights.get_slice(name).get_shape()) == 2:
                        tensors[name] = weights.get_tensor(name).float()
        found.append(tensors)
    return found


def contestant(who: str, threads: int) -> Prepare:
    return {"modicum": modicum, "mergekit": mergekit, "peft": peft}[who](threads)


def measure(prepare: Prepare, ask: dict[str, Any]) -> dict[str, Any]:
    from peers import memory

    call = prepare(ask)
    held = memory.held()
    with memory.Watch() as watch:
        begin, busy = time.perf_counter(), time.process_time()
        result = call()
        seconds, cpu = time.perf_counter() - begin, time.process_time() - busy
    if isinstance(result, dict):
        from safetensors.numpy import save_file

        Path(ask["out"]).mkdir(parents=True)
        save_file(result, Path(ask["out"]) / "merged.safetensors")
    return {"seconds": seconds, "cpu": cpu, "memory": max(0, watch.most - held), "private": watch.most}


if __name__ == "__main__":
    serve(contestant, measure)
