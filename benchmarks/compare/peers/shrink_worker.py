# SPDX-License-Identifier: Apache-2.0
"""Who shrinks, in a process of its own: from a directory to a directory, timed, with its peak of memory.

A process serves one contestant and stays between calls, so that imports are nobody's time. Memory is private
memory at its peak, above what the process held before the call.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMPARE = Path(__file__).parents[1]


class ShrinkError(Exception):
    """What a contestant said when it could not."""


class ShrinkWorker:
    """The parent's end. `python` is the interpreter in which the contestant is installed."""

    module = "peers.shrink_worker"
    """That the process runs."""

    def __init__(self, who: str, threads: int, python: str = sys.executable) -> None:
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "HF_HUB_OFFLINE": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        self.process = subprocess.Popen(
            [python, "-m", self.module, who, str(threads)],
            cwd=COMPARE,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr if os.environ.get("MODICUM_VERBOSE") else subprocess.DEVNULL,
            text=True,
        )
        self._answer()

    def shrink(
        self, source: Path, out: Path, ids: Path, held_out: int, ask: dict[str, Any]
    ) -> dict[str, Any]:
        """{"seconds", "cpu", "memory"}; `ids` is a .npy file, int32 [sequences, length].

        Raises ShrinkError."""
        return self.call(
            {"source": str(source), "out": str(out), "ids": str(ids), "held_out": held_out, "ask": ask}
        )

    def call(self, request: dict[str, Any]) -> dict[str, Any]:
        """Raises ShrinkError."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise ShrinkError(f"its process ended with {self.process.wait()}; MODICUM_VERBOSE=1 shows why")
        answer: dict[str, Any] = json.loads(line)
        if "failed" in answer:
            raise ShrinkError(answer["failed"])
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


Run = Callable[[dict[str, Any]], None]


def modicum(threads: int) -> Run:
    import modicum as mo
    import numpy as np

    def run(request: dict[str, Any]) -> None:
        ids, learnt = np.load(request["ids"]), -request["held_out"]
        text = mo.retrofit.Calibration(ids[:learnt], ids[learnt:], sources=[], bos=[], seed=0)
        plan = {"schema": "modicum.retrofit.plan/1", **request["ask"]}
        mo.retrofit.run(
            request["source"], request["out"], plan, calibration=text, threads=threads, evaluate=False
        )

    return run


def baseline(threads: int) -> Run:
    import inspect

    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    from peers import shrink_baselines, shrink_depth

    torch.set_num_threads(threads)

    def run(request: dict[str, Any]) -> None:
        values = dict(request["ask"])
        name = values.pop("call")
        function = getattr(shrink_baselines, name, None) or getattr(shrink_depth, name)
        if "ids" in inspect.signature(function).parameters:
            values["ids"] = torch.from_numpy(np.load(request["ids"])).long()
        model = AutoModelForCausalLM.from_pretrained(request["source"], dtype="auto")
        function(model.eval(), **values).save_pretrained(request["out"])

    return run


def contestant(who: str, threads: int) -> Run:
    if who == "modicum":
        return modicum(threads)
    if who == "baseline":
        return baseline(threads)
    from peers import shrink_tools

    return shrink_tools.load(who, threads)


def measure(run: Run, request: dict[str, Any]) -> dict[str, Any]:
    from peers import memory

    before = memory.held()
    memory.forget_peak()
    begin, busy = time.perf_counter(), time.process_time()
    run(request)
    seconds, cpu = time.perf_counter() - begin, time.process_time() - busy
    return {"seconds": seconds, "cpu": cpu, "memory": max(0, memory.peak() - before)}


def serve(
    contestant: Callable[[str, int], Run], measure: Callable[[Run, dict[str, Any]], dict[str, Any]]
) -> None:
    """The process: who it is and its threads are arguments, requests are lines of its input."""
    who, threads = sys.argv[1], int(sys.argv[2])
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not become a result

    def answer(values: dict[str, Any]) -> None:
        print(json.dumps(values), file=results, flush=True)

    try:
        run = contestant(who, threads)
    except ImportError as error:
        answer({"failed": f"{error.name or error} is not installed"})
        return
    answer({"ready": who})
    for line in sys.stdin:
        try:
            answer(measure(run, json.loads(line)))
        except Exception as error:  # a peer may raise anything: its row says so, the others go on
            answer({"failed": f"{type(error).__name__}: {error}"[:300]})


if __name__ == "__main__":
    serve(contestant, measure)
