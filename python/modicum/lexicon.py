"""A set of texts that a search must choose from: labels, names of entities, identifiers, by the million."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from modicum import _core
from modicum._core import InvalidArgument, Tokenizer
from modicum.beam import Progress

if TYPE_CHECKING:
    from modicum.model import Model

__all__ = ["Lexicon"]


class Lexicon(_core.Lexicon):
    """A constraint whose texts are exactly the entries of a set. Made by `build`, `from_ids` or `open`.

    >>> cities = mo.search.Lexicon.build(model, ["Oslo", "Paris", "Lima", "Paris"], prefix=" ")
    >>> "Paris" in cities, len(cities), cities.positions("Paris")
    (True, 3, [1, 3])
    >>> cities.save("cities.lexicon")
    >>> cities = mo.search.Lexicon.open("cities.lexicon", model)  # mapped in milliseconds

    A trie in level order (Jacobson, "Space-efficient static trees and graphs", 1989), 18 to 24 bytes an entry
    for identifiers and names. A step of a search is a binary search among the tokens that may follow, which
    are handed over where they lie. Nothing changes it; threads may share it.

    Two numbers lead from an answer to what it means. `positions` tells where an entry stood in the list that
    the lexicon was built from: all places where a name stands for several things. `index` is its rank in the
    lexicon's own order (fewer tokens first, then by token ids): dense, from 0 to ``len(lexicon) - 1``.

    What follows a prompt is encoded in another way at the begin of a word than inside a line: " Paris" is
    another token than "Paris". A lexicon must hold what a model would write: `prefix` is put before each
    text. After a prompt that ends within a line ("… The capital is") it is " "; after the header of a chat
    template, or a prompt that ends in a line break, it is "". The prefix is part of what is written, not of
    what `text`, `index`, `positions` and `in` take and give.
    """

    def __init__(self, lexicon: _core.Lexicon, tokenizer: Tokenizer | None = None) -> None:
        super().__init__(lexicon)
        self._tokenizer = tokenizer

    @classmethod
    def build(
        cls,
        model: Model | Tokenizer,
        texts: Iterable[str],
        *,
        prefix: str = "",
        threads: int | None = None,
        progress: Progress | None = None,
    ) -> Lexicon:
        """A lexicon of `texts`, each encoded as `prefix` + text without special tokens.

        Parameters
        ----------
        texts : any iterable, read once; a generator over a large file, say. Repetitions are one entry.
        prefix : what comes before each text, see above.
        threads : that encode; None means every processor that this process may use.
        progress : called with ("encode", texts done, texts in all), then ("sort", …) and ("build", …);
            returning False stops, as Ctrl-C does.

        Raises
        ------
        InvalidArgument
            Where there are no texts, and for a text that is empty, no str, or contains a special token,
            naming its position.
        Unsupported
            Beyond 2**32 - 1 texts or different beginnings.
        Cancelled
        """
        if isinstance(texts, (str, bytes)):
            raise InvalidArgument("[lexicon.build] texts: expected an iterable of str, got one text")
        tokenizer = _tokenizer_of(model)
        core = _core.lexicon_of_texts(
            tokenizer, texts, prefix=prefix, threads=threads or 0, progress=progress
        )
        return cls(core, tokenizer)

    @classmethod
    def from_ids(
        cls,
        entries: Iterable[Sequence[int]],
        *,
        model: Model | Tokenizer | None = None,
        progress: Progress | None = None,
    ) -> Lexicon:
        """A lexicon of token ids.

        Parameters
        ----------
        entries : an iterable of sequences or arrays of ids from 0 on, none of them empty.
        model : whose ids they are. Its fingerprint is kept, and texts can be asked for; without, only ids.

        Raises
        ------
        InvalidArgument
            Where there are no entries, and for an entry that is empty, negative or none, by its position.
        Unsupported, Cancelled
            As `build`.
        """
        tokenizer = None if model is None else _tokenizer_of(model)
        return cls(_core.lexicon_of_ids(entries, tokenizer=tokenizer, progress=progress), tokenizer)

    @classmethod
    def open(cls, path: str | Path, model: Model | Tokenizer | None = None) -> Lexicon:
        """Maps what `save` wrote, and checks all of it: milliseconds for a million entries.

        With `model`, the lexicon must have been built with its tokenizer; without, only ids can be asked for,
        and whoever opens it answers for that.

        Raises
        ------
        IoError, FormatError, Corrupt
        Unsupported
            For a file of a newer version.
        FingerprintMismatch
            For a lexicon of another tokenizer, or of ids alone.
        """
        tokenizer = None if model is None else _tokenizer_of(model)
        fingerprint = "" if tokenizer is None else tokenizer.fingerprint
        return cls(_core.open_lexicon(path, fingerprint), tokenizer)

    def index(self, entry: str | Sequence[int]) -> int:
        """Rank of an entry, a text or token ids, in the lexicon's own order.

        Raises
        ------
        InvalidArgument
            Where it is no entry, and for a text where there is no tokenizer.
        """
        found = self._index(entry)
        if found is None:
            raise InvalidArgument(f"[lexicon.index] entry: expected one of {len(self)}, got {entry!r}")
        return found

    def positions(self, entry: int | str | Sequence[int]) -> list[int]:
        """Where an entry (index, text or token ids) stood in what the lexicon was built from, ascending.

        Raises
        ------
        InvalidArgument
            As `index`.
        """
        return self._positions(self._checked(entry if isinstance(entry, int) else self.index(entry)))

    def ids(self, index: int) -> list[int]:
        """Token ids of an entry, those of the prefix included.

        Raises
        ------
        InvalidArgument
            For an index outside of 0 to ``len(lexicon) - 1``.
        """
        return self._entry(self._checked(index))

    def text(self, index: int) -> str:
        """Text of an entry as the tokenizer decodes it, without the prefix.

        Raises
        ------
        InvalidArgument
            As `ids`, and where there is no tokenizer.
        """
        return self._needed_tokenizer().decode(self.ids(index)).removeprefix(self.prefix)

    def __contains__(self, entry: str | Sequence[int]) -> bool:
        return self._index(entry) is not None

    def __repr__(self) -> str:
        prefix = f", prefix {self.prefix!r}" if self.prefix else ""
        return f"<modicum.search.Lexicon: {len(self)} entries, {self.nbytes / 1e6:.3f} MB{prefix}>"

    def _index(self, entry: str | Sequence[int]) -> int | None:
        if isinstance(entry, str):
            tokenizer = self._needed_tokenizer()
            return self._find(tokenizer.encode(self.prefix + entry, add_special_tokens=False))
        return self._find(entry)

    def _checked(self, index: int) -> int:
        if not 0 <= index < len(self):
            raise InvalidArgument(f"[lexicon] index: expected 0 to {len(self) - 1}, got {index}")
        return index

    def _needed_tokenizer(self) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidArgument(
                "[lexicon] text: expected token ids, as no model was given; open it with one"
            )
        return self._tokenizer


def _tokenizer_of(model: Model | Tokenizer) -> Tokenizer:
    return model if isinstance(model, Tokenizer) else model.tokenizer
