"""HTML, PDF and DOCX to plain text with markdown headings and tables: what the worker of `documents` runs.

This file is started as a script in a process of its own, so that no input can crash, hang or exhaust the
caller's. It imports nothing of modicum; the converters themselves are imported when first needed.

A request on standard input is a line of JSON ({"suffix", "size", "max_bytes", "seconds", "memory"}) and
`size` bytes of a file. The answer on standard output is a line of JSON: {"text", "pages"}, or what to refuse
the file with, {"error", "expected", "got", "todo"}. Where `memory` bytes do not do, it ends with status
OUT_OF_MEMORY.
"""

from __future__ import annotations

import codecs
import copy
import functools
import io
import json
import os
import re
import signal
import sys
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

OUT_OF_MEMORY = 12  # status, as ENOMEM
# Real pages nest some dozens deep; markdownify recurses, and each level takes three frames.
RECURSION_LIMIT = 3000
# Beyond these a span of a table cell is a mistake or an attack.
LARGEST_SPAN = 100
LARGEST_WIDTH = 200
# The container in which an encrypted DOCX lies, and every .doc.
OLE = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"

HIDDEN_TAGS = ("head", "title", "script", "style", "template", "noscript", "svg", "object", "iframe")

# Characters that are not seen, or not told from a blank, would keep a word from being found.
PLAIN_CHARACTERS = (
    dict.fromkeys([*range(1, 9), *range(14, 32), 0x7F, 0xAD, 0x200B, 0xFEFF])
    | {0x00: "\ufffd", 0xA0: " ", 0x202F: " "}
    | dict.fromkeys((0x0B, 0x0C, 0x85, 0x2028, 0x2029), "\n")
    | dict(enumerate(("ff", "fi", "fl", "ffi", "ffl", "st", "st"), start=0xFB00))
)


class RefusedError(Exception):
    """Why a file cannot be read; `error` names the exception of modicum that tells it."""

    def __init__(self, error: str, expected: str, got: str, todo: str) -> None:
        super().__init__(got)
        self.answer = {"error": error, "expected": expected, "got": got, "todo": todo}


def normalise(text: str) -> str:
    """\\n as line ends, no blanks before them, one empty line at most between others, and a final \\n."""
    # Pairs of surrogates, as some PDFs give them, become the characters they stand for; lone ones U+FFFD.
    text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    text = text.replace("\r\n", "\n").replace("\r", "\n").translate(PLAIN_CHARACTERS)
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    text = re.sub("\n{3,}", "\n\n", text).strip("\n")
    return text + "\n" if text else ""


def decode_html(data: bytes) -> str:
    """Text by the byte order mark, by the encoding that the page declares, or as UTF-8; never by a guess.

    Names of encodings mean what they mean to browsers (WHATWG Encoding): "iso-8859-1" is windows-1252, and a
    UTF-16 that is declared in bytes readable as ASCII is UTF-8.
    """
    import webencodings
    from bs4.dammit import EncodingDetector

    marks = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16le", codecs.BOM_UTF16_BE: "utf-16be"}
    mark = next((mark for mark in marks if data.startswith(mark)), None)
    if mark is not None:
        label = marks[mark]
    else:
        label = EncodingDetector.find_declared_encoding(data, is_html=True) or "utf-8"
        label = "utf-8" if label.lower().startswith("utf-16") else label
    encoding = webencodings.lookup(label)
    if encoding is None:
        got = f"declared encoding '{label[:40]}'"
        raise RefusedError("Unsupported", "a known encoding", got, "save it as UTF-8")
    try:
        text: str = encoding.codec_info.decode(data, "strict")[0]
        return text
    except UnicodeDecodeError as error:
        got = f"byte {data[error.start]} at offset {error.start}"
        expected = "UTF-8 text" if encoding.name == "utf-8" else f"text in {encoding.name}"
        raise RefusedError("FormatError", expected, got, "save it as UTF-8") from None


@functools.cache
def _markdown_converter() -> Any:
    """Markdown in which every word stands as the page shows it, so that an answer is found literally."""
    from markdownify import MarkdownConverter

    converter: Any = MarkdownConverter(
        heading_style="ATX",
        bullets="-",
        escape_asterisks=False,
        escape_underscores=False,
        strip=["b", "strong", "i", "em"],
        table_infer_header=True,
    )
    link, heading, cell = converter.convert_a, converter.convert_hN, converter.convert_td

    def convert_a(el: Any, text: str, parent_tags: set[str]) -> Any:
        # Links inside the page, and addresses that are programs or data, tell a reader nothing.
        href = (el.get("href") or "").strip().lower()
        return text if href.startswith(("#", "javascript:", "data:")) else link(el, text, parent_tags)

    def convert_heading(n: int, el: Any, text: str, parent_tags: set[str]) -> Any:
        return heading(n, el, text, parent_tags) if text.strip() else ""

    def convert_cell(el: Any, text: str, parent_tags: set[str]) -> Any:
        return cell(el, text.replace("|", "\\|"), parent_tags)

    converter.convert_a = convert_a
    converter.convert_hN = convert_heading
    converter.convert_td = converter.convert_th = convert_cell
    converter.convert_img = lambda el, text, parent_tags: el.get("alt") or ""
    return converter


def _span(cell: Any, name: str) -> int:
    text = str(cell.get(name, ""))
    return max(1, min(LARGEST_SPAN, int(text))) if re.fullmatch("[0-9]{1,9}", text) else 1


def _fill_spans(table: Any) -> None:
    """Repeats a cell that spans columns or rows in each of them: markdown tables have no spans.

    Without it, what stands right of a cell that reaches down would move under another column's head.
    """
    rows = [row for row in table.find_all("tr") if row.find_parent("table") is table]
    if not table.find(["td", "th"], rowspan=True) and not table.find(["td", "th"], colspan=True):
        return
    hanging: dict[int, tuple[Any, int]] = {}  # column → cell from above, rows that it still reaches
    for row in rows:
        own = row.find_all(["td", "th"], recursive=False)[::-1]
        placed: list[Any] = []
        below: dict[int, tuple[Any, int]] = {}
        while own or any(column >= len(placed) for column in hanging):
            width = 1
            if len(placed) in hanging:
                cell, rows_left = hanging[len(placed)]
            elif own:
                cell = own.pop()
                rows_left, width = _span(cell, "rowspan"), _span(cell, "colspan")
                if len(placed) + width > LARGEST_WIDTH:
                    rows_left = width = 1
            else:  # the row is shorter than where the next cell from above hangs
                cell, rows_left = _empty_cell(), 1
            for _ in range(width):
                if rows_left > 1:
                    below[len(placed)] = (cell, rows_left - 1)
                placed.append(cell)
        hanging = below
        row.clear()
        for cell in placed:
            cell = copy.copy(cell)
            del cell["rowspan"], cell["colspan"]
            row.append(cell)


def _empty_cell() -> Any:
    from bs4 import Tag

    return Tag(name="td")


def html_to_text(text: str) -> str:
    """Markdown of a page; its title as a heading where it has no <h1>."""
    import html5lib  # noqa: F401 — without it bs4 would only say that it knows no such parser
    from bs4 import BeautifulSoup

    # Not Python's own parser, which knows nothing of end tags that may be left out: <p>, <li> and <td> would
    # lie in one another.
    soup = BeautifulSoup(text, "html5lib")
    title = " ".join(soup.title.get_text().split()) if soup.title is not None else ""
    for tag in soup(HIDDEN_TAGS):
        tag.decompose()
    for table in reversed(soup("table")):  # inner ones first
        _fill_spans(table)
    body = normalise(_markdown_converter().convert_soup(soup))
    if title and body and soup.find("h1") is None:
        body = normalise(f"# {title}\n\n{body}")
    return body


def read_html(data: bytes, max_bytes: int) -> list[str]:
    return [html_to_text(decode_html(data))]


def read_docx(data: bytes, max_bytes: int) -> list[str]:
    """Body text, footnotes and text boxes; headers, footers, comments and formulas are left out."""
    import mammoth

    if data.startswith(OLE):
        raise RefusedError(
            "Unsupported", "a DOCX file", "an encrypted or older Word document", "save it as plain DOCX"
        )
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
        if any(entry.flag_bits & 1 for entry in archive.infolist()):
            raise RefusedError(
                "Unsupported", "an open DOCX file", "an encrypted one", "save it without password"
            )
    if unpacked > max_bytes:
        raise _too_large(unpacked, max_bytes, "unpacked")
    # Images would come as data URIs. A style map inside the file is the author's of another program.
    result = mammoth.convert_to_html(
        io.BytesIO(data),
        convert_image=mammoth.images.img_element(lambda image: {}),
        style_map="p[style-name='Title'] => h1:fresh\np.Title => h1:fresh",
        include_embedded_style_map=False,
    )
    return [html_to_text(result.value)]


def read_pdf(data: bytes, max_bytes: int) -> list[str]:
    """The text of each page."""
    import pypdf
    from pypdf.errors import DependencyError, FileNotDecryptedError

    try:
        reader = pypdf.PdfReader(io.BytesIO(data))
        pages = [normalise(page.extract_text()) for page in reader.pages]
    except (FileNotDecryptedError, DependencyError):
        raise RefusedError(
            "Unsupported", "an open PDF file", "an encrypted one", "save it without password"
        ) from None
    blank = sum(not page for page in pages)
    if 2 * blank > len(pages):
        # Blank backs are half of the pages at most; what is more is pictures of text.
        got = "no text" if blank == len(pages) else f"{blank} of {len(pages)} pages without text"
        raise RefusedError(
            "Unsupported", "a PDF file with text", f"{got} (scanned?)", "run text recognition on it"
        )
    return pages


KINDS = {".html": "an HTML", ".htm": "an HTML", ".docx": "a DOCX", ".pdf": "a PDF"}
READERS: dict[str, Callable[[bytes, int], list[str]]] = {
    ".html": read_html,
    ".htm": read_html,
    ".docx": read_docx,
    ".pdf": read_pdf,
}


def _too_large(size: int, max_bytes: int, what: str) -> RefusedError:
    return RefusedError(
        "Unsupported", f"at most {max_bytes} bytes", f"{size} {what}", "split it, or raise max_bytes"
    )


def convert(suffix: str, data: bytes, max_bytes: int) -> dict[str, Any]:
    """Text of a file and the byte offsets of its pages, a blank line between them; or why there is none."""
    kind = KINDS[suffix]
    try:
        parts = READERS[suffix](data, max_bytes)
        text = "\n".join(part for part in parts if part)
        size = len(text.encode())
        if size > max_bytes:
            raise _too_large(size, max_bytes, "of text")
        offsets = []
        begin = 0
        for part in parts:
            offsets.append(min(begin, size))  # a page without text begins where the next one does
            begin += len(part.encode()) + bool(part)
    except RefusedError as refused:
        return refused.answer
    except ImportError as error:
        todo = "pip install modicum[documents]"
        return RefusedError("Unsupported", f"a converter of {kind} file", f"no {error.name}", todo).answer
    except MemoryError:
        os._exit(OUT_OF_MEMORY)  # anything else would need memory
    except RecursionError:
        got = "one nested too deeply"
        return RefusedError("FormatError", f"{kind} file", got, "save it as text").answer
    except Exception as error:  # converters raise whatever a broken file leads them to
        got = f"a broken one ({_told(error)})"
        return RefusedError("FormatError", f"{kind} file", got, "save it anew from its program").answer
    if not text:
        return RefusedError("InvalidArgument", "some text", "an empty document", "leave it out").answer
    return {"text": text, "pages": offsets if suffix == ".pdf" else []}


def _told(error: Exception) -> str:
    """One line, and no addresses of objects, which would differ from run to run."""
    text = re.sub("0x[0-9a-f]{6,}", "0x…", " ".join(str(error).split()))[:120]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="ascii")
    # What the converters print is not an answer.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.setrecursionlimit(RECURSION_LIMIT)
    requests: BinaryIO = sys.stdin.buffer
    while line := requests.readline():
        request = json.loads(line)
        _limit_memory(request["memory"])
        data = requests.read(request["size"])
        if hasattr(signal, "setitimer"):
            # The caller ends what takes too long; should the caller itself be gone, this does.
            signal.setitimer(signal.ITIMER_REAL, request["seconds"] + 5)
        answer = convert(request["suffix"], data, request["max_bytes"])
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _limit_memory(size: int) -> None:
    try:
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = size if hard == resource.RLIM_INFINITY else min(size, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    except (ImportError, ValueError, OSError):
        pass  # not on every system


if __name__ == "__main__":
    main()
