"""Documents of invented institutions, with questions that only the documents can answer.

Every institution comes from a seed.  Its documents mix house styles (prose, bullets, tables, labels), hold
several things of each kind, so that the right one must be picked, and come with questions whose answers are
verbatim spans of the text.  Command line: `python generator.py --seed 7 --facts 12` prints one institution.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pools
from fields import Field
from harbour import HARBOUR_KINDS, HARBOURS
from kinds import ITSELF, KINDS, Kind
from names import Names
from values import House, hours, make_house, money

SYSTEM = "Answer briefly, from the documents below only.\n\n"
UNKNOWN = "Not in the documents."


@dataclass(frozen=True)
class Question:
    """A question; `answer` stands verbatim in the document `source` (empty when no document answers)."""

    text: str
    answer: str
    kind: str
    source: str = ""


@dataclass
class Block:
    """Some things of one kind with the same properties: what one table or one list would hold."""

    kind: Kind
    fields: list[Field]
    rows: list[tuple[str, list[str]]]
    file: str
    title: str


@dataclass
class Matrix:
    """A table of two keys, such as hours by place and weekday."""

    name: str
    rows: list[str]
    columns: list[str]
    cells: list[list[str]]
    file: str
    title: str


@dataclass
class Institution:
    """One invented institution: facts in blocks, and the documents as one rendering of them."""

    name: str
    blocks: list[Block | Matrix]
    documents: dict[str, str] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def bare(subject: str) -> str:
    """A subject without its article, as it stands in a table."""
    head, _, tail = subject.partition(" ")
    return tail if head in ("the", "a", "an") and tail else subject


def system_prompt(documents: Mapping[str, str]) -> str:
    """The system message that puts the documents before the model."""
    return SYSTEM + "".join(f"[{name}]\n{documents[name]}\n\n" for name in sorted(documents))


def make_block(
    names: Names, house: House, facts: int, used: set[str], kinds: Sequence[Kind] = KINDS
) -> Block:
    """A block of at most `facts` facts about things not in `used`."""
    rng = names.rng
    kind = rng.choice(kinds)
    width = 1 if rng.random() < 0.5 else min(rng.randint(2, 4), len(kind.fields), max(1, facts))
    fields = rng.sample(kind.fields, width)
    if rng.random() < 0.4 and kind.fields[0] not in fields:
        fields[0] = kind.fields[0]
    rows = []
    for _ in range(max(1, min(rng.randint(1, 6), facts // width))):
        subject = next(s for s in iter(lambda: kind.subject(names), None) if bare(s).lower() not in used)
        used.add(bare(subject).lower())
        rows.append((subject, [f.value(names, house) for f in fields]))
    return Block(kind, fields, rows, rng.choice(kind.files), rng.choice(kind.titles))


def make_matrix(names: Names, house: House, facts: int, used: set[str]) -> Matrix:
    """A table of hours (place by weekday) or of fees (service by group)."""
    rng = names.rng
    kind, value, columns = rng.choice(
        [
            (KINDS[0], hours, sorted(rng.sample(pools.DAYS, rng.randint(2, 4)), key=pools.DAYS.index)),
            (KINDS[2], money, rng.sample(pools.GROUPS, rng.randint(2, 3))),
        ]
    )
    rows: list[str] = []
    while len(rows) < max(1, min(4, facts // len(columns))):
        subject = kind.subject(names)
        if bare(subject).lower() not in used:
            used.add(bare(subject).lower())
            rows.append(subject)
    cells = [[value(names, house) for _ in columns] for _ in rows]
    return Matrix(
        "hours" if value is hours else "fee",
        rows,
        columns,
        cells,
        rng.choice(kind.files),
        rng.choice(kind.titles),
    )


def make_institution(seed: int, facts: int = 12, held_out: bool = False) -> Institution:
    """The institution of `seed` with about `facts` facts; `held_out`: with names training never shows."""
    rng = random.Random(f"{seed}/{facts}/{held_out}")
    names = Names(rng, held_out)
    house = make_house(names)
    place = Institution(f"{names.town()} {rng.choice(pools.INSTITUTIONS)}", [])
    used: set[str] = set()
    left = facts
    if facts >= 3 and rng.random() < 0.4:
        about = rng.sample(ITSELF.fields, rng.randint(1, 3))
        place.blocks.append(
            Block(
                ITSELF,
                about,
                [(place.name, [f.value(names, house) for f in about])],
                rng.choice(ITSELF.files),
                rng.choice(ITSELF.titles),
            )
        )
        left -= len(about)
    while left > 0:
        if rng.random() < 0.2 and left >= 4:
            matrix = make_matrix(names, house, left, used)
            place.blocks.append(matrix)
            left -= len(matrix.rows) * len(matrix.columns)
        else:
            block = make_block(names, house, left, used)
            place.blocks.append(block)
            left -= len(block.rows) * len(block.fields)
    place.documents = render(place, rng)
    place.questions = make_questions(place, names, used)
    return place


def make_harbour(seed: int, facts: int = 12, held_out: bool = False) -> Institution:
    """A harbour: the same sort of documents about things that `make_institution` never has."""
    rng = random.Random(f"harbour/{seed}/{facts}/{held_out}")
    names = Names(rng, held_out)
    house = make_house(names)
    place = Institution(f"{names.town()} {rng.choice(HARBOURS)}", [])
    used: set[str] = set()
    left = facts
    while left > 0:
        block = make_block(names, house, left, used, HARBOUR_KINDS)
        place.blocks.append(block)
        left -= len(block.rows) * len(block.fields)
    place.documents = render(place, rng)
    place.questions = make_questions(place, names, used, HARBOUR_KINDS)
    return place


def make_drill(seed: int, facts: int) -> Institution:
    """Many things with one and the same property, said and asked in one way: only the thing tells the answer.

    Telling values apart by their type comes easily, binding a value to its thing does not.  This is the
    shortest exercise of it, and things are spelt alike in the text and in the question.
    """
    rng = random.Random(f"drill/{seed}/{facts}")
    names = Names(rng)
    house, kind = make_house(names), rng.choice(KINDS)
    about = rng.choice(kind.fields)
    subjects = list(dict.fromkeys(kind.subject(names) for _ in range(facts)))
    block = Block(
        kind, [about], [(s, [about.value(names, house)]) for s in subjects], rng.choice(kind.files), ""
    )
    clause = rng.choice(about.clauses)
    line = rng.choice(["{s}: {v}", "- {s}: {v}", "| {s} | {v} |", "{s} " + clause, "{s} " + clause + "."])
    place = Institution(names.town(), [block])
    text = "\n".join(line.format(s=s, v=v[0]) for s, v in block.rows)
    file, form = block.file + ".md", rng.choice(about.questions)
    place.documents = {file: text + "\n"}
    place.questions = [Question(form.format(s=s), v[0], about.name, file) for s, v in block.rows]
    rng.shuffle(place.questions)
    return place


def sentence(rng: random.Random, subject: str, fields: list[Field], values: list[str]) -> str:
    """One or more sentences that state all values of one thing."""
    if len(fields) == 1 and fields[0].sentences and rng.random() < 0.6:
        text = rng.choice(fields[0].sentences).format(s=subject, v=values[0], r=bare(subject))
        return capital(text)
    clauses = [rng.choice(f.clauses).format(v=v) for f, v in zip(fields, values, strict=True)]
    if len(clauses) > 2 and rng.random() < 0.4:
        return capital(f"{subject} {clauses[0]}. It {', '.join(clauses[1:-1])} and {clauses[-1]}.")
    if len(clauses) == 1:
        return capital(f"{subject} {clauses[0]}.")
    return capital(f"{subject} {', '.join(clauses[:-1])} and {clauses[-1]}.")


def render_block(block: Block, rng: random.Random) -> str:
    """The text of a block in a style of its own."""
    style = rng.choice(["prose", "prose", "bullets", "labels", "table", "list"])
    headers = [rng.choice(f.headers) for f in block.fields]
    spell = (lambda s: capital(bare(s))) if rng.random() < 0.6 else bare
    mark = rng.choice(["- ", "- ", "* ", ""])
    if style == "prose":
        return rng.choice([" ", "\n"]).join(sentence(rng, s, block.fields, v) for s, v in block.rows)
    if style == "bullets":
        return "\n".join(mark + sentence(rng, s, block.fields, v) for s, v in block.rows)
    if style == "table":
        lines = [[rng.choice(block.kind.columns) or "Name", *headers], ["---"] * (len(headers) + 1)]
        lines += [[spell(s), *v] for s, v in block.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    bold = "**" if rng.random() < 0.25 else ""
    if style == "labels" and len(headers) > 1:
        return "\n".join(
            f"{bold}{spell(s)}{bold}\n"
            + "\n".join(f"{mark}{h}: {v}" for h, v in zip(headers, values, strict=True))
            for s, values in block.rows
        )
    named = len(headers) > 1 or rng.random() < 0.3
    join = rng.choice([", ", "; "])
    return "\n".join(
        f"{mark}{bold}{spell(s)}{bold}: "
        + join.join(f"{h.lower()} {v}" if named else v for h, v in zip(headers, values, strict=True))
        for s, values in block.rows
    )


def render_matrix(matrix: Matrix, rng: random.Random) -> str:
    if rng.random() < 0.55:
        lines = [["", *matrix.columns], ["---"] * (len(matrix.columns) + 1)]
        lines += [[capital(bare(s)), *cells] for s, cells in zip(matrix.rows, matrix.cells, strict=True)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    style = rng.choice(["lines", "prose"])
    out = []
    for subject, cells in zip(matrix.rows, matrix.cells, strict=True):
        pairs = list(zip(matrix.columns, cells, strict=True))
        if style == "lines":
            out.append(f"{capital(bare(subject))}: " + ", ".join(f"{c} {v}" for c, v in pairs))
        elif matrix.name == "hours":
            out.append(capital(f"{subject} is open " + ", ".join(f"on {c} {v}" for c, v in pairs) + "."))
        else:
            out.append(
                capital(f"{subject} costs " + ", ".join(f"{v} for {c.lower()}" for c, v in pairs) + ".")
            )
    return "\n".join(out)


def render(place: Institution, rng: random.Random) -> dict[str, str]:
    """The documents: blocks of the same file together, with headings and sentences nobody asks about."""
    files: dict[str, list[str]] = {}
    heading = rng.choice(["# {}", "# {}", "{}", "## {}", "{}:", "== {} =="])
    ending = rng.choice([".md", ".md", ".txt"])
    chatter = rng.choice([0.0, 0.1, 0.3])
    for block in place.blocks:
        parts = files.setdefault(block.file + ending, [])
        if not parts or rng.random() < 0.5:
            title = block.title if rng.random() < 0.85 else f"{place.name}: {block.title.lower()}"
            parts.append(heading.format(title))
        if rng.random() < chatter:
            parts.append(rng.choice(pools.FILLER))
        parts.append(render_matrix(block, rng) if isinstance(block, Matrix) else render_block(block, rng))
        if rng.random() < chatter:
            parts.append(rng.choice(pools.FILLER))
    gap = rng.choice(["\n\n", "\n\n", "\n"])
    return {name: gap.join(parts) + "\n" for name, parts in files.items()}


def ask(rng: random.Random, templates: tuple[str, ...], subject: str) -> str:
    text = rng.choice(templates).format(s=subject)
    kind = rng.random()
    if kind < 0.05:
        return (
            f"{rng.choice(['Please tell me: ', 'I have a question. ', 'Hello! ', 'Can you help me? '])}{text}"
        )
    return text.lower() if kind < 0.07 else text


def make_questions(
    place: Institution, names: Names, used: set[str], kinds: Sequence[Kind] = KINDS
) -> list[Question]:
    """A question on every fact, in random order, and some that the documents do not answer."""
    rng = names.rng
    out: list[Question] = []
    for block in place.blocks:
        source = next(f for f in place.documents if f.rsplit(".", 1)[0] == block.file)
        if isinstance(block, Matrix):
            for subject, cells in zip(block.rows, block.cells, strict=True):
                out += [
                    Question(ask_cell(rng, block.name, subject, c), v, block.name + " by column", source)
                    for c, v in zip(block.columns, cells, strict=True)
                ]
            continue
        for subject, values in block.rows:
            out += [
                Question(ask(rng, f.questions, subject), v, f.name, source)
                for f, v in zip(block.fields, values, strict=True)
            ]
    rng.shuffle(out)
    for position in range(len(out), -1, -1):
        if rng.random() < 0.06:
            out.insert(position, ask_unknown(names, used, kinds))
    return out


def ask_cell(rng: random.Random, name: str, subject: str, column: str) -> str:
    if name == "hours":
        return rng.choice(
            [
                "When is {s} open on {c}s?",
                "What are the hours of {s} on {c}?",
                "When is {s} open on {c}?",
                "On {c}, when is {s} open?",
            ]
        ).format(s=subject, c=column)
    return rng.choice(
        ["How much is {s} for {c}?", "What do {c} pay for {s}?", "What does {s} cost for {c}?"]
    ).format(s=subject, c=column.lower())


def ask_unknown(names: Names, used: set[str], kinds: Sequence[Kind]) -> Question:
    """A question of the usual form on a thing that no document mentions."""
    kind = names.rng.choice(kinds)
    subject = kind.subject(names)
    while bare(subject).lower() in used:
        subject = kind.subject(names)
    return Question(ask(names.rng, names.rng.choice(kind.fields).questions, subject), UNKNOWN, "unknown")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--facts", type=int, default=12)
    parser.add_argument("--held-out", action="store_true", help="take names that training never shows")
    parser.add_argument("--harbour", action="store_true", help="of the domain that training never shows")
    options = parser.parse_args()
    make = make_harbour if options.harbour else make_institution
    place = make(options.seed, options.facts, options.held_out)
    print(system_prompt(place.documents))
    for question in place.questions:
        print(f"Q {question.text}\nA {question.answer}  ({question.kind}, {question.source or 'nowhere'})")


if __name__ == "__main__":
    main()
