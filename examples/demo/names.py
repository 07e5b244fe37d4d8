"""Invented names: people, towns, streets, e-mail addresses, codes.

Names are put together from syllables, so that a model can never know them by heart and has to copy them from the
documents.  The held-out names use syllables (and therefore letter sequences) that the training names never use.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

_ONSETS = "b br c ch d dr f fl g gr h j k kl l m n p pr qu r s sh st t th tr v w z bl cr gl sk sl sw y".split()
_VOWELS = "a e i o u a e i o u a e i o ai ea ee ie ou au ia y".split()
_CODAS = ["", "", "", "", "", "", "", "", "l", "m", "n", "r", "s", "t", "ck", "d", "g", "k", "ld", "lt", "nd", "ng", "nt", "rd", "rk", "rn",
          "rt", "sk", "ss", "st", "x", "z", "ff", "ll", "nn", "th", "sch", "p", "b"]
_SURNAME_ENDS = ["", "", "", "er", "man", "sen", "son", "ski", "ova", "ez", "ini", "ou", "ley", "by", "wick", "stein",
                 "ak", "ura", "oto", "ian", "idze", "ko", "ic", "eau", "ard", "ell", "ins", "holm", "berg", "a", "o"]
_FIRST_ENDS = ["", "", "a", "e", "o", "in", "ine", "ette", "us", "ia", "iel", "ard", "ne", "ika", "y", "an", "eth", "is"]
_TOWN_ENDS = ["ton", "ford", "ham", "bury", "mouth", "field", "haven", "moor", "dale", "stead", "bridge", "ville",
              "burg", "wald", "see", "by", "port", "minster", "wich", "combe", "ness", "brunn", "au", "hill", "vik"]
_STREETS = ["Street", "Road", "Lane", "Avenue", "Way", "Square", "Close", "Row", "Hill", "Gate", "Quay", "Walk"]
_FIRST = """Ada Amir Anna Aoife Arjun Bea Bruno Carla Chen Clara Daniel Davide Dina Edith Elias Emma Esther Farid Felix
Fiona Franz Gita George Hanna Hugo Ida Imran Ines Ivan Jack Jana Jonas Julia Kai Karim Klara Laila Lars Leo Lucy Maria
Mark Martin Mei Mina Mona Nadia Nico Nina Noah Olga Omar Otto Paul Petra Priya Rosa Ruth Samir Sara Simon Sofia Tara
Thomas Tim Tom Uma Vera Victor Wei Yusuf Zara Zoe David Peter James Mary Susan Helen Alice Robert Karen Eva""".split()
_LAST = """Adams Ali Bauer Becker Bell Brown Carter Clark Cohen Costa Cruz Diaz Evans Fischer Fox Garcia Gray Green
Haas Hall Hill Hughes Ito Jones Kaya Keller Khan Kim King Klein Kumar Lang Lee Lopez Marsh Meyer Mills Moore Nagy Novak
Okafor Park Patel Perez Price Reed Rossi Roth Sato Shah Silva Singh Smith Stone Tanaka Taylor Turner Wagner Walsh Ward
Weber White Wolf Wong Wood Young""".split()
_WORDS = """amber anchor apple arrow autumn basil beacon birch blue bramble bridge bronze candle cedar cherry cliff
clover cloud copper coral crystal daisy dawn delta ember falcon fern field flint forest fox garnet ginger glade golden
granite harbour hazel heron holly honey iris ivory ivy jasper juniper kite lake lantern lark lemon lilac linden lotus
maple marble meadow mint mist moon moss nettle oak ocean olive onyx opal orchid otter owl pearl pebble pepper pine plum
poppy quartz quill raven reed river robin rose rowan ruby saffron sage silver sparrow spruce star stone storm summer
swan thistle tiger timber topaz tulip valley velvet violet walnut water willow winter wren""".split()
_TITLES = ["Dr. ", "Dr ", "Ms ", "Mr ", "Mrs ", "Prof. ", "Sister "]


def is_held_out(syllable: str) -> bool:
    """Whether an onset+vowel pair is kept for the evaluation (about one in eight)."""
    return sum(ord(c) * (i + 3) for i, c in enumerate(syllable)) % 8 == 0


def heads() -> list[str]:
    """Every way a syllable may begin."""
    return [onset + vowel for onset in _ONSETS for vowel in dict.fromkeys(_VOWELS)]


@dataclass
class Names:
    """A source of names drawn from `rng`; with `held_out`, of names that training never shows."""

    rng: random.Random
    held_out: bool = False

    def syllable(self) -> str:
        while True:
            head = self.rng.choice(_ONSETS) + self.rng.choice(_VOWELS)
            if is_held_out(head) == self.held_out:
                return head + self.rng.choice(_CODAS)

    def stem(self, longest: int = 2) -> str:
        return "".join(self.syllable() for _ in range(self.rng.randint(1, longest))).capitalize()

    def first(self) -> str:
        if not self.held_out and self.rng.random() < 0.35:
            return self.rng.choice(_FIRST)
        return self.stem() + self.rng.choice(_FIRST_ENDS)

    def last(self) -> str:
        if not self.held_out and self.rng.random() < 0.25:
            return self.rng.choice(_LAST)
        name = self.stem() + self.rng.choice(_SURNAME_ENDS)
        kind = self.rng.random()
        if kind < 0.06:
            return f"{name}-{self.stem()}"
        return self.rng.choice(["van ", "de ", "Mc", "O'", "al-"]) + name if kind < 0.1 else name

    def person(self) -> str:
        kind = self.rng.random()
        if kind < 0.6:
            return f"{self.first()} {self.last()}"
        if kind < 0.8:
            return f"{self.rng.choice(_TITLES)}{self.first()} {self.last()}"
        if kind < 0.95:
            return f"{self.rng.choice(_TITLES)}{self.last()}"
        return f"{self.first()} {self.rng.choice('ABCDEFGHJKLMNPRSTW')}. {self.last()}"

    def town(self) -> str:
        return self.stem() + self.rng.choice(_TOWN_ENDS)

    def street(self) -> str:
        kind = self.rng.random()
        stem = self.rng.choice(_WORDS).capitalize() if kind < 0.25 else self.stem() + self.rng.choice(["", "er", "s"])
        if kind > 0.93:
            return stem + self.rng.choice(["strasse", "gasse", "weg", "platz"])
        return f"{stem} {self.rng.choice(_STREETS)}"

    def address(self) -> str:
        number = str(self.rng.randint(1, 240)) + self.rng.choice(["", "", "", "a", "b"])
        return f"{number} {self.street()}" if self.rng.random() < 0.85 else f"{self.street()} {number}"

    def domain(self) -> str:
        word = self.rng.choice([self.stem(), self.town(), self.rng.choice(_WORDS)]).lower()
        return word + self.rng.choice([".example", ".org", ".net", ".example.org", ".edu", ".gov", "-town.example"])

    def email(self, domain: str | None = None) -> str:
        rng = self.rng
        local = rng.choice([
            self.stem().lower(), f"{rng.choice('abcdefghijklmnoprstuvw')}.{self.stem().lower()}",
            f"{self.stem().lower()}.{self.stem().lower()}", rng.choice(_WORDS),
            rng.choice(["info", "desk", "office", "help", "hello", "post", "contact", "team", "fees", "bookings"]),
        ])
        return f"{local}@{domain or self.domain()}"

    def website(self, domain: str) -> str:
        path = self.rng.choice(["", "", f"/{self.rng.choice(_WORDS)}", f"/{self.stem().lower()}"])
        return self.rng.choice(["www.", "", "https://"]) + domain + path

    def phone(self) -> str:
        def digits(n: int) -> str:
            return "".join(self.rng.choice("0123456789") for _ in range(n))
        return self.rng.choice([
            f"0{digits(3)} {digits(3)} {digits(3)}", f"0{digits(3)} {digits(6)}", f"{digits(3)}-{digits(4)}",
            f"+{digits(2)} {digits(2)} {digits(3)} {digits(4)}", f"({digits(3)}) {digits(3)}-{digits(4)}",
            f"0{digits(2)}/{digits(6)}", f"555-{digits(4)}", f"{digits(2)} {digits(2)} {digits(2)} {digits(2)}",
        ])

    def code(self) -> str:
        rng = self.rng
        def letters(n: int) -> str:
            return "".join(rng.choice("ABCDEFGHJKLMNPQRSTUVWXYZ") for _ in range(n))
        def digits(n: int) -> str:
            return "".join(rng.choice("0123456789") for _ in range(n))
        return rng.choice([
            f"{letters(2)}-{digits(4)}", f"{letters(1)}{digits(3)}", f"{letters(1)}-{digits(2)}", digits(4),
            f"{letters(3)}-{digits(3)}", f"{digits(2)}{letters(2)}{digits(2)}", f"{letters(2)}{digits(2)}",
            f"{letters(2)} {digits(3)}", f"{digits(2)}-{letters(1)}", f"{letters(4)}",
        ])

    def password(self) -> str:
        rng = self.rng
        def word() -> str:
            return rng.choice(_WORDS) if rng.random() < 0.5 else self.stem().lower()
        return rng.choice([f"{word()}-{word()}-{rng.randint(1, 99)}", f"{word()}{rng.randint(10, 9999)}",
                           f"{word()}-{word()}", f"{word().capitalize()}{word().capitalize()}{rng.randint(1, 99)}"])

    def word(self) -> str:
        return self.rng.choice(_WORDS)
