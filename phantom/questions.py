"""What is asked about a phantom scene, in which words, and what ten annotators answer.

Wherever the image decides, the answer is uniform given the words of the question (a fair coin for
yes and no), so the words alone are worth no more than a guess. There is one exception on purpose:
each kind of vehicle has a usual cause for having stopped, so the words of a *why* question alone
answer seven in ten. The controls of each family need no image at all.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from phantom.sprites import ANIMALS, CATEGORIES, CAUSES, COLORS, ITEMS, PEOPLE, VEHICLES

if TYPE_CHECKING:
    from phantom.scenes import Scene, SceneObject

QUADRANTS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("1", "2", "3", "4")
YES_NO = ("yes", "no")
CONTROL_SHARE = 0.15  # of the questions of a family
FAMILIES = ("what", "what color", "where", "why", "how many", "who", "is/are")

# What can be asked in which words: wordings that models are trained on, and wordings that only
# validation uses. New wordings put known words together anew.
WORDINGS = {
    "what/animal": (
        ("What animal is in the picture?", "What kind of animal is this?"),
        ("What kind of animal is in the picture?", "What animal is this?"),
    ),
    "what/vehicle": (
        ("What kind of vehicle is this?", "What type of vehicle is in the picture?"),
        ("What vehicle is in the picture?", "What type of vehicle is this?"),
    ),
    "what/item": (
        ("What is the {name} holding?", "What is in the hand of the {name}?"),
        ("What is the {name} in the picture holding?", "What is the {name} holding in the hand?"),
    ),
    "what/control": (
        ("What is a {name}?", "What kind of thing is a {name}?"),
        ("What type of thing is a {name}?", "What is any {name}?"),
    ),
    "what color/one": (
        ("What color is the {name}?", "What is the color of the {name}?"),
        ("What color is the {name} in the picture?", "What color does the {name} have?"),
    ),
    "what color/many": (
        ("What color are the {names}?", "What is the color of the {names}?"),
        ("What color are the {names} in the picture?", "What color do the {names} have?"),
    ),
    "what color/control": (
        ("What color is {name}?",),
        ("What color is {name} in the picture?",),
    ),
    "where/object": (
        (
            "Where is the {name}?",
            "Where is the {name} in the picture?",
            "Where is the {name} placed?",
            "Where is the {name} shown in this photo?",
        ),
        (
            "Where is the {name} shown?",
            "Where is the {name} placed in the picture?",
            "Where is the {name} in this photo?",
            "Where is the {name} in this picture?",
        ),
    ),
    "where/control": (("Where is the home of a {name}?",), ("Where is the home of the {name}?",)),
    "why/vehicle": (
        (
            "Why is the {name} stopped?",
            "Why is the {name} not moving?",
            "Why has the {name} stopped?",
            "Why is this {name} standing still?",
        ),
        (
            "Why is this {name} stopped?",
            "Why is the {name} standing still?",
            "Why is the {name} in the picture not moving?",
            "Why has this {name} stopped?",
        ),
    ),
    "why/control": (
        ("Why do people {name}?",),
        ("Why do people {name} in the picture?",),
    ),
    "how many/people": (
        ("How many people are in the picture?", "How many people are there?"),
        ("How many people are shown in this photo?", "How many people can you see?"),
    ),
    "how many/objects": (
        ("How many {names} are there?", "How many {names} are in the picture?"),
        ("How many {names} can you see?", "How many {names} are shown in this photo?"),
    ),
    "how many/control": (
        ("How many {name} does a {owner} have?",),
        ("How many {name} does any {owner} have?",),
    ),
    "who/item": (
        (
            "Who is holding the {name}?",
            "Who is the person with the {name}?",
            "Who is it that has the {name}?",
            "Who is standing there with the {name}?",
        ),
        (
            "Who is the person holding the {name}?",
            "Who is it that is holding the {name}?",
            "Who is standing with the {name} in the picture?",
            "Who is the person that has the {name}?",
        ),
    ),
    "who/control": (("Who is it that {name}?",), ("Who is the person that {name}?",)),
    "is/are/presence": (
        ("Is there a {name}?", "Are there any {names}?", "Can you see a {name}?"),
        (
            "Is there a {name} in the picture?",
            "Are there any {names} shown?",
            "Can you see any {names}?",
        ),
    ),
    "is/are/color": (
        ("Is the {name} {color}?", "Is the color of the {name} {color}?"),
        ("Is the {name} in the picture {color}?", "Does the {name} have the color {color}?"),
    ),
    "is/are/control": (("Is a {name}?",), ("Is any {name}?",)),
}

COLOR_OF = {
    "a ripe banana": "yellow", "fresh grass": "green", "coal": "black", "ocean water": "blue",
    "a ripe tomato": "red", "grape juice": "purple",
}  # fmt: skip
HOME_OF = {
    "fish": "water", "whale": "water", "horse": "farm", "pig": "farm",
    "star": "sky", "cloud": "sky", "lion": "jungle", "monkey": "jungle",
}  # fmt: skip
REASON_TO = {
    "eat": "hunger", "cook": "hunger", "drink": "thirst", "sip": "thirst",
    "sleep": "fatigue", "rest": "fatigue", "shiver": "cold", "wear coats": "cold",
}  # fmt: skip
NUMBER_OF = {
    ("noses", "dog"): "1", ("wheels", "unicycle"): "1", ("legs", "bird"): "2",
    ("wheels", "bicycle"): "2", ("sides", "triangle"): "3", ("wheels", "tricycle"): "3",
    ("legs", "cow"): "4", ("wheels", "car"): "4",
}  # fmt: skip
PERSON_WHO = {
    "cooks the food": "chef", "grows the food": "farmer", "heals the sick": "nurse",
    "jokes": "clown",
}  # fmt: skip


@dataclass(frozen=True)
class Question:
    """A question with its truth: the answer, other choices, whether the image decides, where.

    wording: which of WORDINGS it is put in, for example "why/vehicle/5"; new_wording: no model is
    trained on that one.
    """

    question: str
    answer: str
    choices: tuple[str, ...]
    wording: str
    new_wording: bool
    needs_image: bool
    boxes: list[list[int]]


@dataclass(frozen=True)
class Candidate:
    """What could be asked, without its words: a subject of WORDINGS, what to name, the truth."""

    subject: str
    answer: str
    choices: Iterable[str]
    things: Sequence[SceneObject] = ()  # what the question is about
    names: dict[str, str] = field(default_factory=dict)
    needs_image: bool = True

    def word(self, number: int) -> Question:
        """The question in the subject's wording of this number, trained ones first."""
        trained, new = WORDINGS[self.subject]
        text = (*trained, *new)[number].format(**self.names)
        known = f"{self.subject}/{number}", bool(number >= len(trained)), self.needs_image
        boxes = [thing.box for thing in self.things]
        return Question(text, self.answer, tuple(self.choices), *known, boxes)


def ask_questions(scene: Scene, rng: np.random.Generator, new: bool = False) -> list[Question]:
    """Ask at most one question of each family about a scene, in the order of FAMILIES.

    About one in seven is a control. new: whether new wordings are used as well as trained ones.
    """
    about_scene = list_candidates(scene, rng)
    controls = list_controls()
    asked = []
    for family in FAMILIES:
        candidates = (controls if rng.random() < CONTROL_SHARE else about_scene)[family]
        if candidates:
            chosen = candidates[rng.integers(len(candidates))]
            trained, others = WORDINGS[chosen.subject]
            asked.append(chosen.word(rng.integers(len(trained) + new * len(others))))
    return asked


@cache
def list_controls() -> dict[str, list[Candidate]]:
    """Questions whose answer is in the words, by family: other images must not matter."""
    categories = {"animal": ANIMALS, "vehicle": VEHICLES, "person": PEOPLE}
    others = {"animal": "vehicle", "vehicle": "person", "person": "animal"}
    kinds = [(kind, name) for name, members in categories.items() for kind in members]
    article = {"animal": "an animal", "vehicle": "a vehicle", "person": "a person"}
    true = {f"{kind} {article[name]}": "yes" for kind, name in kinds}
    false = {f"{kind} {article[others[name]]}": "no" for kind, name in kinds}
    rows = {
        "what": (tuple(categories), dict(kinds)),
        "what color": (tuple(COLORS), COLOR_OF),
        "where": (("water", "farm", "sky", "jungle"), HOME_OF),
        "why": (("hunger", "thirst", "fatigue", "cold"), REASON_TO),
        "how many": (NUMBERS, NUMBER_OF),
        "who": (tuple(PEOPLE), PERSON_WHO),
        "is/are": (YES_NO, true | false),
    }
    listed: dict[str, list[Candidate]] = {}
    for family, (choices, answers) in rows.items():
        for key, answer in answers.items():
            pair = key if isinstance(key, tuple) else (key, "")
            names = dict(zip(("name", "owner"), pair, strict=True))
            control = Candidate(f"{family}/control", answer, choices, (), names, False)
            listed.setdefault(family, []).append(control)
    return listed


def list_candidates(scene: Scene, rng: np.random.Generator) -> dict[str, list[Candidate]]:
    """Everything that can be asked about a scene and has one answer, by family."""
    listed: dict[str, list[Candidate]] = {family: [] for family in FAMILIES}
    for ask in (_ask_categories, _ask_people, _ask_groups, _ask_presence, _ask_traffic):
        for candidate in ask(scene, rng):
            listed[candidate.subject.rpartition("/")[0]].append(candidate)
    return listed


def _ask_categories(scene: Scene, _: np.random.Generator) -> Iterator[Candidate]:
    for name, choices in (("animal", ANIMALS), ("vehicle", VEHICLES)):
        members = [thing for thing in scene.objects if thing.category == name]
        if len({thing.kind for thing in members}) == 1:
            yield Candidate(f"what/{name}", members[0].kind, choices, members)


def _ask_people(scene: Scene, _: np.random.Generator) -> Iterator[Candidate]:
    people = [thing for thing in scene.objects if thing.category == "person"]
    if people:
        yield Candidate("how many/people", str(len(people)), NUMBERS, people)
    for person in people:
        if person.item:
            yield Candidate("what/item", person.item, ITEMS, [person], {"name": person.kind})
            yield Candidate("who/item", person.kind, PEOPLE, [person], {"name": person.item})


def _ask_groups(scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    """About what looks alike: its colour, its number, and where it is if it stands alone.

    Beside others of its kind it is named by its size or colour, "the large ball".
    """
    groups = _group(scene.objects, lambda thing: (thing.kind, thing.color, thing.span))
    n_groups = Counter(kind for kind, *_ in groups)
    for (kind, color, span), things in groups.items():
        alone, unique = len(things) == 1, n_groups[kind] == 1
        sized = kind if unique else f"{('small', 'large')[span - 1]} {kind}"
        named = kind if unique else f"{color} {kind}"
        if color:
            subject = f"what color/{'one' if alone else 'many'}"
            names = {"name": sized, "names": _plural(sized)}
            yield Candidate(subject, color, COLORS, things, names)
        if things[0].counted:
            names = {"names": _plural(named)}
            yield Candidate("how many/objects", str(len(things)), NUMBERS, things, names)
        place = scene.quadrant(things[0])
        if alone and place is not None and things[0].category in ("thing", "animal", "person"):
            names = {"name": (sized, named)[rng.integers(2)]}
            yield Candidate("where/object", QUADRANTS[place], QUADRANTS, things, names)
        if alone and color:
            other = str(rng.choice([name for name in COLORS if name != color]))
            answer = YES_NO[rng.integers(2)]
            names = {"name": sized, "color": color if answer == "yes" else other}
            yield Candidate("is/are/color", answer, YES_NO, things, names)


def _ask_presence(scene: Scene, rng: np.random.Generator) -> Iterator[Candidate]:
    """Toss a coin for the answer; an absent kind is of a category that is present."""
    kinds = _group(scene.objects, lambda thing: thing.kind)
    for members in CATEGORIES.values():
        present = [kind for kind in members if kind in kinds]
        absent = [kind for kind in members if kind not in kinds]
        if present and absent:
            answer = YES_NO[rng.integers(2)]
            kind = str(rng.choice(present if answer == "yes" else absent))
            names = {"name": kind, "names": _plural(kind)}
            yield Candidate("is/are/presence", answer, YES_NO, kinds.get(kind, []), names)


def _ask_traffic(scene: Scene, _: np.random.Generator) -> Iterator[Candidate]:
    stopped = [thing for thing in scene.objects if thing.category in ("vehicle", "cause")][:2]
    if len(stopped) == 2:
        names = {"name": stopped[0].kind}
        yield Candidate("why/vehicle", stopped[1].kind, CAUSES, stopped, names)


def collect_answers(asked: Question, rng: np.random.Generator) -> dict:
    """Let ten annotators answer: a question's annotation as in VQAv2's files, without ids and type.

    Each question has its own difficulty; at most four annotators err, so the truth scores 1.
    """
    wrong = [choice for choice in asked.choices if choice != asked.answer]
    errors = min(4, rng.binomial(10, rng.beta(1, 8)))
    spoken = [asked.answer] * (10 - errors) + [str(rng.choice(wrong)) for _ in range(errors)]
    answers = []
    for number, answer in enumerate(rng.permutation(spoken).tolist(), 1):
        sure = "yes" if answer == asked.answer else str(rng.choice(["maybe", "no"]))
        answers.append({"answer": answer, "answer_confidence": sure, "answer_id": number})
    kind = {YES_NO: "yes/no", NUMBERS: "number"}.get(asked.choices, "other")
    return {
        "answer_type": kind,
        "multiple_choice_answer": asked.answer,
        "answers": answers,
    }


def _group(things: Sequence[SceneObject], key: Callable) -> dict[Any, list[SceneObject]]:
    groups: dict[Any, list[SceneObject]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups


def _plural(name: str) -> str:
    return name.removesuffix("bus") + "buses" if name.endswith("bus") else name + "s"
