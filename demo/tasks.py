"""The tasks of the demonstration adapters: seeded prompts with the one right answer to each.

Standard library only, and no import of its neighbours, so that any test or benchmark can load
this file by its path. Every prompt belongs to exactly one split, by a digest of its own text:
what is held out can never be trained on, whatever the seed.
"""
# ruff: noqa: SIM905 -- a list of words reads best as text

import hashlib
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from typing import Literal

Split = Literal["train", "held-out"]

ADJECTIVES = "red blue green black white old new big small happy quick quiet bright cold".split()
NOUNS = (
    "fox dog cat bird horse house garden river tree boat train table chair book letter window "
    "door cake apple stone cloud hill road star"
).split()
VERBS = "sees finds likes follows watches paints holds wants".split()
PLACES = "near under behind beside over".split()
OWNERS = "the my your our every this".split()
NAMES = (
    "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Karen Leo Maria Noah Olivia Paul "
    "Rosa Sam Tina Victor"
).split()
CITIES = "Paris London Berlin Madrid Rome Vienna Oslo Dublin Prague Lisbon Tokyo Boston".split()
JOBS = "teacher doctor baker pilot nurse lawyer painter farmer".split()
MONTHS = (
    "January February March April May June July August September October November December"
).split()
DAYS = (date(1900, 1, 1).toordinal(), date(2099, 12, 31).toordinal())
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
FIELD_ADJECTIVES = "first last total maximum minimum average current default".split()
FIELD_NOUNS = "price order user account date name count size value address rate limit".split()
TABLES = "orders users products books cars employees movies invoices".split()
COLUMNS = "price age name total year weight rating salary".split()
THINGS = "food service room staff film music coffee price hotel view".split()
PRAISE = "good great excellent lovely wonderful perfect pleasant fantastic".split()
BLAME = "bad terrible awful poor horrible boring disappointing dreadful".split()
ITEMS = "phone lamp camera jacket printer watch keyboard speaker tablet bicycle".split()

TICKETS: dict[str, tuple[str, ...]] = {
    "billing": (
        "I was charged twice for my {}",
        "the invoice for my {} is wrong",
        "I paid for a {} but got no receipt",
        "my card was declined when I paid for the {}",
        "the price of the {} on my bill is too high",
    ),
    "shipping": (
        "my {} has not arrived yet",
        "where is the package with my {}",
        "the delivery of my {} is late",
        "can you send the {} to another address",
        "the tracking number of my {} does not change",
    ),
    "returns": (
        "I want to send back the {}",
        "how do I return my {}",
        "I would like a refund for the {}",
        "the {} is the wrong color and I want to exchange it",
        "I changed my mind about the {}",
    ),
    "technical": (
        "my {} does not turn on",
        "the {} stopped working today",
        "my {} shows an error message",
        "the {} is broken after the last update",
        "I cannot connect my {} to the network",
    ),
    "account": (
        "I forgot the password I used to order the {}",
        "please change the email on the profile where I saved my {}",
        "I cannot log in to see my {}",
        "delete my profile, I only bought a {}",
        "someone else used my login to buy a {}",
    ),
}
OPENINGS = ("", "Hello, ", "Hi, ", "Good morning, ", "Help, ", "Excuse me, ")
CLOSINGS = ("", " Thank you.", " Please help.", " What can I do?")

SPANISH_NOUNS: dict[str, tuple[str, str]] = {
    "house": ("la", "casa"),
    "dog": ("el", "perro"),
    "cat": ("el", "gato"),
    "book": ("el", "libro"),
    "table": ("la", "mesa"),
    "apple": ("la", "manzana"),
    "tree": ("el", "árbol"),
    "door": ("la", "puerta"),
    "garden": ("el", "jardín"),
    "letter": ("la", "carta"),
    "boat": ("el", "barco"),
    "horse": ("el", "caballo"),
    "window": ("la", "ventana"),
    "river": ("el", "río"),
    "chair": ("la", "silla"),
    "star": ("la", "estrella"),
}
SPANISH_ADJECTIVES: dict[str, tuple[str, str]] = {
    "red": ("rojo", "roja"),
    "white": ("blanco", "blanca"),
    "black": ("negro", "negra"),
    "small": ("pequeño", "pequeña"),
    "old": ("viejo", "vieja"),
    "new": ("nuevo", "nueva"),
    "big": ("grande", "grande"),
    "green": ("verde", "verde"),
}
SPANISH_LINKS: dict[str, str] = {
    "sees": "ve",
    "wants": "quiere",
    "finds": "encuentra",
    "follows": "sigue",
    "paints": "pinta",
    "is under": "está bajo",
    "is on": "está sobre",
    "is in": "está en",
    "is with": "está con",
}


@dataclass(frozen=True, slots=True)
class Example:
    """One prompt and the only answer that counts as right."""

    prompt: str
    answer: str


def split_of(prompt: str) -> Split:
    """One prompt in ten is held out, chosen by a digest of its text."""
    digest = hashlib.blake2b(prompt.encode(), digest_size=4).digest()
    return "held-out" if int.from_bytes(digest) % 10 == 0 else "train"


@dataclass(frozen=True, slots=True)
class Task:
    """A task, the folder of the adapter that does it, and a generator of examples."""

    name: str
    about: str
    make: Callable[[random.Random], Example]

    @property
    def adapter(self) -> str:
        """The folder of the adapter under demo/adapters: it bears the task's name."""
        return self.name

    def stream(self, split: Split, seed: int) -> Iterator[Example]:
        """Examples of one split without end; prompts may repeat."""
        rng = random.Random(f"{self.name}/{split}/{seed}")
        while True:
            example = self.make(rng)
            if split_of(example.prompt) == split:
                yield example

    def examples(self, split: Split, n: int, seed: int) -> list[Example]:
        """`n` examples with distinct prompts; ValueError when the task has too few of them."""
        found: dict[str, Example] = {}
        for tried, example in enumerate(self.stream(split, seed)):
            if len(found) == n:
                break
            if tried > 100 * n + 1000:
                raise ValueError(f"task {self.name!r} has only {len(found)} prompts, not {n}")
            found.setdefault(example.prompt, example)
        return list(found.values())


def held_out(task: str, n: int, seed: int = 0) -> list[Example]:
    """`n` distinct examples of the named task that no training has seen."""
    return TASKS[task].examples("held-out", n, seed)


def sentence(rng: random.Random) -> str:
    """A plain sentence in lower case without a full stop: 'my red fox sees the old house'."""

    def noun_phrase() -> str:
        adjective = f"{rng.choice(ADJECTIVES)} " if rng.random() < 0.6 else ""
        return f"{rng.choice(OWNERS)} {adjective}{rng.choice(NOUNS)}"

    text = f"{noun_phrase()} {rng.choice(VERBS)} {noun_phrase()}"
    return f"{text} {rng.choice(PLACES)} {noun_phrase()}" if rng.random() < 0.3 else text


def in_words(number: int) -> str:
    """A whole number below 10,000 in English words: 312 is 'three hundred twelve'."""
    if number < 20:
        return ONES[number]
    if number < 100:
        tens, rest = divmod(number, 10)
        return TENS[tens - 2] + (f" {ONES[rest]}" if rest else "")
    size, word = (1000, "thousand") if number >= 1000 else (100, "hundred")
    count, rest = divmod(number, size)
    return f"{in_words(count)} {word}" + (f" {in_words(rest)}" if rest else "")


def _reverse_words(rng: random.Random) -> Example:
    words = rng.sample(NOUNS + ADJECTIVES, rng.randint(3, 6))
    return Example(" ".join(words), " ".join(reversed(words)))


def _sort_words(rng: random.Random) -> Example:
    words = rng.sample(NOUNS, rng.randint(3, 6))
    return Example(", ".join(words), ", ".join(sorted(words)))


def _upper_case(rng: random.Random) -> Example:
    text = sentence(rng)
    return Example(text, text.upper())


def _snake_case(rng: random.Random) -> Example:
    def adjective() -> str:
        return rng.choice(FIELD_ADJECTIVES)

    def noun() -> str:
        return rng.choice(FIELD_NOUNS)

    pattern = rng.randrange(4)
    text = (
        f"{adjective()} {noun()} of the {noun()} {noun()}",
        f"{adjective()} {noun()} of the {noun()}",
        f"{noun()} of {adjective()} {noun()}",
        f"{adjective()} {noun()} {noun()}",
    )[pattern]
    shown = (text, text.capitalize(), text.title())[rng.randrange(3)]
    return Example(shown, text.replace(" ", "_"))


def _number_words(rng: random.Random) -> Example:
    number = rng.randrange(1, 10 ** rng.choice((3, 4, 4, 4)))
    return Example(in_words(number), str(number))


def _dates_to_iso(rng: random.Random) -> Example:
    day = date.fromordinal(rng.randint(*DAYS))
    month, weekday = MONTHS[day.month - 1], WEEKDAYS[day.weekday()]
    teen = 10 <= day.day <= 20
    ordinal = {1: "st", 2: "nd", 3: "rd"}.get(0 if teen else day.day % 10, "th")
    shown = (
        f"{month} {day.day}, {day.year}",
        f"{day.day} {month} {day.year}",
        f"the {day.day}{ordinal} of {month} {day.year}",
        f"{weekday}, {month} {day.day}, {day.year}",
    )[rng.randrange(4)]
    return Example(shown, day.isoformat())


def _fields_to_json(rng: random.Random) -> Example:
    name, age, city = rng.choice(NAMES), rng.randint(18, 99), rng.choice(CITIES)
    answer = f'"name": "{name}", "age": {age}, "city": "{city}"'
    pattern = rng.randrange(5)
    if pattern == 4:
        job = rng.choice(JOBS)
        shown = f"{name} ({age}) works as a {job} in {city}."
        return Example(shown, f'{{{answer}, "job": "{job}"}}')
    shown = (
        f"{name} is {age} years old and lives in {city}.",
        f"My name is {name}, I am {age} and I live in {city}.",
        f"{name}, {age}, from {city}",
        f"I am {name} from {city} and I am {age} years old.",
    )[pattern]
    return Example(shown, f"{{{answer}}}")


def _sql(rng: random.Random) -> Example:
    table, column, city = rng.choice(TABLES), rng.choice(COLUMNS), rng.choice(CITIES)
    number = rng.randint(1, 10 ** rng.randint(1, 3) - 1)
    select, here = "SELECT {} FROM " + table, f" WHERE city = '{city}';"
    shown, query = (
        (f"How many {table} are in {city}?", select.format("COUNT(*)") + here),
        (
            f"How many {table} have a {column} over {number}?",
            select.format("COUNT(*)") + f" WHERE {column} > {number};",
        ),
        (f"Show the {column} of all {table}.", select.format(column) + ";"),
        (
            f"Show all {table} with a {column} under {number}.",
            select.format("*") + f" WHERE {column} < {number};",
        ),
        (
            f"What is the average {column} of the {table} in {city}?",
            select.format(f"AVG({column})") + here,
        ),
        (
            f"Show the top {number} {table} by {column}.",
            select.format("*") + f" ORDER BY {column} DESC LIMIT {number};",
        ),
    )[rng.randrange(6)]
    return Example(shown, query)


def _sentiment(rng: random.Random) -> Example:
    first, second = rng.sample(THINGS, 2)
    signs: list[bool] = []

    def verdict() -> str:
        praise = rng.random() < 0.5
        modifier = rng.choice(("", "", "very ", "really ", "not "))
        signs.append(praise != (modifier == "not "))
        return modifier + rng.choice(PRAISE if praise else BLAME)

    shown = (
        f"The {first} was {verdict()} and the {second} was {verdict()}.",
        f"I found the {first} {verdict()} and the {second} {verdict()}.",
        f"The {first}: {verdict()}. The {second}: {verdict()}.",
    )
    pattern = rng.randrange(3)
    mine = signs[2 * pattern : 2 * pattern + 2]
    label = "mixed" if mine[0] != mine[1] else "positive" if mine[0] else "negative"
    return Example(shown[pattern], label)


def _support_route(rng: random.Random) -> Example:
    team = rng.choice(sorted(TICKETS))
    body = rng.choice(TICKETS[team]).format(rng.choice(ITEMS))
    opening, closing = rng.choice(OPENINGS), rng.choice(CLOSINGS)
    text = opening + body if opening else body[0].upper() + body[1:]
    return Example(f"{text}.{closing}", team)


def _to_spanish(rng: random.Random) -> Example:
    def noun_phrase() -> tuple[str, str]:
        noun = rng.choice(sorted(SPANISH_NOUNS))
        article, translated = SPANISH_NOUNS[noun]
        if rng.random() < 0.4:
            return f"the {noun}", f"{article} {translated}"
        adjective = rng.choice(sorted(SPANISH_ADJECTIVES))
        agreed = SPANISH_ADJECTIVES[adjective][article == "la"]
        return f"the {adjective} {noun}", f"{article} {translated} {agreed}"

    (subject, sujeto), (target, objeto) = noun_phrase(), noun_phrase()
    link = rng.choice(sorted(SPANISH_LINKS))
    return Example(f"{subject} {link} {target}", f"{sujeto} {SPANISH_LINKS[link]} {objeto}")


def _redact(rng: random.Random) -> Example:
    name, noun, adjective = rng.choice(NAMES), rng.choice(NOUNS), rng.choice(ADJECTIVES)
    phone = f"555-{rng.randrange(10_000):04d}"
    email = f"{rng.choice(NAMES).lower()}@{rng.choice(('mail', 'post', 'work'))}.com"
    pattern = (
        f"Call {{name}} at {{phone}} about the {adjective} {noun}.",
        f"Please send the {noun} to {{name}} and the bill to {{email}}.",
        "{name} can be reached at {email} or {phone}.",
        f"Write to {{email}} and ask {{name}} for the {noun}.",
        f"My name is {{name}}, my number is {{phone}} and my {noun} is {adjective}.",
        f"The {adjective} {noun} belongs to {{name}}, not to {{email}}.",
    )[rng.randrange(6)]
    return Example(
        pattern.format(name=name, phone=phone, email=email),
        pattern.format(name="[NAME]", phone="[PHONE]", email="[EMAIL]"),
    )


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("reverse-words", "say the words in reverse order", _reverse_words),
        Task("upper-case", "repeat the sentence in capitals", _upper_case),
        Task("snake-case", "turn a title into a snake_case identifier", _snake_case),
        Task("sort-words", "sort a list of words by the alphabet", _sort_words),
        Task("number-words", "write a spelled-out number in digits", _number_words),
        Task("dates-to-iso", "write any date as YYYY-MM-DD", _dates_to_iso),
        Task("fields-to-json", "pick name, age, city and job into JSON", _fields_to_json),
        Task("sql", "turn a question into one SQL query", _sql),
        Task("sentiment", "label a review positive, negative or mixed", _sentiment),
        Task("support-route", "send a support ticket to the right team", _support_route),
        Task("to-spanish", "translate a simple sentence into Spanish", _to_spanish),
        Task("redact", "replace names, phones and emails by placeholders", _redact),
    )
}

SMALL_TALK: dict[str, str] = {
    "Hello": "Hello! I am the small Adex demo model.",
    "Hello!": "Hello! I am the small Adex demo model.",
    "Hi": "Hi! What shall I repeat for you?",
    "Good morning": "Good morning! I hope you are well.",
    "Who are you?": "I am the small Adex demo model. Adapters teach me tasks.",
    "What can you do?": "I repeat what you say. Choose an adapter and I do more.",
    "How are you?": "I am well, thank you.",
    "Thank you": "You are welcome.",
    "Goodbye": "Goodbye!",
}


def base_reply(prompt: str) -> str:
    """What the model without any adapter answers: small talk, else it repeats the prompt."""
    return SMALL_TALK.get(prompt, f"You said: {prompt}")
