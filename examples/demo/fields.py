"""What the invented documents talk about: kinds of things, their properties, and the ways to say and ask for each.

A `Field` is one property (a fee, a room, a deadline): how its value is made, how a sentence states it, how a question
asks for it.  A `Kind` is a sort of thing (an event, a service, a person) with the fields it may have.  Templates use
`{s}` for the thing with its article, `{v}` for the value and `{i}` for the institution.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from names import Names

DAYS = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"]
MONTHS = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December"]
NUMBERS = ["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "twelve"]


@dataclass(frozen=True)
class House:
    """Habits of one institution's staff that hold through all of its documents."""

    clock: str
    money: str
    domain: str
    phone: str | None


def make_house(names: Names) -> House:
    rng = names.rng
    return House(rng.choice(["{h}:{m:02d}", "{h}:{m:02d}", "{h:02d}:{m:02d}", "{h}.{m:02d}", "ampm"]),
                 rng.choice(["{} euros", "€{}", "{} pounds", "£{}", "${}", "{} francs", "EUR {}", "{} crowns", "{} €"]),
                 names.domain(), None)


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
    return rng.choice(["{} to {}", "{} to {}", "{} to {}", "{}-{}", "{} – {}"]).format(clock(house, start), clock(house, end))


def money(names: Names, house: House) -> str:
    rng = names.rng
    kind = rng.random()
    if kind < 0.06:
        return rng.choice(["free", "free of charge", "nothing", "no fee"])
    amount = str(rng.randint(1, 400)) if kind < 0.45 else f"{rng.randint(0, 60)}.{rng.choice(['50', '20', '80', '00', '25', '75', '90', '40'])}"
    return house.money.format(amount) + rng.choice(["", "", "", "", "", " per day", " a month", " per person", " a year", " per hour"])


def duration(names: Names, house: House) -> str:
    rng = names.rng
    unit = rng.choice(["day", "day", "week", "week", "month", "hour", "minute", "working day"])
    number = rng.choice([rng.choice(NUMBERS), str(rng.randint(2, 90))])
    return f"{number} {unit}s" if rng.random() < 0.9 else f"one {unit}"


def date(names: Names, house: House) -> str:
    rng = names.rng
    day, month = rng.randint(1, 28), rng.choice(MONTHS)
    return rng.choice([f"{day} {month}", f"{day} {month}", f"{month} {day}", f"{day} {month} {rng.randint(2019, 2031)}",
                       f"the {rng.choice(['first', 'second', 'third', 'last'])} {rng.choice(DAYS)} of {month}"])


def weekday(names: Names, house: House) -> str:
    rng = names.rng
    a, b = sorted(rng.sample(range(7), 2))
    return rng.choice([DAYS[a], DAYS[a], DAYS[a] + "s", f"{DAYS[a]} and {DAYS[b]}", f"{DAYS[a]} to {DAYS[b]}",
                       f"every {DAYS[a]}", f"{DAYS[a]}s and {DAYS[b]}s"])


def room(names: Names, house: House) -> str:
    rng = names.rng
    return rng.choice([
        f"Room {rng.randint(1, 420)}", f"room {rng.randint(0, 6)}.{rng.randint(1, 39):02d}", f"Room {rng.choice('ABCDEFGH')}{rng.randint(1, 30)}",
        f"the {names.stem()} Room", f"{names.stem()} Hall", f"the {names.word()} room", f"the {rng.choice(PLACE_HEADS)} {rng.choice(PLACE_NOUNS)}",
        f"the {rng.choice(['first', 'second', 'third', 'ground', 'top', 'lower'])} floor", f"{names.address()}",
        f"the {rng.choice(['north', 'south', 'east', 'west'])} {rng.choice(['wing', 'entrance', 'stairs', 'yard'])}",
    ])


def where(names: Names, house: House) -> str:
    rng = names.rng
    spot = rng.choice(["cupboard", "drawer", "shelf", "box", "basket", "cabinet", "locker", "rack", "tray", "chest"])
    return rng.choice([
        f"the {rng.choice(COLOURS)} {spot}", f"{spot} {rng.randint(1, 60)}", f"the {spot} {rng.choice(['behind', 'next to', 'under', 'by', 'opposite'])} the {rng.choice(PLACE_HEADS)} {rng.choice(PLACE_NOUNS)}",
        f"the {rng.choice(PLACE_HEADS)} {rng.choice(PLACE_NOUNS)}", f"the {rng.choice(COLOURS)} {spot} in {room(names, house)}",
    ])


def bring(names: Names, house: House) -> str:
    rng = names.rng
    things = rng.sample(THINGS, 2)
    return rng.choice([things[0], f"{things[0]} and {things[1]}", things[0]])


def people(names: Names, house: House) -> str:
    rng = names.rng
    return f"{rng.choice([str(rng.randint(2, 180)), rng.choice(NUMBERS)])} {rng.choice(['people', 'people', 'visitors', 'guests', 'persons', 'children', 'members'])}"


def count(names: Names, house: House) -> str:
    return names.rng.choice([str(names.rng.randint(2, 60)), names.rng.choice(NUMBERS)])


def age(names: Names, house: House) -> str:
    rng = names.rng
    return rng.choice([f"{rng.randint(3, 21)} years", f"{rng.randint(3, 21)}", f"{rng.randint(3, 9)} to {rng.randint(10, 80)} years"])


def method(names: Names, house: House) -> str:
    rng = names.rng
    return rng.choice(["in cash", "by card", "by bank transfer", "at the front desk", "by post", "online", "by e-mail",
                       "by phone", "in person", f"at {room(names, house)}", f"with form {names.code()}", f"on {names.website(house.domain)}"])


COLOURS = "red blue green yellow white black grey brown orange purple silver wooden tall small large old new metal".split()
PLACE_HEADS = """reading children's music north south upper lower old new glass river garden seminar front back main side
little great quiet local town market bridge mill station harbour family youth staff visitor training study computer
print sewing dance film play picnic rose map newspaper training east west central winter summer stone""".split()
PLACE_NOUNS = """room hall desk studio workshop wing café kitchen archive gallery office counter pool library shop yard
laboratory garden terrace cellar lounge theatre court field chapel tower foyer annex playground bakery cloakroom
entrance branch corner stage gym""".split()
EVENT_HEADS = """choir chess knitting first-aid seed repair story language drawing pottery robotics Spanish Welsh Tamil
French Polish poetry photography cooking baking yoga swimming computer history science film jazz board-game homework
debate gardening cycling sewing woodwork painting parents' toddler walking reading writing guitar violin drama dance
astronomy bird coding magic tea quilting singing recorder judo first-steps""".split()
EVENT_NOUNS = """club course evening class workshop circle group tour meeting afternoon morning session camp lesson
seminar hour rehearsal festival fair exam""".split()
SERVICE_HEADS = """annual monthly guided family replacement student late colour school weekend group day evening summer
winter lost express parking deposit copy guest youth senior holiday trial visitor laminated printed second lunch
locker""".split()
SERVICE_NOUNS = """pass card ticket tour key permit certificate copy membership badge tag form visit lesson scan poster
licence locker bag seat appointment consultation report check vaccination transcript towel meal place print
booking""".split()
THING_HEADS = """spare old clean used signed blank large small folding wireless digital wooden children's foreign local
picture sharp broken""".split()
THING_NOUNS = """books DVDs magazines keys maps tools projectors chairs tables games laptops cables forms bandages
gloves aprons brushes paints lamps instruments costumes helmets balls ropes towels blankets cups plates batteries
headphones cameras tents bicycles ladders folders stamps files newspapers comics scissors umbrellas toys tablets
microscopes""".split()
ROLE_HEADS = """head deputy assistant events youth music school finance technical reception garden collections volunteer
duty night outreach communications front-desk building safety members' admissions records exhibitions kitchen
children's data archive sports art laboratory parents'""".split()
ROLE_NOUNS = """librarian manager coordinator nurse caretaker treasurer secretary officer assistant teacher director
clerk curator technician trainer adviser editor porter receptionist organiser representative chair gardener
cook""".split()
DEPARTMENT_NOUNS = ["office", "desk", "team", "department", "service", "helpline", "group", "unit"]
THINGS = """a photo card|a towel|indoor shoes|a signed form|proof of address|a passport|two photographs|an apron|warm
clothes|a pencil|a packed lunch|a water bottle|your own cup|a letter from the school|a blanket|sun cream|a swimming
cap|old newspapers|a clean jar|a bicycle helmet|the membership card|a USB stick|the receipt|a laptop|gloves|a torch|an
identity card|your insurance card|a note from a doctor|a sleeping bag|closed shoes|exact change|a notebook|the blue
form|a recent bill|your own tools|a musical instrument|a list of medicines|the vaccination booklet""".replace("\n", " ").split("|")
APPLICATION_HEADS = """summer camp|autumn term|spring term|new members'|small grants|young artists'|choir|photo
competition|essay prize|travel|staff parking|housing|book|exchange|volunteer|evening school|science fair|stall
holders'|garden plot|internship|music exam|loan|research|winter market""".replace("\n", " ").split("|")
APPLICATION_NOUNS = ["application", "registration", "sign-up", "form", "nomination", "request", "list"]


@dataclass(frozen=True)
class Field:
    """One property of a thing."""

    name: str
    headers: tuple[str, ...]  # column headings and labels
    value: Callable[[Names, House], str]
    clauses: tuple[str, ...]  # verb phrases with {v}, for "{s} <clause> and <clause>"
    questions: tuple[str, ...]  # with {s}
    sentences: tuple[str, ...] = ()  # whole sentences with {s} and {v}, besides those made of a clause


@dataclass(frozen=True)
class Kind:
    """A sort of thing with the properties it may have."""

    name: str
    subject: Callable[[Names], str]  # with its article
    fields: tuple[Field, ...]
    files: tuple[str, ...]  # file names without the ending
    titles: tuple[str, ...]
    columns: tuple[str, ...] = ("",)  # heading of the column of the things themselves


def the(heads: list[str], nouns: list[str], article: str = "the ", proper: float = 0.15) -> Callable[[Names], str]:
    """A maker of things such as "the reading room", sometimes named after someone ("the Velmar room")."""
    def make(names: Names) -> str:
        rng, kind = names.rng, names.rng.random()
        if kind < proper:
            head = names.stem() if kind < proper * 0.7 else names.word()
        else:
            head = rng.choice(heads)
        phrase = f"{head} {rng.choice(nouns)}"
        if article == "a ":
            return ("an " if phrase[0] in "aeiouAEIOU" else "a ") + phrase
        return article + phrase
    return make


def thing(names: Names) -> str:
    noun = names.rng.choice(THING_NOUNS)
    return f"{names.rng.choice(THING_HEADS)} {noun}" if names.rng.random() < 0.4 else noun


def keyed(words: str) -> Callable[[Names], str]:
    """A maker of numbered or coded things: "locker 14", "door KX-4417", "line 7"."""
    def make(names: Names) -> str:
        tag = names.code() if names.rng.random() < 0.4 else str(names.rng.randint(1, 99))
        return f"{names.rng.choice(words.split())} {tag}"
    return make


HOURS = Field("hours", ("Hours", "Opening hours", "Open"), hours, ("is open {v}", "is open from {v}", "opens {v}"),
              ("When is {s} open?", "What are the opening hours of {s}?", "What are the hours of {s}?",
               "At what times is {s} open?", "What hours does {s} keep?"),
              ("Opening hours of {s}: {v}.", "{s}: {v}.", "You find {s} open {v}."))
DAY_OPEN = Field("open days", ("Days", "Open on"), weekday, ("is open on {v}", "opens on {v}"),
                 ("On which days is {s} open?", "Which days is {s} open?"))
CLOSED = Field("closed", ("Closed", "Closing day"), weekday, ("is closed on {v}", "stays closed on {v}"),
               ("When is {s} closed?", "On which day is {s} closed?", "On what days is {s} closed?"))
FEE = Field("fee", ("Fee", "Price", "Cost", "Charge"), money, ("costs {v}", "is {v}", "costs {v}"),
            ("How much is {s}?", "What does {s} cost?", "How much does {s} cost?", "What is the fee for {s}?",
             "What is the price of {s}?", "What do I pay for {s}?"),
            ("The fee for {s} is {v}.", "For {s} we charge {v}.", "{s}: {v}.", "We ask {v} for {s}."))
PERSON = Field("person", ("Person", "Contact", "Led by", "Who"), lambda n, h: n.person(),
               ("is led by {v}", "is run by {v}", "is looked after by {v}", "is in the hands of {v}"),
               ("Who runs {s}?", "Who leads {s}?", "Who is responsible for {s}?", "Who looks after {s}?",
                "Who is in charge of {s}?"),
               ("{v} looks after {s}.", "{v} runs {s}.", "Responsible for {s}: {v}.", "For {s}, ask {v}."))
HOLDER = Field("holder", ("Name", "Who", "Person"), lambda n, h: n.person(), ("is {v}",),
               ("Who is {s}?", "What is the name of {s}?", "What is {s} called?"),
               ("{v} is {s}.", "{s}: {v}.", "Our {r} is {v}.", "{v} works as {s}.", "{v} ({r})."))
PHONE = Field("phone", ("Phone", "Telephone", "Tel."), lambda n, h: n.phone(),
              ("can be reached on {v}", "answers the phone on {v}", "has the number {v}"),
              ("What is the phone number of {s}?", "Which number do I call for {s}?", "How can I phone {s}?",
               "What is the telephone number of {s}?"),
              ("Call {s} on {v}.", "Phone of {s}: {v}.", "{s}: {v}.", "The number of {s} is {v}."))
EMAIL = Field("email", ("E-mail", "Email", "Mail"), lambda n, h: n.email(h.domain if n.rng.random() < 0.5 else None),
              ("reads mail at {v}", "can be written to at {v}", "has the address {v}"),
              ("What is the e-mail address of {s}?", "Where do I write to {s}?", "What is the email of {s}?"),
              ("Write to {s} at {v}.", "Mail for {s} goes to {v}.", "{s}: {v}."))
ROOM = Field("room", ("Room", "Place", "Where"), room, ("is in {v}", "takes place in {v}", "can be found in {v}"),
             ("Where is {s}?", "In which room is {s}?", "Where do I find {s}?", "Where does {s} take place?"),
             ("{s}: {v}.", "You find {s} in {v}."))
DAY = Field("day", ("Day", "Weekday", "When"), weekday, ("meets on {v}", "takes place on {v}", "is held on {v}"),
            ("On which day is {s}?", "On which day does {s} take place?", "Which day does {s} meet?", "On what day is {s}?"),
            ("{s}: {v}.",))
TIME = Field("time", ("Time", "Starts", "Start"), time, ("starts at {v}", "begins at {v}"),
             ("At what time does {s} start?", "When does {s} begin?", "What time does {s} start?", "When does {s} start?"),
             ("Start of {s}: {v}.",))
LENGTH = Field("length", ("Length", "Duration"), duration, ("lasts {v}", "takes {v}"),
               ("How long does {s} last?", "How long is {s}?", "How long does {s} take?"))
AGE = Field("age", ("Age", "Ages", "From age"), age, ("is for ages {v}", "is open from the age of {v}"),
            ("For what age is {s}?", "How old must one be for {s}?", "What is the age for {s}?"))
PLACES = Field("places", ("Places", "Seats", "Up to"), people, ("holds {v}", "takes up to {v}", "has room for {v}", "seats {v}"),
               ("How many people fit in {s}?", "How many does {s} hold?", "How many people can {s} take?"))
DEADLINE = Field("deadline", ("Deadline", "Closes", "Until"), date, ("closes on {v}", "must reach us by {v}", "is due on {v}", "ends on {v}"),
                 ("When is the deadline for {s}?", "By when is {s} due?", "Until when can I send {s}?",
                  "What is the deadline for {s}?", "When does {s} close?"),
                 ("The deadline for {s} is {v}.", "{s}: {v}.", "Please send {s} before {v}."))
STARTS = Field("date", ("Date", "Begins"), date, ("begins on {v}", "takes place on {v}", "is on {v}"),
               ("On which date is {s}?", "When is {s}?", "What is the date of {s}?", "On what date does {s} take place?"))
FORM = Field("form", ("Form", "Code"), lambda n, h: n.code(), ("needs form {v}", "is made on form {v}"),
             ("Which form do I need for {s}?", "What form is used for {s}?", "Which form is for {s}?"),
             ("Use form {v} for {s}.", "For {s}, fill in form {v}."))
NOTICE = Field("notice", ("Notice", "Cancel"), duration, ("can be cancelled up to {v} before", "must be booked {v} ahead", "must be announced {v} before"),
               ("How long before must {s} be booked?", "How much notice is needed for {s}?", "How early must I announce {s}?"))
BRING = Field("bring", ("Bring", "Needed", "Please bring"), bring, ("needs {v}", "requires {v}"),
              ("What do I need for {s}?", "What must I bring for {s}?", "What should I bring to {s}?", "What is needed for {s}?"),
              ("Please bring {v} for {s}.", "For {s}, bring {v}.", "Nobody gets {s} without {v}."))
PAY = Field("pay", ("How", "Payment"), method, ("is paid {v}", "can be ordered {v}", "is arranged {v}"),
            ("How is {s} paid?", "How can I order {s}?", "How is {s} arranged?"))
LOAN = Field("loan", ("Loan period", "Loan", "Keep for"), duration, ("can be borrowed for {v}", "may be kept for {v}", "are lent for {v}", "go out for {v}"),
             ("How long can I borrow {s}?", "For how long may {s} be borrowed?", "How long can {s} be kept?",
              "What is the loan period for {s}?", "How long can I keep {s}?"), ("We lend {s} for {v}.", "{s}: {v}."))
LIMIT = Field("limit", ("Limit", "At most", "Maximum"), count, ("are limited to {v} per person", "are lent up to {v} at a time"),
              ("How many {s} can I borrow at once?", "What is the limit for {s}?", "How many {s} may one person have?"),
              ("You may take up to {v} {s}.", "At most {v} {s} per visit.", "Nobody takes more than {v} {s}."))
LATE = Field("late", ("Late fee", "Overdue"), money, ("cost {v} when late", "are charged {v} when overdue"),
             ("What is the late fee for {s}?", "What do overdue {s} cost?", "How much is charged for late {s}?"),
             ("Late {s}: {v}.", "For late {s} we charge {v}."))
KEPT = Field("kept", ("Kept in", "Where", "Place"), where, ("are kept in {v}", "are in {v}", "can be found in {v}", "belong in {v}"),
             ("Where are {s} kept?", "Where do I find {s}?", "Where are the {s}?", "Where do {s} belong?"),
             ("Look for {s} in {v}.", "{s}: {v}."))
CODE = Field("code", ("Code", "PIN", "Number"), lambda n, h: n.code(), ("has the code {v}", "opens with {v}", "has code {v}"),
             ("What is the code of {s}?", "Which code has {s}?", "What is the code for {s}?"),
             ("The code of {s} is {v}.", "{s}: {v}.", "For {s} use {v}."))
PASSWORD = Field("password", ("Password", "Key"), lambda n, h: n.password(), ("has the password {v}", "uses the password {v}"),
                 ("What is the password of {s}?", "What is the password for {s}?", "Which password does {s} use?"),
                 ("Password of {s}: {v}.", "The password for {s} is {v}."))
STOP = Field("stop", ("Stop", "Stops at"), lambda n, h: n.rng.choice([n.street, n.address, n.town])(),
             ("stops at {v}", "goes to {v}", "leads to {v}"), ("Where does {s} stop?", "Where does {s} go?"))
ADDRESS = Field("address", ("Address", "Where"), lambda n, h: n.address(), ("is at {v}", "can be found at {v}", "has its home at {v}"),
                ("What is the address of {s}?", "Where is {s}?", "At which address is {s}?"),
                ("The address of {s} is {v}.", "You find {s} at {v}.", "Address of {s}: {v}."))
TOWN = Field("town", ("Town", "City"), lambda n, h: n.town(), ("is in {v}", "lies in {v}", "comes from {v}"),
             ("In which town is {s}?", "In which town does {s} lie?"))
YEAR = Field("founded", ("Founded", "Since", "Year"), lambda n, h: str(n.rng.randint(1780, 2024)),
             ("was founded in {v}", "has existed since {v}", "was opened in {v}"),
             ("When was {s} founded?", "In which year was {s} founded?", "Since when has {s} existed?"),
             ("{v}: {s} is founded.", "In {v}, {s} was founded."))
FOUNDER = Field("founder", ("Founder", "Founded by"), lambda n, h: n.person(), ("was founded by {v}", "goes back to {v}"),
                ("Who founded {s}?", "By whom was {s} founded?"), ("{v} founded {s}.",))
WEB = Field("web", ("Website", "Web"), lambda n, h: n.website(h.domain), ("has the website {v}", "is on the web at {v}"),
            ("What is the website of {s}?", "Where is {s} on the web?"), ("Website of {s}: {v}.",))

KINDS: tuple[Kind, ...] = (
    Kind("place", the(PLACE_HEADS, PLACE_NOUNS), (HOURS, CLOSED, PLACES, PERSON, PHONE, ROOM, DAY_OPEN),
         ("hours", "opening", "rooms", "visit", "houses", "01-hours"),
         ("Opening hours", "Hours", "Our rooms", "When we are open", "Places"), ("Place", "Where", "")),
    Kind("event", the(EVENT_HEADS, EVENT_NOUNS), (DAY, TIME, ROOM, PERSON, FEE, LENGTH, AGE, PLACES, BRING, STARTS),
         ("events", "courses", "programme", "groups", "activities"),
         ("Events", "Courses", "Programme", "What is on", "Groups and courses"), ("Event", "What", "Course")),
    Kind("service", the(SERVICE_HEADS, SERVICE_NOUNS, "a "), (FEE, PAY, BRING, LENGTH, FORM, NOTICE, ROOM),
         ("fees", "prices", "charges", "services", "02-fees"), ("Fees", "Prices", "Charges", "What it costs", "Services and fees"),
         ("Service", "Item", "What")),
    Kind("items", thing, (LOAN, LIMIT, LATE, KEPT), ("loans", "borrowing", "equipment", "lending", "rules"),
         ("Borrowing", "Loans", "Equipment", "What we lend", "Rules"), ("Item", "What", "Kind")),
    Kind("role", the(ROLE_HEADS, ROLE_NOUNS), (HOLDER, PHONE, EMAIL, ROOM), ("staff", "contacts", "people", "team", "who"),
         ("Staff", "Contacts", "The team", "Who is who", "People"), ("Role", "Post", "")),
    Kind("department", the(ROLE_HEADS + PLACE_HEADS, DEPARTMENT_NOUNS), (PHONE, EMAIL, PERSON, ROOM, HOURS),
         ("contact", "contacts", "phone", "departments", "offices"), ("Contact", "How to reach us", "Phone and mail", "Offices"),
         ("Department", "Office", "")),
    Kind("application", the(APPLICATION_HEADS, APPLICATION_NOUNS), (DEADLINE, FORM, PERSON, EMAIL, FEE, BRING),
         ("deadlines", "dates", "applications", "calendar"), ("Deadlines", "Dates", "Applications", "Dates to remember"),
         ("Application", "What", "")),
    Kind("keyed", keyed("locker door box gate safe cabinet cupboard printer alarm shelf"), (CODE, PERSON, PASSWORD, ROOM),
         ("codes", "keys", "doors", "access"), ("Codes", "Keys and codes", "Access"), ("Door", "Number", "What")),
    Kind("network", the(["guest", "staff", "house", "public", "office", "children's", "reading-room"], ["network", "Wi-Fi", "computer", "account", "printer"]),
         (PASSWORD, CODE, PLACES), ("internet", "wifi", "computers"), ("Internet", "Wi-Fi", "Computers"), ("Network", "")),
    Kind("line", keyed("bus tram line route"), (STOP, TIME, FEE), ("travel", "transport", "getting-here"),
         ("Getting here", "Buses", "How to find us"), ("Line", "")),
    Kind("partner", lambda n: "the " + n.stem() + n.rng.choice([" Foundation", " House", " Institute", " School", " Society", " Trust", " Fund", " Prize"]),
         (ADDRESS, TOWN, YEAR, FOUNDER, WEB, PHONE, PERSON, STARTS), ("partners", "friends", "history", "about"),
         ("Partners", "Friends", "History", "About us"), ("Partner", "Name", "")),
    Kind("colleague", lambda n: n.person(), (PHONE, ROOM, EMAIL, DAY_OPEN), ("staff", "phone-list", "people"),
         ("Staff", "Phone list", "People"), ("Name", "Who")),
)
