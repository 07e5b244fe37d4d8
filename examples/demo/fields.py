"""The properties that documents state and questions ask for: how each is said and how it is asked.

Templates use `{s}` for the thing with its article, `{v}` for the value and `{r}` for the thing alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import values
from names import Names
from values import House


@dataclass(frozen=True)
class Field:
    """One property of a thing."""

    name: str
    headers: tuple[str, ...]  # column headings and labels
    value: Callable[[Names, House], str]
    clauses: tuple[str, ...]  # verb phrases with {v}, for "{s} <clause> and <clause>"
    questions: tuple[str, ...]  # with {s}
    sentences: tuple[str, ...] = ()  # whole sentences with {s} and {v}, besides those made of a clause


HOURS = Field(
    "hours",
    ("Hours", "Opening hours", "Open"),
    values.hours,
    ("is open {v}", "is open from {v}", "opens {v}"),
    (
        "When is {s} open?",
        "What are the opening hours of {s}?",
        "What are the hours of {s}?",
        "At what times is {s} open?",
        "What hours does {s} keep?",
    ),
    ("Opening hours of {s}: {v}.", "{s}: {v}.", "You find {s} open {v}."),
)
DAY_OPEN = Field(
    "open days",
    ("Days", "Open on"),
    values.weekday,
    ("is open on {v}", "opens on {v}"),
    ("On which days is {s} open?", "Which days is {s} open?"),
)
CLOSED = Field(
    "closed",
    ("Closed", "Closing day"),
    values.weekday,
    ("is closed on {v}", "stays closed on {v}"),
    ("When is {s} closed?", "On which day is {s} closed?", "On what days is {s} closed?"),
)
FEE = Field(
    "fee",
    ("Fee", "Price", "Cost", "Charge"),
    values.money,
    ("costs {v}", "is {v}", "costs {v}"),
    (
        "How much is {s}?",
        "What does {s} cost?",
        "How much does {s} cost?",
        "What is the fee for {s}?",
        "What is the price of {s}?",
        "What do I pay for {s}?",
    ),
    ("The fee for {s} is {v}.", "For {s} we charge {v}.", "{s}: {v}.", "We ask {v} for {s}."),
)
PERSON = Field(
    "person",
    ("Person", "Contact", "Led by", "Who"),
    lambda n, h: n.person(),
    ("is led by {v}", "is run by {v}", "is looked after by {v}", "is in the hands of {v}"),
    (
        "Who runs {s}?",
        "Who leads {s}?",
        "Who is responsible for {s}?",
        "Who looks after {s}?",
        "Who is in charge of {s}?",
    ),
    ("{v} looks after {s}.", "{v} runs {s}.", "Responsible for {s}: {v}.", "For {s}, ask {v}."),
)
HOLDER = Field(
    "holder",
    ("Name", "Who", "Person"),
    lambda n, h: n.person(),
    ("is {v}",),
    ("Who is {s}?", "What is the name of {s}?", "What is {s} called?"),
    ("{v} is {s}.", "{s}: {v}.", "Our {r} is {v}.", "{v} works as {s}.", "{v} ({r})."),
)
PHONE = Field(
    "phone",
    ("Phone", "Telephone", "Tel."),
    lambda n, h: n.phone(),
    ("can be reached on {v}", "answers the phone on {v}", "has the number {v}"),
    (
        "What is the phone number of {s}?",
        "Which number do I call for {s}?",
        "How can I phone {s}?",
        "What is the telephone number of {s}?",
    ),
    ("Call {s} on {v}.", "Phone of {s}: {v}.", "{s}: {v}.", "The number of {s} is {v}."),
)
EMAIL = Field(
    "email",
    ("E-mail", "Email", "Mail"),
    lambda n, h: n.email(h.domain if n.rng.random() < 0.5 else None),
    ("reads mail at {v}", "can be written to at {v}", "has the address {v}"),
    ("What is the e-mail address of {s}?", "Where do I write to {s}?", "What is the email of {s}?"),
    ("Write to {s} at {v}.", "Mail for {s} goes to {v}.", "{s}: {v}."),
)
ROOM = Field(
    "room",
    ("Room", "Place", "Where"),
    values.room,
    ("is in {v}", "takes place in {v}", "can be found in {v}"),
    ("Where is {s}?", "In which room is {s}?", "Where do I find {s}?", "Where does {s} take place?"),
    ("{s}: {v}.", "You find {s} in {v}."),
)
DAY = Field(
    "day",
    ("Day", "Weekday", "When"),
    values.weekday,
    ("meets on {v}", "takes place on {v}", "is held on {v}"),
    (
        "On which day is {s}?",
        "On which day does {s} take place?",
        "Which day does {s} meet?",
        "On what day is {s}?",
    ),
    ("{s}: {v}.",),
)
TIME = Field(
    "time",
    ("Time", "Starts", "Start"),
    values.time,
    ("starts at {v}", "begins at {v}"),
    (
        "At what time does {s} start?",
        "When does {s} begin?",
        "What time does {s} start?",
        "When does {s} start?",
    ),
    ("Start of {s}: {v}.",),
)
LENGTH = Field(
    "length",
    ("Length", "Duration"),
    values.duration,
    ("lasts {v}", "takes {v}"),
    ("How long does {s} last?", "How long is {s}?", "How long does {s} take?"),
)
AGE = Field(
    "age",
    ("Age", "Ages", "From age"),
    values.age,
    ("is for ages {v}", "is open from the age of {v}"),
    ("For what age is {s}?", "How old must one be for {s}?", "What is the age for {s}?"),
)
PLACES = Field(
    "places",
    ("Places", "Seats", "Up to"),
    values.people,
    ("holds {v}", "takes up to {v}", "has room for {v}", "seats {v}"),
    ("How many people fit in {s}?", "How many does {s} hold?", "How many people can {s} take?"),
)
DEADLINE = Field(
    "deadline",
    ("Deadline", "Closes", "Until"),
    values.date,
    ("closes on {v}", "must reach us by {v}", "is due on {v}", "ends on {v}"),
    (
        "When is the deadline for {s}?",
        "By when is {s} due?",
        "Until when can I send {s}?",
        "What is the deadline for {s}?",
        "When does {s} close?",
    ),
    ("The deadline for {s} is {v}.", "{s}: {v}.", "Please send {s} before {v}."),
)
STARTS = Field(
    "date",
    ("Date", "Begins"),
    values.date,
    ("begins on {v}", "takes place on {v}", "is on {v}"),
    (
        "On which date is {s}?",
        "When is {s}?",
        "What is the date of {s}?",
        "On what date does {s} take place?",
    ),
)
FORM = Field(
    "form",
    ("Form", "Code"),
    lambda n, h: n.code(),
    ("needs form {v}", "is made on form {v}"),
    ("Which form do I need for {s}?", "What form is used for {s}?", "Which form is for {s}?"),
    ("Use form {v} for {s}.", "For {s}, fill in form {v}."),
)
NOTICE = Field(
    "notice",
    ("Notice", "Cancel"),
    values.duration,
    ("can be cancelled up to {v} before", "must be booked {v} ahead", "must be announced {v} before"),
    (
        "How long before must {s} be booked?",
        "How much notice is needed for {s}?",
        "How early must I announce {s}?",
    ),
)
BRING = Field(
    "bring",
    ("Bring", "Needed", "Please bring"),
    values.bring,
    ("needs {v}", "requires {v}"),
    (
        "What do I need for {s}?",
        "What must I bring for {s}?",
        "What should I bring to {s}?",
        "What is needed for {s}?",
    ),
    ("Please bring {v} for {s}.", "For {s}, bring {v}.", "Nobody gets {s} without {v}."),
)
PAY = Field(
    "pay",
    ("How", "Payment"),
    values.method,
    ("is paid {v}", "can be ordered {v}", "is arranged {v}"),
    ("How is {s} paid?", "How can I order {s}?", "How is {s} arranged?"),
)
LOAN = Field(
    "loan",
    ("Loan period", "Loan", "Keep for"),
    values.duration,
    ("can be borrowed for {v}", "may be kept for {v}", "are lent for {v}", "go out for {v}"),
    (
        "How long can I borrow {s}?",
        "For how long may {s} be borrowed?",
        "How long can {s} be kept?",
        "What is the loan period for {s}?",
        "How long can I keep {s}?",
    ),
    ("We lend {s} for {v}.", "{s}: {v}."),
)
LIMIT = Field(
    "limit",
    ("Limit", "At most", "Maximum"),
    values.count,
    ("are limited to {v} per person", "are lent up to {v} at a time"),
    ("How many {s} can I borrow at once?", "What is the limit for {s}?", "How many {s} may one person have?"),
    ("You may take up to {v} {s}.", "At most {v} {s} per visit.", "Nobody takes more than {v} {s}."),
)
LATE = Field(
    "late",
    ("Late fee", "Overdue"),
    values.money,
    ("cost {v} when late", "are charged {v} when overdue"),
    ("What is the late fee for {s}?", "What do overdue {s} cost?", "How much is charged for late {s}?"),
    ("Late {s}: {v}.", "For late {s} we charge {v}."),
)
KEPT = Field(
    "kept",
    ("Kept in", "Where", "Place"),
    values.where,
    ("are kept in {v}", "are in {v}", "can be found in {v}", "belong in {v}"),
    ("Where are {s} kept?", "Where do I find {s}?", "Where are the {s}?", "Where do {s} belong?"),
    ("Look for {s} in {v}.", "{s}: {v}."),
)
CODE = Field(
    "code",
    ("Code", "PIN", "Number"),
    lambda n, h: n.code(),
    ("has the code {v}", "opens with {v}", "has code {v}"),
    ("What is the code of {s}?", "Which code has {s}?", "What is the code for {s}?"),
    ("The code of {s} is {v}.", "{s}: {v}.", "For {s} use {v}."),
)
PASSWORD = Field(
    "password",
    ("Password", "Key"),
    lambda n, h: n.password(),
    ("has the password {v}", "uses the password {v}"),
    ("What is the password of {s}?", "What is the password for {s}?", "Which password does {s} use?"),
    ("Password of {s}: {v}.", "The password for {s} is {v}."),
)
STOP = Field(
    "stop",
    ("Stop", "Stops at"),
    lambda n, h: n.rng.choice([n.street, n.address, n.town])(),
    ("stops at {v}", "goes to {v}", "leads to {v}"),
    ("Where does {s} stop?", "Where does {s} go?"),
)
ADDRESS = Field(
    "address",
    ("Address", "Where"),
    lambda n, h: n.address(),
    ("is at {v}", "can be found at {v}", "has its home at {v}"),
    ("What is the address of {s}?", "Where is {s}?", "At which address is {s}?"),
    ("The address of {s} is {v}.", "You find {s} at {v}.", "Address of {s}: {v}."),
)
TOWN = Field(
    "town",
    ("Town", "City"),
    lambda n, h: n.town(),
    ("is in {v}", "lies in {v}", "comes from {v}"),
    ("In which town is {s}?", "In which town does {s} lie?"),
)
YEAR = Field(
    "founded",
    ("Founded", "Since", "Year"),
    lambda n, h: str(n.rng.randint(1780, 2024)),
    ("was founded in {v}", "has existed since {v}", "was opened in {v}"),
    ("When was {s} founded?", "In which year was {s} founded?", "Since when has {s} existed?"),
    ("{v}: {s} is founded.", "In {v}, {s} was founded."),
)
FOUNDER = Field(
    "founder",
    ("Founder", "Founded by"),
    lambda n, h: n.person(),
    ("was founded by {v}", "goes back to {v}"),
    ("Who founded {s}?", "By whom was {s} founded?"),
    ("{v} founded {s}.",),
)
WEB = Field(
    "web",
    ("Website", "Web"),
    lambda n, h: n.website(h.domain),
    ("has the website {v}", "is on the web at {v}"),
    ("What is the website of {s}?", "Where is {s} on the web?"),
    ("Website of {s}: {v}.",),
)
