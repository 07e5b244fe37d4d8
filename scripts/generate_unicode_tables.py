#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes src/text/unicode_data.inc and unicode_forms.inc: what `tokenizers` believes about every code point.

The tables are read off Hugging Face's library itself, by feeding all code points through its own components,
because three Unicode versions live in it (its regex engine's, Rust's and the normalisation crate's) and ids
must equal its ids:

* general category, \\s and \\w of its regex engine: a Split on `\\p{Lu}+` and so on;
* alphanumeric (the \\w of Rust's regex), numeric, white space and punctuation: the Whitespace, Digits,
  WhitespaceSplit and Punctuation pre-tokenizers;
* decompositions: NFD and NFKD of each code point alone; compositions: NFC of the pieces;
* combining classes: whether NFD moves a code point in front of a mark whose class is known. Only the order of
  classes matters, and that is what is measured;
* lower case: Lowercase of each code point alone.

Usage: python scripts/generate_unicode_tables.py [folder]     (needs `pip install tokenizers==0.23.3`)
"""

import sys
import unicodedata
from pathlib import Path

import tokenizers
from tokenizers import Regex, normalizers, pre_tokenizers

CODE_POINTS = [c for c in range(0x110000) if not 0xD800 <= c < 0xE000]
TEXT = "".join(map(chr, CODE_POINTS))
LETTERS = {"L": "ultmo", "M": "nce", "N": "dlo", "P": "cdseifo", "S": "mcko", "Z": "slp", "C": "cfson"}
CATEGORIES = [major + minor for major, minors in LETTERS.items() for minor in minors]
FLAGS = ["regex_space", "regex_word", "word", "numeric", "white_space", "punctuation"]
HANGUL = range(0xAC00, 0xAC00 + 11172)


def kept(pre_tokenizer):
    """Code points in the pieces that `pre_tokenizer` keeps of the text of all code points."""
    return {ord(c) for piece, _ in pre_tokenizer.pre_tokenize_str(TEXT) for c in piece}


def matching(pattern):
    return kept(pre_tokenizers.Split(Regex(f"(?:{pattern})+"), "removed", invert=True))


def alone(pre_tokenizer):
    """Code points that stay a piece of their own between two letters."""
    text = "".join("a" + c for c in TEXT) + "a"
    return {
        ord(piece)
        for piece, (begin, _) in pre_tokenizer.pre_tokenize_str(text)
        if begin % 2 == 1 and len(piece) == 1
    }


def properties():
    category = {}
    for name in CATEGORIES:
        if name != "Cs":
            category.update(dict.fromkeys(matching(rf"\p{{{name}}}"), name))
    assert len(category) == len(CODE_POINTS)
    everything = set(CODE_POINTS)
    white_space = everything - kept(pre_tokenizers.WhitespaceSplit())
    joined = "".join("a" + c for c in TEXT if ord(c) not in white_space) + "a"
    word, at = set(), 0
    for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str(joined):
        # Even places of `joined` hold "a": a code point glued to it is part of a word.
        if len(piece) > 1:
            word.update(ord(c) for i, c in enumerate(piece, at) if i % 2 == 1)
        at += len(piece)
    assert at == len(joined)
    flags = {
        "regex_space": matching(r"\s"),
        "regex_word": matching(r"\w"),
        "word": word | {ord("a")},
        "numeric": alone(pre_tokenizers.Digits(individual_digits=True)),
        "white_space": white_space,
        "punctuation": alone(pre_tokenizers.Punctuation("isolated")),
    }
    return category, flags


def decompositions():
    nfd, nfkd = normalizers.NFD(), normalizers.NFKD()
    canonical, compatible = {}, {}
    for c in CODE_POINTS:
        if c in HANGUL:
            continue
        d, k = nfd.normalize_str(chr(c)), nfkd.normalize_str(chr(c))
        if d != chr(c):
            canonical[c] = d
        if k != d:
            compatible[c] = k
    return canonical, compatible


def compositions(canonical):
    nfc, pairs = normalizers.NFC(), {}
    for c, d in canonical.items():
        if len(d) > 1 and nfc.normalize_str(d) == chr(c):
            first = nfc.normalize_str(d[:-1])
            assert len(first) == 1 and nfc.normalize_str(first + d[-1]) == chr(c)
            pairs[(ord(first), ord(d[-1]))] = c
    return pairs


def combining_classes():
    nfd = normalizers.NFD()

    def moves_before(x, mark):
        return x != mark and nfd.normalize_str("a" + mark + x) == "a" + x + mark

    def is_mark(x):
        # U+0334 is of the lowest class, U+0345 of the highest.
        return x in "\u0334\u0345" or moves_before(x, "\u0345") or moves_before("\u0334", x)

    # One mark for each class; Python may know marks that the library does not.
    reference = {}
    for x in TEXT:
        k = unicodedata.combining(x)
        if k and k not in reference and nfd.normalize_str(x) == x and is_mark(x):
            reference[k] = x
    order = sorted(reference)

    def class_of(x):
        return max(k for k in order if not moves_before(x, reference[k])) if is_mark(x) else 0

    for k in order:
        assert class_of(reference[k]) == k
    found = {}
    for c in CODE_POINTS:
        if c >= 0x300 and c not in HANGUL and nfd.normalize_str(chr(c)) == chr(c):
            k = class_of(chr(c))
            if k:
                found[c] = k
    return found


def array(out, kind, name, rows, width):
    out.append(f"constexpr {kind} {name}[] = {{")
    line = "   "
    for row in rows:
        if len(line) + len(row) + 2 > width:
            out.append(line)
            line = "   "
        line += f" {row},"
    out += [line, "};", ""]


def main():
    category, flags = properties()
    ccc = combining_classes()
    canonical, compatible = decompositions()
    pairs = compositions(canonical)
    lower = normalizers.Lowercase()
    lowered = {c: lower.normalize_str(chr(c)) for c in CODE_POINTS}

    rows, runs, previous = {}, [], None
    for c in CODE_POINTS:
        bits = sum(1 << i for i, name in enumerate(FLAGS) if c in flags[name])
        row = (CATEGORIES.index(category[c]), bits, ccc.get(c, 0))
        if row != previous:
            runs.append((c, rows.setdefault(row, len(rows))))
            previous = row
    assert len(rows) < 256

    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent / "src/text"
    head = [
        "// SPDX-License-Identifier: Apache-2.0",
        "// Generated by scripts/generate_unicode_tables.py from `tokenizers` "
        f"{tokenizers.__version__}; do not edit.",
        "",
    ]
    out = [*head, "// General category, flags, combining class."]
    array(out, "PropertyRow", "kRows", [f"{{{g}, {b}, {k}}}" for g, b, k in rows], 110)
    out.append("// First code point of a run, row of the table above.")
    array(out, "PropertyRun", "kRuns", [f"{{0x{c:X}, {r}}}" for c, r in runs], 110)
    (folder / "unicode_data.inc").write_text("\n".join(out), encoding="utf-8")

    def sequences(table):
        return [
            ", ".join([f"0x{c:X}", str(len(d))] + [f"0x{ord(x):X}" for x in d])
            for c, d in sorted(table.items())
        ]

    out = [*head, "// Code point, length, canonical decomposition."]
    array(out, "char32_t", "kCanonical", sequences(canonical), 110)
    out.append("// Code point, length, compatible decomposition, where it is not the canonical one.")
    array(out, "char32_t", "kCompatible", sequences(compatible), 110)
    out.append("// First, second, composite.")
    triples = [f"{{0x{a:X}, 0x{b:X}, 0x{c:X}}}" for (a, b), c in sorted(pairs.items())]
    array(out, "Composition", "kCompositions", triples, 110)
    out.append("// Code point, length, lower case.")
    array(out, "char32_t", "kLowercase", sequences({c: s for c, s in lowered.items() if s != chr(c)}), 110)
    (folder / "unicode_forms.inc").write_text("\n".join(out), encoding="utf-8")


if __name__ == "__main__":
    main()
