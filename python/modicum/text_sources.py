"""Where calibration tokens come from: files and folders of text, JSONL, arrays of ids, a model's own text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from modicum._core import FormatError, InvalidArgument, IoError, Tokenizer
from modicum.documents import MAX_BYTES, read_documents
from modicum.own_text import OwnText

__all__ = ["TokenSource", "read_source"]

Ids = npt.NDArray[np.int32]
Source = str | Path | npt.NDArray[np.integer] | OwnText
_OP = "[calibration]"
_PIECE = 1 << 20  # characters encoded at a time, so that Ctrl-C is heard


@dataclass(frozen=True)
class TokenSource:
    """The tokens of one source, one document behind the other, without BOS.

    Attributes
    ----------
    name : the path as given, "ids" or "own text".
    kind : "text", "ids" or "own text".
    sha256 : of the text in UTF-8, or of the ids as little-endian int32.
    ids : int32 [tokens].
    origin : how text of a model's own was made; None for other sources.
    """

    name: str
    kind: str
    sha256: str
    ids: Ids = field(repr=False)
    origin: dict[str, Any] | None = None


def read_source(
    source: Source, tokenizer: Callable[[], Tokenizer], *, fields: Sequence[str], bos: Sequence[int]
) -> TokenSource:
    """The tokens of `source`; documents of text are joined by a blank line.

    Parameters
    ----------
    tokenizer : called where there is text to encode.
    fields : of each object of a .jsonl file, joined by a line break.
    bos : tokens that begin every sequence anyway; ids that begin documents with them are taken without.

    Raises
    ------
    InvalidArgument, FormatError, IoError, Unsupported
        For what is not text, ids or a folder of them, by name.
    """
    if isinstance(source, OwnText):
        ids = np.concatenate([_without(document, bos) for document in source.documents])
        return TokenSource("own text", "own text", _hash_ids(ids), ids, source.describe())
    if isinstance(source, np.ndarray):
        if source.dtype.kind not in "iu" or source.ndim not in (1, 2) or not source.size:
            raise InvalidArgument(
                f"{_OP} sources: expected integers [tokens] or [sequences, tokens], "
                f"got {source.dtype} {list(source.shape)}"
            )
        rows = np.atleast_2d(source).astype(np.int64)
        if rows.min() < 0 or rows.max() > np.iinfo(np.int32).max:
            raise InvalidArgument(f"{_OP} sources: expected token ids, got {rows.min()} to {rows.max()}")
        ids = np.concatenate([_without(row.astype(np.int32), bos) for row in rows])
        return TokenSource("ids", "ids", _hash_ids(ids), ids)
    text = "\n\n".join(_texts(Path(source), fields))
    encoded = [tokenizer().encode(piece, add_special_tokens=False) for piece in _pieces(text)]
    ids = np.array([i for piece in encoded for i in piece], dtype=np.int32)
    return TokenSource(str(source), "text", hashlib.sha256(text.encode()).hexdigest(), ids)


def _texts(path: Path, fields: Sequence[str]) -> list[str]:
    if not path.is_dir():
        return _rows(path, fields) if path.suffix.lower() == ".jsonl" else [read_documents(path)[0].text]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise InvalidArgument(f"{_OP} {path}: expected a folder with text, got no files")
    return [text for file in files for text in _texts(file, fields)]


def _rows(path: Path, fields: Sequence[str]) -> list[str]:
    """The texts of a .jsonl file, one for each line."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InvalidArgument(
                f"{_OP} {path}: expected at most {MAX_BYTES} bytes, got {path.stat().st_size}; split it"
            )
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise IoError(f"{_OP} {path}: expected a readable file, got {error.strerror}") from error
    texts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise FormatError(f"{_OP} {path}: line {number}: expected JSON, got an error: {error}") from error
        found = [row.get(name) if isinstance(row, dict) else None for name in fields]
        if not all(isinstance(text, str) for text in found):
            missing = fields[[isinstance(text, str) for text in found].index(False)]
            has = ", ".join(map(repr, row)) if isinstance(row, dict) else f"a {type(row).__name__}"
            raise FormatError(
                f"{_OP} {path}: line {number}: expected an object with text in {missing!r}, got {has}; "
                "name the field by `field`"
            )
        texts.append("\n".join(text for text in found if isinstance(text, str)))
    if not texts:
        raise InvalidArgument(f"{_OP} {path}: expected at least one object, got none")
    return texts


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that end with a line, where there are lines."""
    start = 0
    while start < len(text):
        end = len(text) if start + _PIECE >= len(text) else text.rfind("\n", start, start + _PIECE) + 1
        end = end if end > start else start + _PIECE
        yield text[start:end]
        start = end


def _without(ids: Ids, bos: Sequence[int]) -> Ids:
    return ids[len(bos) :] if bos and ids[: len(bos)].tolist() == list(bos) else ids


def _hash_ids(ids: Ids) -> str:
    return hashlib.sha256(ids.astype("<i4").tobytes()).hexdigest()
