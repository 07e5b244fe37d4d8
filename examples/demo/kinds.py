"""The kinds of things that institutions write about, with the properties each may have."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import fields as f
import pools
from fields import Field
from names import Names


@dataclass(frozen=True)
class Kind:
    """A sort of thing with the properties it may have."""

    name: str
    subject: Callable[[Names], str]  # with its article
    fields: tuple[Field, ...]
    files: tuple[str, ...]  # file names without the ending
    titles: tuple[str, ...]
    columns: tuple[str, ...] = ("",)  # heading of the column of the things themselves


def the(
    heads: list[str], nouns: list[str], article: str = "the ", proper: float = 0.15
) -> Callable[[Names], str]:
    """A maker of things such as "the reading room", sometimes named after someone ("the Velmar room")."""

    def make(names: Names) -> str:
        rng, kind = names.rng, names.rng.random()
        proper_head = names.stem if kind < proper * 0.7 else names.word
        head = proper_head() if kind < proper else rng.choice(heads)
        phrase = f"{head} {rng.choice(nouns)}"
        if article == "a ":
            return ("an " if phrase[0] in "aeiouAEIOU" else "a ") + phrase
        return article + phrase

    return make


def thing(names: Names) -> str:
    noun = names.rng.choice(pools.THING_NOUNS)
    return f"{names.rng.choice(pools.THING_HEADS)} {noun}" if names.rng.random() < 0.4 else noun


def keyed(things: str) -> Callable[[Names], str]:
    """A maker of numbered or coded things: "locker 14", "door KX-4417", "line 7"."""

    def make(names: Names) -> str:
        tag = names.code() if names.rng.random() < 0.4 else str(names.rng.randint(1, 99))
        return f"{names.rng.choice(things.split())} {tag}"

    return make


KINDS: tuple[Kind, ...] = (
    Kind(
        "place",
        the(pools.PLACE_HEADS, pools.PLACE_NOUNS),
        (f.HOURS, f.CLOSED, f.PLACES, f.PERSON, f.PHONE, f.ROOM, f.DAY_OPEN),
        ("hours", "opening", "rooms", "visit", "houses", "01-hours"),
        ("Opening hours", "Hours", "Our rooms", "When we are open", "Places"),
        ("Place", "Where", ""),
    ),
    Kind(
        "event",
        the(pools.EVENT_HEADS, pools.EVENT_NOUNS),
        (f.DAY, f.TIME, f.ROOM, f.PERSON, f.FEE, f.LENGTH, f.AGE, f.PLACES, f.BRING, f.STARTS),
        ("events", "courses", "programme", "groups", "activities"),
        ("Events", "Courses", "Programme", "What is on", "Groups and courses"),
        ("Event", "What", "Course"),
    ),
    Kind(
        "service",
        the(pools.SERVICE_HEADS, pools.SERVICE_NOUNS, "a "),
        (f.FEE, f.PAY, f.BRING, f.LENGTH, f.FORM, f.NOTICE, f.ROOM),
        ("fees", "prices", "charges", "services", "02-fees"),
        ("Fees", "Prices", "Charges", "What it costs", "Services and fees"),
        ("Service", "Item", "What"),
    ),
    Kind(
        "items",
        thing,
        (f.LOAN, f.LIMIT, f.LATE, f.KEPT),
        ("loans", "borrowing", "equipment", "lending", "rules"),
        ("Borrowing", "Loans", "Equipment", "What we lend", "Rules"),
        ("Item", "What", "Kind"),
    ),
    Kind(
        "role",
        the(pools.ROLE_HEADS, pools.ROLE_NOUNS),
        (f.HOLDER, f.PHONE, f.EMAIL, f.ROOM),
        ("staff", "contacts", "people", "team", "who"),
        ("Staff", "Contacts", "The team", "Who is who", "People"),
        ("Role", "Post", ""),
    ),
    Kind(
        "department",
        the(pools.ROLE_HEADS + pools.PLACE_HEADS, pools.DEPARTMENT_NOUNS),
        (f.PHONE, f.EMAIL, f.PERSON, f.ROOM, f.HOURS),
        ("contact", "contacts", "phone", "departments", "offices"),
        ("Contact", "How to reach us", "Phone and mail", "Offices"),
        ("Department", "Office", ""),
    ),
    Kind(
        "application",
        the(pools.APPLICATION_HEADS, pools.APPLICATION_NOUNS),
        (f.DEADLINE, f.FORM, f.PERSON, f.EMAIL, f.FEE, f.BRING),
        ("deadlines", "dates", "applications", "calendar"),
        ("Deadlines", "Dates", "Applications", "Dates to remember"),
        ("Application", "What", ""),
    ),
    Kind(
        "keyed",
        keyed("locker door box gate safe cabinet cupboard printer alarm shelf"),
        (f.CODE, f.PERSON, f.PASSWORD, f.ROOM),
        ("codes", "keys", "doors", "access"),
        ("Codes", "Keys and codes", "Access"),
        ("Door", "Number", "What"),
    ),
    Kind(
        "network",
        the(
            ["guest", "staff", "house", "public", "office", "children's", "reading-room"],
            ["network", "Wi-Fi", "computer", "account", "printer"],
        ),
        (f.PASSWORD, f.CODE, f.PLACES),
        ("internet", "wifi", "computers"),
        ("Internet", "Wi-Fi", "Computers"),
        ("Network", ""),
    ),
    Kind(
        "line",
        keyed("bus tram line route"),
        (f.STOP, f.TIME, f.FEE),
        ("travel", "transport", "getting-here"),
        ("Getting here", "Buses", "How to find us"),
        ("Line", ""),
    ),
    Kind(
        "partner",
        lambda n: (
            "the "
            + n.stem()
            + n.rng.choice(
                [" Foundation", " House", " Institute", " School", " Society", " Trust", " Fund", " Prize"]
            )
        ),
        (f.ADDRESS, f.TOWN, f.YEAR, f.FOUNDER, f.WEB, f.PHONE, f.PERSON, f.STARTS),
        ("partners", "friends", "history", "about"),
        ("Partners", "Friends", "History", "About us"),
        ("Partner", "Name", ""),
    ),
    Kind(
        "colleague",
        lambda n: n.person(),
        (f.PHONE, f.ROOM, f.EMAIL, f.DAY_OPEN),
        ("staff", "phone-list", "people"),
        ("Staff", "Phone list", "People"),
        ("Name", "Who"),
    ),
)

# Facts about the institution under its own name; they often share a file with other blocks.
ITSELF = Kind(
    "itself",
    lambda n: n.town(),
    (f.ADDRESS, f.CLOSED, f.YEAR, f.FOUNDER, f.WEB, f.PHONE, f.EMAIL, f.TOWN, f.HOURS),
    ("about", "hours", "contacts", "visit", "history"),
    ("About us", "Opening hours", "How to find us", "Who we are"),
)
