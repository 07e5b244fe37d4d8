# SPDX-License-Identifier: Apache-2.0
"""Knowledge caches taken apart and put together again under a good seal: what a hostile writer can do.

Written from the format's description alone (include/modicum/cag/knowledge_file.hpp).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

BLOCK = 1 << 20
PAGE = 4096
DTYPES = {"F32": 4, "BF16": 2, "F16": 2, "U8": 1, "I32": 4, "U64": 8}


class Cache:
    """The parts of a file: `manifest`, and `tensors`, name → (dtype, shape, bytes) in their order."""

    def __init__(self, path: Path) -> None:
        data = path.read_bytes()
        begin = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:begin])
        self.metadata: dict[str, str] = header.pop("__metadata__")
        self.manifest: dict[str, Any] = json.loads(self.metadata["manifest"])
        self.tensors: dict[str, tuple[str, list[int], bytes]] = {}
        for name, t in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            first, last = (begin + offset for offset in t["data_offsets"])
            self.tensors[name] = (t["dtype"], t["shape"], data[first:last])

    def array(self, name: str, dtype: Any) -> np.ndarray:
        return np.frombuffer(self.tensors[name][2], dtype).copy()

    def put(self, name: str, data: bytes, shape: list[int] | None = None) -> None:
        dtype, old, _ = self.tensors[name]
        shape = old if shape is None else shape
        assert math.prod(shape) * DTYPES[dtype] == len(data)
        self.tensors[name] = (dtype, shape, data)

    def write(self, path: Path) -> None:
        """With new checksums and a new seal, over what the parts are now."""
        covered = b""
        for name, (_, _, data) in self.tensors.items():
            if name == "checksums":
                break
            covered += data
        sums = [xxhash.xxh3_64_intdigest(covered[i : i + BLOCK]) for i in range(0, len(covered), BLOCK)]
        self.put("checksums", np.array(sums, "<u8").tobytes(), [len(sums)])
        manifest = self.manifest if isinstance(self.manifest, str) else json.dumps(self.manifest)
        entries: dict[str, Any] = {"__metadata__": {**self.metadata, "manifest": manifest}}
        offset = 0
        for name, (dtype, shape, data) in self.tensors.items():
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, offset + len(data)]}
            offset += len(data)
        text = json.dumps(entries).encode()
        text += b" " * (-(8 + len(text)) % PAGE)
        header = len(text).to_bytes(8, "little") + text
        parts = (header, self.tensors["checksums"][2], self.tensors["prompt"][2])
        seal = xxhash.xxh3_128_hexdigest("".join(xxhash.xxh3_128_hexdigest(part) for part in parts).encode())
        self.put("seal", seal[:16].encode())
        path.write_bytes(header + b"".join(data for _, _, data in self.tensors.values()))


def regions(path: Path) -> dict[str, range]:
    """Every kind of bytes in a file, and where it lies."""
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    text = data[8:begin]
    header = json.loads(text)
    end = 8 + len(text.rstrip(b" "))
    manifest = 8 + text.index(b'"manifest"')
    found = {
        "header length": range(8),
        "header": range(8, manifest),
        "manifest": range(manifest, end),
        "padding": range(end, begin),
    }
    for name, tensor in header.items():
        if name != "__metadata__":
            first, last = tensor["data_offsets"]
            found[name] = range(begin + first, begin + last)
    return {name: where for name, where in found.items() if len(where) > 0}
