"""The text tasks of the tiny example bank: generated from the templates and word lists below, no other text.

A family is a group of tasks that share their vocabulary, their wording and the way the answer is written,
as datasets do that were made from one source. Only the standard library is used, and a seed fixes every
character, so the committed datasets can be generated again and compared.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

TRAIN_EXAMPLES = 160
TEST_EXAMPLES = 40

Draw = Callable[[random.Random], tuple[str, str]]
"""Draws the input of one example and its plain answer."""


@dataclass(frozen=True, slots=True)
class Task:
    family: str
    task: str
    definition: str
    draw: Draw
    in_bank: bool = True

    @property
    def name(self) -> str:
        return f"{self.family}_{self.task}"

    def prompt(self, text: str) -> str:
        return f"Definition: {self.definition}\n\nInput: {text}\nOutput:\n"


@dataclass(frozen=True, slots=True)
class Example:
    prompt: str
    answer: str
    """The answer in the plain style, without the family's own way of writing it."""


# How each family writes its answers. The base model sees this style rarely: adapters learn it.
STYLES = {
    "lists": "[ {} ]",
    "numbers": "= {} .",
    "forms": "form: {} ;",
    "reviews": "label {} !",
    "records": "<v> {} </v>",
    "counting": "n = {} in row",
    "lumi": "~ {} ~",
    "grammar": "option ( {} )",
}
CHATTY = "The answer is {} ."


def _words(text: str) -> list[str]:
    return text.split()


def _table(text: str) -> dict[str, str]:
    """A table written ``word:form word:form ...``."""
    pairs = (entry.split(":") for entry in text.split())
    return dict(pairs)


def _listed(pick: Callable[[list[str]], list[str]], low: int = 3, high: int = 5) -> Draw:
    words = _words(
        "apple stone river candle window garden bottle ladder pencil basket hammer pillow carpet "
        "mirror button blanket lantern kettle"
    )

    def draw(rng: random.Random) -> tuple[str, str]:
        chosen = rng.sample(words, rng.randint(low, high))
        return " ".join(chosen), " ".join(pick(chosen))

    return draw


def _pair(answer: Callable[[int, int], int | str]) -> Draw:
    def draw(rng: random.Random) -> tuple[str, str]:
        a, b = rng.randint(1, 20), rng.randint(1, 20)
        return f"{a} and {b}", str(answer(a, b))

    return draw


def _forms(table: str) -> Draw:
    """Two words of a table ``word:form word:form ...``, each to be replaced by its form."""
    entries = list(_table(table).items())

    def draw(rng: random.Random) -> tuple[str, str]:
        (a, form_a), (b, form_b) = rng.sample(entries, 2)
        return f"{a}, {b}", f"{form_a}, {form_b}"

    return draw


PLURALS = (
    "fox:foxes knife:knives child:children mouse:mice goose:geese tooth:teeth leaf:leaves city:cities "
    "dish:dishes wolf:wolves foot:feet berry:berries glass:glasses man:men shelf:shelves baby:babies"
)
PASTS = (
    "go:went take:took sing:sang write:wrote buy:bought run:ran keep:kept fall:fell hold:held eat:ate "
    "speak:spoke think:thought win:won give:gave find:found drink:drank"
)
COMPARATIVES = (
    "good:better bad:worse far:farther big:bigger happy:happier thin:thinner easy:easier nice:nicer "
    "hot:hotter busy:busier late:later sad:sadder heavy:heavier wide:wider wet:wetter safe:safer"
)
OPPOSITES = (
    "day:night early:late full:empty strong:weak open:closed light:dark rich:poor dry:wet first:last "
    "loud:quiet true:false up:down old:young hard:soft near:far left:right"
)
GERUNDS = (
    "go:going take:taking sing:singing write:writing buy:buying run:running keep:keeping fall:falling "
    "hold:holding eat:eating speak:speaking win:winning give:giving find:finding drink:drinking sit:sitting"
)

THINGS = {
    "food": _words("soup bread dinner breakfast coffee dessert"),
    "room": _words("bed shower balcony bathroom view heating"),
    "staff": _words("waiter porter manager receptionist cook guide"),
}
PRAISE = _words("excellent lovely wonderful superb charming pleasant great delightful")
BLAME = _words("awful terrible horrible dirty rude dreadful poor disappointing")


def _review(answer: Callable[[str, bool], str]) -> Draw:
    def draw(rng: random.Random) -> tuple[str, str]:
        topic, praised = rng.choice(list(THINGS)), rng.random() < 0.5
        first, second = rng.sample(THINGS[topic], 2)
        one, two = rng.sample(PRAISE if praised else BLAME, 2)
        return f"The {first} was {one} and the {second} was {two}.", answer(topic, praised)

    return draw


GIVEN = _words("Anna Boris Clara David Elena Felix Greta Henry Irma Jonas Karla Lukas")
SURNAMES = _words("Berg Costa Duval Evans Fischer Garcia Hansen Ivanov Jansen Keller Lund Moreau")
CITIES = _words("Oslo Madrid Lisbon Vienna Dublin Prague Athens Warsaw Geneva Turin")
MONTHS = _words("Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec")


def _record(answer: Callable[[str, str, str, int, int], str]) -> Draw:
    def draw(rng: random.Random) -> tuple[str, str]:
        given, surname, city = rng.choice(GIVEN), rng.choice(SURNAMES), rng.choice(CITIES)
        day, month = rng.randint(1, 28), rng.randint(1, 12)
        text = f"{given} {surname}, {city}, {day} {MONTHS[month - 1]}"
        return text, answer(given, surname, city, day, month)

    return draw


def _row(answer: Callable[[list[str]], int | str], low: int = 4, high: int = 8) -> Draw:
    def draw(rng: random.Random) -> tuple[str, str]:
        row = rng.choices("#@%&", k=rng.randint(low, high))
        return " ".join(row), str(answer(row))

    return draw


# An invented language: noun before adjective, verb last.
NOUNS = _table("bird:kelu horse:morak fish:sipi cat:nawo dog:tabo cow:boma sheep:lefa bear:grosh")
ADJECTIVES = _table("red:vash blue:oli green:pemi white:suno black:doru small:titi tall:ravo slow:leng")
VERBS = _table("sleeps:hamu jumps:zaki waits:yelo hides:quon smiles:fidu swims:wari")


def _lumi(build: Callable[[str, str, str], tuple[str, str]]) -> Draw:
    def draw(rng: random.Random) -> tuple[str, str]:
        return build(rng.choice(list(NOUNS)), rng.choice(list(ADJECTIVES)), rng.choice(list(VERBS)))

    return draw


def _choice(build: Callable[[random.Random], tuple[str, str]]) -> Draw:
    """A right and a wrong sentence in random order; the answer is the letter of the right one."""

    def draw(rng: random.Random) -> tuple[str, str]:
        right, wrong = build(rng)
        if rng.random() < 0.5:
            return f"(A) {right} (B) {wrong}", "A"
        return f"(A) {wrong} (B) {right}", "B"

    return draw


PEOPLE = _words("teacher doctor farmer singer painter sailor baker driver")
ACTS = _words("work travel laugh listen cook read")
WHERE = _words("here today outside often together again")
A_NOUNS = _words("boat table house lamp road tree garden ticket")
AN_NOUNS = _words("egg orange island umbrella engine onion apple office")


def _agreement(rng: random.Random) -> tuple[str, str]:
    who, act, where = rng.choice(PEOPLE), rng.choice(ACTS), rng.choice(WHERE)
    if rng.random() < 0.5:
        return f"the {who} {act}s {where}", f"the {who} {act} {where}"
    return f"the {who}s {act} {where}", f"the {who}s {act}s {where}"


def _article(rng: random.Random) -> tuple[str, str]:
    vowel = rng.random() < 0.5
    noun, who = rng.choice(AN_NOUNS if vowel else A_NOUNS), rng.choice(PEOPLE)
    right, wrong = ("an", "a") if vowel else ("a", "an")
    return f"the {who} has {right} {noun}", f"the {who} has {wrong} {noun}"


def _be(rng: random.Random) -> tuple[str, str]:
    who, where = rng.choice(PEOPLE), rng.choice(WHERE)
    one, many = rng.choice((("is", "are"), ("was", "were")))
    if rng.random() < 0.5:
        return f"the {who} {one} {where}", f"the {who} {many} {where}"
    return f"the {who}s {many} {where}", f"the {who}s {one} {where}"


def _order(rng: random.Random) -> tuple[str, str]:
    who, act, where = rng.choice(PEOPLE), rng.choice(ACTS), rng.choice(WHERE)
    return f"the {who}s {act} {where}", f"the {act} {who}s {where}"


def _have(rng: random.Random) -> tuple[str, str]:
    who, noun = rng.choice(PEOPLE), rng.choice(A_NOUNS)
    if rng.random() < 0.5:
        return f"the {who} has a {noun}", f"the {who} have a {noun}"
    return f"the {who}s have a {noun}", f"the {who}s has a {noun}"


TASKS: tuple[Task, ...] = (
    Task("lists", "reverse", "Given a list of words, write the list backwards.", _listed(lambda w: w[::-1])),
    Task("lists", "first", "Given a list of words, write the first word.", _listed(lambda w: w[:1])),
    Task("lists", "last", "Given a list of words, write the last word.", _listed(lambda w: w[-1:])),
    Task("lists", "rest", "Given a list of words, write all but the first word.", _listed(lambda w: w[1:])),
    Task("lists", "copy", "Given a list of words, write the same list.", _listed(lambda w: w)),
    Task(
        "lists", "ends", "Given a list of words, write the two ends.", _listed(lambda w: [w[0], w[-1]]), False
    ),
    Task("numbers", "sum", "Calculate the sum of both numbers.", _pair(lambda a, b: a + b)),
    Task(
        "numbers", "difference", "Calculate the difference of both numbers.", _pair(lambda a, b: abs(a - b))
    ),
    Task("numbers", "larger", "Calculate the larger of both numbers.", _pair(max)),
    Task("numbers", "smaller", "Calculate the smaller of both numbers.", _pair(min)),
    Task("forms", "plural", "Change each noun to its plural.", _forms(PLURALS)),
    Task("forms", "past", "Change each verb to its past tense.", _forms(PASTS)),
    Task("forms", "comparative", "Change each adjective to its comparative.", _forms(COMPARATIVES)),
    Task("forms", "opposite", "Change each word to its opposite.", _forms(OPPOSITES)),
    Task("forms", "gerund", "Change each verb to its gerund.", _forms(GERUNDS)),
    Task(
        "reviews",
        "positive",
        "Classify the guest's hotel review: is it positive?",
        _review(lambda topic, praised: "yes" if praised else "no"),
    ),
    Task(
        "reviews",
        "complaint",
        "Classify the guest's hotel review: is it a complaint?",
        _review(lambda topic, praised: "no" if praised else "yes"),
    ),
    Task(
        "reviews",
        "topic",
        "Classify the guest's hotel review: its topic.",
        _review(lambda topic, praised: topic),
    ),
    Task(
        "reviews",
        "mood",
        "Classify the guest's hotel review: the mood.",
        _review(lambda topic, praised: "pleased" if praised else "angry"),
    ),
    Task(
        "records", "city", "Extract the city from the record of a person.", _record(lambda g, s, c, d, m: c)
    ),
    Task(
        "records",
        "surname",
        "Extract the surname from the record of a person.",
        _record(lambda g, s, c, d, m: s),
    ),
    Task(
        "records",
        "date",
        "Extract the date from the record of a person as MM-DD.",
        _record(lambda g, s, c, d, m: f"{m:02d}-{d:02d}"),
    ),
    Task(
        "records",
        "upper",
        "Extract the city from the record of a person in capitals.",
        _record(lambda g, s, c, d, m: c.upper()),
    ),
    Task(
        "records",
        "filed",
        "Extract the name from the record of a person, surname first.",
        _record(lambda g, s, c, d, m: f"{s}, {g}"),
    ),
    Task(
        "records",
        "given",
        "Extract the given name from the record of a person.",
        _record(lambda g, s, c, d, m: g),
        False,
    ),
    Task(
        "counting", "hashes", "Count how often # occurs in this row of signs.", _row(lambda r: r.count("#"))
    ),
    Task("counting", "ats", "Count how often @ occurs in this row of signs.", _row(lambda r: r.count("@"))),
    Task("counting", "length", "Count how many signs this row of signs has.", _row(len)),
    Task(
        "counting", "kinds", "Count how many kinds of signs occur in this row.", _row(lambda r: len(set(r)))
    ),
    Task(
        "lumi",
        "phrase",
        "Translate the animal phrase into Lumi.",
        _lumi(lambda n, a, v: (f"the {a} {n} {v}", f"{NOUNS[n]} {ADJECTIVES[a]} {VERBS[v]}")),
    ),
    Task(
        "lumi",
        "english",
        "Translate the animal phrase from Lumi.",
        _lumi(lambda n, a, v: (f"{NOUNS[n]} {ADJECTIVES[a]} {VERBS[v]}", f"the {a} {n} {v}")),
    ),
    Task(
        "lumi",
        "denial",
        'Translate the animal phrase into Lumi, denied with "ne".',
        _lumi(lambda n, a, v: (f"the {a} {n} {v}", f"{NOUNS[n]} {ADJECTIVES[a]} ne {VERBS[v]}")),
    ),
    Task(
        "lumi",
        "question",
        'Translate the animal phrase into Lumi, asked with "ka".',
        _lumi(lambda n, a, v: (f"the {a} {n} {v}", f"ka {NOUNS[n]} {ADJECTIVES[a]} {VERBS[v]}")),
    ),
    Task(
        "grammar", "agreement", "Choose the correct sentence, A or B: subject and verb.", _choice(_agreement)
    ),
    Task("grammar", "article", "Choose the correct sentence, A or B: a or an.", _choice(_article)),
    Task("grammar", "be", "Choose the correct sentence, A or B: forms of be.", _choice(_be)),
    Task("grammar", "order", "Choose the correct sentence, A or B: word order.", _choice(_order)),
    Task("grammar", "have", "Choose the correct sentence, A or B: forms of have.", _choice(_have)),
)


def style(task: Task, answer: str) -> str:
    return STYLES[task.family].format(answer)


def stream(task: Task, rng: random.Random) -> Iterator[Example]:
    while True:
        text, answer = task.draw(rng)
        yield Example(task.prompt(text), answer)


def split(task: Task, seed: int) -> tuple[list[Example], list[Example]]:
    """Train and test examples; all prompts differ, so no test example is in the training split."""
    drawn: dict[str, Example] = {}
    wanted = TRAIN_EXAMPLES + TEST_EXAMPLES
    for tries, example in enumerate(stream(task, random.Random(f"{seed}:{task.name}"))):
        drawn.setdefault(example.prompt, example)
        if len(drawn) == wanted:
            break
        if tries > 100 * wanted:
            raise ValueError(f"{task.name}: only {len(drawn)} different prompts, {wanted} wanted; add words")
    examples = list(drawn.values())
    return examples[:TRAIN_EXAMPLES], examples[TRAIN_EXAMPLES:]


def jsonl(task: Task, part: str, examples: list[Example]) -> str:
    rows = (
        {"id": f"{part}-{i}", "input": example.prompt, "output": [style(task, example.answer)]}
        for i, example in enumerate(examples)
    )
    return "".join(json.dumps(row) + "\n" for row in rows)


def dataset_folder(out: Path, task: Task) -> Path:
    return out / "bank" / "datasets" / task.name if task.in_bank else out / "new" / task.name


def write_datasets(out: Path, seed: int) -> None:
    for task in TASKS:
        folder = dataset_folder(out, task)
        folder.mkdir(parents=True, exist_ok=True)
        for part, examples in zip(("train", "test"), split(task, seed), strict=True):
            (folder / f"{part}.jsonl").write_text(jsonl(task, part, examples), encoding="utf-8", newline="\n")
