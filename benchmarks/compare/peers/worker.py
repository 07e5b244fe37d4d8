# SPDX-License-Identifier: Apache-2.0
"""One contestant in a process of its own: calls come in as lines of JSON, results go out as lines of JSON."""

from __future__ import annotations

import json
import os
import resource
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

from peers.engine import CONTESTANTS, Contestant, Setup, UnavailableError
from peers.shapes import SHAPES, checkpoint


class TimeLimitError(Exception):
    """A call took longer than `Worker.limit` allows; its process is gone."""


class Worker:
    """The parent's end."""

    def __init__(
        self,
        contestant: Contestant,
        shape: str,
        cache: Path,
        threads: int,
        context: int = Setup.context,
    ) -> None:
        self.contestant = contestant
        self.limit: float | None = None
        """Seconds that a call may take."""
        self.busy_cpu = 0.0
        self.foreign = 0.0
        """CPU seconds that everybody else took, or the host withheld, during the last call."""
        arguments = [contestant.name, shape, str(cache), str(threads), str(context)]
        command = [sys.executable, "-m", "peers.worker", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sys.stderr if os.environ.get("MODICUM_VERBOSE") else subprocess.DEVNULL,
            text=True,
        )
        self.load_seconds: float = self._answer()
        self.loaded_cpu = self.cpu_seconds()

    def call(self, method: str, *arguments: Any) -> Any:
        before, everybody = self.cpu_seconds(), machine_cpu_seconds()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([method, arguments]) + "\n")
        self.process.stdin.flush()
        try:
            return self._answer()
        finally:
            own = self.cpu_seconds() - before
            self.busy_cpu += own
            self.foreign = machine_cpu_seconds() - everybody - own

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        # Calls and answers alternate, so nothing is left in the stream's own buffer.
        if not select.select([self.process.stdout], [], [], self.limit)[0]:
            self.close()
            raise TimeLimitError(f"> {self.limit:g} s")
        line = self.process.stdout.readline()
        if not line:
            raise UnavailableError(
                f"its process ended with {self.process.wait()}; MODICUM_VERBOSE=1 shows why"
            )
        answer = json.loads(line)
        if "unavailable" in answer:
            raise UnavailableError(answer["unavailable"])
        return answer["result"]

    def cpu_seconds(self) -> float:
        stat = Path(f"/proc/{self.process.pid}/stat")
        if not stat.exists():
            return 0.0
        fields = stat.read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def idle_cpu(self) -> float:
        """CPU seconds taken outside of calls: what this engine took from the others."""
        return self.cpu_seconds() - self.loaded_cpu - self.busy_cpu

    @property
    def peak_memory(self) -> int:
        """Bytes, pages of mapped files included."""
        return _kilobytes(Path(f"/proc/{self.process.pid}/status"), "VmHWM") << 10

    def limit_memory(self, share: float = 0.85) -> None:
        """To a share of what is free now: then this process gets an error, where the system would end any."""
        pid = self.process.pid
        taken = _kilobytes(Path(f"/proc/{pid}/status"), "VmData")
        free = _kilobytes(Path("/proc/meminfo"), "MemAvailable")
        _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
        resource.prlimit(pid, resource.RLIMIT_DATA, (int((taken + share * free) * 1024), hard))

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def _kilobytes(file: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in file.read_text().splitlines() if line.startswith(name))


def machine_cpu_seconds() -> float:
    """Of all processes, and stolen by the host, since the machine started."""
    user, nice, system, _idle, _wait, irq, soft, steal = map(
        int, Path("/proc/stat").read_text().split(maxsplit=9)[1:9]
    )
    return (user + nice + system + irq + soft + steal) / os.sysconf("SC_CLK_TCK")


def load(contestant: Contestant, setup: Setup) -> tuple[float, Any]:
    try:
        return contestant.load(setup)
    except ImportError as error:
        raise UnavailableError(f"{error.name or error} is not installed") from error
    except subprocess.CalledProcessError as error:
        raise UnavailableError(f"the conversion failed with {error.returncode}") from error


def main() -> None:
    name, shape, cache, threads, context = sys.argv[1:]
    results = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not become a result

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=results, flush=True)

    try:
        contestant = next(c for c in CONTESTANTS if c.name == name)
        weights = checkpoint(Path(cache), SHAPES[shape])
        seconds, engine = load(contestant, Setup(SHAPES[shape], weights, int(threads), int(context)))
    except UnavailableError as error:
        answer(unavailable=str(error))
        return
    answer(result=seconds)
    for line in sys.stdin:
        method, arguments = json.loads(line)
        result = getattr(engine, method)(*arguments)
        answer(result=result.tolist() if method.endswith("logits") else result)


if __name__ == "__main__":
    main()
