"""Invented names: people, towns, streets, e-mail addresses, codes.

Names are put together from syllables, so that a model can never know them by heart and has to copy them from
the documents.  The held-out names are made of syllables that the made-up names of training never use.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import pools

TITLES = ["Dr. ", "Dr ", "Ms ", "Mr ", "Mrs ", "Prof. ", "Sister "]


def is_held_out(syllable: str) -> bool:
    """Whether an onset+vowel pair is kept for the evaluation (about one in eight)."""
    return sum(ord(c) * (i + 3) for i, c in enumerate(syllable)) % 8 == 0


def heads() -> list[str]:
    """Every way a syllable may begin."""
    return [onset + vowel for onset in pools.ONSETS for vowel in dict.fromkeys(pools.VOWELS)]


@dataclass
class Names:
    """A source of names drawn from `rng`; with `held_out`, of names that training never shows."""

    rng: random.Random
    held_out: bool = False

    def syllable(self) -> str:
        while True:
            head = self.rng.choice(pools.ONSETS) + self.rng.choice(pools.VOWELS)
            if is_held_out(head) == self.held_out:
                return head + self.rng.choice(pools.CODAS)

    def stem(self, longest: int = 2) -> str:
        return "".join(self.syllable() for _ in range(self.rng.randint(1, longest))).capitalize()

    def first(self) -> str:
        if not self.held_out and self.rng.random() < 0.35:
            return self.rng.choice(pools.FIRST)
        return self.stem() + self.rng.choice(pools.FIRST_ENDS)

    def last(self) -> str:
        if not self.held_out and self.rng.random() < 0.25:
            return self.rng.choice(pools.LAST)
        name = self.stem() + self.rng.choice(pools.SURNAME_ENDS)
        kind = self.rng.random()
        if kind < 0.06:
            return f"{name}-{self.stem()}"
        return self.rng.choice(["van ", "de ", "Mc", "O'", "al-"]) + name if kind < 0.1 else name

    def person(self) -> str:
        kind = self.rng.random()
        if kind < 0.6:
            return f"{self.first()} {self.last()}"
        if kind < 0.8:
            return f"{self.rng.choice(TITLES)}{self.first()} {self.last()}"
        if kind < 0.95:
            return f"{self.rng.choice(TITLES)}{self.last()}"
        return f"{self.first()} {self.rng.choice('ABCDEFGHJKLMNPRSTW')}. {self.last()}"

    def town(self) -> str:
        return self.stem() + self.rng.choice(pools.TOWN_ENDS)

    def street(self) -> str:
        kind = self.rng.random()
        stem = (
            self.rng.choice(pools.WORDS).capitalize()
            if kind < 0.25
            else self.stem() + self.rng.choice(["", "er", "s"])
        )
        if kind > 0.93:
            return stem + self.rng.choice(["strasse", "gasse", "weg", "platz"])
        return f"{stem} {self.rng.choice(pools.STREETS)}"

    def address(self) -> str:
        number = str(self.rng.randint(1, 240)) + self.rng.choice(["", "", "", "a", "b"])
        return f"{number} {self.street()}" if self.rng.random() < 0.85 else f"{self.street()} {number}"

    def domain(self) -> str:
        word = self.rng.choice([self.stem(), self.town(), self.rng.choice(pools.WORDS)]).lower()
        return word + self.rng.choice(
            [".example", ".org", ".net", ".example.org", ".edu", ".gov", "-town.example"]
        )

    def email(self, domain: str | None = None) -> str:
        rng = self.rng
        local = rng.choice(
            [
                self.stem().lower(),
                f"{rng.choice('abcdefghijklmnoprstuvw')}.{self.stem().lower()}",
                f"{self.stem().lower()}.{self.stem().lower()}",
                rng.choice(pools.WORDS),
                rng.choice(
                    ["info", "desk", "office", "help", "hello", "post", "contact", "team", "fees", "bookings"]
                ),
            ]
        )
        return f"{local}@{domain or self.domain()}"

    def website(self, domain: str) -> str:
        path = self.rng.choice(["", "", f"/{self.rng.choice(pools.WORDS)}", f"/{self.stem().lower()}"])
        return self.rng.choice(["www.", "", "https://"]) + domain + path

    def phone(self) -> str:
        def digits(n: int) -> str:
            return "".join(self.rng.choice("0123456789") for _ in range(n))

        return self.rng.choice(
            [
                f"0{digits(3)} {digits(3)} {digits(3)}",
                f"0{digits(3)} {digits(6)}",
                f"{digits(3)}-{digits(4)}",
                f"+{digits(2)} {digits(2)} {digits(3)} {digits(4)}",
                f"({digits(3)}) {digits(3)}-{digits(4)}",
                f"0{digits(2)}/{digits(6)}",
                f"555-{digits(4)}",
                f"{digits(2)} {digits(2)} {digits(2)} {digits(2)}",
            ]
        )

    def code(self) -> str:
        rng = self.rng

        def letters(n: int) -> str:
            return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(n))

        def digits(n: int) -> str:
            return "".join(rng.choice("0123456789") for _ in range(n))

        return rng.choice(
            [
                f"{letters(2)}-{digits(4)}",
                f"{letters(1)}{digits(3)}",
                f"{letters(1)}-{digits(2)}",
                digits(4),
                f"{letters(3)}-{digits(3)}",
                f"{digits(2)}{letters(2)}{digits(2)}",
                f"{letters(2)}{digits(2)}",
                f"{letters(2)} {digits(3)}",
                f"{digits(2)}-{letters(1)}",
                f"{letters(4)}",
            ]
        )

    def password(self) -> str:
        rng = self.rng

        def word() -> str:
            return rng.choice(pools.WORDS) if rng.random() < 0.5 else self.stem().lower()

        return rng.choice(
            [
                f"{word()}-{word()}-{rng.randint(1, 99)}",
                f"{word()}{rng.randint(10, 9999)}",
                f"{word()}-{word()}",
                f"{word().capitalize()}{word().capitalize()}{rng.randint(1, 99)}",
            ]
        )

    def word(self) -> str:
        return self.rng.choice(pools.WORDS)
