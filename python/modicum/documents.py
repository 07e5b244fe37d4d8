"""Sources for cache-augmented generation: text and markdown as they are; HTML, PDF and DOCX as markdown."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modicum._converters import KINDS, OUT_OF_MEMORY
from modicum._core import Cancelled, Error, FormatError, InvalidArgument, IoError, Unsupported
from modicum.model import Progress

__all__ = ["Document", "read_documents"]

TEXT_SUFFIXES = (".txt", ".md", ".markdown")
CONVERTED_SUFFIXES = (".html", ".htm", ".pdf", ".docx")
MAX_BYTES = 64 << 20
TIMEOUT = 120.0
MEMORY = 2 << 30

_OP = "[read_documents]"
_ERRORS: dict[str, type[Error]] = {
    "FormatError": FormatError,
    "InvalidArgument": InvalidArgument,
    "Unsupported": Unsupported,
}


@dataclass(frozen=True)
class Document:
    """A document as a model will read it.

    Attributes
    ----------
    name : path below its source folder, with "/"; for a source that is a file, the file's name.
    source : path of the file, as given.
    text : of a text file, its bytes decoded and nothing else; otherwise markdown made from it.
    pages : byte offset in the UTF-8 `text` where each page of the original begins, () where it has none. A
        page without text begins where the next one does.
    converted : `text` is not the file's own bytes.
    volatile : expected to change, so it comes after those that are not.
    """

    name: str
    source: str
    text: str
    pages: tuple[int, ...]
    converted: bool
    volatile: bool


@dataclass(frozen=True)
class _Refusal:
    error: type[Error]
    source: str
    expected: str
    got: str
    todo: str

    @property
    def quoted(self) -> str:
        return "'" + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in self.source) + "'"


@dataclass(frozen=True)
class _File:
    name: str
    source: str


def read_documents(
    sources: str | Path | Sequence[str | Path],
    *,
    volatile: Sequence[str] = (),
    max_bytes: int = MAX_BYTES,
    timeout: float = TIMEOUT,
    progress: Progress | None = None,
) -> list[Document]:
    """Reads files and whole folders, sorted by name within each source.

    .txt, .md and .markdown are taken as they are and must be UTF-8. .html, .htm, .pdf and .docx are converted
    by the extra ``pip install modicum[documents]``: headings become # lines, tables markdown tables, and the
    pages of a PDF keep their place. Not converted are pictures (but for their alternative text), scripts, and
    a DOCX's headers, footers, comments and formulas. The same file always gives the same text.

    Conversion runs in a process of its own, one for all files, of at most 2 GiB: whatever a file holds, it
    can only be refused. Entries of folders that begin with "." are left out.

    Parameters
    ----------
    volatile : patterns of names (``fnmatch``: "news/*", "*.html") whose documents come last, so that all
        before them can be kept when they change.
    max_bytes : of a file, of what a DOCX unpacks to, and of a converted text.
    timeout : seconds that the conversion of one file may take.
    progress : called with ("documents", done, total); returning False stops.

    Raises
    ------
    InvalidArgument
        For no documents, an empty one, or two of one name.
    FormatError
        For text that is not UTF-8 (with the byte offset) or has a NUL, and for a broken HTML, PDF or DOCX.
    Unsupported
        For another suffix; a file that is encrypted, scanned, too large or too slow to convert; a link to a
        folder; a missing extra.
    IoError
        Where a file or folder cannot be read.
    Cancelled
        By `progress`.

    Nothing is left out silently: all files are tried, and one error tells each that is refused, with its
    reason. Where the reasons are of several of these classes, it is a FormatError.
    """
    if isinstance(sources, (str, Path)):
        sources = [sources]
    patterns = [volatile] if isinstance(volatile, str) else list(volatile)
    if max_bytes < 1:
        raise InvalidArgument(f"{_OP} max_bytes: expected at least 1, got {max_bytes}")
    if not timeout > 0:
        raise InvalidArgument(f"{_OP} timeout: expected more than 0 seconds, got {timeout}")
    files, refusals = _find(sources)
    documents: list[Document] = []
    with _Converter(max_bytes, timeout) as converter:
        for done, file in enumerate(files):
            if progress is not None and progress("documents", done, len(files)) is False:
                raise Cancelled(f"{_OP} reading: stopped after {done} of {len(files)} documents")
            last = any(fnmatch.fnmatchcase(file.name, pattern) for pattern in patterns)
            read = _read(file, last, max_bytes, converter)
            if isinstance(read, Document):
                documents.append(read)
            else:
                refusals.append(read)
    if progress is not None:
        progress("documents", len(files), len(files))
    if refusals:
        raise _as_one_error(refusals, len(documents) + len(refusals))
    if not documents:
        raise InvalidArgument(
            f"{_OP} sources: expected at least one text, markdown, HTML, PDF or DOCX file, got none"
        )
    return sorted(documents, key=lambda document: document.volatile)


def _as_one_error(refusals: Sequence[_Refusal], count: int) -> Error:
    first = refusals[0]
    if len(refusals) == 1:
        todo = f"; {first.todo}" if first.todo else ""
        return first.error(f"{_OP} {first.quoted}: expected {first.expected}, got {first.got}{todo}")
    kinds = {refusal.error for refusal in refusals}
    told = ", ".join(f"{r.quoted} (expected {r.expected}, got {r.got})" for r in refusals)
    return (first.error if len(kinds) == 1 else FormatError)(
        f"{_OP} {len(refusals)} of {count} documents: expected readable ones, got {told}; correct them or "
        "move them away, nothing is left out silently"
    )


def _find(sources: Sequence[str | Path]) -> tuple[list[_File], list[_Refusal]]:
    """The files of all sources in order, and what is none or has another's name."""
    files: list[_File] = []
    refusals: list[_Refusal] = []
    for source in [os.fspath(source) for source in sources]:
        if Path(source).is_dir():
            _find_in_folder(source, files, refusals)
        else:
            files.append(_File(Path(source).name, source))
    seen: dict[str, str] = {}
    for file in files:
        if file.name in seen:
            got = f"'{file.name}' twice, first in '{seen[file.name]}'"
            todo = "rename one, or give the folder above both as the source"
            refusals.append(_Refusal(InvalidArgument, file.source, "a name of its own", got, todo))
        seen.setdefault(file.name, file.source)
    twice = {refusal.source for refusal in refusals}
    return [file for file in files if file.source not in twice], refusals


def _find_in_folder(folder: str, files: list[_File], refusals: list[_Refusal]) -> None:
    found: list[_File] = []
    ahead = [""]
    while ahead:
        below = ahead.pop()
        try:
            with os.scandir(os.path.join(folder, below)) as entries:  # noqa: PTH118 — as given, not tidied
                for entry in entries:
                    name = below + entry.name
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        ahead.append(name + "/")
                    elif entry.is_dir():
                        # Followed, it could lead round in a circle.
                        refusals.append(
                            _Refusal(
                                Unsupported,
                                entry.path,
                                "a file or folder",
                                "a link to a folder",
                                "give that folder as a source",
                            )
                        )
                    else:
                        found.append(_File(name, entry.path))
        except OSError as error:
            path = os.path.join(folder, below)  # noqa: PTH118
            refusals.append(_Refusal(IoError, path, "a readable folder", _reason(error), ""))
    files += sorted(found, key=lambda file: os.fsencode(file.name))


def _read(file: _File, volatile: bool, max_bytes: int, converter: _Converter) -> Document | _Refusal:
    def refused(error: type[Error], expected: str, got: str, todo: str) -> _Refusal:
        return _Refusal(error, file.source, expected, got, todo)

    try:
        os.stat(file.source)  # noqa: PTH116 — as given
    except (OSError, ValueError) as error:
        return refused(IoError, "a file or folder", _reason(error), "")
    suffix = Path(file.name).suffix.lower()
    if suffix not in TEXT_SUFFIXES + CONVERTED_SUFFIXES:
        known = ", ".join(TEXT_SUFFIXES + CONVERTED_SUFFIXES)
        return refused(Unsupported, f"one of {known}", f"suffix {suffix!r}", "convert it or move it away")
    try:
        file.name.encode()
    except UnicodeEncodeError:
        return refused(FormatError, "a name in UTF-8", "other bytes", "rename it")
    if any(ord(c) < 32 for c in file.name):
        # The name stands on a line of its own before the text.
        return refused(FormatError, "a name on one line", "control characters", "rename it")
    try:
        data = _bytes_of(file.source, max_bytes)
    except OSError as error:
        return refused(IoError, "a readable file", _reason(error), "")
    if len(data) > max_bytes:
        got = f"more than {max_bytes}"
        return refused(Unsupported, f"at most {max_bytes} bytes", got, "split it, or raise max_bytes")
    if suffix in TEXT_SUFFIXES:
        try:
            text = data.decode()
            if (at := data.find(0)) >= 0:
                raise UnicodeDecodeError("utf-8", data, at, at + 1, "NUL")
        except UnicodeDecodeError as error:
            got = f"byte {data[error.start]} at offset {error.start}"
            return refused(FormatError, "UTF-8 text", got, "save it as UTF-8")
        if not text.strip("\ufeff").strip():
            return refused(InvalidArgument, "some text", "an empty document", "leave it out")
        return Document(file.name, file.source, text, (), converted=False, volatile=volatile)
    if not data:
        return refused(InvalidArgument, "some text", "an empty document", "leave it out")
    answer = converter.convert(suffix, data)
    if "error" in answer:
        return refused(_ERRORS[answer["error"]], answer["expected"], answer["got"], answer["todo"])
    pages = tuple(answer["pages"])
    return Document(file.name, file.source, answer["text"], pages, converted=True, volatile=volatile)


def _bytes_of(path: str, max_bytes: int) -> bytes:
    """At most one byte more than `max_bytes` of a regular file; OSError for pipes and devices."""
    # Opening a pipe that nobody writes to would wait for ever.
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "not a regular file")
        return file.read(max_bytes + 1)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)


class _Converter:
    """The process that converts (`_converters.py`): started at first need, replaced when it dies."""

    def __init__(self, max_bytes: int, timeout: float, memory: int = MEMORY) -> None:
        self._max_bytes = max_bytes
        self._timeout = timeout
        self._memory = memory
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Converter:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def convert(self, suffix: str, data: bytes) -> dict[str, Any]:
        """The answer of the process; where it gives none, a refusal that says why."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        limits = {"max_bytes": self._max_bytes, "seconds": self._timeout, "memory": self._memory}
        request = json.dumps({"suffix": suffix, "size": len(data), **limits})
        timer = threading.Timer(self._timeout, stop)
        timer.daemon = True
        timer.start()
        try:
            line = _exchange(process, request.encode() + b"\n" + data)
        finally:
            timer.cancel()
            timer.join()
        if line.endswith(b"\n"):
            if late.is_set():  # in the very moment
                self._end()
            answer: dict[str, Any] = json.loads(line)
            return answer
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(5)  # for the status that it ends with by itself
        self._end()
        return self._what_ended(KINDS[suffix], late.is_set(), process.returncode)

    def _what_ended(self, kind: str, late: bool, status: int) -> dict[str, Any]:
        if late:
            expected = f"{kind} file that is converted in {self._timeout:g} s"
            got, todo = "one that takes longer", "split it, or raise timeout"
            return {"error": "Unsupported", "expected": expected, "got": got, "todo": todo}
        if status == OUT_OF_MEMORY:
            expected = f"{kind} file that is converted in {self._memory >> 20} MiB of memory"
            return {"error": "Unsupported", "expected": expected, "got": "a larger one", "todo": "split it"}
        got = f"one that ended the converter (status {status})"
        return {"error": "FormatError", "expected": f"{kind} file", "got": got, "todo": "save it as text"}

    def _start(self) -> subprocess.Popen[bytes]:
        # The script is not run by its path, which would let modules beside it stand before the library's.
        # Hashes are fixed, so that what a converter keeps in a set cannot come in another order.
        code = (
            "import sys; _, file, *sys.path = sys.argv; import runpy; runpy.run_path(file, None, '__main__')"
        )
        script = str(Path(__file__).with_name("_converters.py"))
        paths = [os.path.abspath(path) for path in sys.path]  # noqa: PTH100 — of '' too
        try:
            return subprocess.Popen(
                [sys.executable, "-c", code, script, *paths],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"PYTHONHASHSEED": "0"},
                start_new_session=True,  # Ctrl-C is for the caller, who ends this process
            )
        except OSError as error:
            raise IoError(
                f"{_OP} {sys.executable!r}: expected a Python to convert in, got {_reason(error)}"
            ) from None

    def _end(self) -> None:
        if self._process is None:
            return
        process, self._process = self._process, None
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):  # what was still to be written
                    pipe.close()


def _exchange(process: subprocess.Popen[bytes], request: bytes) -> bytes:
    """The line that answers a request; an incomplete or no line where the process ends first."""
    assert process.stdin is not None and process.stdout is not None
    try:
        process.stdin.write(request)
        process.stdin.flush()
        return process.stdout.readline()
    except OSError:
        return b""
