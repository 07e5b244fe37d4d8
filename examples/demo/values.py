"""How values are made: hours, sums of money, dates, places; all in the habits of one house."""

from __future__ import annotations

from dataclasses import dataclass

import pools
from names import Names


@dataclass(frozen=True)
class House:
    """Habits of one institution's staff that hold through all of its documents."""

    clock: str
    money: str
    domain: str
    phone: str | None


def make_house(names: Names) -> House:
    rng = names.rng
    return House(
        rng.choice(["{h}:{m:02d}", "{h}:{m:02d}", "{h:02d}:{m:02d}", "{h}.{m:02d}", "ampm"]),
        rng.choice(
            ["{} euros", "€{}", "{} pounds", "£{}", "${}", "{} francs", "EUR {}", "{} crowns", "{} €"]
        ),
        names.domain(),
        None,
    )


def clock(house: House, minutes: int) -> str:
    hour, minute = divmod(minutes, 60)
    if house.clock == "ampm":
        half = "am" if hour < 12 else "pm"
        return f"{(hour - 1) % 12 + 1}{f':{minute:02d}' if minute else ''} {half}"
    return house.clock.format(h=hour, m=minute)


def time(names: Names, house: House) -> str:
    return clock(house, names.rng.randrange(7 * 60, 21 * 60, names.rng.choice([15, 30, 30, 60])))


def hours(names: Names, house: House) -> str:
    rng = names.rng
    start = rng.randrange(7 * 60, 15 * 60, rng.choice([15, 30, 60]))
    end = min(start + rng.randrange(90, 600, 30), 22 * 60)
    return rng.choice(["{} to {}", "{} to {}", "{} to {}", "{}-{}", "{} – {}"]).format(
        clock(house, start), clock(house, end)
    )


def money(names: Names, house: House) -> str:
    rng = names.rng
    kind = rng.random()
    if kind < 0.06:
        return rng.choice(["free", "free of charge", "nothing", "no fee"])
    amount = (
        str(rng.randint(1, 400))
        if kind < 0.45
        else f"{rng.randint(0, 60)}.{rng.choice(['50', '20', '80', '00', '25', '75', '90', '40'])}"
    )
    return house.money.format(amount) + rng.choice(
        ["", "", "", "", "", " per day", " a month", " per person", " a year", " per hour"]
    )


def duration(names: Names, house: House) -> str:
    rng = names.rng
    unit = rng.choice(["day", "day", "week", "week", "month", "hour", "minute", "working day"])
    number = rng.choice([rng.choice(pools.NUMBERS), str(rng.randint(2, 90))])
    return f"{number} {unit}s" if rng.random() < 0.9 else f"one {unit}"


def date(names: Names, house: House) -> str:
    rng = names.rng
    day, month = rng.randint(1, 28), rng.choice(pools.MONTHS)
    return rng.choice(
        [
            f"{day} {month}",
            f"{day} {month}",
            f"{month} {day}",
            f"{day} {month} {rng.randint(2019, 2031)}",
            f"the {rng.choice(['first', 'second', 'third', 'last'])} {rng.choice(pools.DAYS)} of {month}",
        ]
    )


def weekday(names: Names, house: House) -> str:
    rng = names.rng
    a, b = sorted(rng.sample(range(7), 2))
    return rng.choice(
        [
            pools.DAYS[a],
            pools.DAYS[a],
            pools.DAYS[a] + "s",
            f"{pools.DAYS[a]} and {pools.DAYS[b]}",
            f"{pools.DAYS[a]} to {pools.DAYS[b]}",
            f"every {pools.DAYS[a]}",
            f"{pools.DAYS[a]}s and {pools.DAYS[b]}s",
        ]
    )


def room(names: Names, house: House) -> str:
    rng = names.rng
    return rng.choice(
        [
            f"Room {rng.randint(1, 420)}",
            f"room {rng.randint(0, 6)}.{rng.randint(1, 39):02d}",
            f"Room {rng.choice('ABCDEFGH')}{rng.randint(1, 30)}",
            f"the {names.stem()} Room",
            f"{names.stem()} Hall",
            f"the {names.word()} room",
            f"the {rng.choice(pools.PLACE_HEADS)} {rng.choice(pools.PLACE_NOUNS)}",
            f"the {rng.choice(['first', 'second', 'third', 'ground', 'top', 'lower'])} floor",
            f"{names.address()}",
            f"the {rng.choice(pools.SIDES)} {rng.choice(pools.PARTS)}",
        ]
    )


def where(names: Names, house: House) -> str:
    rng = names.rng
    spot = rng.choice(
        ["cupboard", "drawer", "shelf", "box", "basket", "cabinet", "locker", "rack", "tray", "chest"]
    )
    place = f"the {rng.choice(pools.PLACE_HEADS)} {rng.choice(pools.PLACE_NOUNS)}"
    return rng.choice(
        [
            f"the {rng.choice(pools.COLOURS)} {spot}",
            f"{spot} {rng.randint(1, 60)}",
            f"the {spot} {rng.choice(pools.NEAR)} {place}",
            place,
            f"the {rng.choice(pools.COLOURS)} {spot} in {room(names, house)}",
        ]
    )


def bring(names: Names, house: House) -> str:
    rng = names.rng
    things = rng.sample(pools.THINGS, 2)
    return rng.choice([things[0], f"{things[0]} and {things[1]}", things[0]])


def people(names: Names, house: House) -> str:
    rng = names.rng
    number = rng.choice([str(rng.randint(2, 180)), rng.choice(pools.NUMBERS)])
    return f"{number} {rng.choice(pools.PEOPLE)}"


def count(names: Names, house: House) -> str:
    return names.rng.choice([str(names.rng.randint(2, 60)), names.rng.choice(pools.NUMBERS)])


def age(names: Names, house: House) -> str:
    rng = names.rng
    return rng.choice(
        [
            f"{rng.randint(3, 21)} years",
            f"{rng.randint(3, 21)}",
            f"{rng.randint(3, 9)} to {rng.randint(10, 80)} years",
        ]
    )


def method(names: Names, house: House) -> str:
    rng = names.rng
    return rng.choice(
        [
            "in cash",
            "by card",
            "by bank transfer",
            "at the front desk",
            "by post",
            "online",
            "by e-mail",
            "by phone",
            "in person",
            f"at {room(names, house)}",
            f"with form {names.code()}",
            f"on {names.website(house.domain)}",
        ]
    )
