"""A domain that the demo's training never showed: harbours, with berths, channels, tides and cranes.

Things, properties and phrasing are new; names, numbers and layouts are made as for everybody else.  A base
model that reads such documents learns the domain, and `train.py --phase domain` is that.
"""

from __future__ import annotations

import values
from fields import Field
from kinds import Kind, keyed, the
from names import Names
from pools import phrases, words
from values import House

HARBOURS = phrases("Harbour Authority | Port | Docks | Harbour | Marina | Pilot Station | Ferry Port")


def draught(names: Names, house: House) -> str:
    return f"{names.rng.randint(2, 14)}.{names.rng.randint(0, 9)} m"


def tonnes(names: Names, house: House) -> str:
    return f"{names.rng.randint(2, 90)} tonnes"


def channel(names: Names, house: House) -> str:
    return f"VHF channel {names.rng.randint(6, 88)}"


def bollards(names: Names, house: House) -> str:
    first = names.rng.randint(1, 60)
    return f"bollards {first} to {first + names.rng.randint(3, 12)}"


def tide(names: Names, house: House) -> str:
    hours = names.rng.choice(["half an hour", "one hour", "two hours", "three hours"])
    return f"{hours} {names.rng.choice(['before', 'after'])} {names.rng.choice(['high', 'low'])} water"


def light(names: Names, house: House) -> str:
    colour = names.rng.choice(words("red green white yellow"))
    return f"{names.rng.randint(1, 4)} {colour} flashes every {names.rng.randint(4, 20)} seconds"


DRAUGHT = Field(
    "draught",
    ("Draught", "Max. draught", "Depth"),
    draught,
    ("takes vessels drawing up to {v}", "is dredged to {v}", "allows a draught of {v}"),
    ("What draught does {s} allow?", "How deep is {s}?", "What is the maximum draught at {s}?"),
    ("Dredged depth of {s}: {v}.", "{s}: draught {v}."),
)
CRANE = Field(
    "crane",
    ("Lift", "Safe working load", "Crane"),
    tonnes,
    ("lifts {v}", "has a safe working load of {v}", "is rated at {v}"),
    ("How much does {s} lift?", "What is the safe working load of {s}?", "What can {s} lift?"),
    ("Safe working load of {s}: {v}.",),
)
CHANNEL = Field(
    "channel",
    ("Channel", "VHF", "Working channel"),
    channel,
    ("listens on {v}", "keeps watch on {v}", "works on {v}"),
    ("On which channel does {s} listen?", "How do I hail {s}?", "Which VHF channel does {s} use?"),
    ("Hail {s} on {v}.", "{s}: {v}."),
)
MOORING = Field(
    "mooring",
    ("Mooring", "Bollards", "Lines to"),
    bollards,
    ("moors at {v}", "lies alongside {v}", "makes fast to {v}"),
    ("Where does {s} moor?", "At which bollards does {s} lie?", "Where does {s} make fast?"),
    ("{s} makes fast to {v}.",),
)
TIDE = Field(
    "tide",
    ("Tide", "Opens at", "Lock times"),
    tide,
    ("opens {v}", "is worked {v}", "can be passed {v}"),
    ("When can {s} be passed?", "At what state of the tide does {s} open?", "When does {s} open?"),
    ("{s} is worked {v}.",),
)
LIGHT = Field(
    "light",
    ("Light", "Character", "Signal"),
    light,
    ("shows {v}", "is lit with {v}"),
    ("What light does {s} show?", "How is {s} lit?", "What is the character of {s}?"),
    ("Character of {s}: {v}.",),
)
DUES = Field(
    "dues",
    ("Dues", "Berthing dues", "Per night"),
    values.money,
    ("is charged at {v} a night", "costs {v} in dues"),
    ("What are the dues at {s}?", "What does a night at {s} cost?", "How much are berthing dues at {s}?"),
    ("Dues at {s}: {v}.",),
)
MASTER = Field(
    "master",
    ("Master", "Skipper", "Coxswain"),
    lambda n, h: n.person(),
    ("sails under {v}", "is commanded by {v}", "has {v} as master"),
    ("Who commands {s}?", "Who is the master of {s}?", "Under whom does {s} sail?"),
    ("Master of {s}: {v}.",),
)

HARBOUR_KINDS: tuple[Kind, ...] = (
    Kind(
        "berth",
        the(
            words("outer inner fuel ferry tanker fishing lower upper old north"),
            words("berth quay jetty mole pier"),
        ),
        (DRAUGHT, DUES, MOORING, CHANNEL),
        ("berths", "quays", "alongside"),
        ("Berths", "Quays and jetties", "Alongside"),
        ("Berth", "Quay", ""),
    ),
    Kind(
        "gate",
        the(words("sea dock tidal storm barrage entrance"), words("gate lock sluice sill bridge")),
        (TIDE, DRAUGHT, CHANNEL),
        ("locks", "tides", "entering"),
        ("Locks and gates", "Entering on the tide", "Tidal gates"),
        ("Lock", "Gate", ""),
    ),
    Kind(
        "crane",
        keyed("crane gantry hoist derrick"),
        (CRANE, MOORING),
        ("cranes", "lifting", "cargo"),
        ("Cranes", "Lifting gear", "Cargo handling"),
        ("Crane", "Gear"),
    ),
    Kind(
        "mark",
        the(words("fairway bar wreck spit breakwater channel"), words("buoy beacon light mark perch")),
        (LIGHT,),
        ("lights", "buoyage", "marks"),
        ("Lights and marks", "Buoyage", "Approach"),
        ("Mark", "Light", ""),
    ),
    Kind(
        "vessel",
        the(
            words("pilot harbour dredging rescue mooring survey"),
            words("tug launch cutter barge boat tender"),
        ),
        (MASTER, MOORING, CHANNEL),
        ("vessels", "tugs", "craft"),
        ("Harbour craft", "Tugs and launches", "Vessels"),
        ("Vessel", "Craft", ""),
    ),
)
