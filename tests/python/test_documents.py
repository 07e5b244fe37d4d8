# SPDX-License-Identifier: Apache-2.0
"""Reading documents: the same text for the same file, and every file read or refused, whatever it holds."""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import modicum as mo
import pytest
from files import docx, paragraph, pdf, table
from modicum.documents import Document, _Converter, read_documents

for _extra in ("bs4", "html5lib", "mammoth", "markdownify", "pypdf"):
    pytest.importorskip(_extra, reason="the extra 'documents' is not installed")

PAGE = """<!doctype html><html><head><title>Town Library</title><style>p { color: red }</style></head><body>
<h1>Fees</h1><script>alert(1)</script><p>A card&nbsp;costs <b>30</b> euros<br>a year.   Write to
<a href="mailto:fees_1@town.example">us</a>.</p><h2>Hours</h2>
<table><tr><th>Day</th><th>Room</th><th>Hours</th></tr>
<tr><td rowspan="2">Mon</td><td>A|B</td><td>9 to 5</td></tr><tr><td colspan="2">closed</td></tr></table>
<ul><li>one<ul><li>two</li></ul></li></ul><img alt="Plan" src="data:image/png;base64,AAAA"></body></html>"""
PAGE_TEXT = """# Fees

A card costs 30 euros
a year. Write to
[us](mailto:fees_1@town.example).

## Hours

| Day | Room | Hours |
| --- | --- | --- |
| Mon | A\\|B | 9 to 5 |
| Mon | closed | closed |

- one
  - two

Plan
"""


def read_one(path: Path, data: bytes, **options: object) -> Document:
    path.write_bytes(data)
    (document,) = read_documents(path, **options)  # type: ignore[arg-type]
    return document


def test_text_and_markdown_are_their_own_bytes(tmp_path: Path):
    data = "\ufeff# Gebühren \r\n\r\n\r\nTag:\t4 €  \n\n\n".encode()
    for name in ("a.txt", "a.md", "a.markdown", "A.TXT"):
        document = read_one(tmp_path / name, data)
        assert document.text.encode() == data
        assert document == Document(name, str(tmp_path / name), document.text, (), False, False)


def test_html_becomes_markdown(tmp_path: Path):
    for name in ("a.html", "a.htm", "a.HTML"):
        document = read_one(tmp_path / name, PAGE.encode())
        assert document.text == PAGE_TEXT
        assert (document.pages, document.converted) == ((), True)


def test_a_page_without_a_heading_is_headed_by_its_title(tmp_path: Path):
    page = b"<title>Town  Library</title><p>Open.</p>"
    assert read_one(tmp_path / "a.html", page).text == "# Town Library\n\nOpen.\n"


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("<p>Grüße</p>".encode(), "Grüße\n"),
        ('<meta charset="iso-8859-1"><p>Grüße – 5 €</p>'.encode("cp1252"), "Grüße – 5 €\n"),
        ('<meta charset="shift_jis"><p>図書館</p>'.encode("shift_jis"), "図書館\n"),
        ("\ufeff<p>Grüße</p>".encode(), "Grüße\n"),
        ("\ufeff<p>Grüße</p>".encode("utf-16-le"), "Grüße\n"),
        ('<meta charset="utf-16"><p>Grüße</p>'.encode(), "Grüße\n"),
        (b"<p>a&shy;b&#8203;c&#0;d&nbsp;e</p>\r\n\r\n<pre>\r\n x  \r\n\r\n\r\n y</pre>", "abc\ufffdd e"),
    ],
)
def test_html_is_decoded_as_it_declares(tmp_path: Path, data: bytes, text: str):
    assert read_one(tmp_path / "a.html", data).text.startswith(text)


def test_end_tags_that_may_be_left_out_are_understood(tmp_path: Path):
    page = (
        "<h1>One<h1>Two</h1><p>a<p>b<ul><li>c<li>d</ul><table><tr><th>e<th>f<tr><td>g<td>h</table><p>" * 300
    )
    text = read_one(tmp_path / "a.html", page.encode()).text
    one = "a\n\nb\n\n- c\n- d\n\n| e | f |\n| --- | --- |\n| g | h |\n"
    assert text.count(one) == 300


def test_spans_without_end_stay_a_table_of_ordinary_width(tmp_path: Path):
    rows = "<tr><td>x<td colspan=99999 rowspan=99999>y<td rowspan=0>z</tr>" * 50
    text = read_one(tmp_path / "a.html", f"<table>{rows}</table>".encode(), timeout=60).text
    widths = [line.count("|") for line in text.splitlines()]
    assert len(widths) == 51
    assert widths[0] == 103
    assert max(widths) < 260


def test_docx_keeps_headings_lists_and_merged_cells(tmp_path: Path):
    body = (
        paragraph("Handbook", "Title")
        + paragraph("Opening  hours", "Heading1")
        + paragraph("We are a_b * open.")
        + table([["Day", "Room", "Hours"], ["Mon!", "A", "9 to 5"], ["^", "B", "10 to 4"]])
        + paragraph("Fees", "Heading2")
    )
    document = read_one(tmp_path / "a.docx", docx(body))
    assert document.text == (
        "# Handbook\n\n# Opening hours\n\nWe are a_b * open.\n\n"
        "| Day | Room | Hours |\n| --- | --- | --- |\n| Mon | A | 9 to 5 |\n| Mon | B | 10 to 4 |\n\n"
        "## Fees\n"
    )
    assert (document.pages, document.converted) == ((), True)


def test_the_pages_of_a_pdf_keep_their_place(tmp_path: Path):
    pages = ["Grüße (all)\nsecond line", "", "Third", ""]
    document = read_one(tmp_path / "a.pdf", pdf(pages))
    assert document.text == "Grüße (all)\nsecond line\n\nThird\n"
    data = document.text.encode()
    assert document.pages == (0, data.index(b"Third"), data.index(b"Third"), len(data))
    assert document.converted


def test_a_long_pdf_has_a_place_for_each_page(tmp_path: Path):
    document = read_one(tmp_path / "a.pdf", pdf([f"Page {i}: ö" for i in range(120)]))
    data = document.text.encode()
    begins = [*document.pages, len(data)]
    for i in range(120):
        assert data[begins[i] : begins[i + 1]].decode().strip() == f"Page {i}: ö"


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_folders_are_read_to_their_depth_in_order_of_names(tmp_path: Path):
    names = ["b/c/d.md", "a.md", "b.md", "b/a.txt", "Z.md", "ä.md", ".hidden.md", ".git/x.md", "b/.x/y.bin"]
    fill(tmp_path / "docs", {name: name.encode() for name in names})
    (tmp_path / "first.md").write_text("x")
    found = read_documents([tmp_path / "first.md", str(tmp_path / "docs")])
    assert [d.name for d in found] == ["first.md", "Z.md", "a.md", "b.md", "b/a.txt", "b/c/d.md", "ä.md"]
    assert all(Path(d.source).read_text() == d.text for d in found)


def test_the_source_is_the_path_as_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fill(tmp_path, {"docs/a.md": b"x", "docs/b/c.md": b"y"})
    monkeypatch.chdir(tmp_path)
    assert [d.source for d in read_documents("docs")] == ["docs/a.md", "docs/b/c.md"]
    assert [d.source for d in read_documents(["docs/", "./docs/a.md"][1:])] == ["./docs/a.md"]


def test_volatile_documents_come_last_and_the_order_is_otherwise_kept(tmp_path: Path):
    names = ["a.md", "b.md", "news/1.md", "news/2.md", "z.md"]
    fill(tmp_path, dict.fromkeys(names, b"x"))
    found = read_documents(tmp_path, volatile=["news/*", "a.*"])
    assert [d.name for d in found] == ["b.md", "z.md", "a.md", "news/1.md", "news/2.md"]
    assert [d.volatile for d in found] == [False, False, True, True, True]


def bomb() -> bytes:
    return docx(paragraph("x"), extra={"word/media/zeros": bytes(3 << 20)})


def encrypted(algorithm: str) -> bytes:
    from pypdf import PdfReader, PdfWriter

    writer = PdfWriter(clone_from=PdfReader(io.BytesIO(pdf(["secret"]))))
    writer.encrypt("password", algorithm=algorithm)
    out = io.BytesIO()
    writer.write(out)
    return out.getvalue()


LAUGHS = (
    '<!DOCTYPE x [<!ENTITY a "'
    + "ha" * 100
    + '">'
    + "".join(f'<!ENTITY {b} "{f"&{a};" * 50}">' for a, b in zip("abcdefgh", "bcdefghi", strict=True))
    + "]>"
)

REFUSED: dict[str, tuple[str, Callable[[], bytes], type[mo.Error], str]] = {
    "unknown suffix": ("a.xlsx", lambda: b"x", mo.Unsupported, r"\.docx, got suffix '\.xlsx'"),
    "no suffix": ("LICENSE", lambda: b"x", mo.Unsupported, "got suffix ''"),
    "latin-1": ("a.txt", lambda: b"caf\xe9", mo.FormatError, "UTF-8 text, got byte 233 at offset 3"),
    "NUL": ("a.md", lambda: b"ab\0c", mo.FormatError, "byte 0 at offset 2"),
    "surrogate": ("a.md", lambda: b"a\xed\xa0\x80", mo.FormatError, "byte 237 at offset 1"),
    "no bytes": ("a.txt", lambda: b"", mo.InvalidArgument, "empty document"),
    "blanks": ("a.md", lambda: "\ufeff \t\r\n\u00a0\n".encode(), mo.InvalidArgument, "empty document"),
    "long": ("a.txt", lambda: b"x" * 1_000_001, mo.Unsupported, "at most 1000000 bytes"),
    "long HTML": ("a.html", lambda: b"x" * 1_000_001, mo.Unsupported, "at most 1000000 bytes"),
    "empty HTML": ("a.html", lambda: b"<p> <script>x</script>", mo.InvalidArgument, "empty document"),
    "HTML in latin-1": ("a.html", lambda: b"<p>caf\xe9", mo.FormatError, "byte 233 at offset 6"),
    "HTML that lies": ("a.htm", lambda: b"<meta charset=utf-8>\xff", mo.FormatError, "byte 255 at offset 20"),
    "HTML in what": ("a.html", lambda: b"<meta charset=klingon>x", mo.Unsupported, "'klingon'"),
    "HTML in bytes": ("a.html", lambda: b"<meta charset=hex>x", mo.Unsupported, "'hex"),
    "deep HTML": ("a.html", lambda: b"<div>" * 2000 + b"x", mo.FormatError, "nested too deeply"),
    "empty PDF": ("a.pdf", lambda: b"", mo.InvalidArgument, "empty document"),
    "no PDF": ("a.pdf", lambda: b"hello", mo.FormatError, "broken"),
    "half a PDF": ("a.pdf", lambda: pdf(["text"])[:150], mo.FormatError, "broken"),
    "scan": ("a.pdf", lambda: pdf(["", ""]), mo.Unsupported, r"no text \(scanned\?\)"),
    "mostly scan": ("a.pdf", lambda: pdf(["cover", "", ""]), mo.Unsupported, "2 of 3 pages without text"),
    "encrypted PDF": ("a.pdf", lambda: encrypted("RC4-128"), mo.Unsupported, "encrypted"),
    "no DOCX": ("a.docx", lambda: b"hello", mo.FormatError, "broken"),
    "half a DOCX": ("a.docx", lambda: docx(paragraph("x"))[:300], mo.FormatError, "broken"),
    "another zip": ("a.docx", lambda: without_document(), mo.FormatError, "broken"),
    "broken XML": ("a.docx", lambda: docx("<w:p>"), mo.FormatError, "broken"),
    "empty DOCX": ("a.docx", lambda: docx(paragraph(" ")), mo.InvalidArgument, "empty document"),
    "encrypted DOCX": (
        "a.docx",
        lambda: bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600),
        mo.Unsupported,
        "an encrypted or older Word document",
    ),
    "circle of pages": (
        "a.pdf",
        lambda: pdf(["a"]).replace(b"/Kids [4 0 R]", b"/Kids [2 0 R]"),
        mo.FormatError,
        "broken",
    ),
    "zip bomb": ("a.docx", bomb, mo.Unsupported, r"at most 1000000 bytes, got 31\d{5} unpacked"),
    "billion laughs": (
        "a.docx",
        lambda: docx(paragraph("&i;"), prologue=LAUGHS),
        mo.FormatError,
        "broken.*amplification",
    ),
    "deep DOCX": (
        "a.docx",
        lambda: docx("<w:p>" * 20_000 + "</w:p>" * 20_000),
        mo.FormatError,
        "nested too deeply",
    ),
}


def without_document() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.txt", "x")
    return out.getvalue()


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_read_is_refused_by_name_and_reason(tmp_path: Path, what: str):
    name, data, error, reason = REFUSED[what]
    with pytest.raises(error, match=rf"^\[read_documents\] '.*{name}': expected .*{reason}.*; "):
        read_one(tmp_path / name, data(), max_bytes=1_000_000)


def test_all_refusals_of_all_sources_stand_in_one_error(tmp_path: Path):
    kinds = list(REFUSED.values())
    for i, (name, data, _, _) in enumerate(kinds):
        fill(tmp_path / str(i % 3), {f"{i}-{name}": data()})
    fill(tmp_path / "0", {"good.md": b"x"})
    fill(tmp_path / "1", {"line\nbreak.md": b"x"})
    sources = [tmp_path / "0", tmp_path / "1", tmp_path / "missing.md", tmp_path / "2"]
    with pytest.raises(mo.FormatError) as refused:
        read_documents(sources, max_bytes=1_000_000)
    text = str(refused.value)
    assert text.startswith(f"[read_documents] {len(kinds) + 2} of {len(kinds) + 3} documents: expected ")
    assert "\n" not in text
    assert "good.md" not in text
    for i, (name, *_) in enumerate(kinds):
        assert f"{i}-{name}' (expected " in text
    assert "missing.md' (expected a file or folder, got No such file" in text
    assert "line\\nbreak.md' (expected a name on one line, got control characters)" in text


def test_one_kind_of_refusals_keeps_its_class(tmp_path: Path):
    fill(tmp_path, {"a.txt": b"", "b.md": b" ", "c.html": b"<p>"})
    with pytest.raises(mo.InvalidArgument, match=r"3 of 3 .*a\.txt.*b\.md.*c\.html"):
        read_documents(tmp_path)


def test_no_documents_and_names_that_stand_twice_are_refused(tmp_path: Path):
    fill(tmp_path, {"a/x.md": b"x", "b/x.md": b"y", "empty/.x": b""})
    for nothing in ([], tmp_path / "empty"):
        with pytest.raises(mo.InvalidArgument, match="at least one"):
            read_documents(nothing)
    with pytest.raises(mo.InvalidArgument, match=r"got 'x\.md' twice, first in '.*a/x\.md'; rename"):
        read_documents([tmp_path / "a", tmp_path / "b"])
    assert [d.name for d in read_documents(tmp_path)] == ["a/x.md", "b/x.md"]


def test_pipes_links_in_circles_and_names_in_other_bytes_are_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "circle").symlink_to(tmp_path)
    (tmp_path / "gone.md").symlink_to(tmp_path / "nowhere.md")
    (Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.md"))).write_text("x")
    with pytest.raises(mo.FormatError) as refused:
        read_documents(tmp_path)
    text = str(refused.value)
    assert "pipe.txt' (expected a readable file, got not a regular file)" in text
    assert "circle' (expected a file or folder, got a link to a folder)" in text
    assert "gone.md' (expected a file or folder, got No such file or directory)" in text
    assert "caf\\udce9.md' (expected a name in UTF-8" in text
    text.encode()


def test_a_link_to_a_file_is_that_file(tmp_path: Path):
    fill(tmp_path, {"docs/.keep": b"", "real.md": b"text"})
    (tmp_path / "docs" / "a.md").symlink_to(tmp_path / "real.md")
    assert [(d.name, d.text) for d in read_documents(tmp_path / "docs")] == [("a.md", "text")]


def test_without_the_extra_the_error_tells_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    library = [path for path in sys.path if "site-packages" not in path]
    monkeypatch.setattr(sys, "path", library)
    assert read_one(tmp_path / "a.md", b"text").text == "text"
    for name in ("a.html", "a.pdf", "a.docx"):
        with pytest.raises(mo.Unsupported, match=rf"{name}'.*got no \w+; pip install modicum\[documents\]"):
            read_one(tmp_path / name, docx(paragraph("x")))


def test_a_thousand_pages_need_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []
    start = _Converter._start
    monkeypatch.setattr(_Converter, "_start", lambda self: started.append(1) or start(self))
    fill(tmp_path, {f"{i:04}.html": f"<h1>Page {i}</h1>".encode() for i in range(1000)})
    found = read_documents(tmp_path)
    assert [d.text for d in found] == [f"# Page {i}\n" for i in range(1000)]
    assert len(started) == 1


SLOW = b"<p>a</p>" * 2_000_000  # markdownify takes minutes


def test_what_takes_too_long_is_refused_and_the_next_file_is_read(tmp_path: Path):
    fill(tmp_path, {"a.html": SLOW, "b.html": b"<p>b"})
    start = time.monotonic()
    with pytest.raises(mo.Unsupported, match=r"^\S+ '.*a\.html': expected .* is converted in 4 s, got"):
        read_documents(tmp_path, timeout=4)
    assert time.monotonic() - start < 30


def test_a_converter_that_dies_is_replaced(tmp_path: Path):
    with _Converter(1 << 20, 60) as converter:
        assert converter.convert(".html", b"<p>a")["text"] == "a\n"
        assert converter._process is not None
        converter._process.kill()
        answer = converter.convert(".html", b"<p>b")
        assert (answer["error"], answer["got"]) == ("FormatError", "one that ended the converter (status -9)")
        assert converter.convert(".html", b"<p>c")["text"] == "c\n"


def test_what_takes_too_much_memory_is_refused(tmp_path: Path):
    with _Converter(64 << 20, 60, memory=150 << 20) as converter:
        answer = converter.convert(".html", b"<p>a</p>" * 500_000)
        assert (answer["error"], answer["got"]) == ("Unsupported", "a larger one")
        assert answer["expected"] == "an HTML file that is converted in 150 MiB of memory"
        assert converter.convert(".html", b"<p>c")["text"] == "c\n"


def test_progress_can_cancel(tmp_path: Path):
    fill(tmp_path, {f"{i}.md": b"x" for i in range(5)})
    seen: list[tuple[str, int, int]] = []
    read_documents(tmp_path, progress=lambda *step: seen.append(step))
    assert seen == [("documents", i, 5) for i in range(6)]
    with pytest.raises(mo.Cancelled, match="stopped after 2 of 5"):
        read_documents(tmp_path, progress=lambda _, done, total: done < 2)


def test_ctrl_c_ends_the_reading_and_its_process(tmp_path: Path):
    fill(tmp_path, {"a.html": SLOW})
    code = "import sys, modicum; print('ready', flush=True); modicum.documents.read_documents(sys.argv[1])"
    command = [sys.executable, "-c", code, str(tmp_path)]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert reader.stdout is not None
    reader.stdout.readline()
    children = Path(f"/proc/{reader.pid}/task/{reader.pid}/children")
    deadline = time.monotonic() + 30
    while not (child := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert child, "no process converts"
    reader.send_signal(signal.SIGINT)
    assert reader.wait(10) == -signal.SIGINT
    reader.stdout.close()
    assert not Path(f"/proc/{child[0]}").exists()


def hostile(dice: random.Random, suffix: str) -> bytes:
    """Nothing, noise, or a good file with bytes changed, cut out, repeated or added."""
    kind = dice.randrange(6)
    if kind == 0:
        return b""
    if kind == 1:
        return dice.randbytes(dice.randrange(1, 4000))
    good = {
        ".pdf": pdf(["one (1)", "two\nlines"], count=dice.choice([2, 2, 0, -1, 10**9])),
        ".docx": docx(paragraph("Title", "Heading1") + table([["a", "b!"], ["c", "^"]])),
    }.get(suffix, PAGE.encode())
    data = bytearray(good)
    for _ in range(dice.choice([1, 3, 30])):
        at = dice.randrange(len(data))
        length = dice.randrange(1, 40)
        change = dice.randrange(4)
        if change == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif change == 1:
            data[at : at + length] = b""
        elif change == 2:
            data[at:at] = data[at : at + length] * dice.choice([1, 50])
        else:
            data[at:at] = dice.choice(
                [b"<", b">>", b"\0", b"[", b"(", b" 0 R", b"/Kids", b"<td rowspan=999>"]
            )
        data = data or bytearray(b"x")
    return bytes(data)


def test_a_thousand_hostile_files_are_read_or_refused_and_always_alike(tmp_path: Path):
    dice = random.Random(20)
    suffixes = [".txt", ".md", ".html", ".htm", ".pdf", ".docx"]
    for i in range(1000):
        suffix = suffixes[i % len(suffixes)]
        (tmp_path / f"{i:04}{suffix}").write_bytes(hostile(dice, suffix))
    (tmp_path / "large.html").write_bytes(b"<p>" + b"word " * 400_000)
    (tmp_path / "large.txt").write_bytes(b"word " * 400_000)
    with pytest.raises(mo.FormatError) as refused:
        read_documents(tmp_path, timeout=30)
    told = [path.name for path in tmp_path.iterdir() if f"{path.name}' (" in str(refused.value)]
    assert f"{len(told)} of 1002" in str(refused.value)
    assert 300 < len(told) < 900
    for name in told:
        (tmp_path / name).unlink()
    found = read_documents(tmp_path, timeout=30)
    assert len(found) == 1002 - len(told)
    for document in found:
        assert document.text.strip()
        assert "\0" not in document.text
        size = len(document.text.encode())
        assert list(document.pages) == sorted(p for p in document.pages if 0 <= p <= size)
    assert read_documents(tmp_path, timeout=30) == found
